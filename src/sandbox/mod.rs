//! The trait over both engines, and what of a sandbox survives on disk.

pub mod agent;
mod binds;
pub mod cgroup;
pub mod container;
pub mod fake;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod grip;
pub mod inside;
pub mod microvm;
mod names;
mod network;
pub mod posture;
mod relay;
pub mod roster;
mod session;
pub mod shelf;
mod signals;
pub mod snapshots;
mod users;

pub use inside::{Exec, Inside, Refusal, Saving};

use std::os::fd::OwnedFd;
use std::sync::Arc;

use duplex_wire::{Ending, FailureKind};

use crate::image::{Image, RootDisk};
use crate::spec::Usage;
use crate::spec::{Attachment, Digest, Exit, Isolation, Moments, Outcome, SandboxId, SandboxSpec, State, TerminalSize};

/// The command's standard streams on the host's side. With a terminal, `stdin` and `stdout` are the raw byte streams of the
/// sandbox's terminal and `stderr` stays unused.
#[derive(Debug)]
pub struct Stdio {
    /// Read by the sandbox; `None` is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Written by the sandbox.
    pub stdout: OwnedFd,
    /// Written by the sandbox.
    pub stderr: OwnedFd,
}

/// Where a backend finds the root disk of an image.
pub trait Images: Send + Sync + std::fmt::Debug {
    /// The pieces of this image's root disk; the backend opens them at once.
    fn root_disk(&self, image: &Digest) -> Result<RootDisk, Box<dyn std::error::Error + Send + Sync>>;
}

/// One resolved image: what a command runs, held by its caller's lease.
impl Images for Image {
    fn root_disk(&self, image: &Digest) -> Result<RootDisk, Box<dyn std::error::Error + Send + Sync>> {
        if *image == self.manifest {
            Ok(self.disk.clone())
        } else {
            Err(format!("The backend was made for the image {}, not for {image}", self.manifest).into())
        }
    }
}

/// Makes sandboxes of one isolation.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Which isolation.
    fn isolation(&self) -> Isolation;

    /// Takes every host resource that the sandbox needs, or none: after an error nothing is left. Nothing runs yet.
    fn create(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, SandboxError>;
}

/// One sandbox. Dropping it ends it and releases what it holds, as `remove` does, without a word about failures.
pub trait Sandbox: Send + std::fmt::Debug {
    /// Its identity.
    fn id(&self) -> &SandboxId;

    /// Where it is in its life.
    fn state(&self) -> State;

    /// Runs the command; returns when it has been executed or could not be.
    fn start(&mut self) -> Result<(), SandboxError>;

    /// A handle that sends signals and sizes while another thread waits.
    fn remote(&self) -> Box<dyn Remote>;

    /// A handle for what is done inside while it runs.
    fn inside(&self) -> Arc<dyn Inside>;

    /// Waits for the end. May be called again and answers the same.
    fn wait(&mut self) -> Result<Outcome, SandboxError>;

    /// What it uses now.
    fn usage(&self) -> Usage;

    /// How it is connected, from its creation on; `None` without a network of its own.
    fn network(&self) -> Option<Attachment>;

    /// The moments of its start so far.
    fn moments(&self) -> Moments;

    /// Ends it if it runs, and releases every host resource. What fails is told after all has been tried.
    fn remove(self: Box<Self>) -> Result<(), SandboxError>;
}

/// Reaches a running command from any thread.
pub trait Remote: Send + Sync {
    /// Sends the command's first process a signal. `SIGKILL` to a sandbox's own command always ends the sandbox, whatever state its insides
    /// are in.
    fn signal(&self, signal: u8) -> Result<(), SandboxError>;

    /// Sets the size of its terminal.
    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError>;
}

/// Why a sandbox could not do what it was asked. The source names the thing.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {operation} {isolation} {id}")]
pub struct SandboxError {
    /// The verb: create, start, signal ...
    pub operation: &'static str,
    /// The isolation.
    pub isolation: Isolation,
    /// The sandbox.
    pub id: SandboxId,
    /// What the engine says.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl SandboxError {
    /// Why nothing can be done inside now, if that is the reason.
    pub fn refusal(&self) -> Option<Refusal> {
        self.source.downcast_ref::<Refusal>().copied()
    }
}

/// How a process ended.
fn exit_of(ending: Ending) -> Exit {
    match ending {
        Ending::Code(code) => Exit::Code(code),
        Ending::Signal(signal) => Exit::Signal(signal),
    }
}

/// How a further command ends that was not executed. Docker has no code of its own for what is neither: it is 126.
fn exec_refused(kind: FailureKind, text: String) -> Outcome {
    let exit = match kind {
        FailureKind::NotFound => Exit::NotFound,
        FailureKind::CannotExecute | FailureKind::Other => Exit::CannotExecute,
    };
    Outcome { exit, oom: false, reason: Some(text) }
}
