//! Idle sandboxes that live together: children of `duplex run`, each with an echo that waits.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::meters::{MemorySample, Meter};
use super::super::plan::Arm;
use super::super::runner::{Crowd, Look, RunnerError};
use super::{EMBEDDED, Spawner, calm, watch};

/// How often each is pinged: the first time after a rest, then at once again.
const ROUNDS: usize = 3;
/// How long all of them have to end when somebody has asked for the end.
const HURRY: Duration = Duration::from_secs(10);

/// All that live of one arm.
pub(super) struct Idlers<'a> {
    spawner: &'a Spawner,
    arm: Arm,
    meter: Meter,
    members: Vec<(Child, OwnedFd)>,
}

impl<'a> Idlers<'a> {
    /// None yet.
    pub(super) fn new(spawner: &'a Spawner, arm: Arm) -> Self {
        Self { spawner, arm, meter: Meter::default(), members: Vec::new() }
    }

    fn is_interrupted(&self) -> bool {
        self.spawner.interrupt.asked.load(Ordering::SeqCst)
    }

    fn sample(&self) -> Option<MemorySample> {
        let mut sum = MemorySample::default();
        for (child, _) in &self.members {
            // A sum without one of them would be that of fewer.
            sum = sum.and(self.meter.sample(child.id())?);
        }
        (!self.members.is_empty()).then_some(sum)
    }

    /// How long this one takes to answer.
    fn ask(&self, at: usize) -> Result<Duration, RunnerError> {
        const WORD: &[u8] = b"ping\n";
        let timeout = self.spawner.plan.timeout;
        let silent = || RunnerError::Silent { number: at + 1, seconds: timeout.as_secs() };
        let (child, stdin) = self.members.get(at).ok_or_else(silent)?;
        // Whoever asks for the end ends this one, and does not wait for its answer.
        self.spawner.interrupt.note(Some(child.id()));
        let began = Instant::now();
        let answered = rustix::io::write(stdin, WORD)
            .ok()
            .and_then(|_| watch::read_exactly(child.stdout.as_ref().map(AsFd::as_fd), WORD.len(), timeout).ok());
        let took = began.elapsed();
        self.spawner.interrupt.note(None);
        if self.is_interrupted() {
            return Err(RunnerError::Interrupted);
        }
        if answered.as_deref() == Some(WORD) { Ok(took) } else { Err(silent()) }
    }
}

impl Crowd for Idlers<'_> {
    fn add(&mut self) -> Result<(), RunnerError> {
        let command = self.spawner.command_on(&self.arm, "none", &["-i"], EMBEDDED, &["cat".to_owned()]);
        let started = self.spawner.up(command);
        self.spawner.interrupt.note(None);
        if self.is_interrupted() && started.is_err() {
            return Err(RunnerError::Interrupted);
        }
        self.members.push(started?);
        Ok(())
    }

    fn settle(&mut self) -> Result<Look, RunnerError> {
        let (memory, _) = calm(|| (self.sample(), self.meter.available().unwrap_or(0)));
        if self.is_interrupted() {
            return Err(RunnerError::Interrupted);
        }
        Ok(Look { memory, available_bytes: self.meter.available() })
    }

    fn available(&mut self) -> Option<u64> {
        self.meter.available()
    }

    fn ping(&mut self) -> Result<Vec<Duration>, RunnerError> {
        (0..ROUNDS).flat_map(|_| 0..self.members.len()).map(|at| self.ask(at)).collect()
    }

    fn end(&mut self) -> u32 {
        let mut children: Vec<Child> = Vec::new();
        // The end of its input is the end of an echo: all of them end at the same time.
        for (child, stdin) in self.members.drain(..) {
            drop(stdin);
            children.push(child);
        }
        let deadline = Instant::now() + if self.is_interrupted() { HURRY } else { self.spawner.plan.timeout };
        let mut badly = 0;
        for mut child in children {
            // One that was slow leaves the others a moment in which their end can be seen.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
            let ended = watch::watch(&mut child, left, None, || ());
            if !matches!(child.try_wait(), Ok(Some(_))) {
                watch::stop(&mut child);
            }
            if ended.map_or(true, |watched| watched.deed.exit_code != 0) {
                badly += 1;
            }
        }
        badly
    }
}

impl Drop for Idlers<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
