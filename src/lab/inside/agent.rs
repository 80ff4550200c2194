//! The agent: reads frames from the keeper and keeps the commands.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::command::Running;
use super::complain;
use super::live::Live;
use crate::lab::frame::{Body, Frame, FrameError};
use crate::lab::machine::PORT;
use crate::lab::message::{Control, Stream};

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    #[error("no serial port is named {PORT}")]
    NoPort,
    #[error("the channel cannot be opened: {0}")]
    Port(io::Error),
    #[error("the channel cannot be understood: {0}")]
    Frame(#[from] FrameError),
}

/// What all commands share. Lock order: none is held while another is taken.
#[derive(Debug)]
pub(super) struct Agent {
    channel: Mutex<File>,
    commands: Mutex<BTreeMap<u32, Arc<Running>>>,
    /// Folders of the host that are live.
    pub(super) live: Live,
}

/// Serves the keeper until it says halt or is gone.
pub(super) fn main() -> Result<(), AgentError> {
    let mut channel = open()?;
    let writer = channel.try_clone().map_err(AgentError::Port)?;
    let agent = Arc::new(Agent { channel: Mutex::new(writer), commands: Mutex::default(), live: Live::default() });
    agent.send(&Frame::control(0, Control::Ready))?;
    loop {
        let frame = match Frame::read(&mut channel) {
            Err(FrameError::Closed) => break,
            other => other?,
        };
        if !agent.handle(frame) {
            break;
        }
    }
    agent.halt();
    Ok(())
}

fn open() -> Result<File, AgentError> {
    let ports = fs::read_dir("/sys/class/virtio-ports").map_err(AgentError::Port)?;
    let named = |dir: &PathBuf| fs::read_to_string(dir.join("name")).is_ok_and(|name| name.trim() == PORT);
    let port = ports.filter_map(|e| Some(e.ok()?.path())).find(named).ok_or(AgentError::NoPort)?;
    let device = PathBuf::from("/dev").join(port.file_name().unwrap_or_default());
    File::options().read(true).write(true).open(device).map_err(AgentError::Port)
}

impl Agent {
    /// Sends a frame to the keeper.
    pub(super) fn send(&self, frame: &Frame) -> Result<(), FrameError> {
        frame.write(&mut *self.channel.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The command has ended: no more frames for it.
    pub(super) fn forget(&self, id: u32) {
        self.lock().remove(&id);
    }

    /// Does what a frame asks. `false` if the lab is to end.
    fn handle(self: &Arc<Self>, frame: Frame) -> bool {
        let id = frame.command;
        let command = self.lock().get(&id).cloned();
        match (frame.body, command) {
            (Body::Control(Control::Halt), _) => return false,
            (Body::Control(Control::Run(spec)), None) => {
                // Registered before it runs: its input may be the next frame.
                let running = Arc::new(Running::new(id));
                self.lock().insert(id, Arc::clone(&running));
                let agent = Arc::clone(self);
                thread::spawn(move || running.run(&agent, &spec));
            }
            (Body::Data(Stream::Input, bytes), Some(command)) => command.input(bytes),
            (Body::Control(Control::Signal(number)), Some(command)) => command.signal(number),
            (Body::Control(Control::Resize(size)), Some(command)) => command.resize(size),
            (Body::Control(Control::Credit(stream, bytes)), Some(command)) => command.credit(stream, bytes),
            (Body::Control(Control::Closed(stream)), Some(command)) => command.closed(stream),
            (Body::Control(Control::Gone), Some(command)) => {
                thread::spawn(move || command.end(Duration::from_secs(5)));
            }
            // For a command that has just ended.
            (_, None) => {}
            (body, Some(_)) => complain(&format!("a message to command {id} makes no sense: {body:?}")),
        }
        true
    }

    /// Ends all commands, the willing ones in order.
    fn halt(&self) {
        let commands: Vec<Arc<Running>> = std::mem::take(&mut *self.lock()).into_values().collect();
        let threads: Vec<_> =
            commands.into_iter().map(|command| thread::spawn(move || command.end(Duration::from_secs(5)))).collect();
        for thread in threads {
            let _ = thread.join();
        }
        rustix::fs::sync();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Running>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
