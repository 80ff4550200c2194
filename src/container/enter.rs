//! A further process in a running container. The keeper has threads and a life of its own, so a helper, `duplex container-enter`, joins the
//! container's namespaces and makes the process there, as a child of the keeper and in the container's cgroup; then it ends.
//!
//! ```text
//! keeper                            container-enter                      the process
//!   | -- orders, descriptors -------> |  joins namespaces by pidfd
//!   |                                 | -- clone3, CLONE_PARENT ---------> |
//!   | <-- Made + pidfd -------------- |  ends                              |  user, privileges
//!   | <-- Terminal + master, Refused, or the end of the socket (execve) -- |
//! ```
//!
//! No state of an OCI runtime is needed, so it works in the containers of outside runtimes too. What the container could do to the two while
//! they are there: nothing traces or reads them (not dumpable), their program file is seen read-only (CVE-2019-5736), and no descriptor of
//! theirs leads out of the container (CVE-2024-21626).

mod helper;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use duplex_wire::{FailureKind, Task};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use super::execute::Refusal;
use super::launch;
use super::orders::{WireError, receive, send};
use crate::spec::Security;

pub use helper::main;

/// What the packet with the orders says: a packet without a byte would be the socket's end.
const ORDERS: u8 = b'O';

/// How long the process may take to be executed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the helper and the process report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    /// The process is there. With it comes its pidfd.
    Made,
    /// With it comes the master side of its terminal.
    Terminal,
    /// The command is not executed.
    Refused(FailureKind, String),
}

/// What became of it.
#[derive(Debug)]
pub enum Entered {
    /// It runs, as a child of this process, which has to wait for it as soon as it ends: the container's own end waits for that
    /// (pid_namespaces(7)).
    Running {
        /// A handle of it.
        process: OwnedFd,
        /// Master side of its terminal, if it has one.
        terminal: Option<OwnedFd>,
    },
    /// It was not executed.
    Refused(FailureKind, String),
}

/// Why a process cannot enter a container.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The helper cannot be started.
    #[error("Cannot start {program} container-enter")]
    Spawn {
        /// Path of our own program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The orders cannot be written.
    #[error("Cannot write the orders of container-enter")]
    Orders(#[source] io::Error),
    /// Its words are not understood.
    #[error("container-enter does not answer")]
    Wire(#[source] WireError),
    /// Nothing came in time.
    #[error("container-enter said nothing for {} s", PATIENCE.as_secs())]
    Silent,
    /// The container ended first.
    #[error("container-enter ended without a word: the container is ending")]
    Ended,
    /// The process cannot be waited for.
    #[error("Cannot wait for the process")]
    Wait(#[source] io::Error),
}

/// Makes the process in the container whose first process and cgroup folder are given. With the orders come the process's three streams, unless
/// it has a terminal. Returns when it has been executed or could not be; one that copies files executes nothing, runs at once, and is in the
/// container's mount namespace and cgroup alone: nobody inside sees it.
///
/// # Errors
/// Why neither; it is not there then.
pub fn enter(
    program: &Path,
    (task, security): (&Task, &Security),
    [first, cgroup]: [BorrowedFd<'_>; 2],
    stdio: Option<[OwnedFd; 3]>,
) -> Result<Entered, EnterError> {
    let spawn_failed = |source: io::Error| EnterError::Spawn { program: program.to_owned(), source };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| spawn_failed(e.into()))?;
    let helper = Helper(launch::spawn(program, "container-enter", theirs).map_err(spawn_failed)?);
    let memory = in_memory(&(task, security)).map_err(EnterError::Orders)?;
    let fixed = [memory.as_fd(), first, cgroup];
    let all: Vec<BorrowedFd<'_>> = fixed.into_iter().chain(stdio.iter().flatten().map(AsFd::as_fd)).collect();
    send(&ours, &ORDERS, &all).map_err(EnterError::Wire)?;
    drop(stdio);
    let mut made = Made::default();
    let heard = hear(&ours, &mut made, PATIENCE);
    drop(helper);
    match (heard, made.refusal.take()) {
        (Ok(()), None) => made.running(),
        (Ok(()), Some((kind, text))) => made.end().map(|()| Entered::Refused(kind, text)),
        (Err(error), _) => {
            // The helper is gone: what it made, it has told of.
            let _ = hear(&ours, &mut made, Duration::ZERO);
            let _ = made.end();
            Err(error)
        }
    }
}

/// What has come of the process.
#[derive(Default)]
struct Made {
    process: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    refusal: Option<Refusal>,
}

impl Made {
    fn running(self) -> Result<Entered, EnterError> {
        let process = self.process.ok_or(EnterError::Ended)?;
        Ok(Entered::Running { process, terminal: self.terminal })
    }

    /// Kills and reaps it.
    fn end(&mut self) -> Result<(), EnterError> {
        let Some(process) = self.process.take() else { return Ok(()) };
        let _ = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
        crate::sys::birth::reap(process.as_fd()).map(drop).map_err(EnterError::Wait)
    }
}

/// Listens until nobody is left who could speak. The process may be refused before the helper has told that it made it.
fn hear(socket: &OwnedFd, made: &mut Made, patience: Duration) -> Result<(), EnterError> {
    let deadline = Instant::now() + patience;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()));
        let left = left.unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(EnterError::Silent),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(EnterError::Wire(e.into())),
        }
        match receive::<Word>(socket) {
            Ok((Word::Made, descriptors)) => made.process = descriptors.into_iter().next(),
            Ok((Word::Terminal, descriptors)) => made.terminal = descriptors.into_iter().next(),
            Ok((Word::Refused(kind, text), _)) => made.refusal = Some((kind, text)),
            Err(WireError::Ended) => return Ok(()),
            Err(error) => return Err(EnterError::Wire(error)),
        }
    }
}

/// The helper, ended and reaped when dropped.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The orders in a file without a name: they may be longer than a packet.
fn in_memory(orders: &(&Task, &Security)) -> io::Result<File> {
    let bytes = postcard::to_stdvec(orders).map_err(io::Error::other)?;
    let mut file = File::from(memfd_create("duplex-orders", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file)
}

fn from_memory(file: OwnedFd) -> io::Result<(Task, Security)> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}
