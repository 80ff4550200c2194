//! File system device (virtio 1.2, 5.11) whose requests another process serves, the back end: this front end only lends it the queues, by the
//! vhost-user protocol.
//!
//! ```text
//! driver -- queue notification --> Fs -- eventfd (kick) --> back end -- requests and answers in guest memory
//!        <-- used buffer interrupt --   <-- eventfd (call) --
//! DRIVER_OK: features, rings and eventfds go to the back end; reset: each ring is taken back
//! ```
//!
//! A back end that ends, keeps still or breaks the protocol is lost: the device asks for a reset (DEVICE_NEEDS_RESET), does nothing from then on, and
//! the caller is told.

mod backend;
mod message;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

pub use self::backend::BackendError;

use self::backend::Backend;
use super::device::{DeviceIo, Next, Sources, VirtioDevice, config_bytes};
use super::fault::GuestFault;
use super::interrupt::USED_BUFFER;
use crate::vmm::events::{Interest, Readiness};
use crate::vmm::memory::GuestRam;

/// Longest tag in bytes (5.11.4).
pub const LONGEST_TAG: usize = 36;

/// VIRTIO_F_INDIRECT_DESC: the walk along a chain is the back end's.
const F_INDIRECT_DESC: u64 = 1 << 28;

/// One queue for requests that overtake others, and one for requests (5.11.2).
const QUEUES: usize = 2;
const SIZES: [u16; QUEUES] = [128, 1024];

/// How long a back end may take to be there, while the machine is made.
const PATIENCE_AT_START: Duration = Duration::from_secs(30);
/// How long it may take to give a queue back, while a processor waits for it.
const PATIENCE_AT_WORK: Duration = Duration::from_secs(10);

/// Number of the back end's socket among the device's descriptors; those before it are the queues' eventfds.
const SOCKET: u32 = 2;

/// The eventfds of a queue.
#[derive(Debug)]
struct Events {
    kick: OwnedFd,
    call: OwnedFd,
}

/// A file system device.
#[derive(Debug)]
pub struct Fs {
    tag: String,
    /// `None` from the moment on at which it is lost.
    backend: Option<Backend>,
    lost: Option<String>,
    features: u64,
    events: [Events; QUEUES],
    /// Queues that the back end has.
    lent: [bool; QUEUES],
}

/// Why a device was not made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The back end.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No eventfds, or they cannot be watched.
    #[error("The monitor has no descriptors left")]
    Events(#[source] io::Error),
}

impl Fs {
    /// With the back end at the other end of this socket, which gets the guest's memory. `tag` names the file system to the guest.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn new(tag: &str, socket: OwnedFd, ram: &GuestRam, sources: &Sources) -> Result<Self, FsError> {
        Self::with_patience(tag, socket, ram, sources, (PATIENCE_AT_START, PATIENCE_AT_WORK))
    }

    fn with_patience(
        tag: &str,
        socket: OwnedFd,
        ram: &GuestRam,
        sources: &Sources,
        (at_start, at_work): (Duration, Duration),
    ) -> Result<Self, FsError> {
        let mut backend = Backend::meet(socket, ram, at_start)?;
        backend.patience = at_work;
        let events = || -> io::Result<Events> {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            Ok(Events { kick: eventfd(0, flags)?, call: eventfd(0, flags)? })
        };
        let make = || -> io::Result<[Events; QUEUES]> {
            let made = [events()?, events()?];
            for (number, queue) in (0..).zip(&made) {
                sources.watch(&queue.call, number, Interest::INPUT)?;
            }
            sources.watch(&backend.fd(), SOCKET, Interest::INPUT)?;
            Ok(made)
        };
        let events = make().map_err(FsError::Events)?;
        let features = backend.features & F_INDIRECT_DESC;
        Ok(Self { tag: tag.to_owned(), backend: Some(backend), lost: None, features, events, lent: [false; QUEUES] })
    }

    /// Takes it in how the back end did; one that failed is lost.
    fn heed(&mut self, result: Result<(), BackendError>) {
        if let Err(error) = result {
            self.backend = None;
            self.lost = Some(format!("The file server of '{}' is lost: {error}", self.tag));
        }
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> u32 {
        26
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &SIZES
    }

    /// `tag` and `num_request_queues` (5.11.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; LONGEST_TAG + 4];
        for (to, from) in config.iter_mut().zip(self.tag.bytes().take(LONGEST_TAG)) {
            *to = from;
        }
        if let Some(requests) = config.last_chunk_mut() {
            *requests = 1_u32.to_le_bytes();
        }
        config_bytes(&config, offset, data);
    }

    fn start(&mut self, io: &mut DeviceIo<'_>) -> Result<(), GuestFault> {
        let Some(backend) = &self.backend else { return Ok(()) };
        let mut started = backend.accept(io.features);
        let queues = io.queues.iter().zip(&self.events).zip(&mut self.lent);
        for (number, ((queue, events), lent)) in (0..).zip(queues) {
            if let Some(live) = queue {
                *lent = true;
                started = started.and_then(|()| backend.start(number, &live.rings(), &events.kick, &events.call));
            }
        }
        self.heed(started);
        Ok(())
    }

    fn kick(&mut self, queue: u16, _io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        if let Some(events) = self.events.get(usize::from(queue)) {
            // Fails only when it was kicked 2^64 times unheard.
            let _ = rustix::io::write(&events.kick, &1_u64.to_ne_bytes());
        }
        Ok(Next::Wait)
    }

    fn ready(&mut self, source: u32, _readiness: Readiness, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        match usize::try_from(source).ok().and_then(|queue| self.events.get(queue)) {
            Some(events) => {
                let _ = rustix::io::read(&events.call, &mut [0; 8]);
                // Whether the driver wants it is known to the back end.
                io.interrupt.raise(USED_BUFFER);
            }
            None => {
                let heard = self.backend.as_ref().map_or(Ok(()), Backend::listen);
                self.heed(heard);
            }
        }
        Ok(Next::Wait)
    }

    fn reset(&mut self) {
        let lent = std::mem::take(&mut self.lent);
        for number in (0..).zip(lent).filter_map(|(number, lent)| lent.then_some(number)) {
            let stopped = self.backend.as_ref().map_or(Ok(()), |backend| backend.stop(number));
            self.heed(stopped);
        }
    }

    fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }
}

#[cfg(test)]
mod tests;
