//! The connection to the host: framed messages on one vsock stream.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use duplex_wire::{Decoder, GoOn, Start, ToGuest, ToHost, encode, port};

use crate::sys;
use crate::trouble::{Doing, Trouble};

/// The host's end of the control stream.
pub(crate) struct Host {
    stream: File,
    decoder: Decoder<ToGuest>,
    speaker: Speaker,
}

/// Tells the host from any thread. In a machine that goes on elsewhere, whoever spoke to the host before speaks to nobody.
#[derive(Clone)]
pub(crate) struct Speaker {
    wire: Arc<Mutex<Wire>>,
    turn: u32,
}

struct Wire {
    stream: File,
    turn: u32,
}

impl Speaker {
    /// Sends a message, whole.
    pub(crate) fn tell(&self, message: &ToHost) -> Result<(), Trouble> {
        let frame = encode(message).map_err(|e| Trouble::new("encode a message", e))?;
        // One who panicked while writing has ended the agent.
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        if wire.turn != self.turn {
            return Ok(());
        }
        wire.stream.write_all(&frame).doing(|| "send the host a message".into())
    }
}

/// What a look at the stream gave.
pub(crate) enum Heard {
    /// A message.
    Message(ToGuest),
    /// The host has ended the connection.
    End,
}

impl Host {
    /// Connects and says hello.
    pub(crate) fn connect() -> Result<Self, Trouble> {
        let (stream, again) = reach()?;
        let speaker = Speaker { wire: Arc::new(Mutex::new(Wire { stream: again, turn: 0 })), turn: 0 };
        let host = Self { stream, decoder: Decoder::default(), speaker };
        host.hello()?;
        Ok(host)
    }

    /// The same for the host that the machine goes on with.
    pub(crate) fn connect_anew(&mut self) -> Result<(), Trouble> {
        let (stream, again) = reach()?;
        let turn = {
            let mut wire = self.speaker.wire.lock().unwrap_or_else(PoisonError::into_inner);
            *wire = Wire { stream: again, turn: wire.turn.wrapping_add(1) };
            wire.turn
        };
        (self.stream, self.decoder, self.speaker.turn) = (stream, Decoder::default(), turn);
        self.hello()
    }

    fn hello(&self) -> Result<(), Trouble> {
        self.tell(&ToHost::Hello { agent: env!("CARGO_PKG_VERSION").to_owned() })
    }

    /// Sends a message.
    pub(crate) fn tell(&self, message: &ToHost) -> Result<(), Trouble> {
        self.speaker.tell(message)
    }

    /// For other threads.
    pub(crate) fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    /// Waits for the first message, which says what to run.
    pub(crate) fn receive_start(&mut self) -> Result<Start, Trouble> {
        match self.hear()? {
            Heard::Message(ToGuest::Start(start)) => Ok(*start),
            Heard::Message(_) => Err(Trouble::new("start", "the host's first message is not Start")),
            Heard::End => Err(Trouble::new("start", "the host ended the connection")),
        }
    }

    /// Waits for what a machine that goes on is told.
    pub(crate) fn receive_go_on(&mut self) -> Result<GoOn, Trouble> {
        match self.hear()? {
            Heard::Message(ToGuest::GoOn(orders)) => Ok(*orders),
            Heard::Message(_) => Err(Trouble::new("go on", "the host's first message is not GoOn")),
            Heard::End => Err(Trouble::new("go on", "the host ended the connection")),
        }
    }

    /// Waits for one message.
    pub(crate) fn hear(&mut self) -> Result<Heard, Trouble> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(message) = self.heard_already()? {
                return Ok(Heard::Message(message));
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(Heard::End),
                Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or(&[])),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Trouble::new("hear the host", e)),
            }
        }
    }

    /// A message that has arrived with an earlier one.
    pub(crate) fn heard_already(&mut self) -> Result<Option<ToGuest>, Trouble> {
        self.decoder.next_message().map_err(|e| Trouble::new("read the host's message", e))
    }

    /// Waits until the host ends the connection: it has read all that the command wrote, and the machine may go.
    pub(crate) fn wait_for_the_end(&mut self) -> Result<(), Trouble> {
        loop {
            if matches!(self.hear()?, Heard::End) {
                return Ok(());
            }
        }
    }
}

/// The control stream, twice.
fn reach() -> Result<(File, File), Trouble> {
    let stream = sys::vsock_connect(port::CONTROL).doing(|| "reach the host".into())?;
    let stream = File::from(stream);
    let again = stream.try_clone().doing(|| "duplicate the host's stream".into())?;
    Ok((stream, again))
}

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
