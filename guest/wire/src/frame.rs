//! Frames: 8 bytes of header, then one message in postcard's encoding.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | length of the message, little-endian |
//! | 4..6 | version of the protocol, little-endian |
//! | 6..8 | zero |
//!
//! The version stands before the message so that a reader that knows nothing of a later version's messages still knows what it reads.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the protocol. Any change to a message's encoding is a new version.
pub const VERSION: u16 = 6;

/// Length of a frame's header in bytes.
pub const HEADER: usize = 8;

/// A message of one direction.
pub trait Message: Serialize + DeserializeOwned {
    /// Most bytes of an encoded message, without the header.
    const LIMIT: usize;
}

/// Why bytes are not a frame, or a message does not become one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// The other end speaks another version.
    #[error(
        "The other end speaks version {theirs} of the agent protocol, this one speaks {VERSION}: both must be from one build"
    )]
    Version {
        /// Its version.
        theirs: u16,
    },
    /// The message is longer than its direction allows.
    #[error("A message of {length} bytes is longer than {limit}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// The reserved bytes of the header are not zero.
    #[error("The reserved bytes of a frame's header are not zero")]
    Reserved,
    /// The bytes are not one message.
    #[error("A frame of {length} bytes does not hold one message")]
    Content {
        /// Its length.
        length: usize,
        /// What the decoder says.
        #[source]
        source: postcard::Error,
    },
    /// The bytes hold a message and more.
    #[error("A frame has {extra} bytes behind its message")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

/// One frame with this message.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; HEADER];
    frame = postcard::to_extend(message, frame).map_err(|source| WireError::Content { length: 0, source })?;
    let length = frame.len().saturating_sub(HEADER);
    let too_long = WireError::TooLong { length, limit: M::LIMIT };
    let field = u32::try_from(length).ok().filter(|_| length <= M::LIMIT).ok_or(too_long)?;
    if let Some((head, _)) = frame.split_first_chunk_mut::<HEADER>() {
        let [a, b, c, d] = field.to_le_bytes();
        let [e, f] = VERSION.to_le_bytes();
        *head = [a, b, c, d, e, f, 0, 0];
    }
    Ok(frame)
}

/// Puts messages together from bytes as they come. Holds at most one unfinished frame and what one `push` gave.
#[derive(Debug)]
pub struct Decoder<M> {
    buffer: Vec<u8>,
    kind: PhantomData<M>,
}

impl<M: Message> Default for Decoder<M> {
    fn default() -> Self {
        Self { buffer: Vec::new(), kind: PhantomData }
    }
}

impl<M: Message> Decoder<M> {
    /// Takes bytes. Call [`Decoder::next_message`] until it gives nothing before taking more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` until its last byte is there. After an error the connection is worth nothing.
    pub fn next_message(&mut self) -> Result<Option<M>, WireError> {
        let Some(([a, b, c, d, e, f, g, h], rest)) = self.buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
        let theirs = u16::from_le_bytes([*e, *f]);
        if theirs != VERSION {
            return Err(WireError::Version { theirs });
        }
        if [*g, *h] != [0, 0] {
            return Err(WireError::Reserved);
        }
        let length = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
        if length > M::LIMIT {
            return Err(WireError::TooLong { length, limit: M::LIMIT });
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let (message, behind) =
            postcard::take_from_bytes(body).map_err(|source| WireError::Content { length, source })?;
        if !behind.is_empty() {
            return Err(WireError::Trailing { extra: behind.len() });
        }
        self.buffer.drain(..HEADER.saturating_add(length));
        Ok(Some(message))
    }

    /// No part of a frame waits for its end: the other end may stop here.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests;
