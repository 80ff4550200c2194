//! What every virtio device says about itself and does; the bookkeeping of registers is the transport's.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::counters::Counters;
use super::fault::GuestFault;
use super::interrupt::{Interrupt, USED_BUFFER};
use super::queue::LiveQueue;
use crate::vmm::events::{Interest, Poller, Readiness};
use crate::vmm::memory::GuestRam;

/// VIRTIO_F_VERSION_1, without which nothing goes (virtio 1.2, 6).
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Chains served per notification before other devices get their turn.
pub const BUDGET: u32 = 256;

/// What a device wants after it was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the next notification or descriptor event comes by itself.
    Wait,
    /// To be called again from the event loop for this queue: its budget is spent.
    Again(u16),
}

/// A device behind the MMIO transport.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Device type (virtio 1.2, 5).
    fn kind(&self) -> u32;

    /// Feature bits of this type of device.
    fn features(&self) -> u64;

    /// Largest size of each queue: a power of two each.
    fn queue_sizes(&self) -> &'static [u16];

    /// Reads configuration space; bytes past its end stay as they are.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Called once when the driver is ready.
    fn start(&mut self, _io: &mut DeviceIo<'_>) -> Result<(), GuestFault> {
        Ok(())
    }

    /// The driver goes on with another device of this kind behind it: called before [`VirtioDevice::start`], and all queues are kicked afterwards.
    fn go_on(&mut self) {}

    /// The driver has put chains into this queue.
    ///
    /// # Errors
    /// The rule that the driver broke.
    fn kick(&mut self, queue: u16, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault>;

    /// A descriptor that the device watches under this number became ready.
    ///
    /// # Errors
    /// The rule that the driver broke.
    fn ready(&mut self, _source: u32, _readiness: Readiness, _io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        Ok(Next::Wait)
    }

    /// The driver reset the device: everything it knew about its guest is over.
    fn reset(&mut self) {}

    /// Bytes that the guest has handed over and the host has not taken yet.
    fn undelivered(&self) -> u64 {
        0
    }

    /// Why the host's side of the device is gone, if it is: the device does nothing any more.
    fn lost(&self) -> Option<&str> {
        None
    }
}

/// What a live device works with while it is called.
#[derive(Debug)]
pub struct DeviceIo<'a> {
    /// The guest's memory.
    pub ram: &'a GuestRam,
    /// Its queues; `None` for those that the driver did not set up.
    pub queues: &'a mut [Option<LiveQueue>],
    /// Its interrupt.
    pub interrupt: &'a Interrupt,
    /// What it counts.
    pub counters: &'a Counters,
    /// The features that the driver accepted.
    pub features: u64,
}

impl DeviceIo<'_> {
    /// Interrupts the guest if the driver wants it for this queue.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn notify(&mut self, queue: u16) -> Result<(), GuestFault> {
        if let Some(Some(live)) = self.queues.get_mut(usize::from(queue))
            && live.wants_interrupt(self.ram)?
        {
            self.interrupt.raise(USED_BUFFER);
        }
        Ok(())
    }
}

/// Descriptors that one device watches.
#[derive(Clone, Debug)]
pub struct Sources {
    poller: Arc<Poller>,
    device: u32,
}

impl Sources {
    /// For the device with this number on the bus.
    pub fn new(poller: Arc<Poller>, device: u32) -> Self {
        Self { poller, device }
    }

    /// Calls [`VirtioDevice::ready`] with this number when the descriptor becomes ready.
    ///
    /// # Errors
    /// What `epoll_ctl` gave.
    pub fn watch(&self, fd: &impl AsFd, source: u32, interest: Interest) -> io::Result<()> {
        self.poller.add(fd.as_fd(), crate::vmm::events::Token::Device { device: self.device, source }, interest)
    }

    /// No longer. Harmless if it is not watched.
    pub fn forget(&self, fd: BorrowedFd<'_>) {
        self.poller.remove(fd);
    }
}

/// Copies the bytes of a configuration structure that a read asks for.
pub fn config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(begin) = usize::try_from(offset) else { return };
    if let Some(rest) = config.get(begin..) {
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }
}
