//! The emulated KVM host for machines without usable KVM.
//!
//! ```text
//! duplex ... --unix socket--> keeper --virtio-serial--> agent, in QEMU (TCG, AMD SVM, Debian's cloud kernel)
//!   session.rs                keeper/                   inside/   --fork--> the command
//! ```
//!
//! One lab runs per state folder. The keeper owns QEMU and two virtiofsd; all end with it. Inside:
//!
//! | path | what it is |
//! |---|---|
//! | `/` | this machine's root under an overlay: read as it was at first sight, writes vanish with the lab |
//! | each command's working folder, store, program folder and what its caller names | this machine's own, written through and read fresh |
//! | `/host` | this machine's whole tree, live |
//! | `/run`, `/tmp`, `/dev/shm` | the lab's own, in memory |
//!
//! Two file servers make the difference: one lets the lab cache for a day (programs and libraries, which are many and rarely change), the
//! other makes it ask at every look-up and keep file contents only while their time stamp stands.

mod client;
mod frame;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod inside;
mod keeper;
mod kernel;
mod leftovers;
mod machine;
mod message;
mod session;
mod window;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use client::{LabError, Reported, Started, start, status, stop};
pub use frame::FrameError;
pub use inside::shares;
pub use message::Size;
pub use session::{Command, RunError, Stdio, run};

/// Where a lab keeps its things on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The lab's kernel, fetched once; worth caching between runs of a CI.
    pub kernel: PathBuf,
    /// Lock, socket and logs of the running lab.
    pub state: PathBuf,
}

/// What a lab is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Where it keeps its things.
    pub places: Places,
    /// The `duplex` program: keeper outside and agent inside.
    pub program: PathBuf,
    /// Folders where other programs are looked up, in order: the caller's `PATH`.
    pub search: Vec<PathBuf>,
    /// Memory in MiB; `None` takes 6 GiB, or half of what is free where that is less.
    pub memory_mib: Option<u32>,
    /// The lab stops after this long without a command.
    pub idle: Duration,
}

/// Time without a command after which a lab stops by itself, unless told otherwise.
pub const IDLE: Duration = Duration::from_secs(15 * 60);

/// A running lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Process id of the keeper.
    pub pid: u32,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// Seconds without a command; `None` while one runs.
    pub idle_s: Option<u64>,
    /// Seconds of idleness after which it stops.
    pub idle_limit_s: u64,
    /// Memory the lab was given, MiB.
    pub memory_mib: u32,
    /// Memory it has taken from this machine so far (resident), bytes.
    pub memory_used_bytes: Option<u64>,
    /// The emulated processor, in words.
    pub cpu: String,
    /// Release of the lab's kernel.
    pub kernel: String,
    /// The commands that run.
    pub commands: Vec<RunningCommand>,
}

/// A command that runs in the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningCommand {
    /// Its number.
    pub id: u32,
    /// Its words; bytes that are no text are replaced.
    pub argv: Vec<String>,
    /// Seconds since it was handed over.
    pub running_s: u64,
}

/// The mark that the lab sets in the environment of what runs in it.
pub const MARK: &str = "DUPLEX_IN_LAB";

/// Word on the lab's kernel command line.
const KERNEL_MARK: &str = "duplex.lab";

/// This program runs in a lab.
pub fn inside() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|word| word == KERNEL_MARK))
}

/// Runs one of the lab's own programs if `args` (the words after the program's name) ask for it: the keeper, or what boots inside. The
/// exit code if so. No person types these.
pub fn hidden_verb(args: &[OsString]) -> Option<u8> {
    match (args.first()?.to_str()?, args.get(1)) {
        (keeper::VERB, Some(settings)) => Some(keeper::main(settings)),
        (inside::VERB, Some(boot)) => Some(inside::main(boot)),
        _ => None,
    }
}
