//! A running machine's way to its end, followed by a thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::board::Board;
use super::life::Life;
use super::streams::Pumps;
use super::templates::Unlearned;
use super::{MicroVmError, PATIENCE};
use crate::sandbox::cgroup::Cgroup;
use crate::spec::{Exit, Moments, Outcome};

/// Stack of the thread: it hears messages, and decodes them on the heap.
const STACK: usize = 256 << 10;

/// What the thread has.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) life: Life,
    pub(super) pumps: Pumps,
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) moments: Arc<Mutex<Moments>>,
    pub(super) board: Arc<Board>,
    /// What may be learned of its template at the command's end: from which process, and since when the command runs.
    pub(super) unlearned: Option<(Unlearned, OwnedFd, Instant)>,
}

/// The end, for those who wait for it.
#[derive(Debug, Default)]
pub(super) struct End {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    /// The monitor's process is gone.
    gone: bool,
    /// All is with the caller.
    outcome: Option<Result<Outcome, MicroVmError>>,
}

impl Course {
    /// Starts the thread.
    pub(super) fn follow(mut self, end: Arc<End>) -> io::Result<()> {
        let body = move || {
            let ended = self.run_out();
            let gone = self.life.end(PATIENCE);
            self.board.end();
            end.tell(|told| told.gone = gone);
            self.pumps.flush();
            self.pumps.stop();
            let host_oom = self.cgroup.oom_kills().is_some_and(|kills| kills > 0);
            end.tell(|told| told.outcome = Some(ended.map(|()| self.life.outcome(host_oom))));
        };
        std::thread::Builder::new().name("duplex-course".to_owned()).stack_size(STACK).spawn(body).map(drop)
    }

    fn run_out(&mut self) -> Result<(), MicroVmError> {
        self.life.until_ended(&self.moments)?;
        if self.life.command_has_ended() {
            self.pumps.flush();
            if let Some((unlearned, monitor, began)) = self.unlearned.take() {
                unlearned.learn_again(began, monitor.as_fd());
            }
        }
        self.life.until_gone(&self.moments, PATIENCE)
    }
}

impl End {
    fn lock(&self) -> MutexGuard<'_, Told> {
        // What has been told is whole after every statement.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, tell: impl FnOnce(&mut Told)) {
        tell(&mut self.lock());
        self.changed.notify_all();
    }

    /// The command has ended and all its output is with the caller.
    pub(super) fn has_come(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// Waits for it. Answers the same when asked again; a failure is told once, with all that is known of it.
    pub(super) fn wait(&self) -> Result<Outcome, MicroVmError> {
        let told = self.lock();
        let mut told = self.changed.wait_while(told, |t| t.outcome.is_none()).unwrap_or_else(PoisonError::into_inner);
        let after_failure = || Outcome { exit: Exit::SandboxFailed, oom: false, reason: None };
        match told.outcome.take() {
            Some(Ok(outcome)) => {
                told.outcome = Some(Ok(outcome.clone()));
                Ok(outcome)
            }
            Some(Err(error)) => {
                told.outcome = Some(Ok(after_failure()));
                Err(error)
            }
            None => Ok(after_failure()),
        }
    }

    /// Waits until the monitor is gone. False if the kernel does not let it go in time.
    pub(super) fn wait_gone(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut told = self.lock();
        // Told as not gone together with the end: it stays so.
        while !told.gone && told.outcome.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            told = self.changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        told.gone
    }
}
