//! Health checks of a keeper's sandbox: one thread for each of its lives, and two for each check, which runs as any further command does.
//!
//! ```text
//! started --> wait --> check --> note --.
//!              ^ ^                      |
//!              | `----------------------'
//!              `-- unpaused <-- paused (a check that runs is called off, and does not count)
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use super::further::LAST_MOMENT;
use super::hub::lock;
use super::serve::{Now, Shared, causes};
use crate::sandbox::{Inside, Remote, SandboxError, Stdio};
use crate::spec::{Checked, Exit, GoTime, HealthLog, HealthStatus, Healthcheck, Outcome, ProcessSpec, Status};
use crate::sys::clock::realtime_ns;

/// Bytes of a check's output that are kept, as with Docker.
const MOST_OUTPUT: usize = 4096;

/// How long a check that was called off may take to end before nobody waits for it any more.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

const SIGKILL: u8 = 9;

/// Checks the health of the sandbox that has just been started, until its end. `None` if there is nothing to check.
pub(super) fn watch(
    shared: &Arc<Shared>,
    check: &Healthcheck,
    own: &ProcessSpec,
) -> io::Result<Option<JoinHandle<()>>> {
    let Some(args) = check.command() else { return Ok(None) };
    // As the sandbox's own command, whatever that is connected to.
    let process = ProcessSpec { args, terminal: None, stdin: false, ..own.clone() };
    // What cannot be understood is worth no more than what is not there.
    let log = lock(&shared.entry).as_ref().and_then(|entry| entry.health_log().ok());
    let log = HealthLog { failing_streak: 0, ..log.unwrap_or_default() };
    let (shared, check, began) = (Arc::clone(shared), check.clone(), Instant::now());
    let mut watch = Watch { shared, check, process, began, log };
    watch.save();
    Builder::new().name("health".into()).stack_size(128 << 10).spawn(move || watch.keep_on()).map(Some)
}

struct Watch {
    shared: Arc<Shared>,
    check: Healthcheck,
    process: ProcessSpec,
    began: Instant,
    log: HealthLog,
}

/// What keeps a check from being made or from counting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    Paused,
    Over,
}

impl Now {
    fn hindrance(&self) -> Option<Hindrance> {
        if self.inside.is_none() { Some(Hindrance::Over) } else { self.paused.then_some(Hindrance::Paused) }
    }
}

impl Watch {
    fn keep_on(&mut self) {
        let mut took = Duration::ZERO;
        while self.wait(took) {
            let (start_ns, age, start) = (realtime_ns(), self.began.elapsed(), Instant::now());
            let result = self.check();
            took = start.elapsed();
            if let Some((exit_code, output)) = result {
                let checked = Checked { start_ns, end_ns: realtime_ns(), exit_code, output };
                self.note(checked, age);
            }
        }
    }

    /// Until the next check is due; false if there is to be none. An image may ask for a check in each millisecond: what making them costs is the
    /// host's, so there is a pause between two that is at least as long as the last one took.
    fn wait(&self, took: Duration) -> bool {
        loop {
            let free = |now: &Now| (now.hindrance() != Some(Hindrance::Paused)).then_some(());
            let _ = self.shared.until(None, free);
            let pause = self.check.pause(self.began.elapsed(), self.status()).max(took);
            match self.shared.until(Some(pause), Now::hindrance) {
                None => return true,
                Some(Hindrance::Over) => return false,
                Some(Hindrance::Paused) => {}
            }
        }
    }

    fn status(&self) -> HealthStatus {
        let entry = lock(&self.shared.entry);
        entry.as_ref().and_then(|entry| entry.standing.health).unwrap_or(HealthStatus::Starting)
    }

    /// Remembers a check, and what it says of the sandbox. That they cannot be written down is no reason to end it.
    fn note(&mut self, checked: Checked, age: Duration) {
        let was = self.status();
        let is = self.log.note(checked, &self.check, age, was);
        self.save();
        let mut entry = lock(&self.shared.entry);
        // A pause has had its word meanwhile.
        if let Some(entry) = entry.as_mut().filter(|entry| is != was && entry.standing.status == Status::Running) {
            entry.standing.health = Some(is);
            let _ = entry.save();
        }
    }

    fn save(&self) {
        if let Some(entry) = lock(&self.shared.entry).as_ref() {
            let _ = entry.save_health_log(&self.log);
        }
    }

    /// Runs the check once: its exit code and output. `None` if it does not count.
    fn check(&self) -> Option<(i32, String)> {
        let inside = self.shared.lock().inside.clone()?;
        let course = match self.begin(inside) {
            Ok(course) => course,
            Err(error) => return Some((-1, format!("Cannot run the health check: {error}"))),
        };
        let hindered = |now: &Now| now.hindrance().map(|_| Ended::Hindered);
        let done = || lock(&course).done.take().map(Ended::Done);
        // What executing it takes is not its own time. (And the sandbox answers within limits of its own.)
        let begun = |now: &Now| hindered(now).or_else(|| lock(&course).begun().then_some(Ended::Begun));
        let ended = match self.shared.until(None, begun) {
            Some(Ended::Begun) => {
                let timeout = Some(self.check.timeout());
                self.shared.until(timeout, |now| done().or_else(|| hindered(now))).unwrap_or(Ended::TooLong)
            }
            other => other.unwrap_or(Ended::Hindered),
        };
        if let Ended::Done(Done { exit_code, output, killed }) = ended {
            let over = || self.shared.until(Some(LAST_MOMENT), Now::hindrance).is_some();
            return (!killed || !over()).then_some((exit_code, output));
        }
        lock(&course).call_off();
        let last = self.shared.until(Some(LAST_PATIENCE), |_| done());
        if matches!(ended, Ended::Hindered) {
            return None;
        }
        let words = format!("Health check exceeded timeout ({})", GoTime(self.check.timeout()));
        Some(match last {
            Some(Ended::Done(Done { output, .. })) if !output.is_empty() => (-1, format!("{words}: {output}")),
            _ => (-1, words),
        })
    }

    fn begin(&self, inside: Arc<dyn Inside>) -> io::Result<Arc<Mutex<Course>>> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let stdio = Stdio { stdin: None, stdout: theirs.try_clone()?, stderr: theirs };
        let output = Builder::new().name("health-output".into()).stack_size(64 << 10).spawn(move || read(ours))?;
        let course = Arc::new(Mutex::new(Course::default()));
        let (shared, process, own) = (Arc::clone(&self.shared), self.process.clone(), Arc::clone(&course));
        let body = move || {
            let outcome = run(&*inside, &process, stdio, &shared, &own);
            let written = output.join().unwrap_or_default();
            lock(&own).done = Some(Done::of(outcome, written));
            shared.change(|_| ());
        };
        Builder::new().name("health-check".into()).stack_size(256 << 10).spawn(body)?;
        Ok(course)
    }
}

/// How the wait for a check ended.
enum Ended {
    Begun,
    Done(Done),
    TooLong,
    Hindered,
}

/// A check on its way, between its own thread and the watch. Locked after `Shared::now`.
#[derive(Default)]
struct Course {
    called_off: bool,
    remote: Option<Box<dyn Remote>>,
    done: Option<Done>,
}

/// A check that has ended.
struct Done {
    exit_code: i32,
    output: String,
    /// By SIGKILL, or it could not even be begun: it may have ended with its sandbox.
    killed: bool,
}

impl Done {
    fn of(outcome: Result<Outcome, SandboxError>, output: String) -> Self {
        match outcome {
            Ok(Outcome { reason: Some(reason), .. }) => Self { exit_code: -1, output: bounded(reason), killed: false },
            Ok(Outcome { exit, .. }) => {
                Self { exit_code: i32::from(exit.code()), output, killed: exit == Exit::Signal(SIGKILL) }
            }
            Err(error) => Self { exit_code: -1, output: bounded(causes(&error).join(": ")), killed: true },
        }
    }
}

impl Course {
    fn begun(&self) -> bool {
        self.remote.is_some() || self.done.is_some()
    }

    fn call_off(&mut self) {
        self.called_off = true;
        // One that cannot be reached ends with its sandbox.
        let _ = self.remote.as_ref().map(|remote| remote.signal(SIGKILL));
    }
}

/// Runs the command to its end.
fn run(
    inside: &dyn Inside,
    process: &ProcessSpec,
    stdio: Stdio,
    shared: &Shared,
    course: &Mutex<Course>,
) -> Result<Outcome, SandboxError> {
    let mut exec = inside.exec(process, stdio)?;
    {
        let mut course = lock(course);
        let remote = exec.remote();
        if course.called_off {
            // Nobody could reach it before. One that cannot be reached now ends with its sandbox.
            let _ = remote.signal(SIGKILL);
        }
        course.remote = Some(remote);
    }
    shared.change(|_| ());
    exec.wait()
}

/// A reason may name the command, which is as long as the image wants.
fn bounded(mut text: String) -> String {
    if text.len() > MOST_OUTPUT {
        let end = (0..=MOST_OUTPUT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    text
}

/// What is written, to its end: the first bytes, and a sign that there were more.
fn read(from: OwnedFd) -> String {
    let mut from = File::from(from);
    let mut kept = Vec::new();
    let _ = from.by_ref().take(u64::try_from(MOST_OUTPUT).unwrap_or(0)).read_to_end(&mut kept);
    let more = io::copy(&mut from, &mut io::sink()).unwrap_or(0) > 0;
    String::from_utf8_lossy(&kept).into_owned() + if more { "..." } else { "" }
}

#[cfg(test)]
mod tests;
