//! The keeper's side: starts container-init and follows its container's life.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use duplex_wire::{Ending, FailureKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::orders::{Orders, Report, Request, WireError, receive, send, send_orders};

/// How long a container may take to be created or executed.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a failure that container-init reports looks like to its keeper: the error and its causes.
#[derive(Debug)]
pub struct Reported {
    text: String,
    cause: Option<Box<Reported>>,
}

/// Why a container cannot be made or followed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be started.
    #[error("Cannot start {program} container-init")]
    Spawn {
        /// Path of our own program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// container-init says why.
    #[error(transparent)]
    Reported(Reported),
    /// Its words are not understood, or it is gone.
    #[error("container-init does not answer")]
    Wire(#[source] WireError),
    /// Nothing came in time.
    #[error("container-init said nothing for {} s", PATIENCE.as_secs())]
    Silent,
    /// It says something that does not belong here.
    #[error("container-init sent an unexpected report: {0:?}")]
    Unexpected(Report),
}

/// A container and the process that keeps it. Dropping it ends both.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    wire: Wire,
    /// The container's first process.
    pub process: Arc<OwnedFd>,
    /// Master side of its terminal.
    pub terminal: Option<Arc<OwnedFd>>,
    /// When namespaces, mounts and cgroup stood, nanoseconds of CLOCK_MONOTONIC.
    pub created_at_ns: u64,
}

/// The way to container-init. Its end alone is not the end of the socket: what it has begun to make may have a copy.
#[derive(Debug)]
struct Wire {
    control: OwnedFd,
    /// Its pidfd.
    child: OwnedFd,
}

/// What became of a start, or of a creation that already knows the answer.
#[derive(Debug)]
pub enum Started {
    /// The command was executed at this time, nanoseconds of CLOCK_MONOTONIC.
    At(u64),
    /// It was not, for this reason.
    Not(FailureKind, String),
}

/// A created container, or the reason why its command cannot be executed at all.
#[derive(Debug)]
pub enum Creation {
    /// It waits for its start.
    Ready(Launched),
    /// It never will.
    Not(FailureKind, String),
}

/// Starts container-init with these orders and waits until the container stands. `stdio`, `namespaces` (what comes with the orders between the
/// streams and the mounts) and `pieces` are closed on our side.
///
/// # Errors
/// Why not; container-init and what it made are gone then.
pub fn create(
    program: &Path,
    orders: &Orders,
    stdio: [OwnedFd; 3],
    namespaces: Vec<OwnedFd>,
    pieces: Vec<OwnedFd>,
) -> Result<Creation, LaunchError> {
    let spawn_failed = |source: io::Error| LaunchError::Spawn { program: program.to_owned(), source };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| spawn_failed(e.into()))?;
    let child = spawn(program, "container-init", theirs).map_err(spawn_failed)?;
    let watched = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let mut ending = End(Some(child));
    let wire = Wire { control: ours, child: watched.map_err(|e| spawn_failed(e.into()))? };
    let descriptors: Vec<BorrowedFd<'_>> = stdio.iter().chain(&namespaces).chain(&pieces).map(AsFd::as_fd).collect();
    send_orders(&wire.control, orders, &descriptors).map_err(LaunchError::Wire)?;
    drop((stdio, namespaces, pieces));
    let (report, descriptors) = wire.next(Some(PATIENCE))?;
    let created_at_ns = match report {
        Report::Created { at_ns } => at_ns,
        Report::NotExecuted { kind, text } => return Ok(Creation::Not(kind, text)),
        other => return Err(unexpected(other)),
    };
    let mut descriptors = descriptors.into_iter().map(Arc::new);
    let process = descriptors.next().ok_or(LaunchError::Wire(WireError::Ended))?;
    let terminal = descriptors.next();
    let Some(child) = ending.0.take() else { return Err(LaunchError::Silent) };
    Ok(Creation::Ready(Launched { child, wire, process, terminal, created_at_ns }))
}

/// Our own program through a read-only view of it: what runs in the container can reach container-init's program file through `/proc`, and
/// must not be able to write it (CVE-2019-5736). `control` becomes its standard input.
pub(super) fn spawn(program: &Path, verb: &str, control: OwnedFd) -> io::Result<Child> {
    let view = crate::sys::mounts::read_only_view(program);
    let path = match &view {
        Ok(view) => PathBuf::from(format!("/proc/self/fd/{}", view.as_raw_fd())),
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => program.to_owned(),
        Err(e) => return Err(io::Error::new(e.kind(), format!("no read-only view of it: {e}"))),
    };
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(path);
    command.arg0("duplex").arg(verb).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::from(control)).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()
}

impl Launched {
    /// Executes the command; returns when that is done or has failed.
    ///
    /// # Errors
    /// What container-init reports, or its silence.
    pub fn start(&mut self) -> Result<Started, LaunchError> {
        send(&self.wire.control, &Request::Start, &[]).map_err(LaunchError::Wire)?;
        match self.wire.next(Some(PATIENCE))?.0 {
            Report::Started { at_ns } => Ok(Started::At(at_ns)),
            Report::NotExecuted { kind, text } => Ok(Started::Not(kind, text)),
            other => Err(unexpected(other)),
        }
    }

    /// Waits for the end of the command: how, and when in nanoseconds of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// What container-init reports, or its own end.
    pub fn wait(&mut self) -> Result<(Ending, u64), LaunchError> {
        match self.wire.next(None)?.0 {
            Report::Exited { ending, at_ns } => Ok((ending, at_ns)),
            other => Err(unexpected(other)),
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a child that nobody took over.
struct End(Option<Child>);

impl Drop for End {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// Its death kills the container's first process, and that one's death the whole process namespace.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Wire {
    /// The next report.
    fn next(&self, patience: Option<Duration>) -> Result<(Report, Vec<OwnedFd>), LaunchError> {
        let limit = patience.map(|p| Timespec { tv_sec: i64::try_from(p.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 });
        let readable = |limit: Option<&Timespec>| {
            let mut watched = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.child, PollFlags::IN)];
            let ready = rustix::io::retry_on_intr(|| poll(&mut watched, limit));
            let ready = ready.map_err(|e| LaunchError::Wire(e.into()))?;
            Ok::<_, LaunchError>((ready > 0).then(|| !watched[0].revents().is_empty()))
        };
        let spoken = match readable(limit.as_ref())? {
            None => return Err(LaunchError::Silent),
            Some(true) => true,
            // It has ended; its last words may have come meanwhile.
            Some(false) => readable(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?.unwrap_or(false),
        };
        if spoken {
            receive(&self.control).map_err(LaunchError::Wire)
        } else {
            Err(LaunchError::Wire(WireError::Ended))
        }
    }
}

fn unexpected(report: Report) -> LaunchError {
    match report {
        Report::Failed { causes } => LaunchError::Reported(Reported::of(causes)),
        other => LaunchError::Unexpected(other),
    }
}

impl Reported {
    fn of(causes: Vec<String>) -> Self {
        let chain = causes.into_iter().rev().fold(None, |cause, text| Some(Box::new(Self { text, cause })));
        chain.map_or_else(|| Self { text: "container-init failed without a word".to_owned(), cause: None }, |c| *c)
    }
}

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Reported {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|c| -> &(dyn std::error::Error + 'static) { c })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_process_is_heard_though_its_socket_is_held_open() {
        let (control, held) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let wire = Wire { control, child: pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap() };
        assert!(matches!(wire.next(Some(Duration::ZERO)), Err(LaunchError::Silent)));
        let last = Report::Started { at_ns: 1 };
        send(&held, &last, &[]).unwrap();
        end(&mut child);
        assert_eq!(wire.next(None).unwrap().0, last, "what it said before is heard first");
        assert!(matches!(wire.next(None), Err(LaunchError::Wire(WireError::Ended))));
    }
}
