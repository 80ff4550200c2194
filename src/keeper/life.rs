//! One sandbox from its start to its last end.
//!
//! ```text
//!                 .-- attached? --.
//! listen -> create                 -> start -> wait -> release --.--> last standing on disk -> answers to who waits
//!             ^   `---------------'                              |
//!             `------------------- pause <-- restart policy <----'
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use super::health;
use super::hub::{Hub, Local, lock};
use super::log::Log;
use super::serve::{self, Handle, Shared, causes};
use super::wire::Stream;
use crate::jail::confine_keeper;
use crate::sandbox::roster::{Entry, RosterError};
use crate::sandbox::snapshots::goes_on_once;
use crate::sandbox::{Backend, Sandbox, SandboxError, Stdio};
use crate::spec::{Definition, Exit, HealthStatus, Isolation, Moment, Moments, Outcome, Restart, Status, Usage};
use crate::sys::clock::realtime_ns;

/// How long a client that asked to be attached first may take to attach.
const ATTACH_PATIENCE: Duration = Duration::from_secs(30);

/// A command that ran so long has started well: the next pause before a restart is the shortest again.
const STEADY: Duration = Duration::from_secs(10);

/// The keeper of one sandbox.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
    definition: Definition,
    local: Option<Local>,
    after_attach: bool,
}

/// Why a keeper cannot keep a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Its entry cannot be written.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The socket in the sandbox's folder.
    #[error("Cannot serve the control socket of the sandbox")]
    Socket(#[source] io::Error),
    /// Pipes, or the threads that serve them.
    #[error("Cannot connect the streams of the sandbox")]
    Streams(#[source] io::Error),
    /// What it will not need cannot be given up.
    #[error("Cannot confine the sandbox's keeper")]
    Confine(#[source] io::Error),
    /// Threads of the health checks.
    #[error("Cannot check the health of the sandbox")]
    Health(#[source] io::Error),
    /// Who wanted to attach did not.
    #[error("Nobody attached within {} s", ATTACH_PATIENCE.as_secs())]
    NobodyAttached,
}

/// What happens on the way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Clients can connect.
    Listening,
    /// The command has been executed.
    Started,
}

/// A sandbox that has come to its last end.
#[derive(Debug)]
pub struct Ended {
    /// How its command ended.
    pub outcome: Outcome,
    /// The command was executed (the last time).
    pub started: bool,
    /// The moments of its last start.
    pub moments: Moments,
    /// What it had used at its last end.
    pub usage: Usage,
    /// What could not be released or written at its end.
    pub troubles: Vec<KeeperError>,
}

/// One start to one end.
struct Life {
    outcome: Outcome,
    started: bool,
    moments: Moments,
    usage: Usage,
    removed: Result<(), SandboxError>,
}

/// Confines this process if it is to keep a microVM. What anything else may do is its own spec's, and its processes begin as its keeper's. Call it
/// before threads are started.
///
/// # Errors
/// [`KeeperError::Confine`].
pub fn confine(isolation: Isolation) -> Result<(), KeeperError> {
    match isolation {
        Isolation::MicroVm => confine_keeper().map_err(KeeperError::Confine),
        Isolation::Container | Isolation::Process => Ok(()),
    }
}

impl Keeper {
    /// Of a sandbox on the roster, which is served from now on.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn new(mut entry: Entry) -> Result<Self, KeeperError> {
        entry.at_work()?;
        let log = Log::new(entry.path(), entry.definition.log);
        let listener = serve::listen(entry.path()).map_err(KeeperError::Socket)?;
        entry.standing.keeper = Some(std::process::id());
        entry.standing.restarts = 0;
        let mut definition = entry.definition.clone();
        definition.spec.name = Some(entry.standing.name.clone());
        let shared = Arc::new(Shared {
            now: Mutex::default(),
            changed: Condvar::new(),
            entry: Mutex::new(Some(entry)),
            hub: Arc::new(Hub::new(log)),
            stop_signal: definition.stop_signal,
            stop_timeout_s: definition.stop_timeout_s,
            id: definition.spec.id.clone(),
        });
        serve::serve(listener, &shared).map_err(KeeperError::Socket)?;
        Ok(Self { shared, definition, local: None, after_attach: false })
    }

    /// Notes that a sandbox cannot even be tried, and why.
    ///
    /// # Errors
    /// If that cannot be noted.
    pub fn give_up(entry: Entry, error: &(dyn std::error::Error + 'static)) -> Result<(), KeeperError> {
        let reason = Some(causes(error).join(": "));
        Ok(close(entry, &Outcome { exit: Exit::SandboxFailed, oom: false, reason })?)
    }

    /// With the streams of a `run` in the foreground.
    #[must_use]
    pub fn with_local(self, local: Local) -> Self {
        Self { local: Some(local), ..self }
    }

    /// The command starts when a client has attached.
    #[must_use]
    pub fn after_attach(self) -> Self {
        Self { after_attach: true, ..self }
    }

    /// Reaches the command from this process.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Keeps the sandbox until its last end. When this returns everything is on disk, and who waited knows.
    ///
    /// # Errors
    /// Why the sandbox could not be made or followed; nothing of it is left then but its entry.
    pub fn run(mut self, backend: &dyn Backend, report: &mut dyn FnMut(Report)) -> Result<Ended, KeeperError> {
        report(Report::Listening);
        let (mut troubles, mut restarts, mut quick) = (Vec::new(), 0_u32, 0_u32);
        let last = loop {
            let began = Instant::now();
            let life = match self.live(backend, report) {
                Ok(life) => life,
                Err(error) => break Err(error),
            };
            let failed = life.outcome.exit != Exit::Code(0);
            let again = life.started && self.restart().wants(failed, restarts);
            let again = again && !goes_on_once(&self.definition.spec);
            if !again || self.shared.lock().stopped {
                break Ok(life);
            }
            troubles.extend(life.removed.err().map(KeeperError::Sandbox));
            restarts = restarts.saturating_add(1);
            quick = if began.elapsed() > STEADY { 1 } else { quick.saturating_add(1) };
            if !self.pause(&life.outcome, restarts, quick, &mut troubles) {
                break Ok(Life { removed: Ok(()), ..life });
            }
        };
        self.finish(last, troubles)
    }

    /// Its policy now: `update` may have changed it.
    fn restart(&self) -> Restart {
        let entry = lock(&self.shared.entry);
        entry.as_ref().and_then(|entry| entry.standing.restart).unwrap_or(self.definition.restart)
    }

    /// Waits before a restart; false if the sandbox was stopped meanwhile.
    fn pause(&self, outcome: &Outcome, restarts: u32, quick: u32, troubles: &mut Vec<KeeperError>) -> bool {
        let noted = self.note(|standing| {
            standing.end(Status::Restarting, outcome.clone(), realtime_ns());
            standing.restarts = restarts;
        });
        troubles.extend(noted.err());
        self.shared.change(|now| now.restarting = true);
        let pause = crate::spec::Restart::pause(quick);
        let stopped = self.shared.until(Some(pause), |now| now.stopped.then_some(())).is_some();
        self.shared.change(|now| now.restarting = false);
        !stopped
    }

    fn note(&self, change: impl FnOnce(&mut crate::spec::Standing)) -> Result<(), KeeperError> {
        let mut entry = lock(&self.shared.entry);
        let Some(entry) = entry.as_mut() else { return Ok(()) };
        change(&mut entry.standing);
        Ok(entry.save()?)
    }

    fn live(&mut self, backend: &dyn Backend, report: &mut dyn FnMut(Report)) -> Result<Life, KeeperError> {
        let (stdio, pumps) = self.streams().map_err(KeeperError::Streams)?;
        let mut spec = self.definition.spec.clone();
        if let Some(limits) = lock(&self.shared.entry).as_ref().and_then(|entry| entry.standing.limits) {
            spec.limits = limits;
        }
        let made = backend.create(&spec, stdio);
        let life = made.map_err(KeeperError::Sandbox).and_then(|sandbox| self.follow(sandbox, report));
        // Whoever writes is gone, so the pumps end with the last byte.
        self.shared.change(|now| (now.remote, now.inside, now.input) = (None, None, None));
        for pump in pumps {
            let _ = pump.join();
        }
        let outcome = life.as_ref().map(|life| life.outcome.clone()).ok();
        self.shared.change(|now| {
            now.ends += 1;
            now.outcome = outcome;
        });
        life
    }

    /// A created sandbox until it is released.
    fn follow(&self, mut sandbox: Box<dyn Sandbox>, report: &mut dyn FnMut(Report)) -> Result<Life, KeeperError> {
        let remote: Arc<dyn crate::sandbox::Remote> = Arc::from(sandbox.remote());
        let early = self.shared.change(|now| {
            now.remote = Some(Arc::clone(&remote));
            now.paused = false;
            now.inside = Some(sandbox.inside());
            std::mem::take(&mut now.early)
        });
        if self.after_attach && self.shared.until(Some(ATTACH_PATIENCE), |now| now.attached.then_some(())).is_none() {
            sandbox.remove()?;
            return Err(KeeperError::NobodyAttached);
        }
        for signal in early {
            remote.signal(signal)?;
        }
        sandbox.start()?;
        let mut watch = None;
        let check = self.definition.health.as_ref().filter(|check| check.command().is_some());
        let started = sandbox.moments().at(Moment::Started).is_some();
        if started {
            self.note(|standing| {
                standing.status = Status::Running;
                standing.network = sandbox.network();
                standing.started_at_ns = Some(realtime_ns());
                (standing.finished_at_ns, standing.outcome) = (None, None);
                standing.health = check.map(|_| HealthStatus::Starting);
            })?;
            if let Some(check) = check {
                let own = &self.definition.spec.process;
                watch = health::watch(&self.shared, check, own).map_err(KeeperError::Health)?;
            }
            report(Report::Started);
        }
        let outcome = sandbox.wait()?;
        self.shared.change(|now| (now.remote, now.inside) = (None, None));
        drop(watch.map(JoinHandle::join));
        let (moments, usage) = (sandbox.moments(), sandbox.usage());
        Ok(Life { outcome, started, moments, usage, removed: sandbox.remove() })
    }

    /// The sandbox's streams, and what moves our ends of them.
    fn streams(&mut self) -> io::Result<(Stdio, Vec<JoinHandle<()>>)> {
        let stdin = match &mut self.local {
            Some(local) => local.stdin.take(),
            None if self.definition.spec.process.stdin => {
                let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
                self.shared.change(|now| now.input = Some(Arc::new(ours)));
                Some(theirs)
            }
            None => None,
        };
        let clone = |fd: Option<&OwnedFd>| fd.map(OwnedFd::try_clone).transpose();
        let local = self.local.as_ref();
        let (stdout, output) = self.outlet(Stream::Output, clone(local.and_then(|l| l.stdout.as_ref()))?)?;
        let (stderr, error) = self.outlet(Stream::Error, clone(local.and_then(|l| l.stderr.as_ref()))?)?;
        Ok((Stdio { stdin, stdout, stderr }, vec![output, error]))
    }

    fn outlet(&self, stream: Stream, local: Option<OwnedFd>) -> io::Result<(OwnedFd, JoinHandle<()>)> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((theirs, self.shared.hub.pump(stream, ours, local)?))
    }

    /// Writes down the end, lets go of the entry and tells who waits.
    fn finish(self, last: Result<Life, KeeperError>, mut troubles: Vec<KeeperError>) -> Result<Ended, KeeperError> {
        let outcome = last.as_ref().map_or_else(
            |error| Outcome { exit: Exit::SandboxFailed, oom: false, reason: Some(causes(error).join(": ")) },
            |life| life.outcome.clone(),
        );
        if let Some(entry) = lock(&self.shared.entry).take() {
            troubles.extend(close(entry, &outcome).err().map(KeeperError::Roster));
        }
        self.shared.change(|now| {
            now.outcome = Some(outcome.clone());
            now.over = true;
        });
        serve::farewell(&self.shared);
        let Life { outcome, started, moments, usage, removed } = last?;
        troubles.extend(removed.err().map(KeeperError::Sandbox));
        Ok(Ended { outcome, started, moments, usage, troubles })
    }
}

fn close(mut entry: Entry, outcome: &Outcome) -> Result<(), RosterError> {
    if entry.definition.remove {
        return entry.remove();
    }
    entry.standing.keeper = None;
    entry.standing.end(Status::Exited, outcome.clone(), realtime_ns());
    entry.save()?;
    entry.settled()
}
