//! The event loop's epoll instance: descriptors with the token that says whose they are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// Whose a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The control socket.
    Control,
    /// A vCPU thread or a device wants the event loop.
    Wake,
    /// A device's, by its number on the bus and its own number for the descriptor.
    Device {
        /// Number on the bus.
        device: u32,
        /// The device's number for it.
        source: u32,
    },
}

const CONTROL: u32 = u32::MAX;
const WAKE: u32 = u32::MAX - 1;

impl Token {
    fn encode(self) -> u64 {
        let (high, low) = match self {
            Self::Control => (CONTROL, 0),
            Self::Wake => (WAKE, 0),
            Self::Device { device, source } => (device, source),
        };
        (u64::from(high) << 32) | u64::from(low)
    }

    fn decode(number: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        match u32::from_le_bytes([e, f, g, h]) {
            CONTROL => Self::Control,
            WAKE => Self::Wake,
            device => Self::Device { device, source: u32::from_le_bytes([a, b, c, d]) },
        }
    }
}

/// What one wants to know of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(EventFlags);

impl Interest {
    /// That it can be read, for as long as it can.
    pub const READ: Self = Self(EventFlags::IN);
    /// That it became readable or writable, each time anew (edge-triggered).
    pub const STREAM: Self = Self(EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET));
    /// That it can be written, once.
    pub const WRITE_ONCE: Self = Self(EventFlags::OUT.union(EventFlags::ONESHOT));
}

/// What a descriptor is ready for. An error or a hang-up is both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Reading it does not block.
    pub readable: bool,
    /// Writing it does not block.
    pub writable: bool,
}

/// Calls the event loop from another thread.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// Quiet.
    ///
    /// # Errors
    /// What `eventfd` gave.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Calls.
    pub fn ring(&self) {
        // Fails only when it has rung 2^64 times unheard.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Heard: quiet until the next call.
    pub fn hear(&self) {
        // Nothing to read means that an earlier turn has heard it.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The epoll instance.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Without descriptors.
    ///
    /// # Errors
    /// What `epoll_create1` gave.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// What `epoll_ctl` gave.
    pub fn add(&self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.encode()), interest.0)?)
    }

    /// No longer watches it. Harmless if it is not watched.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd.as_fd());
    }

    /// Waits for events, at most `timeout` if there is one; an interrupted wait is one without events.
    ///
    /// # Errors
    /// What `epoll_wait` gave, except EINTR.
    pub fn wait(&self, timeout: Option<Timespec>) -> io::Result<Vec<(Token, Readiness)>> {
        let mut events: Vec<Event> = Vec::with_capacity(32);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = |event: Event| {
            let flags = event.flags;
            let broken = EventFlags::ERR.union(EventFlags::HUP);
            let readable = flags.intersects(broken.union(EventFlags::IN).union(EventFlags::RDHUP));
            let writable = flags.intersects(broken.union(EventFlags::OUT));
            (Token::decode(event.data.u64()), Readiness { readable, writable })
        };
        Ok(events.into_iter().map(ready).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [Token::Control, Token::Wake, Token::Device { device: 3, source: u32::MAX }] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }

    #[test]
    fn a_stream_tells_each_change_once() {
        let poller = Poller::new().unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let token = Token::Device { device: 1, source: 2 };
        poller.add(near.as_fd(), token, Interest::STREAM).unwrap();
        let now = Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        assert_eq!(poller.wait(now).unwrap(), [(token, Readiness { readable: false, writable: true })]);
        assert_eq!(poller.wait(now).unwrap(), []);
        drop(far);
        assert_eq!(poller.wait(now).unwrap(), [(token, Readiness { readable: true, writable: true })]);
        poller.remove(near.as_fd());
        poller.remove(near.as_fd());
    }
}
