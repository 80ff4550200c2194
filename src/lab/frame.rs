//! The unit that travels between a client, the keeper and the lab's agent: a header and up to 4 MiB.
//!
//! ```text
//! command: u32 LE | kind: u8 | length: u32 LE | payload
//! ```
//! `command` is 0 on a client's socket and for what concerns the lab as a whole.

use std::io::{self, Read, Write};

use super::message::{Control, Stream};

/// Raw bytes in one frame are at most this many: small enough that a chatty command does not hold up another one's keystroke.
pub(super) const DATA_LIMIT: usize = 32 << 10;

/// A control message (arguments and environment among them) is at most this long: execve(2) takes no more either.
const CONTROL_LIMIT: u32 = 4 << 20;

const HEADER: usize = 9;
const KIND_CONTROL: u8 = 3;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The command it belongs to.
    pub command: u32,
    /// What it carries.
    pub body: Body,
}

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Bytes of a stream; none at all is its end.
    Data(Stream, Vec<u8>),
    /// Anything else.
    Control(Control),
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed between two frames.
    #[error("The lab's channel was closed")]
    Closed,
    /// Reading or writing failed, or the end came inside a frame.
    #[error("The lab's channel broke")]
    Io(#[from] io::Error),
    /// A header that this version does not know.
    #[error("A frame of kind {kind} and {length} bytes is not part of the lab's protocol")]
    Header {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: u32,
    },
    /// The payload does not decode.
    #[error("A message of the lab does not decode")]
    Message(#[from] postcard::Error),
}

impl Frame {
    /// A control message.
    pub(super) fn control(command: u32, control: Control) -> Self {
        Self { command, body: Body::Control(control) }
    }

    /// Bytes of a stream.
    pub(super) fn data(command: u32, stream: Stream, bytes: Vec<u8>) -> Self {
        Self { command, body: Body::Data(stream, bytes) }
    }

    /// The frame as bytes.
    ///
    /// # Errors
    /// [`FrameError::Header`] if the payload is too long, [`FrameError::Message`] if it does not encode.
    pub(super) fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut bytes = self.command.to_le_bytes().to_vec();
        let encoded;
        let (kind, payload, limit) = match &self.body {
            Body::Data(stream, data) => (stream.kind(), data, limit_of_data()),
            Body::Control(control) => {
                encoded = postcard::to_stdvec(control)?;
                (KIND_CONTROL, &encoded, CONTROL_LIMIT)
            }
        };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if length > limit {
            return Err(FrameError::Header { kind, length });
        }
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(payload);
        Ok(bytes)
    }

    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// As [`Frame::encode`], and what the writer says.
    pub(super) fn write(&self, to: &mut impl Write) -> Result<(), FrameError> {
        Ok(to.write_all(&self.encode()?)?)
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// See [`FrameError`]; after any of them the channel is of no more use.
    pub(super) fn read(from: &mut impl Read) -> Result<Self, FrameError> {
        let mut header = [0; HEADER];
        let first = loop {
            match from.read(&mut header) {
                Ok(0) => return Err(FrameError::Closed),
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        };
        from.read_exact(&mut header[first..])?;
        let [c0, c1, c2, c3, kind, l0, l1, l2, l3] = header;
        let command = u32::from_le_bytes([c0, c1, c2, c3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let stream = Stream::from_kind(kind);
        let limit = match (kind, stream) {
            (KIND_CONTROL, _) => CONTROL_LIMIT,
            (_, Some(_)) => limit_of_data(),
            _ => 0,
        };
        if length > limit || (stream.is_none() && kind != KIND_CONTROL) {
            return Err(FrameError::Header { kind, length });
        }
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        from.read_exact(&mut payload)?;
        let body = match stream {
            Some(stream) => Body::Data(stream, payload),
            None => Body::Control(postcard::from_bytes(&payload)?),
        };
        Ok(Self { command, body })
    }
}

fn limit_of_data() -> u32 {
    u32::try_from(DATA_LIMIT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
