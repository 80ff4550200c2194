//! Further commands, pauses and questions: what the monitor and the agent are asked while the command runs.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use duplex_wire::{
    Answer, Connected, Counters, MOST_PROCESSES, ProcessEntry, ProcessSpec, Question, Task, TerminalSize, ToGuest,
    Transfer, port,
};

use super::board::{Board, Over, Stage};
use super::monitor::{Reach, clean};
use super::{MicroVmError, error};
use crate::sandbox::agent::Voice;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::inside::{Exec, Inside, Refusal, Saving};
use crate::sandbox::session::{InputEnd, SessionStreams};
use crate::sandbox::{Remote, SandboxError, Stdio, exec_refused, exit_of};
use crate::spec::{Exit, LimitChange, MemorySize, Outcome, RequestToMonitor, SandboxId, Stats};

/// How long the agent may take to run a further command.
const OPENING: Duration = Duration::from_secs(60);

/// How long the agent may take to answer, and the monitor to stop its processors.
const ANSWERING: Duration = Duration::from_secs(10);

/// How long bytes of a command that has ended may be on their way out of the guest.
const DELIVERY: Duration = Duration::from_secs(10);

/// Reaches into one microVM. Lock order: `turn` before the board's.
#[derive(Debug)]
pub(super) struct MicroVmInside {
    pub(super) id: SandboxId,
    pub(super) hostname: String,
    pub(super) board: Arc<Board>,
    pub(super) reach: Arc<Reach>,
    pub(super) voice: Voice,
    pub(super) cgroup: Arc<Cgroup>,
    /// Memory and processors of the machine.
    pub(super) size: (MemorySize, u8),
    /// QEMU is in the monitor's place.
    pub(super) is_qemus: bool,
    /// Bytes of the file that its memory came from, at most.
    pub(super) from_file: u64,
    /// Held by who changes or relies on whether the processors run.
    pub(super) turn: Mutex<()>,
}

impl MicroVmInside {
    fn open(&self, task: Task, stdio: Stdio) -> Result<MicroVmExec, MicroVmError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let session = self.board.open()?;
        // From here on the session is left in order, whatever comes.
        let mut exec = MicroVmExec {
            id: self.id.clone(),
            session,
            board: Arc::clone(&self.board),
            voice: self.voice.clone(),
            streams: None,
            outcome: None,
        };
        let ports = port::of_session(session).ok_or(Refusal::TooMany(0))?;
        let connected = task.connected();
        let ends = Ends::offer(connected, ports, &self.reach)?;
        self.voice.say(ToGuest::Open { session, task: Box::new(task) })?;
        match self.board.wait_opened(session, OPENING) {
            None => return Err(MicroVmError::Unanswered(OPENING)),
            Some(Stage::Over(over)) => exec.outcome = Some(outcome(over)),
            Some(_) => exec.streams = Some(ends.connect(connected, stdio).map_err(MicroVmError::Resource)?),
        }
        Ok(exec)
    }

    fn set_paused(&self, paused: bool) -> Result<(), MicroVmError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_qemus {
            return Err(MicroVmError::QemuPause);
        }
        let (request, refusal) = match paused {
            true => (RequestToMonitor::Pause, Refusal::AlreadyPaused),
            false => (RequestToMonitor::Resume, Refusal::NotPaused),
        };
        if self.board.running()? == paused {
            return Err(refusal.into());
        }
        self.reach.ask(request, None).map_err(MicroVmError::Resource)?;
        if self.board.wait_paused(paused, ANSWERING) {
            return Ok(());
        }
        self.board.running()?;
        Err(MicroVmError::Unanswered(ANSWERING))
    }

    pub(super) fn ask(&self, question: Question) -> Result<Answer, MicroVmError> {
        let number = self.board.ask()?;
        self.voice.say(ToGuest::Ask { number, question })?;
        match self.board.wait_answer(number, ANSWERING) {
            Some(answer) => answer.map_err(|words| MicroVmError::NoAnswer(clean(&words))),
            None => Err(self.board.running().err().map_or(MicroVmError::Unanswered(ANSWERING), Into::into)),
        }
    }

    fn list(&self) -> Result<Vec<ProcessEntry>, MicroVmError> {
        match self.ask(Question::Processes)? {
            Answer::Processes(entries) => Ok(cleaned(entries)),
            _ => Err(MicroVmError::NoAnswer("it answers another question".to_owned())),
        }
    }

    fn set_limits(&self, change: &LimitChange) -> Result<(), MicroVmError> {
        let paused = self.board.running()?;
        if let Some(asked) = change.memory.filter(|asked| asked.mib_ceil() > self.size.0.mib_ceil()) {
            return Err(MicroVmError::LargerMachine { asked: asked.to_string(), has: self.size.0.to_string() });
        }
        if let Some(asked) = change.cpus.filter(|asked| asked.ceil() > u32::from(self.size.1)) {
            let (asked, has) = (format!("{} processors", asked.ceil()), format!("{} processors", self.size.1));
            return Err(MicroVmError::LargerMachine { asked, has });
        }
        if change.memory.is_some() || change.pids.is_some() {
            if paused {
                return Err(Refusal::Paused.into());
            }
            let memory_bytes = change.memory.map(|memory| memory.0);
            match self.ask(Question::Limit { memory_bytes, pids: change.pids })? {
                Answer::Done => {}
                _ => return Err(MicroVmError::NoAnswer("it answers another question".to_owned())),
            }
        }
        Ok(self.cgroup.change(&LimitChange { memory: None, pids: None, ..*change })?)
    }

    fn counters(&self) -> Result<Option<Counters>, MicroVmError> {
        match self.ask(Question::Counters) {
            Ok(Answer::Counters(counters)) => Ok(Some(counters)),
            Ok(_) => Err(MicroVmError::NoAnswer("it answers another question".to_owned())),
            Err(MicroVmError::Inside(Refusal::Paused)) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

/// A list as it may be shown, whatever the agent said.
fn cleaned(mut entries: Vec<ProcessEntry>) -> Vec<ProcessEntry> {
    entries.truncate(MOST_PROCESSES);
    entries.iter_mut().for_each(|entry| entry.command = clean(&entry.command));
    entries
}

impl Inside for MicroVmInside {
    fn saving(&self) -> Option<&dyn Saving> {
        if self.is_qemus { None } else { Some(self) }
    }

    fn exec(&self, process: &ProcessSpec, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError> {
        let task = Task::Run { process: process.clone(), hostname: self.hostname.clone() };
        let exec = self.open(task, stdio).map_err(|e| error("run a command in", &self.id, e))?;
        Ok(Box::new(exec))
    }

    fn copy(&self, transfer: &Transfer, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError> {
        let copy = self.open(Task::Copy(transfer.clone()), stdio).map_err(|e| error("copy files of", &self.id, e))?;
        Ok(Box::new(copy))
    }

    fn pause(&self) -> Result<(), SandboxError> {
        self.set_paused(true).map_err(|e| error("pause", &self.id, e))
    }

    fn unpause(&self) -> Result<(), SandboxError> {
        self.set_paused(false).map_err(|e| error("unpause", &self.id, e))
    }

    fn processes(&self) -> Result<Vec<ProcessEntry>, SandboxError> {
        self.list().map_err(|e| error("list the processes of", &self.id, e))
    }

    fn change(&self, change: &LimitChange) -> Result<(), SandboxError> {
        self.set_limits(change).map_err(|e| error("change the limits of", &self.id, e))
    }

    fn stats(&self) -> Result<Stats, SandboxError> {
        let inside = self.counters().map_err(|e| error("measure", &self.id, e))?;
        Ok(Stats { inside, host: self.cgroup.counters() })
    }
}

/// Our ends of a session's streams.
struct Ends {
    stdin: Option<UnixStream>,
    stdout: UnixStream,
    stderr: Option<UnixStream>,
}

impl Ends {
    /// Lets the monitor hold the other ends for the agent.
    fn offer(connected: Connected, [stdin, stdout, stderr]: [u32; 3], reach: &Reach) -> Result<Self, MicroVmError> {
        let offer = |port| {
            let (ours, theirs) = UnixStream::pair().map_err(MicroVmError::Resource)?;
            reach.ask(RequestToMonitor::AddStream { port }, Some(theirs.as_fd())).map_err(MicroVmError::Resource)?;
            Ok::<_, MicroVmError>(ours)
        };
        Ok(Self {
            stdin: connected.stdin.then(|| offer(stdin)).transpose()?,
            stdout: offer(stdout)?,
            stderr: (!connected.terminal).then(|| offer(stderr)).transpose()?,
        })
    }

    /// Starts to move bytes between them and the caller's.
    fn connect(self, connected: Connected, stdio: Stdio) -> std::io::Result<SessionStreams> {
        let mut streams = SessionStreams::new(DELIVERY)?;
        streams.output(self.stdout.into(), stdio.stdout)?;
        if let Some(stderr) = self.stderr {
            streams.output(stderr.into(), stdio.stderr)?;
        }
        if let (true, Some(from), Some(to)) = (connected.stdin, stdio.stdin, self.stdin) {
            // The agent types the end where there is a terminal.
            streams.input(from, OwnedFd::from(to), InputEnd::Close)?;
        }
        Ok(streams)
    }
}

fn outcome(over: Over) -> Outcome {
    match over {
        Over::Closed(ending) => Outcome { exit: exit_of(ending), oom: false, reason: None },
        Over::Refused(kind, text) => exec_refused(kind, clean(&text)),
        // As a container's commands end with it.
        Over::Gone => Outcome { exit: Exit::Signal(9), oom: false, reason: None },
    }
}

/// A further command in a microVM.
#[derive(Debug)]
struct MicroVmExec {
    id: SandboxId,
    session: u32,
    board: Arc<Board>,
    voice: Voice,
    streams: Option<SessionStreams>,
    outcome: Option<Outcome>,
}

impl Exec for MicroVmExec {
    fn remote(&self) -> Box<dyn Remote> {
        let (board, voice) = (Arc::clone(&self.board), self.voice.clone());
        Box::new(SessionRemote { id: self.id.clone(), session: self.session, board, voice })
    }

    fn ended(&self) -> Option<Outcome> {
        self.outcome.clone().or_else(|| self.board.over(self.session).map(outcome))
    }

    fn wait(&mut self) -> Result<Outcome, SandboxError> {
        if let Some(outcome) = &self.outcome {
            return Ok(outcome.clone());
        }
        let over = self.board.wait_over(self.session);
        if let Some(streams) = &mut self.streams {
            streams.finish();
        }
        Ok(self.outcome.insert(outcome(over)).clone())
    }
}

impl Drop for MicroVmExec {
    fn drop(&mut self) {
        if self.board.leave(self.session) {
            let _ = self.voice.say(ToGuest::SessionSignal { session: self.session, signal: 9 });
        }
    }
}

/// Reaches a further command from any thread.
struct SessionRemote {
    id: SandboxId,
    session: u32,
    board: Arc<Board>,
    voice: Voice,
}

impl SessionRemote {
    /// To a session that has ended nothing need be said.
    fn say(&self, message: ToGuest) -> Result<(), MicroVmError> {
        match self.board.running() {
            Ok(_) => Ok(self.voice.say(message)?),
            Err(_) => Ok(()),
        }
    }
}

impl Remote for SessionRemote {
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        let message = ToGuest::SessionSignal { session: self.session, signal };
        self.say(message).map_err(|e| error("signal a command in", &self.id, e))
    }

    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        let message = ToGuest::SessionResize { session: self.session, size };
        self.say(message).map_err(|e| error("resize the terminal of a command in", &self.id, e))
    }
}
