//! Sandboxes in memory, for tests of what is above the trait: no process, no isolation, a handful of programs that each behave as the real
//! ones of the same name do (`true`, `false`, `echo`, `cat`, `sleep`). Any other program is not found.

mod inside;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::inside::FakeInside;
use super::{Backend, Inside, Refusal, Remote, Sandbox, SandboxError, Stdio};
use crate::spec::{
    Attachment, Exit, Isolation, Moment, Moments, NetworkMode, Outcome, Publish, SandboxId, SandboxSpec, State,
    TerminalSize, Usage,
};
use crate::sys::clock::monotonic_ns;

/// Makes fake sandboxes that claim to be of one isolation.
#[derive(Clone, Debug)]
pub struct FakeBackend {
    isolation: Isolation,
    usage: Usage,
}

impl FakeBackend {
    /// Of this isolation; it measures nothing.
    pub fn new(isolation: Isolation) -> Self {
        Self { isolation, usage: Usage::default() }
    }

    /// With this to tell whoever asks what a sandbox uses.
    #[must_use]
    pub fn with_usage(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }
}

impl Backend for FakeBackend {
    fn isolation(&self) -> Isolation {
        self.isolation
    }

    fn create(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, SandboxError> {
        let shared = Arc::new(Shared::default());
        let (spec, usage, isolation) = (spec.clone(), self.usage, self.isolation);
        shared.lock().moments.note(Moment::MachineReady, monotonic_ns());
        Ok(Box::new(Fake { spec, isolation, usage, stdio: Some(stdio), shared }))
    }
}

/// What went wrong in a fake.
#[derive(Debug, thiserror::Error)]
enum FakeError {
    #[error("It is not in a state for that: {0:?}")]
    State(State),
    #[error(transparent)]
    Inside(#[from] Refusal),
    #[error("No folder is to be had")]
    Folder(#[source] io::Error),
    #[error("No thread is to be had")]
    Thread(#[source] io::Error),
}

#[derive(Debug)]
struct Fake {
    spec: SandboxSpec,
    isolation: Isolation,
    usage: Usage,
    stdio: Option<Stdio>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    life: Mutex<Life>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Life {
    started: bool,
    paused: bool,
    outcome: Option<Outcome>,
    moments: Moments,
    /// All the root that it has, from the first copy on.
    folder: Option<Arc<tempfile::TempDir>>,
    /// Further commands and what they were asked to run.
    further: Vec<(Vec<String>, Arc<Shared>)>,
}

impl Shared {
    /// A poisoned lock only means that a test has failed already.
    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first end counts.
    fn end(&self, exit: Exit, reason: Option<String>) {
        let mut life = self.lock();
        if life.outcome.is_none() {
            life.moments.note(Moment::Exited, monotonic_ns());
            life.outcome = Some(Outcome { exit, oom: false, reason });
        }
        drop(life);
        self.ended.notify_all();
        self.end_further();
    }

    fn wait(&self, patience: Option<Duration>) -> Option<Outcome> {
        let life = self.lock();
        let running = |life: &mut Life| life.outcome.is_none();
        let life = match patience {
            None => self.ended.wait_while(life, running).unwrap_or_else(PoisonError::into_inner),
            Some(time) => self.ended.wait_timeout_while(life, time, running).unwrap_or_else(PoisonError::into_inner).0,
        };
        life.outcome.clone()
    }
}

impl Fake {
    fn run(&mut self) -> Result<(), FakeError> {
        let stdio = self.stdio.take().ok_or_else(|| FakeError::State(self.state()))?;
        spawn(self.spec.process.args.clone(), stdio, &self.shared)
    }

    fn error(&self, operation: &'static str, source: FakeError) -> SandboxError {
        SandboxError { operation, isolation: self.isolation, id: self.spec.id.clone(), source: Box::new(source) }
    }
}

/// Starts a program, or tells that there is none of its name.
fn spawn(args: Vec<String>, stdio: Stdio, shared: &Arc<Shared>) -> Result<(), FakeError> {
    let name = args.first().map_or("", String::as_str);
    if !["true", "false", "echo", "cat", "sleep"].contains(&name) {
        shared.end(Exit::NotFound, Some(format!("Cannot execute '{name}': not found in PATH")));
        return Ok(());
    }
    {
        let mut life = shared.lock();
        life.started = true;
        life.moments.note(Moment::Started, monotonic_ns());
    }
    let shared = Arc::clone(shared);
    let body = move || {
        let exit = program(&args, stdio, &shared);
        shared.end(exit, None);
    };
    std::thread::Builder::new().name("fake".into()).spawn(body).map(drop).map_err(FakeError::Thread)
}

/// Behaves as the program does; its streams are closed when it returns.
fn program(args: &[String], stdio: Stdio, shared: &Shared) -> Exit {
    let words = args.get(1..).unwrap_or_default();
    let done = |result: io::Result<()>| Exit::Code(u8::from(result.is_err()));
    match args.first().map(String::as_str) {
        Some("true") => Exit::Code(0),
        Some("echo") => done(writeln!(File::from(stdio.stdout), "{}", words.join(" "))),
        Some("cat") => done(copy(stdio.stdin, stdio.stdout)),
        Some("sleep") => {
            let seconds = words.first().and_then(|w| w.parse().ok()).unwrap_or(0);
            shared.wait(Some(Duration::from_secs(seconds))).map_or(Exit::Code(0), |outcome| outcome.exit)
        }
        _ => Exit::Code(1),
    }
}

fn copy(stdin: Option<OwnedFd>, stdout: OwnedFd) -> io::Result<()> {
    let (Some(stdin), mut stdout) = (stdin.map(File::from), File::from(stdout)) else { return Ok(()) };
    let (mut stdin, mut bytes) = (stdin, vec![0; 32 << 10]);
    loop {
        match stdin.read(&mut bytes)? {
            0 => return Ok(()),
            count => stdout.write_all(bytes.get(..count).unwrap_or_default())?,
        }
    }
}

impl Sandbox for Fake {
    fn id(&self) -> &SandboxId {
        &self.spec.id
    }

    fn state(&self) -> State {
        let life = self.shared.lock();
        match (&self.stdio, &life.outcome) {
            (_, Some(_)) => State::Exited,
            (Some(_), None) => State::Created,
            (None, None) if life.paused => State::Paused,
            (None, None) => State::Running,
        }
    }

    fn start(&mut self) -> Result<(), SandboxError> {
        self.run().map_err(|e| self.error("start", e))
    }

    fn remote(&self) -> Box<dyn Remote> {
        Box::new(FakeRemote(Arc::clone(&self.shared)))
    }

    fn inside(&self) -> Arc<dyn Inside> {
        Arc::new(FakeInside::of(self))
    }

    fn wait(&mut self) -> Result<Outcome, SandboxError> {
        if self.state() == State::Created {
            return Err(self.error("wait for", FakeError::State(State::Created)));
        }
        let failed = || Outcome { exit: Exit::SandboxFailed, oom: false, reason: None };
        Ok(self.shared.wait(None).unwrap_or_else(failed))
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn network(&self) -> Option<Attachment> {
        let network = &self.spec.network;
        // None is bound: what the host would choose is the sandbox's own number.
        let bound = |p: &Publish| Publish { host: if p.host == 0 { p.guest } else { p.host }, ..*p };
        let ports = || network.publish.iter().map(bound).collect();
        (network.mode == NetworkMode::User).then(|| Attachment { ports: ports(), ..Attachment::default() })
    }

    fn moments(&self) -> Moments {
        self.shared.lock().moments.clone()
    }

    fn remove(self: Box<Self>) -> Result<(), SandboxError> {
        Ok(())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.end(Exit::Signal(9), None);
    }
}

struct FakeRemote(Arc<Shared>);

impl Remote for FakeRemote {
    /// None of the programs handles a signal: SIGKILL and SIGTERM end them, the others are ignored.
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        if [9, 15].contains(&signal) {
            self.0.end(Exit::Signal(signal), None);
        }
        Ok(())
    }

    fn resize(&self, _: TerminalSize) -> Result<(), SandboxError> {
        Ok(())
    }
}
