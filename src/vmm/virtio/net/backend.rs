//! How frames leave for the host and come from it: by a stream socket or a tap. Nothing here blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::features;
use super::header::{self, HEADER};
use crate::sys::tap;

/// Shortest frame: an Ethernet header.
pub(super) const SHORTEST: usize = 14;
/// Longest frame of a tap: 64 KiB of packet, an Ethernet header and a VLAN tag.
pub(super) const LONGEST: usize = 65535 + 14 + 4;
/// Longest frame that a stream takes as one piece: the kernel's pieces (`unix_stream_sendmsg`) are a page less 320 bytes, and 32 KiB.
pub(super) const LONGEST_WHOLE: usize = 36_000;
/// Longest frame that may come from a stream: passt's own limit (ETH_MAX_MTU).
const LONGEST_IN_STREAM: usize = 65535;
/// Bytes of a frame's length before it.
const PREFIX: usize = 4;
/// What is read from a stream at once.
const READ: usize = 128 << 10;

/// What became of a frame that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is gone, or will be without a further call for it.
    Yes,
    /// There is no room: nothing of it was taken.
    Full,
    /// It cannot be carried, or nobody is there to take it.
    Dropped,
}

/// Whatever carries the frames.
#[derive(Debug)]
pub(super) enum Backend {
    /// A unix stream socket.
    Stream(Stream),
    /// A tap.
    Tap(Tap),
}

impl Backend {
    /// Feature bits that it allows.
    pub(super) fn features(&self) -> u64 {
        match self {
            Self::Stream(_) => features::ALWAYS,
            Self::Tap(_) => features::ALWAYS | features::WITH_TAP,
        }
    }

    /// Told when a driver has accepted features.
    pub(super) fn agree(&mut self, features: u64) {
        if let Self::Tap(tap) = self {
            // A kernel that lacks one of the offloads cuts segments itself.
            let _ = tap::set_offloads(&tap.fd, features::offloads(features)).or_else(|_| tap::set_offloads(&tap.fd, 0));
        }
    }

    /// For polling.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(stream) => stream.socket.as_fd(),
            Self::Tap(tap) => tap.fd.as_fd(),
        }
    }

    /// Whether what was sent before has left. Call before sending, and when the descriptor takes more.
    pub(super) fn flush(&mut self) -> bool {
        match self {
            Self::Stream(stream) => stream.flush(),
            Self::Tap(_) => true,
        }
    }

    /// Hands a frame over.
    pub(super) fn send(&mut self, header: &[u8; HEADER], frame: &[u8]) -> Sent {
        match self {
            Self::Stream(stream) => stream.send(frame),
            Self::Tap(tap) => tap.send(header, frame),
        }
    }

    /// The next frame with its header, if one is there. `verified` says that the driver knows of checksums that need no verifying.
    pub(super) fn frame(&mut self, verified: bool) -> Option<([u8; HEADER], &[u8])> {
        match self {
            Self::Stream(stream) => stream.frame().map(|frame| (header::of_whole_frame(verified), frame)),
            Self::Tap(tap) => tap.frame(),
        }
    }

    /// Drops the frame that [`Backend::frame`] gave.
    pub(super) fn next(&mut self) {
        match self {
            Self::Stream(stream) => stream.next(),
            Self::Tap(tap) => tap.length = 0,
        }
    }

    /// Nobody is at the other end any more.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Stream(stream) => stream.gone,
            Self::Tap(tap) => tap.gone,
        }
    }
}

/// Frames over a stream, each behind its length in 4 bytes, big-endian.
///
/// A frame is handed over in one call and, up to [`LONGEST_WHOLE`], as one piece of the kernel's: passt of Debian 12 does not survive a frame
/// that reaches it in three.
#[derive(Debug)]
pub(super) struct Stream {
    socket: OwnedFd,
    longest: usize,
    /// Of a frame with its prefix: what the socket has not taken yet.
    unsent: Vec<u8>,
    incoming: Vec<u8>,
    /// The bytes of `incoming` that are there: from `begin` to `end`.
    begin: usize,
    end: usize,
    gone: bool,
}

impl Stream {
    /// Over this connected socket, with frames of at most `longest` bytes, which is at most [`LONGEST_WHOLE`].
    pub(super) fn new(socket: OwnedFd, longest: usize) -> Self {
        let longest = longest.min(LONGEST_WHOLE);
        Self { socket, longest, unsent: Vec::new(), incoming: vec![0; READ], begin: 0, end: 0, gone: false }
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        let Some(length) = u32::try_from(frame.len()).ok().filter(|_| frame.len() <= self.longest) else {
            return Sent::Dropped;
        };
        if self.gone {
            return Sent::Dropped;
        }
        let mut whole = std::mem::take(&mut self.unsent);
        whole.extend_from_slice(&length.to_be_bytes());
        whole.extend_from_slice(frame);
        let sent = match self.push(&whole) {
            Ok(0) => Sent::Full,
            Ok(count) => {
                whole.drain(..count.min(whole.len()));
                self.unsent = whole;
                return Sent::Yes;
            }
            Err(_) => Sent::Dropped,
        };
        whole.clear();
        self.unsent = whole;
        sent
    }

    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.push(&self.unsent) {
                Ok(0) => return false,
                Ok(count) => drop(self.unsent.drain(..count.min(self.unsent.len()))),
                Err(_) => self.unsent.clear(),
            }
        }
        true
    }

    /// Hands bytes to the socket: how many it took, 0 if it is full.
    fn push(&self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn frame(&mut self) -> Option<&[u8]> {
        loop {
            if let Some(length) = self.length() {
                if !(SHORTEST..=LONGEST_IN_STREAM).contains(&length) {
                    // Whoever speaks here does not speak this protocol, and where its next frame begins nobody knows.
                    self.gone = true;
                    return None;
                }
                let begin = self.begin.saturating_add(PREFIX);
                let end = begin.saturating_add(length);
                if end <= self.end {
                    return self.incoming.get(begin..end);
                }
            }
            if self.gone || !self.fill() {
                return None;
            }
        }
    }

    /// Length of the frame that comes next.
    fn length(&self) -> Option<usize> {
        let prefix = self.incoming.get(self.begin..self.end)?.first_chunk::<PREFIX>()?;
        Some(usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX))
    }

    fn next(&mut self) {
        let length = self.length().unwrap_or(0).saturating_add(PREFIX);
        self.begin = self.begin.saturating_add(length).min(self.end);
    }

    /// Reads more bytes. False if none are there.
    fn fill(&mut self) -> bool {
        self.incoming.copy_within(self.begin..self.end, 0);
        self.end = self.end.saturating_sub(self.begin);
        self.begin = 0;
        loop {
            let Some(room) = self.incoming.get_mut(self.end..) else { return false };
            match recv(&self.socket, room, RecvFlags::DONTWAIT) {
                Ok((count, _)) if count > 0 => {
                    self.end = self.end.saturating_add(count);
                    return true;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                _ => {
                    self.gone = true;
                    return false;
                }
            }
        }
    }
}

/// A tap: one frame behind its header a call.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Bytes of the frame in `incoming`, its header included; 0 if there is none.
    length: usize,
    gone: bool,
}

impl Tap {
    /// On this tap, which is made non-blocking and told of our header.
    ///
    /// # Errors
    /// If it is no tap.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        tap::set_header(&fd, HEADER_LENGTH)?;
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self { fd, outgoing: Vec::new(), incoming: vec![0; HEADER + LONGEST], length: 0, gone: false })
    }

    fn send(&mut self, header: &[u8; HEADER], frame: &[u8]) -> Sent {
        self.outgoing.clear();
        self.outgoing.extend_from_slice(header);
        self.outgoing.extend_from_slice(frame);
        loop {
            match rustix::io::write(&self.fd, &self.outgoing) {
                Ok(_) => return Sent::Yes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Sent::Full,
                // An interface that is down, or a frame that the kernel does not like.
                Err(_) => return Sent::Dropped,
            }
        }
    }

    fn frame(&mut self) -> Option<([u8; HEADER], &[u8])> {
        while self.length == 0 && !self.gone {
            match rustix::io::read(&self.fd, &mut self.incoming[..]) {
                Ok(count) if count >= HEADER.saturating_add(SHORTEST) => self.length = count,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => self.gone = true,
            }
        }
        let (header, frame) = self.incoming.get(..self.length)?.split_first_chunk::<HEADER>()?;
        Some((*header, frame))
    }
}

/// [`HEADER`] as the kernel takes it.
const HEADER_LENGTH: u8 = 12;
