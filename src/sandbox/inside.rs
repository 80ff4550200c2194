//! What can be done inside a running sandbox, beside its command.

use std::fs::File;
use std::io;

use super::{Remote, SandboxError, Stdio};
use crate::spec::{LimitChange, MachineSize, Outcome, ProcessEntry, ProcessSpec, Stats, Transfer};

/// Reaches into one sandbox from any thread, while another waits for its end. Every method fails with a [`Refusal`] as the cause when the
/// sandbox is not in the state for it.
pub trait Inside: Send + Sync + std::fmt::Debug {
    /// Runs a further command beside the sandbox's own: in its namespaces and limits, with the user, folder, environment and privileges that
    /// `process` names. Its folder must be there. Returns when the command has been executed or could not be: why not is then its outcome.
    fn exec(&self, process: &ProcessSpec, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError>;

    /// Copies files out of the sandbox or into it, as its own processes see them, without a program of its image. `stdout` gives a tar stream
    /// (`Out`) or `stdin` takes one of [`duplex_copy::Writer`]'s (`In`); `stderr` gets a line about what went wrong or was left out. Ends with
    /// exit code 0, or another for a failure: what came before that has been copied.
    fn copy(&self, transfer: &Transfer, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError>;

    /// Stops all its processes, or its whole machine, where they are. Its clocks go on.
    fn pause(&self) -> Result<(), SandboxError>;

    /// Lets them go on.
    fn unpause(&self) -> Result<(), SandboxError>;

    /// Its processes, by their numbers inside. A paused microVM cannot be asked and refuses; a paused container answers.
    fn processes(&self) -> Result<Vec<ProcessEntry>, SandboxError>;

    /// Changes its limits. A microVM's machine stays as large as it is: what is above that is refused, and a paused one cannot be asked for
    /// less memory or other processes.
    fn change(&self, change: &LimitChange) -> Result<(), SandboxError>;

    /// What it uses. A paused microVM tells only what it costs the host.
    fn stats(&self) -> Result<Stats, SandboxError>;

    /// Saves it, where that can be done.
    fn saving(&self) -> Option<&dyn Saving> {
        None
    }
}

/// Saves a sandbox that runs, so that others may go on from where it stood ([`crate::spec::SandboxSpec::from`]).
pub trait Saving {
    /// Writes its machine to an empty file, and then calls `copy_disks`: neither memory nor disks change meanwhile. Its processes go on however this
    /// ends. Returns the size of the machine.
    fn save(&self, file: &File, copy_disks: &dyn Fn() -> io::Result<()>) -> Result<MachineSize, SandboxError>;
}

/// A further command. It ends by itself, by a signal, or with its sandbox (then as by SIGKILL). Dropping it kills it.
pub trait Exec: Send + std::fmt::Debug {
    /// Sends it signals and sizes. SIGKILL ends this command alone.
    fn remote(&self) -> Box<dyn Remote>;

    /// How it ended, if it has.
    fn ended(&self) -> Option<Outcome>;

    /// Waits until it has ended and what it wrote before that is with the caller. What processes that it left behind write later is not
    /// waited for, and lost. May be called again and answers the same.
    fn wait(&mut self) -> Result<Outcome, SandboxError>;
}

/// Why nothing can be done inside now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has not been started, or has ended.
    #[error("It is not running")]
    NotRunning,
    /// It cannot do that while it is paused.
    #[error("It is paused: unpause it first")]
    Paused,
    /// There is nothing to pause.
    #[error("It is already paused")]
    AlreadyPaused,
    /// There is nothing to let go on.
    #[error("It is not paused")]
    NotPaused,
    /// So many further commands run in it that no more fit.
    #[error("{0} further commands run in it, which is the most")]
    TooMany(usize),
}
