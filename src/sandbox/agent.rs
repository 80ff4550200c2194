//! The host's end of the guest agent's wire. What comes over it is hostile: messages have a length, an order and a number, and nothing
//! here waits for the guest without the caller's deadline.
//!
//! ```text
//!             Hello         start()        Started            Exited
//! Connected --------> Greeted ----> Starting ----> Running --------> Ended
//!                                      \------- StartFailed ---------^
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duplex_wire::{Decoder, GoOn, Start, ToGuest, ToHost, WireError, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Most lines that an agent may log in a sandbox's life.
const MOST_LOGS: usize = 256;

/// Most bytes read from a guest before the caller gets to look at other things.
const READ_AT_ONCE: usize = 16 << 10;

/// How long the guest may refuse to take a message's bytes.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

/// Why the wire is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The bytes are not of the protocol.
    #[error("The guest's agent does not speak the agent protocol")]
    Wire(#[from] WireError),
    /// A message that cannot come at this point.
    #[error("The guest's agent sent '{message}' while {while_}")]
    OutOfTurn {
        /// Which message.
        message: &'static str,
        /// Where the conversation was.
        while_: &'static str,
    },
    /// A word about something that it was not asked.
    #[error("The guest's agent sent an unasked {0}")]
    Unasked(&'static str),
    /// More log lines than anyone needs.
    #[error("The guest's agent logged more than {MOST_LOGS} lines")]
    TooManyLogs,
    /// The guest does not read.
    #[error("The guest's agent took none of a message's bytes for {} s", SEND_PATIENCE.as_secs())]
    Deaf,
    /// The socket failed.
    #[error("The connection to the guest's agent failed")]
    Io(#[from] io::Error),
}

/// Where the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connected,
    Greeted,
    Starting,
    Running,
    Ended,
}

impl Phase {
    fn words(self) -> &'static str {
        match self {
            Self::Connected => "it had not said hello",
            Self::Greeted => "it had no command",
            Self::Starting => "it was starting the command",
            Self::Running => "the command was running",
            Self::Ended => "the command had ended",
        }
    }
}

impl Phase {
    /// The command was executed: there may be sessions and questions.
    fn has_command(self) -> bool {
        matches!(self, Self::Running | Self::Ended)
    }
}

/// What a look at the wire gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message, in its turn.
    Message(ToHost),
    /// Nothing whole yet.
    Nothing,
    /// The guest has ended the connection.
    End,
}

/// One agent's wire.
#[derive(Debug)]
pub struct Client {
    stream: Arc<UnixStream>,
    voice: Voice,
    decoder: Decoder<ToHost>,
    phase: Phase,
    logs: usize,
}

/// Speaks to the agent from any thread. What is said before [`Client::start`] waits for it.
#[derive(Clone, Debug)]
pub struct Voice(Arc<Mutex<Speech>>);

#[derive(Debug)]
struct Speech {
    stream: Arc<UnixStream>,
    started: bool,
    waiting: Vec<ToGuest>,
}

/// Most messages that wait for the start.
const MOST_WAITING: usize = 64;

impl Client {
    /// The host's end of the control stream.
    ///
    /// # Errors
    /// If the socket cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> Result<Self, AgentError> {
        stream.set_nonblocking(true)?;
        let stream = Arc::new(stream);
        let speech = Speech { stream: Arc::clone(&stream), started: false, waiting: Vec::new() };
        let voice = Voice(Arc::new(Mutex::new(speech)));
        Ok(Self { stream, voice, decoder: Decoder::default(), phase: Phase::Connected, logs: 0 })
    }

    /// A handle for other threads.
    pub fn voice(&self) -> Voice {
        self.voice.clone()
    }

    /// Tells the agent what to run, once it has said hello, and then what has waited for it.
    ///
    /// # Errors
    /// [`AgentError::Deaf`] if it does not read.
    pub fn start(&mut self, start: Start) -> Result<(), AgentError> {
        self.begin(&ToGuest::Start(Box::new(start)))
    }

    /// Tells the agent of a saved machine as whom to go on, once it has said hello, and then what has waited for it.
    ///
    /// # Errors
    /// [`AgentError::Deaf`] if it does not read.
    pub fn go_on(&mut self, orders: GoOn) -> Result<(), AgentError> {
        self.begin(&ToGuest::GoOn(Box::new(orders)))
    }

    fn begin(&mut self, orders: &ToGuest) -> Result<(), AgentError> {
        if self.phase != Phase::Greeted {
            return Err(AgentError::OutOfTurn { message: "start", while_: self.phase.words() });
        }
        self.phase = Phase::Starting;
        let mut speech = self.voice.lock();
        speech.send(orders)?;
        speech.started = true;
        for message in std::mem::take(&mut speech.waiting) {
            speech.send(&message)?;
        }
        Ok(())
    }

    /// The next message if it is there. Never waits.
    ///
    /// # Errors
    /// Bytes out of the protocol, messages out of turn: the sandbox is to be ended.
    pub fn hear(&mut self) -> Result<Heard, AgentError> {
        let mut bytes = [0; 4096];
        for _ in 0..READ_AT_ONCE / 4096 {
            if let Some(message) = self.decoder.next_message()? {
                self.take_turn(&message)?;
                return Ok(Heard::Message(message));
            }
            match (&*self.stream).read(&mut bytes) {
                Ok(0) => return Ok(Heard::End),
                Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or(&[])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(Heard::End),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Heard::Nothing)
    }

    /// Waits for the next message, at most until the deadline.
    ///
    /// # Errors
    /// As [`Client::hear`].
    pub fn hear_until(&mut self, deadline: Instant) -> Result<Heard, AgentError> {
        loop {
            match self.hear()? {
                Heard::Nothing => {}
                heard => return Ok(heard),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !ready(&self.stream, PollFlags::IN, left)? {
                return Ok(Heard::Nothing);
            }
        }
    }

    /// Tells the agent that the host has read all: it may end the machine.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    fn take_turn(&mut self, message: &ToHost) -> Result<(), AgentError> {
        let (name, next) = match (self.phase, message) {
            (Phase::Connected, ToHost::Hello { .. }) => ("hello", Some(Phase::Greeted)),
            (_, ToHost::Hello { .. }) => ("hello", None),
            (Phase::Starting, ToHost::Started) => ("started", Some(Phase::Running)),
            (_, ToHost::Started) => ("started", None),
            // An agent in trouble says so whether it was asked to start or not.
            (Phase::Greeted | Phase::Starting | Phase::Running, ToHost::StartFailed { .. }) => {
                ("failed", Some(Phase::Ended))
            }
            (_, ToHost::StartFailed { .. }) => ("failed", None),
            (Phase::Running, ToHost::Exited { .. }) => ("exited", Some(Phase::Ended)),
            (_, ToHost::Exited { .. }) => ("exited", None),
            (Phase::Connected, ToHost::Log { .. }) => ("log", None),
            (phase, ToHost::Log { .. }) => ("log", Some(phase)),
            (phase, ToHost::Opened { .. } | ToHost::Refused { .. } | ToHost::Closed { .. }) => {
                ("session", phase.has_command().then_some(phase))
            }
            (phase, ToHost::Answer { .. }) => ("answer", phase.has_command().then_some(phase)),
        };
        if matches!(message, ToHost::Log { .. }) {
            self.logs += 1;
            if self.logs > MOST_LOGS {
                return Err(AgentError::TooManyLogs);
            }
        }
        self.phase = next.ok_or(AgentError::OutOfTurn { message: name, while_: self.phase.words() })?;
        Ok(())
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Voice {
    /// Sends a message, now or right after the start. What is too much before the start is dropped.
    ///
    /// # Errors
    /// [`AgentError::Deaf`] if the agent does not read.
    pub fn say(&self, message: ToGuest) -> Result<(), AgentError> {
        let mut speech = self.lock();
        if speech.started {
            return speech.send(&message);
        }
        if speech.waiting.len() < MOST_WAITING {
            speech.waiting.push(message);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Speech> {
        // A speech is whole after every statement: a thread that panicked with the lock left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Speech {
    fn send(&self, message: &ToGuest) -> Result<(), AgentError> {
        let frame = encode(message)?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match (&*self.stream).write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or(&[]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !ready(&self.stream, PollFlags::OUT, SEND_PATIENCE)? {
                        return Err(AgentError::Deaf);
                    }
                }
                // Nobody is there any more: the end of what it said tells so, and the machine's own end why.
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Waits until the socket is ready; false when the time is over.
fn ready(stream: &UnixStream, what: PollFlags, time: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + time;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(stream, what)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests;
