//! The keeper's clients: each brings one wish; frames of a command pass both ways under the command's number.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::frame::{Body, Frame, FrameError};
use crate::lab::message::{CommandSpec, Control, PROTOCOL, Stream};
use crate::lab::{RunningCommand, Status};

/// Time between two interrupts from outside.
const AWAKE: Duration = Duration::from_millis(500);

/// All clients, and the way to the agent. Locks are never held together.
#[derive(Debug)]
pub(super) struct Clients {
    agent: Mutex<UnixStream>,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    next: u32,
    commands: BTreeMap<u32, Command>,
    /// When the last command ended.
    quiet: Instant,
}

#[derive(Debug)]
struct Command {
    argv: Vec<String>,
    began: Instant,
    /// The way to the client; `None` once it is gone. What waits here is bounded by the credit that the client has given.
    client: Option<Sender<Frame>>,
}

impl Clients {
    pub(super) fn new(agent: UnixStream) -> Self {
        let running = Running { next: 1, commands: BTreeMap::new(), quiet: Instant::now() };
        Self { agent: Mutex::new(agent), running: Mutex::new(running) }
    }

    /// Time since the last command ended; `None` while one runs.
    pub(super) fn idle(&self) -> Option<Duration> {
        let running = self.lock();
        running.commands.is_empty().then(|| running.quiet.elapsed())
    }

    /// The commands that run.
    pub(super) fn commands(&self) -> Vec<RunningCommand> {
        let running = self.lock();
        let rows = running.commands.iter().map(|(id, command)| RunningCommand {
            id: *id,
            argv: command.argv.clone(),
            running_s: command.began.elapsed().as_secs(),
        });
        rows.collect()
    }

    /// Sends the lab an interrupt from outside every half second, until the channel ends. QEMU sets and clears one bit of its processor's word of
    /// pending interrupts without a lock at each entry to and exit from a guest; a timer's interrupt that comes in that moment is lost, and
    /// with it every later one, because the lab's kernel sets its timer in the handler. Any other interrupt makes QEMU look again.
    pub(super) fn keep_awake(&self) {
        while self.tell_agent(&Frame::control(0, Control::Awake)).is_ok() {
            thread::sleep(AWAKE);
        }
    }

    /// Passes what the agent says to the clients, until the channel ends.
    pub(super) fn route(&self, mut from: UnixStream) {
        while let Ok(frame) = Frame::read(&mut from) {
            let id = frame.command;
            let last = matches!(frame.body, Body::Control(Control::Exited(_)));
            let client = {
                let mut running = self.lock();
                let client = running.commands.get(&id).and_then(|c| c.client.clone());
                if last && running.commands.remove(&id).is_some() {
                    running.quiet = Instant::now();
                }
                client
            };
            if let Some(client) = client {
                // A client that is gone has been reported to the agent by its own thread.
                let _ = client.send(Frame { command: 0, ..frame });
            }
        }
        self.abandon("its machine ended");
    }

    /// Tells all clients and the agent that the lab ends.
    pub(super) fn end(&self, why: &str) {
        self.abandon(why);
        let _ = self.tell_agent(&Frame::control(0, Control::Halt));
    }

    fn abandon(&self, why: &str) {
        for command in std::mem::take(&mut self.lock().commands).into_values() {
            if let Some(client) = command.client {
                let _ = client.send(Frame::control(0, Control::LabEnds(why.to_owned())));
            }
        }
    }

    /// Serves one connection.
    pub(super) fn attend(&self, mut stream: UnixStream, status: Status) {
        // Errors end the connection; the client sees it closed.
        let _ = self.greet(&mut stream, status);
    }

    fn greet(&self, stream: &mut UnixStream, status: Status) -> Result<(), FrameError> {
        Frame::control(0, Control::Hello(PROTOCOL)).write(stream)?;
        match Frame::read(stream)?.body {
            Body::Control(Control::Hello(PROTOCOL)) => {}
            _ => return Ok(()),
        }
        match Frame::read(stream)?.body {
            Body::Control(Control::StatusWanted) => Frame::control(0, Control::Status(status)).write(stream),
            Body::Control(Control::Run(spec)) => self.run(stream, spec),
            _ => Ok(()),
        }
    }

    fn run(&self, stream: &mut UnixStream, spec: CommandSpec) -> Result<(), FrameError> {
        let (client, frames) = channel();
        let to_client = stream.try_clone()?;
        let id = self.register(&spec, client);
        let writer = thread::spawn(move || pass_on(&frames, to_client));
        self.tell_agent(&Frame::control(id, Control::Run(spec)))?;
        let heard = self.listen(id, stream);
        let unfinished = {
            let mut running = self.lock();
            running.commands.get_mut(&id).is_some_and(|command| command.client.take().is_some())
        };
        if unfinished {
            self.tell_agent(&Frame::control(id, Control::Gone))?;
        }
        let _ = writer.join();
        heard
    }

    fn register(&self, spec: &CommandSpec, client: Sender<Frame>) -> u32 {
        let argv = spec.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let mut running = self.lock();
        let id = running.next;
        running.next = running.next.checked_add(1).unwrap_or(1);
        running.commands.insert(id, Command { argv, began: Instant::now(), client: Some(client) });
        id
    }

    /// Passes what the client says to the agent, until the client closes.
    fn listen(&self, id: u32, stream: &mut UnixStream) -> Result<(), FrameError> {
        loop {
            let frame = match Frame::read(stream) {
                Err(FrameError::Closed) => return Ok(()),
                other => other?,
            };
            let allowed = match &frame.body {
                Body::Data(stream, _) => *stream == Stream::Input,
                Body::Control(control) => matches!(
                    control,
                    Control::Signal(_) | Control::Resize(_) | Control::Credit(..) | Control::Closed(_)
                ),
            };
            if allowed {
                self.tell_agent(&Frame { command: id, ..frame })?;
            }
        }
    }

    fn tell_agent(&self, frame: &Frame) -> Result<(), FrameError> {
        frame.write(&mut *self.agent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes frames to a client until the last one of its command.
fn pass_on(frames: &Receiver<Frame>, mut client: UnixStream) {
    for frame in frames {
        let last = matches!(frame.body, Body::Control(Control::Exited(_) | Control::LabEnds(_)));
        if frame.write(&mut client).is_err() || last {
            break;
        }
    }
    // The thread that reads from this client wakes by it.
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_kept_awake_until_its_channel_ends() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let keeper = thread::spawn(move || Clients::new(ours).keep_awake());
        for _ in 0..2 {
            assert_eq!(Frame::read(&mut theirs).unwrap(), Frame::control(0, Control::Awake));
        }
        drop(theirs);
        keeper.join().unwrap();
    }
}
