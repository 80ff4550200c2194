//! The event loop's epoll instance: descriptors with the token that says whose they are.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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
pub struct Interest(EventSet);

impl Interest {
    /// That it can be read, for as long as it can.
    pub const READ: Self = Self(EventSet::IN);
    /// That it became readable, each time anew (edge-triggered).
    pub const INPUT: Self = Self(EventSet::IN.union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED));
    /// That it became readable or writable, each time anew (edge-triggered).
    pub const STREAM: Self =
        Self(EventSet::IN.union(EventSet::OUT).union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED));
    /// That it can be written, once.
    pub const WRITE_ONCE: Self = Self(EventSet::OUT.union(EventSet::ONE_SHOT));
}

/// What a descriptor is ready for. An error or a hang-up is both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Reading it does not block.
    pub readable: bool,
    /// Writing it does not block.
    pub writable: bool,
}

impl Readiness {
    fn of(events: u32) -> Self {
        let broken = EventSet::ERROR.union(EventSet::HANG_UP);
        let any = |set: EventSet| events & broken.union(set).bits() != 0;
        Self { readable: any(EventSet::IN.union(EventSet::READ_HANG_UP)), writable: any(EventSet::OUT) }
    }
}

/// Calls the event loop from another thread.
#[derive(Debug)]
pub struct Wake(EventFd);

impl Wake {
    /// Quiet.
    ///
    /// # Errors
    /// What `eventfd` gave.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::new(EFD_NONBLOCK)?))
    }

    /// Calls.
    pub fn ring(&self) {
        // Fails only when it has rung 2^64 times unheard.
        let _ = self.0.write(1);
    }

    /// Heard: quiet until the next call.
    pub fn hear(&self) {
        // Nothing to read means that an earlier turn has heard it.
        let _ = self.0.read();
    }
}

/// The epoll instance.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// Without descriptors.
    ///
    /// # Errors
    /// What `epoll_create1` gave.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// What `epoll_ctl` gave.
    pub fn add(&self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(interest.0, token.encode()))
    }

    /// Hears calls.
    ///
    /// # Errors
    /// What `epoll_ctl` gave.
    pub fn add_wake(&self, wake: &Wake) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, Token::Wake.encode());
        self.epoll.ctl(ControlOperation::Add, wake.0.as_raw_fd(), event)
    }

    /// No longer watches it. Harmless if it is not watched.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
    }

    /// Waits for events, at most `timeout` if there is one; an interrupted wait is one without events.
    ///
    /// # Errors
    /// What `epoll_wait` gave, except EINTR.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<(Token, Readiness)>> {
        let mut events = [EpollEvent::default(); 32];
        let milliseconds = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        let count = match self.epoll.wait(milliseconds, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        Ok(events.iter().take(count).map(|e| (Token::decode(e.data()), Readiness::of(e.events()))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

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
        let now = Some(Duration::ZERO);
        assert_eq!(poller.wait(now).unwrap(), [(token, Readiness { readable: false, writable: true })]);
        assert_eq!(poller.wait(now).unwrap(), []);
        drop(far);
        assert_eq!(poller.wait(now).unwrap(), [(token, Readiness { readable: true, writable: true })]);
        poller.remove(near.as_fd());
        poller.remove(near.as_fd());
    }
}
