//! The process behind the device, over its socket. It reads and writes the guest's memory, so nothing that it could do to the guest is kept from
//! it; but its answers are checked, and nobody waits for them for longer than a deadline.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, recv, sendmsg, shutdown};

use super::message::{Breach, HEADER, LONGEST_ANSWER, Message, Request, check};
use crate::vmm::memory::{GuestRam, pieces};
use crate::vmm::virtio::device::{F_EVENT_IDX, F_VERSION_1};
use crate::vmm::virtio::queue::Rings;

/// VHOST_USER_F_PROTOCOL_FEATURES.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK.
const REPLY_ACK: u64 = 1 << 3;

/// Most ranges of guest memory: one on each side of the hole.
const MOST_PIECES: usize = 2;

/// Why a back end cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It has ended, or does not want to be spoken to.
    #[error("It has closed its end of the socket")]
    Gone,
    /// It keeps still.
    #[error("It has not answered within {} s", .0.as_secs())]
    Silent(Duration),
    /// What it says is no answer.
    #[error("Its answer to request {request} cannot be one: {why}")]
    Breach {
        /// The request's number.
        request: u32,
        /// In words.
        why: String,
    },
    /// It says something although nothing was asked.
    #[error("It speaks without being asked")]
    Unasked,
    /// It does not do what must be.
    #[error("It refuses request {0}")]
    Refused(u32),
    /// It is not a back end of this kind.
    #[error("It lacks {0}")]
    Lacks(&'static str),
    /// The socket.
    #[error("The socket to it fails")]
    Socket(#[source] io::Error),
}

impl From<Errno> for BackendError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Gone,
            other => Self::Socket(other.into()),
        }
    }
}

/// The front end's side of one conversation.
#[derive(Debug)]
pub(super) struct Backend {
    socket: OwnedFd,
    /// What it offers to drivers.
    pub(super) features: u64,
    /// How long it may take to answer.
    pub(super) patience: Duration,
}

impl Backend {
    /// Meets the back end and gives it the guest's memory. It may take `patience` for each answer.
    pub(super) fn meet(socket: OwnedFd, ram: &GuestRam, patience: Duration) -> Result<Self, BackendError> {
        let mut backend = Self { socket, features: 0, patience };
        backend.tell(&Message::plain(Request::SetOwner))?;
        backend.features = backend.ask(&Message::plain(Request::GetFeatures))?;
        let needed = [
            (F_VERSION_1, "VIRTIO_F_VERSION_1"),
            (F_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
            (F_PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES"),
        ];
        if let Some((_, name)) = needed.iter().find(|(bit, _)| backend.features & bit == 0) {
            return Err(BackendError::Lacks(name));
        }
        if backend.ask(&Message::plain(Request::GetProtocolFeatures))? & REPLY_ACK == 0 {
            return Err(BackendError::Lacks("VHOST_USER_PROTOCOL_F_REPLY_ACK"));
        }
        backend.tell(&Message::number(Request::SetProtocolFeatures, REPLY_ACK))?;
        backend.done(&Message::memory(&pieces(ram)))?;
        Ok(backend)
    }

    /// Starts with what the driver has accepted.
    pub(super) fn accept(&self, features: u64) -> Result<(), BackendError> {
        self.tell(&Message::number(Request::SetFeatures, features | F_PROTOCOL_FEATURES))
    }

    /// Hands a queue over, from its beginning.
    pub(super) fn start(&self, index: u16, rings: &Rings, kick: &OwnedFd, call: &OwnedFd) -> Result<(), BackendError> {
        self.tell(&Message::ring(Request::SetVringNum, index, rings.size.into()))?;
        self.tell(&Message::ring(Request::SetVringBase, index, 0))?;
        self.tell(&Message::rings(index, rings))?;
        self.tell(&Message::event(Request::SetVringCall, index, call))?;
        self.tell(&Message::event(Request::SetVringKick, index, kick))?;
        self.tell(&Message::ring(Request::SetVringEnable, index, 1))
    }

    /// Takes a queue back: from then on the back end touches none of its buffers.
    pub(super) fn stop(&self, index: u16) -> Result<(), BackendError> {
        // The answer is the ring's number and how far it came.
        let answer = self.ask(&Message::ring(Request::GetVringBase, index, 0))?;
        let [a, b, c, d, ..] = answer.to_ne_bytes();
        let stopped = u32::from_ne_bytes([a, b, c, d]);
        let why = || format!("it is about ring {stopped}, not {index}");
        let request = Request::GetVringBase as u32;
        if stopped == u32::from(index) { Ok(()) } else { Err(BackendError::Breach { request, why: why() }) }
    }

    /// What it has to say unasked is never good news. Nothing now.
    pub(super) fn listen(&self) -> Result<(), BackendError> {
        let mut byte = [0; 1];
        match recv(&self.socket, &mut byte[..], RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Ok((0, _)) => Err(BackendError::Gone),
            Ok(_) => Err(BackendError::Unasked),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// For polling.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message that has no answer.
    fn tell(&self, message: &Message<'_>) -> Result<(), BackendError> {
        self.send(&message.encode(false), &message.fds, self.deadline())
    }

    /// Sends a message and waits until the back end has done what it asks for.
    fn done(&self, message: &Message<'_>) -> Result<(), BackendError> {
        let deadline = self.deadline();
        self.send(&message.encode(true), &message.fds, deadline)?;
        match self.answer(message.request, deadline)? {
            0 => Ok(()),
            _ => Err(BackendError::Refused(message.request as u32)),
        }
    }

    /// Sends a question and waits for the answer: always eight bytes here.
    fn ask(&self, message: &Message<'_>) -> Result<u64, BackendError> {
        let deadline = self.deadline();
        self.send(&message.encode(false), &message.fds, deadline)?;
        self.answer(message.request, deadline)
    }

    fn answer(&self, request: Request, deadline: Instant) -> Result<u64, BackendError> {
        let mut header = [0; HEADER];
        self.receive(&mut header, deadline)?;
        let breach = |why: Breach| BackendError::Breach { request: request as u32, why: why.to_string() };
        check(header, request, LONGEST_ANSWER).map_err(breach)?;
        let mut answer = [0; LONGEST_ANSWER];
        self.receive(&mut answer, deadline)?;
        Ok(u64::from_ne_bytes(answer))
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.patience).unwrap_or(now)
    }

    /// Waits until the socket can be read or written.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), BackendError> {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&self.socket, flags)], left.as_ref()) {
            Ok(0) => Err(BackendError::Silent(self.patience)),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Descriptors go with the first byte.
    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<(), BackendError> {
        let mut rest = bytes;
        let mut fds = fds.get(..fds.len().min(MOST_PIECES)).unwrap_or_default();
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_PIECES))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &[IoSlice::new(rest)], &mut ancillary, flags) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Fills the buffer. Descriptors that come along are dropped by the kernel: there is no room for them.
    fn receive(&self, buffer: &mut [u8], deadline: Instant) -> Result<(), BackendError> {
        let mut done: usize = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match recv(&self.socket, rest, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(BackendError::Gone),
                Ok((count, _)) => done = done.saturating_add(count),
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, deadline)?,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Backend {
    /// The back end sees it at once, whoever else may still hold the socket.
    fn drop(&mut self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}
