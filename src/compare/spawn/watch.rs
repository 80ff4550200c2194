//! Watches one child from outside: its two pipes and its end, with times.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use sha2::{Digest as _, Sha256};

use super::super::agree::{Captured, Deed, KEPT};
use super::super::runner::RunnerError;
use crate::spec::{Digest, Moment, Moments};
use crate::sys::clock::monotonic_ns;

/// How long a child that was asked to end has before it is asked again; `duplex run` kills its sandbox at the third time.
const GRACE: Duration = Duration::from_secs(2);
/// How long its pipes may stay open behind its end.
const LINGERING: Duration = Duration::from_secs(2);

/// What was seen of a child that has ended.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    /// What it did.
    pub deed: Deed,
    first_byte: Option<u64>,
    gone: u64,
}

impl Watched {
    /// Its own moments and those seen from outside.
    pub(super) fn moments(&self, exec: u64, own: &Moments) -> Moments {
        let mut moments = Moments::default();
        moments.note(Moment::Exec, exec);
        own.0.iter().for_each(|(moment, at)| moments.note(*moment, *at));
        if let Some(at) = self.first_byte {
            moments.note(Moment::FirstByte, at);
        }
        moments.note(Moment::Gone, self.gone);
        moments
    }
}

/// One pipe of the child.
struct Pipe<R> {
    from: Option<R>,
    head: Vec<u8>,
    len: u64,
    hash: Sha256,
}

impl<R: io::Read> Pipe<R> {
    fn new(from: Option<R>) -> Self {
        Self { from, head: Vec::new(), len: 0, hash: Sha256::new() }
    }

    /// Takes what is there; forgets the pipe at its end.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(from) = &mut self.from else { return Ok(()) };
        let read = match from.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            self.from = None;
        }
        self.len = self.len.saturating_add(bytes.len() as u64);
        self.hash.update(bytes);
        let room = KEPT.saturating_sub(self.head.len());
        self.head.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
        Ok(())
    }

    fn captured(self) -> Captured {
        Captured { head: self.head, len: self.len, sha256: Digest::from_sha256(self.hash.finalize().into()) }
    }
}

/// Reads the child's output to its end and waits for it; calls the sampler between. A child that takes longer than `timeout` is ended.
pub(super) fn watch(
    child: &mut Child,
    timeout: Duration,
    mut sampling: Option<(Duration, &mut dyn FnMut())>,
    before_reaping: impl FnOnce(),
) -> Result<Watched, RunnerError> {
    let io = |operation| move |source: rustix::io::Errno| RunnerError::Watch { operation, source: source.into() };
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).map_err(io("open a pidfd"))?;
    let mut out = Pipe::new(child.stdout.take());
    let mut err = Pipe::new(child.stderr.take());
    let mut buffer = vec![0; 64 << 10];
    let deadline = Instant::now() + timeout;
    let mut first_byte = None;
    let mut gone: Option<(u64, Instant)> = None;
    let mut reaping = Some(before_reaping);
    while gone.is_none() || out.from.is_some() || err.from.is_some() {
        let until = gone.map_or(deadline, |(_, at)| at + LINGERING);
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if let Some(note) = reaping.take() {
                note();
            }
            stop(child);
            return Err(match gone {
                None => RunnerError::Timeout { seconds: timeout.as_secs() },
                Some(_) => RunnerError::Lingering { exit_code: exit_code(child).map_err(io("wait for the end"))? },
            });
        }
        let wait = sampling.as_ref().map_or(left, |(pause, _)| left.min(*pause));
        let ready = wait_for(
            &[
                out.from.as_ref().map(AsFd::as_fd),
                err.from.as_ref().map(AsFd::as_fd),
                gone.is_none().then(|| ended.as_fd()),
            ],
            wait,
        )
        .map_err(io("poll the output"))?;
        let now = monotonic_ns();
        if ready[0] {
            out.take(&mut buffer).map_err(|source| RunnerError::Watch { operation: "read the output", source })?;
            if out.len > 0 && first_byte.is_none() {
                first_byte = Some(now);
            }
        }
        if ready[1] {
            err.take(&mut buffer).map_err(|source| RunnerError::Watch { operation: "read the errors", source })?;
        }
        if ready[2] {
            gone = Some((now, Instant::now()));
        }
        if let (Some((_, sample)), None) = (&mut sampling, gone) {
            sample();
        }
    }
    if let Some(note) = reaping.take() {
        note();
    }
    let exit_code = exit_code(child).map_err(io("wait for the end"))?;
    let deed = Deed { exit_code, stdout: out.captured(), stderr: err.captured() };
    Ok(Watched { deed, first_byte, gone: gone.map_or(0, |(at, _)| at) })
}

/// Which of these can be read, or has ended, within this time.
fn wait_for(fds: &[Option<BorrowedFd<'_>>; 3], time: Duration) -> rustix::io::Result<[bool; 3]> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let time =
        Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() };
    match poll(&mut polled, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e),
    }
    let mut answers = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(fds.each_ref().map(|fd| fd.is_some() && answers.next().unwrap_or(false)))
}

fn exit_code(child: &mut Child) -> rustix::io::Result<u8> {
    let status = child.wait().map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::CHILD))?;
    let code = status.code().or_else(|| status.signal().map(|s| s.saturating_add(128))).unwrap_or(255);
    Ok(u8::try_from(code).unwrap_or(255))
}

/// Ends the child: asks, three times, then kills.
pub(super) fn stop(child: &mut Child) {
    for _ in 0..3 {
        let _ = kill_process(Pid::from_child(child), Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Ok(Some(_)) | Err(_) = child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads this many bytes, or fewer if the stream ends or the time is over.
pub(super) fn read_exactly(from: Option<BorrowedFd<'_>>, len: usize, timeout: Duration) -> io::Result<Vec<u8>> {
    let Some(from) = from else { return Ok(Vec::new()) };
    let deadline = Instant::now() + timeout;
    let mut found = Vec::new();
    while found.len() < len {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait_for(&[Some(from), None, None], left)?[0] {
            break;
        }
        let mut buffer = vec![0; len - found.len()];
        let read = rustix::io::read(from, &mut buffer)?;
        if read == 0 {
            break;
        }
        found.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    Ok(found)
}
