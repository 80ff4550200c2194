//! One connection between a guest's port and a host stream, with its credit (virtio 1.2, 5.10.6.3).
//!
//! ```text
//!                      tell RESPONSE          guest SHUTDOWN, or the stream ends: tell SHUTDOWN
//! guest REQUEST --> Open --------------> Open ---------------------------------------------> half closed
//!                                          |  both directions closed by the guest and everything delivered: tell RST
//!                                          '--> over   <-- guest RST, broken rule (tell RST)
//! ```
//!
//! Bytes from the guest that the stream does not take yet wait in a buffer of [`BUFFER`] bytes, whose free space is the credit that the guest
//! has. Bytes to the guest are not buffered: they are read from the stream when the guest has credit and a receive buffer for them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::num::Wrapping;

use vm_memory::{ReadVolatile, WriteVolatile};

use super::super::area::Area;
use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Space for bytes from the guest that wait for the stream.
pub(super) const BUFFER: u32 = 256 << 10;

/// The host's end, non-blocking. Written by its two users: unix sockets and the tests' model.
pub(super) trait Stream: Read + Write + ReadVolatile + WriteVolatile {
    /// No more bytes will be written.
    fn close_writing(&self);
    /// No more bytes will be read.
    fn close_reading(&self);
}

impl Stream for std::os::unix::net::UnixStream {
    fn close_writing(&self) {
        // Fails only if the other end is gone, which is what was wanted.
        let _ = self.shutdown(std::net::Shutdown::Write);
    }

    fn close_reading(&self) {
        let _ = self.shutdown(std::net::Shutdown::Read);
    }
}

/// What shall be told to the guest besides data, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tell {
    response: bool,
    shutdown: bool,
    credit: bool,
    reset: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    /// Bytes from the guest that the stream did not take yet.
    waiting: VecDeque<u8>,
    /// Bytes received from the guest, and of those the ones that the stream has taken.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest was told last.
    told: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    peer_space: u32,
    peer_forwarded: Wrapping<u32>,
    /// Edge-triggered readiness of the stream: assumed until it says "would block".
    readable: bool,
    writable: bool,
    /// The guest sends no more, receives no more.
    guest_sends: bool,
    guest_receives: bool,
    /// The stream gives no more, takes no more.
    host_sends: bool,
    host_receives: bool,
    writing_closed: bool,
    tell: Tell,
    over: bool,
}

/// What came of an attempt to send data to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many bytes are in the area.
    Bytes(u32),
    /// There is nothing to send now.
    Nothing,
}

impl<S: Stream> Connection<S> {
    /// The answer to a guest's REQUEST.
    pub(super) fn accept(stream: S, request: &Header) -> Self {
        Self {
            stream,
            waiting: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            peer_space: request.buf_alloc,
            peer_forwarded: Wrapping(request.fwd_cnt),
            readable: true,
            writable: true,
            guest_sends: true,
            guest_receives: true,
            host_sends: true,
            host_receives: true,
            writing_closed: false,
            tell: Tell { response: true, ..Tell::default() },
            over: false,
        }
    }

    /// The host's end.
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether nothing is left to do or to say.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes from the guest that the stream did not take yet.
    pub(super) fn undelivered(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Takes a packet that the guest sent on this connection.
    pub(super) fn receive(&mut self, header: &Header, payload: Area<'_>) {
        self.peer_space = header.buf_alloc;
        self.peer_forwarded = Wrapping(header.fwd_cnt);
        match header.op {
            Some(Op::Data) => self.take_data(payload),
            Some(Op::Reset) => self.over = true,
            Some(Op::Shutdown) => self.guest_closes(header.flags),
            Some(Op::CreditUpdate) => {}
            Some(Op::CreditRequest) => self.tell.credit = true,
            // A second request on a live connection, an answer to nothing, an unknown operation.
            Some(Op::Request | Op::Response) | None => self.abort(),
        }
    }

    fn guest_closes(&mut self, flags: u32) {
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends = false;
        }
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            self.stream.close_reading();
        }
        self.settle();
    }

    /// Ends the connection at once, telling the guest.
    fn abort(&mut self) {
        self.waiting.clear();
        self.tell = Tell { reset: true, ..Tell::default() };
    }

    /// Draws the consequences once everything from the guest is delivered.
    fn settle(&mut self) {
        if !self.waiting.is_empty() {
            return;
        }
        if !self.guest_sends && !self.writing_closed {
            self.writing_closed = true;
            self.stream.close_writing();
        }
        if !self.guest_sends && (!self.guest_receives || !self.host_sends && !self.tell.shutdown) {
            self.tell.reset = true;
        }
    }

    fn take_data(&mut self, mut payload: Area<'_>) {
        let space = u64::from(BUFFER).saturating_sub(u64::from((self.received - self.forwarded).0));
        let count = payload.len();
        let (Ok(short), true) = (u32::try_from(count), self.guest_sends && count <= space) else {
            // More than its credit, or data after SHUTDOWN.
            return self.abort();
        };
        self.received += short;
        if !self.host_receives {
            return self.forward(short);
        }
        if self.waiting.is_empty() {
            let taken = self.write_pieces(&mut payload);
            self.forward(taken);
        }
        if self.host_receives && !payload.is_empty() {
            let begin = self.waiting.len();
            let rest = usize::try_from(payload.len()).unwrap_or(0);
            self.waiting.resize(begin.saturating_add(rest), 0);
            if let Some(tail) = self.waiting.make_contiguous().get_mut(begin..) {
                payload.read(tail);
            }
        } else {
            self.forward(u32::try_from(payload.len()).unwrap_or(0));
        }
    }

    /// Writes as much of the payload as the stream takes, straight from guest memory.
    fn write_pieces(&mut self, payload: &mut Area<'_>) -> u32 {
        let mut taken = 0_u32;
        while self.writable {
            let Some(piece) = payload.pieces().first().copied() else { break };
            match self.stream.write_volatile(&piece).map_err(io_error) {
                Ok(count) if count > 0 => {
                    payload.take_front(count as u64);
                    taken = taken.saturating_add(u32::try_from(count).unwrap_or(0));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                _ => {
                    self.stream_refuses();
                    break;
                }
            }
        }
        taken
    }

    /// Counts bytes that the guest need not keep room for any more, and tells it when half its credit is used up.
    fn forward(&mut self, count: u32) {
        self.forwarded += count;
        let unseen = (self.received - self.told).0;
        if self.forwarded != self.told && unseen >= BUFFER / 2 {
            self.tell.credit = true;
        }
    }

    /// The stream takes no more: what it did not take is dropped, as on a socket whose reader is gone.
    fn stream_refuses(&mut self) {
        self.host_receives = false;
        let dropped = u32::try_from(self.waiting.len()).unwrap_or(0);
        self.waiting.clear();
        self.forward(dropped);
        self.tell.shutdown = true;
        self.settle();
    }

    /// The stream became ready.
    pub(super) fn stream_ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
        if writable {
            self.flush();
        }
    }

    /// Writes waiting bytes to the stream.
    fn flush(&mut self) {
        while self.writable && !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            match self.stream.write(front) {
                Ok(count) if count > 0 => {
                    self.waiting.drain(..count);
                    self.forward(u32::try_from(count).unwrap_or(0));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                _ => self.stream_refuses(),
            }
        }
        self.settle();
    }

    /// Bytes that the guest has room for.
    fn peer_credit(&self) -> u32 {
        self.peer_space.saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// Whether a receive buffer could be put to use now.
    pub(super) fn has_something(&self) -> bool {
        self.tell != Tell::default() || (self.may_send() && self.peer_credit() > 0)
    }

    fn may_send(&self) -> bool {
        self.readable && self.host_sends && self.guest_receives && !self.tell.reset
    }

    /// The next packet without data, if one is due. Its flags are set, addresses and credit are the caller's.
    pub(super) fn next_word(&mut self) -> Option<(Op, u32)> {
        if std::mem::take(&mut self.tell.response) {
            return Some((Op::Response, 0));
        }
        if std::mem::take(&mut self.tell.shutdown) {
            let send = if self.host_sends { 0 } else { SHUTDOWN_SEND };
            let receive = if self.host_receives { 0 } else { SHUTDOWN_RECEIVE };
            self.settle();
            return Some((Op::Shutdown, send | receive));
        }
        if std::mem::take(&mut self.tell.reset) {
            self.over = true;
            return Some((Op::Reset, 0));
        }
        std::mem::take(&mut self.tell.credit).then_some((Op::CreditUpdate, 0))
    }

    /// Reads from the stream straight into a receive buffer, at most what the guest has credit for.
    pub(super) fn fill(&mut self, mut area: Area<'_>) -> Filled {
        if !self.may_send() {
            return Filled::Nothing;
        }
        let area = area.take_front(u64::from(self.peer_credit()));
        let mut filled = 0_u32;
        for piece in area.pieces() {
            let mut piece = *piece;
            match self.stream.read_volatile(&mut piece).map_err(io_error) {
                Ok(0) => {
                    self.host_sends = false;
                    self.tell.shutdown = true;
                    break;
                }
                Ok(count) => {
                    filled = filled.saturating_add(u32::try_from(count).unwrap_or(0));
                    if count < piece.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => break,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                Err(_) => {
                    (self.host_sends, self.host_receives) = (false, false);
                    self.tell.shutdown = true;
                    break;
                }
            }
        }
        self.sent += filled;
        if filled > 0 { Filled::Bytes(filled) } else { Filled::Nothing }
    }

    /// Our side's credit fields for the next header.
    pub(super) fn credit(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        self.tell.credit = false;
        (BUFFER, self.forwarded.0)
    }
}

fn io_error(error: vm_memory::VolatileMemoryError) -> io::Error {
    match error {
        vm_memory::VolatileMemoryError::IOError(e) => e,
        other => io::Error::other(other),
    }
}
