//! What a client and a keeper say to each other over the control socket: frames, each 4 bytes of length (little-endian, at most
//! [`LONGEST`]), 1 byte of channel, and so many bytes.
//!
//! | channel | from the client | from the keeper |
//! |---|---|---|
//! | 0 | first an [`Opening`], then [`Request`]s of an attached client (JSON) | a [`Reply`] (JSON) |
//! | 1 | bytes for standard input; none is its end | bytes of standard output |
//! | 2 | | bytes of standard error |
//!
//! ```text
//! client                      keeper
//!   | -- Opening(request) ----> |
//!   | <---------------- Reply - |      the end, unless the request was Attach, Exec or Copy and the reply Done:
//!   | -- 1: input ------------> |
//!   | -- 0: Signal, Resize ---> |      no reply
//!   | <---------- 1, 2: output  |
//!   | <---------- 0: Ended ---- |
//! ```

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::{
    LimitChange, MachineSize, Outcome, ProcessEntry, ProcessSpec, Restart, Stats, TerminalSize, Transfer, Usage,
};

/// Version of the protocol, in each [`Opening`].
pub const VERSION: u32 = 1;

/// Most bytes of a frame behind its header.
pub const LONGEST: usize = 1 << 20;

const MESSAGE: u8 = 0;

/// One of a command's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Output,
    /// Standard error.
    Error,
}

impl Stream {
    /// Its channel.
    pub fn number(self) -> u8 {
        match self {
            Self::Output => 1,
            Self::Error => 2,
        }
    }

    /// The stream of a channel.
    pub fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Output),
            2 => Some(Self::Error),
            _ => None,
        }
    }
}

/// The first word of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What it wants.
    pub request: Request,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Send the command this signal. One that ends it also keeps it from starting again.
    Signal(u8),
    /// Ask the command to end, and end it after a time. Answered when it has ended.
    Stop {
        /// Another signal than the sandbox's own.
        signal: Option<u8>,
        /// Seconds from the signal to SIGKILL, another number than the sandbox's own.
        timeout_s: Option<u32>,
    },
    /// Tell when the command has ended, and how.
    Wait,
    /// Connect the command's output, and its input if there is one and this asks for it. Answered [`Reply::Done`], then the streams flow.
    Attach {
        /// Send input too.
        stdin: bool,
    },
    /// The terminal has this size now.
    Resize(TerminalSize),
    /// Give the sandbox another name.
    Rename(String),
    /// What it uses now.
    Usage,
    /// Run a further command in it. Answered [`Reply::Done`], then its streams flow as after [`Request::Attach`].
    Exec {
        /// The command.
        process: Box<ProcessSpec>,
        /// Do not connect its streams: the answer is all, and [`Reply::Ended`] if it was not executed.
        detach: bool,
    },
    /// Copy files. Answered [`Reply::Done`], then the streams flow as after [`Request::Attach`]: a tar stream, and lines about it.
    Copy(Transfer),
    /// Stop it where it is.
    Pause,
    /// Let it go on.
    Unpause,
    /// List its processes.
    Processes,
    /// Change its limits.
    Change(LimitChange),
    /// Start it again by this policy from now on.
    Restart(Restart),
    /// Tell what it uses, seen from inside and from this host.
    Stats,
    /// Write its machine, and then its volumes, to files that are there and empty.
    Save {
        /// For the machine.
        machine: PathBuf,
        /// For each volume to be copied: the file of its disk, and the one for the copy.
        disks: Vec<(PathBuf, PathBuf)>,
    },
}

/// What a keeper answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// It is not: the error and its causes.
    Failed(Vec<String>),
    /// The command has ended.
    Ended(Outcome),
    /// What it uses.
    Usage(Usage),
    /// Its processes.
    Processes(Vec<ProcessEntry>),
    /// What it uses, from both sides.
    Stats(Box<Stats>),
    /// Its machine has been written, and has this size.
    Saved(MachineSize),
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<M> {
    /// A message.
    Message(M),
    /// Bytes of a stream, not more than [`LONGEST`].
    Bytes(Stream, Vec<u8>),
}

/// Sends a message.
///
/// # Errors
/// What the socket says.
pub fn send<M: Serialize>(to: &mut impl Write, message: &M) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    frame(to, MESSAGE, &body)
}

/// Sends bytes of a stream.
///
/// # Errors
/// What the socket says.
pub fn send_bytes(to: &mut impl Write, stream: Stream, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return frame(to, stream.number(), bytes);
    }
    bytes.chunks(LONGEST).try_for_each(|part| frame(to, stream.number(), part))
}

fn frame(to: &mut impl Write, channel: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= LONGEST);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"))?;
    let mut whole = Vec::with_capacity(body.len().saturating_add(5));
    whole.extend_from_slice(&length.to_le_bytes());
    whole.push(channel);
    whole.extend_from_slice(body);
    to.write_all(&whole)
}

/// Receives a frame.
///
/// # Errors
/// `UnexpectedEof` if the other end is gone, `InvalidData` if what comes is no frame, or what the socket says.
pub fn receive<M: DeserializeOwned>(from: &mut impl Read) -> io::Result<Frame<M>> {
    let mut header = [0; 5];
    from.read_exact(&mut header)?;
    let [a, b, c, d, channel] = header;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let invalid = |words: String| io::Error::new(io::ErrorKind::InvalidData, words);
    if length > LONGEST {
        return Err(invalid(format!("a frame of {length} bytes is longer than {LONGEST}")));
    }
    let mut body = Vec::new();
    from.by_ref().take(u64::try_from(length).unwrap_or(0)).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if channel == MESSAGE {
        return serde_json::from_slice(&body).map(Frame::Message).map_err(|e| invalid(e.to_string()));
    }
    let stream = Stream::of(channel).ok_or_else(|| invalid(format!("there is no channel {channel}")))?;
    Ok(Frame::Bytes(stream, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let mut wire = Vec::new();
        send(&mut wire, &Reply::Failed(vec!["a".into()])).unwrap();
        send_bytes(&mut wire, Stream::Error, b"xyz").unwrap();
        send_bytes(&mut wire, Stream::Output, b"").unwrap();
        send_bytes(&mut wire, Stream::Output, &vec![7; LONGEST + 1]).unwrap();
        let mut from = wire.as_slice();
        assert_eq!(receive(&mut from).unwrap(), Frame::Message(Reply::Failed(vec!["a".into()])));
        assert_eq!(receive::<Reply>(&mut from).unwrap(), Frame::Bytes(Stream::Error, b"xyz".to_vec()));
        assert_eq!(receive::<Reply>(&mut from).unwrap(), Frame::Bytes(Stream::Output, Vec::new()));
        assert_eq!(receive::<Reply>(&mut from).unwrap(), Frame::Bytes(Stream::Output, vec![7; LONGEST]));
        assert_eq!(receive::<Reply>(&mut from).unwrap(), Frame::Bytes(Stream::Output, vec![7]));
        assert_eq!(receive::<Reply>(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            &b"\xff\xff\xff\xff\x00"[..],
            b"\x01\x00\x00\x00\x09x",
            b"\x02\x00\x00\x00\x00{}",
            b"\x01\x00\x00\x00\x00x",
        ] {
            assert_eq!(receive::<Opening>(&mut &*bytes).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
        for bytes in [&b"\x02\x00\x00\x00\x01x"[..], b"\x02\x00", b""] {
            assert_eq!(receive::<Opening>(&mut &*bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{bytes:?}");
        }
    }
}
