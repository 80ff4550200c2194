//! Further commands, pauses and questions in a running container.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use duplex_wire::{Connected, ProcessEntry, ProcessSpec, Task, TerminalSize, Transfer, processes};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{ContainerError, NobodyThere, SIGKILL, has_ended, set_size, wrapped};
use crate::container::enter::{Entered, enter};
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::inside::{Exec, Inside, Refusal};
use crate::sandbox::session::{InputEnd, SessionStreams};
use crate::sandbox::{Remote, SandboxError, Stdio, exec_refused, exit_of};
use crate::spec::{Exit, LimitChange, Outcome, SandboxId, Security, Stats};
use crate::sys::users::Range;
use crate::sys::{birth, signals};

/// Most further commands at once, as in a microVM.
const MOST_COMMANDS: usize = 16;

/// Reaches into one container.
#[derive(Debug)]
pub(super) struct ContainerInside {
    pub(super) id: SandboxId,
    /// It is a plain process, which has no inside.
    pub(super) plain: bool,
    pub(super) hostname: String,
    pub(super) security: Security,
    /// Who its users are on the host, if not the same.
    pub(super) users: Option<Range>,
    pub(super) duplex: PathBuf,
    pub(super) cgroup: Arc<Cgroup>,
    /// Its first process, and whether the command runs in it.
    pub(super) first: Mutex<Option<Arc<OwnedFd>>>,
    /// How many further commands run.
    pub(super) commands: Arc<AtomicUsize>,
    /// Held by who stops the processes, or makes one that must not be stopped on its way.
    pub(super) turn: Mutex<()>,
}

impl ContainerInside {
    /// The first process of a container whose command runs.
    fn first(&self) -> Result<Arc<OwnedFd>, Refusal> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).clone();
        first.filter(|process| !has_ended(process)).ok_or(Refusal::NotRunning)
    }

    /// From now on the command runs.
    pub(super) fn begin(&self, first: Arc<OwnedFd>) {
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
    }

    fn run(&self, task: &Task, stdio: Stdio) -> Result<Box<dyn Exec>, ContainerError> {
        if self.plain {
            return Err(ContainerError::Plain("inside"));
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.first()?;
        if self.cgroup.is_frozen() {
            return Err(Refusal::Paused.into());
        }
        if self.commands.load(Ordering::Relaxed) >= MOST_COMMANDS {
            return Err(Refusal::TooMany(MOST_COMMANDS).into());
        }
        let folder = File::open(self.cgroup.path()).map_err(ContainerError::Session)?;
        let (theirs, ours) = pipes(task.connected())?;
        let (process, terminal) =
            match enter(&self.duplex, (task, &self.security), [first.as_fd(), folder.as_fd()], theirs)? {
                Entered::Refused(kind, text) => {
                    return Ok(Box::new(NotExecuted(exec_refused(kind, text))));
                }
                Entered::Running { process, terminal } => (Arc::new(process), terminal.map(Arc::new)),
            };
        let end = Arc::new(End::default());
        let counted = Counted::one_more(&self.commands);
        reap_from_a_thread(&process, Arc::clone(&end), counted).map_err(ContainerError::Session)?;
        // Killed from here on if it does not get its streams.
        let mut exec = ContainerExec { id: self.id.clone(), process, terminal, end, streams: None };
        exec.streams = Some(connect(ours, exec.terminal.as_deref(), stdio).map_err(ContainerError::Session)?);
        Ok(Box::new(exec))
    }

    fn set_paused(&self, paused: bool) -> Result<(), ContainerError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.first()?;
        if self.cgroup.is_frozen() == paused {
            return Err(if paused { Refusal::AlreadyPaused } else { Refusal::NotPaused }.into());
        }
        Ok(self.cgroup.freeze(paused)?)
    }

    fn list(&self) -> Result<Vec<ProcessEntry>, ContainerError> {
        self.first()?;
        let uptime = std::fs::read_to_string("/proc/uptime").map_err(ContainerError::Session)?;
        let seconds: f64 = uptime.split_whitespace().next().and_then(|s| s.parse().ok()).unwrap_or(0.0);
        let uptime = u64::try_from(Duration::from_secs_f64(seconds.max(0.0)).as_millis()).unwrap_or(u64::MAX);
        let read = |pid, file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
        let mut list = processes(&self.cgroup.processes()?, uptime, read);
        if let Some(users) = self.users {
            list.iter_mut().for_each(|process| process.user = users.inside(process.user));
        }
        Ok(list)
    }

    fn measure(&self) -> Result<Stats, ContainerError> {
        let first = self.first()?;
        let net = signals::pid_of(first.as_fd())
            .ok()
            .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok());
        let counters = self.cgroup.counters();
        let counters = net.map_or(counters, |net| counters.with_network(&net));
        Ok(Stats { inside: Some(counters), host: counters })
    }
}

impl Inside for ContainerInside {
    fn exec(&self, process: &ProcessSpec, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError> {
        let task = Task::Run { process: process.clone(), hostname: self.hostname.clone() };
        self.run(&task, stdio).map_err(|e| wrapped("run a command in", &self.id, e))
    }

    fn copy(&self, transfer: &Transfer, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError> {
        self.run(&Task::Copy(transfer.clone()), stdio).map_err(|e| wrapped("copy files of", &self.id, e))
    }

    fn pause(&self) -> Result<(), SandboxError> {
        self.set_paused(true).map_err(|e| wrapped("pause", &self.id, e))
    }

    fn unpause(&self) -> Result<(), SandboxError> {
        self.set_paused(false).map_err(|e| wrapped("unpause", &self.id, e))
    }

    fn processes(&self) -> Result<Vec<ProcessEntry>, SandboxError> {
        self.list().map_err(|e| wrapped("list the processes of", &self.id, e))
    }

    fn change(&self, change: &LimitChange) -> Result<(), SandboxError> {
        let changed = self.first().map_err(Into::into).and_then(|_| Ok(self.cgroup.change(change)?));
        changed.map_err(|e: ContainerError| wrapped("change the limits of", &self.id, e))
    }

    fn stats(&self) -> Result<Stats, SandboxError> {
        self.measure().map_err(|e| wrapped("measure", &self.id, e))
    }
}

/// Our ends of the command's pipes.
struct Ours {
    stdin: Option<OwnedFd>,
    output: Option<[OwnedFd; 2]>,
}

/// Pipes between the command and us, never the caller's own descriptors: what is opened again through `/proc/self/fd` is a pipe then, and
/// no file of the host. None where there is a terminal.
fn pipes(connected: Connected) -> Result<(Option<[OwnedFd; 3]>, Ours), ContainerError> {
    if connected.terminal {
        return Ok((None, Ours { stdin: None, output: None }));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| ContainerError::Session(e.into()));
    let (stdin, our_stdin) = if connected.stdin {
        pipe().map(|(r, w)| (r, Some(w)))?
    } else {
        (File::open("/dev/null").map_err(ContainerError::Null)?.into(), None)
    };
    let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
    Ok((Some([stdin, stdout, stderr]), Ours { stdin: our_stdin, output: Some([our_stdout, our_stderr]) }))
}

fn connect(ours: Ours, terminal: Option<&OwnedFd>, stdio: Stdio) -> io::Result<SessionStreams> {
    let mut streams = SessionStreams::new(Duration::ZERO)?;
    if let Some([stdout, stderr]) = ours.output {
        streams.output(stdout, stdio.stdout)?;
        streams.output(stderr, stdio.stderr)?;
        if let (Some(from), Some(to)) = (stdio.stdin, ours.stdin) {
            streams.input(from, to, InputEnd::Close)?;
        }
    } else if let Some(terminal) = terminal {
        streams.output(terminal.try_clone()?, stdio.stdout)?;
        if let Some(from) = stdio.stdin {
            streams.input(from, terminal.try_clone()?, InputEnd::Type)?;
        }
    }
    Ok(streams)
}

/// How a command ended, once it has.
#[derive(Debug, Default)]
struct End {
    exit: Mutex<Option<Exit>>,
    come: Condvar,
}

/// One of the commands that run.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_more(commands: &Arc<AtomicUsize>) -> Self {
        commands.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(commands))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reaps it as soon as it ends, whether anybody asks or not: the container's first process does not end before that. Where there is no
/// thread for that, it is killed.
fn reap_from_a_thread(process: &Arc<OwnedFd>, end: Arc<End>, counted: Counted) -> io::Result<()> {
    let child = Arc::clone(process);
    let body = move || {
        let exit = birth::reap(child.as_fd()).map_or(Exit::Signal(SIGKILL), exit_of);
        drop(counted);
        *end.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
        end.come.notify_all();
    };
    let thread = std::thread::Builder::new().name("exec-reaper".into()).stack_size(64 << 10).spawn(body);
    thread.map(drop).inspect_err(|_| {
        let _ = signals::send(process.as_fd(), SIGKILL);
        let _ = birth::reap(process.as_fd());
    })
}

/// A further command in a container.
#[derive(Debug)]
struct ContainerExec {
    id: SandboxId,
    process: Arc<OwnedFd>,
    terminal: Option<Arc<OwnedFd>>,
    end: Arc<End>,
    streams: Option<SessionStreams>,
}

impl Exec for ContainerExec {
    fn remote(&self) -> Box<dyn Remote> {
        let (process, terminal) = (Arc::clone(&self.process), self.terminal.clone());
        Box::new(ExecRemote { id: self.id.clone(), process, terminal })
    }

    fn ended(&self) -> Option<Outcome> {
        let exit = *self.end.exit.lock().unwrap_or_else(PoisonError::into_inner);
        exit.map(|exit| Outcome { exit, oom: false, reason: None })
    }

    fn wait(&mut self) -> Result<Outcome, SandboxError> {
        let exit = self.end.exit.lock().unwrap_or_else(PoisonError::into_inner);
        let exit = *self.end.come.wait_while(exit, |exit| exit.is_none()).unwrap_or_else(PoisonError::into_inner);
        if let Some(mut streams) = self.streams.take() {
            streams.finish();
        }
        Ok(Outcome { exit: exit.unwrap_or(Exit::Signal(SIGKILL)), oom: false, reason: None })
    }
}

impl Drop for ContainerExec {
    fn drop(&mut self) {
        // Reaped by its thread; one that has ended takes no signal.
        let _ = signals::send(self.process.as_fd(), SIGKILL);
    }
}

/// A further command that was not executed.
#[derive(Debug)]
struct NotExecuted(Outcome);

impl Exec for NotExecuted {
    fn remote(&self) -> Box<dyn Remote> {
        Box::new(NobodyThere)
    }

    fn ended(&self) -> Option<Outcome> {
        Some(self.0.clone())
    }

    fn wait(&mut self) -> Result<Outcome, SandboxError> {
        Ok(self.0.clone())
    }
}

/// Reaches a further command from any thread.
struct ExecRemote {
    id: SandboxId,
    process: Arc<OwnedFd>,
    terminal: Option<Arc<OwnedFd>>,
}

impl Remote for ExecRemote {
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        match signals::send(self.process.as_fd(), signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()), // it has ended meanwhile
            sent => sent
                .map_err(|source| wrapped("signal a command in", &self.id, ContainerError::Signal { signal, source })),
        }
    }

    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        set_size(self.terminal.as_deref(), size)
            .map_err(|e| wrapped("resize the terminal of a command in", &self.id, e))
    }
}
