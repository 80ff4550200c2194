//! Split virtqueues (virtio 1.2, 2.7), in two types: [`QueueSetup`] while the driver lays one out, [`LiveQueue`] from DRIVER_OK on. A live
//! queue has no way to change its layout.
//!
//! `virtio-queue` keeps the ring indices; the walk along a chain is ours, because here a bad chain must be told from a short one.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::area::Area;
use super::fault::GuestFault;
use crate::vmm::memory::GuestRam;

const DESCRIPTOR_SIZE: u64 = 16;
const USED_ELEMENT: u64 = 8;
/// Bytes of a chain that count as much as a chain.
const BYTES_AS_A_CHAIN: u64 = 256 << 10;

/// A queue's registers before DRIVER_OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Most descriptors, QueueNumMax.
    pub max: u16,
    /// QueueNum as written.
    pub size: u32,
    /// QueueReady.
    pub ready: bool,
    /// Descriptor table.
    pub table: u64,
    /// Available ring (driver area).
    pub avail: u64,
    /// Used ring (device area).
    pub used: u64,
}

impl QueueSetup {
    /// As after a reset.
    pub fn new(max: u16) -> Self {
        Self { max, size: u32::from(max), ready: false, table: 0, avail: 0, used: 0 }
    }

    /// Checks the layout and freezes it. A queue that the driver did not make ready is `None`.
    ///
    /// # Errors
    /// [`GuestFault::Layout`] for a size that is no power of two or too large, wrong alignment, or a ring outside memory.
    pub fn freeze(&self, index: u16, event_idx: bool, ram: &GuestRam) -> Result<Option<LiveQueue>, GuestFault> {
        if !self.ready {
            return Ok(None);
        }
        let refuse = |_| GuestFault::Layout(index);
        let mut queue = Queue::new(self.max).map_err(refuse)?;
        queue.try_set_size(u16::try_from(self.size).map_err(|_| GuestFault::Layout(index))?).map_err(refuse)?;
        queue.try_set_desc_table_address(GuestAddress(self.table)).map_err(refuse)?;
        queue.try_set_avail_ring_address(GuestAddress(self.avail)).map_err(refuse)?;
        queue.try_set_used_ring_address(GuestAddress(self.used)).map_err(refuse)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // An available ring at address 0 is what `virtio-queue` takes for "not laid out".
        if self.avail == 0 || !queue.is_valid(ram) {
            return Err(GuestFault::Layout(index));
        }
        Ok(Some(LiveQueue { queue, event_idx, asked_at: Wrapping(0) }))
    }
}

/// Where the parts of a queue are, by guest address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub table: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// A request of the driver: what the device may read and where it may write.
#[derive(Debug)]
pub struct Chain<'a> {
    /// Index of the first descriptor, by which the chain is given back.
    pub head: u16,
    /// Device-readable bytes.
    pub readable: Area<'a>,
    /// Device-writable bytes.
    pub writable: Area<'a>,
}

/// How far a device has come with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Index in the available ring of the chain that is taken next.
    next_avail: u16,
    /// Index in the used ring of the chain that is given back next.
    next_used: u16,
    /// The latter when the driver's wish for an interrupt was looked at last.
    asked_at: u16,
}

/// What a device did with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Done; so many bytes were written.
    Done(u32),
    /// Cannot be done now: it stays the next one, and the queue stops.
    Later,
    /// A part of it is done, and others have their turn: it stays the next one, and the budget is spent.
    Partly,
}

/// What [`LiveQueue::take_room`] found.
#[derive(Debug)]
pub enum Room<'a> {
    /// Chains with room enough, in the ring's order.
    Taken(Vec<Chain<'a>>),
    /// The driver has not offered enough yet.
    NotYet,
    /// As many chains as may be taken do not hold it.
    TooSmall,
}

/// How far a device came with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No chain is left; the driver notifies of the next one.
    Drained,
    /// The budget is spent, chains are left.
    Budget,
    /// The device cannot go on with the next chain now.
    Blocked,
}

/// A queue at work.
#[derive(Debug)]
pub struct LiveQueue {
    queue: Queue,
    event_idx: bool,
    /// The used ring's index when [`LiveQueue::wants_interrupt`] was asked last.
    asked_at: Wrapping<u16>,
}

impl LiveQueue {
    /// Where it is, for a back end in another process.
    pub fn rings(&self) -> Rings {
        let queue = &self.queue;
        Rings { size: queue.size(), table: queue.desc_table(), avail: queue.avail_ring(), used: queue.used_ring() }
    }

    /// How far it has come.
    pub fn standing(&self) -> Standing {
        let (next_avail, next_used) = (self.queue.next_avail(), self.queue.next_used());
        Standing { next_avail, next_used, asked_at: self.asked_at.0 }
    }

    /// Goes on from there.
    pub fn go_on(&mut self, standing: Standing) {
        self.queue.set_next_avail(standing.next_avail);
        self.queue.set_next_used(standing.next_used);
        self.asked_at = Wrapping(standing.asked_at);
    }

    /// Takes the next chain, if there is one. A chain that breaks a rule is consumed: it is never looked at again.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn next<'a>(&mut self, ram: &'a GuestRam) -> Result<Option<Chain<'a>>, GuestFault> {
        let head = {
            let mut available = self.queue.iter(ram).map_err(|_| GuestFault::AvailIndex)?;
            match available.next() {
                None => return Ok(None),
                Some(chain) => chain.head_index(),
            }
        };
        match self.walk(ram, head) {
            Ok(chain) => Ok(Some(chain)),
            Err(fault) => {
                // Give it back if it has an index to be given back by; the fault stands either way.
                let _ = self.give_back(ram, head, 0);
                Err(fault)
            }
        }
    }

    /// Puts the chain that was taken last back to be the next one.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    fn walk<'a>(&self, ram: &'a GuestRam, head: u16) -> Result<Chain<'a>, GuestFault> {
        let mut chain = Chain { head, readable: Area::default(), writable: Area::default() };
        let mut index = head;
        let mut bytes = 0_u32;
        for _ in 0..self.queue.size() {
            if index >= self.queue.size() {
                return Err(GuestFault::Descriptor(index));
            }
            let descriptor = self.descriptor(ram, index)?;
            if descriptor.refers_to_indirect_table() {
                return Err(GuestFault::Indirect);
            }
            bytes = bytes.checked_add(descriptor.len()).ok_or(GuestFault::ChainBytes)?;
            if !descriptor.is_write_only() && !chain.writable.is_empty() {
                return Err(GuestFault::Order);
            }
            let area = if descriptor.is_write_only() { &mut chain.writable } else { &mut chain.readable };
            append(ram, area, descriptor)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(GuestFault::ChainLength)
    }

    fn descriptor(&self, ram: &GuestRam, index: u16) -> Result<Descriptor, GuestFault> {
        let offset = u64::from(index).saturating_mul(DESCRIPTOR_SIZE);
        let addr = self.queue.desc_table().saturating_add(offset);
        ram.read_obj(GuestAddress(addr)).map_err(|_| GuestFault::Address { addr, len: DESCRIPTOR_SIZE })
    }

    /// Gives a chain back to the driver with the number of bytes written.
    ///
    /// # Errors
    /// If the chain's index or the used ring is not where it can be.
    pub fn give_back(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), GuestFault> {
        self.queue.add_used(ram, head, written).map_err(|_| GuestFault::Descriptor(head))
    }

    /// Gives several chains back so that the driver sees all of them or none: parts of one packet (virtio 1.2, 5.1.6.4).
    ///
    /// # Errors
    /// If a chain's index or the used ring is not where it can be.
    pub fn give_back_together(&mut self, ram: &GuestRam, used: &[(u16, u32)]) -> Result<(), GuestFault> {
        let size = self.queue.size().max(1);
        let mut next = Wrapping(self.queue.next_used());
        for (head, written) in used {
            if *head >= size {
                return Err(GuestFault::Descriptor(*head));
            }
            // struct virtq_used: le16 flags, le16 idx, then elements of le32 id and le32 len (2.7.8).
            let slot = u64::from(next.0.checked_rem(size).unwrap_or(0)).saturating_mul(USED_ELEMENT).saturating_add(4);
            let [a, b] = head.to_le_bytes();
            let [e, f, g, h] = written.to_le_bytes();
            let at = GuestAddress(self.queue.used_ring().saturating_add(slot));
            ram.write_slice(&[a, b, 0, 0, e, f, g, h], at).map_err(|_| self.ring_fault())?;
            next = Wrapping(next.0.wrapping_add(1));
        }
        let index = GuestAddress(self.queue.used_ring().saturating_add(2));
        ram.store(next.0.to_le(), index, Ordering::Release).map_err(|_| self.ring_fault())?;
        self.queue.set_next_used(next.0);
        Ok(())
    }

    /// Takes the next chains until they hold `want` writable bytes, at most `most` chains. Whoever gets none has been promised a
    /// notification when there are more, and nothing was taken.
    ///
    /// # Errors
    /// The rule that a chain or the ring breaks.
    pub fn take_room<'a>(&mut self, ram: &'a GuestRam, want: u64, most: usize) -> Result<Room<'a>, GuestFault> {
        let mut taken: Vec<Chain<'a>> = Vec::new();
        let mut room = 0_u64;
        self.ignore(ram)?;
        while room < want {
            let next = if taken.len() < most { self.next(ram)? } else { None };
            match next {
                Some(chain) => {
                    room = room.saturating_add(chain.writable.len());
                    taken.push(chain);
                }
                None if taken.len() < most && self.listen(ram)? => {}
                None => {
                    let full = taken.len() >= most;
                    taken.iter().for_each(|_| self.put_back());
                    return Ok(if full { Room::TooSmall } else { Room::NotYet });
                }
            }
        }
        Ok(Room::Taken(taken))
    }

    /// Whether the driver wants an interrupt for what was given back since it was asked last (virtio 1.2, 2.7.7.2).
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn wants_interrupt(&mut self, ram: &GuestRam) -> Result<bool, GuestFault> {
        let now = Wrapping(self.queue.next_used());
        let before = std::mem::replace(&mut self.asked_at, now);
        if !self.event_idx || now == before {
            return Ok(now != before);
        }
        // What was given back must be seen before the driver's wish is read.
        fence(Ordering::SeqCst);
        // le16 used_event stands behind the available ring's elements (2.7.6).
        let offset = u64::from(self.queue.size()).saturating_mul(2).saturating_add(4);
        let at = GuestAddress(self.queue.avail_ring().saturating_add(offset));
        let wish: u16 = ram.load(at, Ordering::Relaxed).map_err(|_| self.ring_fault())?;
        let wish = u16::from_le(wish);
        Ok(now.0.wrapping_sub(wish).wrapping_sub(1) < now.0.wrapping_sub(before.0))
    }

    /// Asks the driver to notify of the next chain. True if one came in the meantime.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn listen(&mut self, ram: &GuestRam) -> Result<bool, GuestFault> {
        self.queue.enable_notification(ram).map_err(|_| self.ring_fault())
    }

    /// Asks the driver not to notify.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn ignore(&mut self, ram: &GuestRam) -> Result<(), GuestFault> {
        self.queue.disable_notification(ram).map_err(|_| self.ring_fault())
    }

    /// Whether a chain is there.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn has_chain(&self, ram: &GuestRam) -> Result<bool, GuestFault> {
        let index = self.queue.avail_idx(ram, Ordering::Acquire).map_err(|_| self.ring_fault())?;
        Ok(index != Wrapping(self.queue.next_avail()))
    }

    /// Serves chains until none is left, the device cannot go on, or `budget` of them are done, long ones counted as several: whoever called
    /// waits, and may be wanted elsewhere.
    ///
    /// # Errors
    /// The first rule that a chain or the ring breaks.
    pub fn serve<F>(&mut self, ram: &GuestRam, budget: u32, mut serve: F) -> Result<Progress, GuestFault>
    where
        F: FnMut(Chain<'_>) -> Result<Served, GuestFault>,
    {
        let mut left = budget;
        loop {
            self.ignore(ram)?;
            while let Some(chain) = self.next(ram)? {
                let head = chain.head;
                if left == 0 {
                    self.put_back();
                    return Ok(Progress::Budget);
                }
                left = left.saturating_sub(cost(&chain));
                match serve(chain) {
                    Ok(Served::Done(written)) => self.give_back(ram, head, written)?,
                    Ok(Served::Later) => {
                        self.put_back();
                        return Ok(Progress::Blocked);
                    }
                    Ok(Served::Partly) => {
                        self.put_back();
                        return Ok(Progress::Budget);
                    }
                    Err(fault) => {
                        self.give_back(ram, head, 0)?;
                        return Err(fault);
                    }
                }
            }
            if !self.listen(ram)? {
                return Ok(Progress::Drained);
            }
        }
    }

    fn ring_fault(&self) -> GuestFault {
        GuestFault::Address { addr: self.queue.avail_ring(), len: u64::from(self.queue.size()) }
    }
}

/// What a chain takes of the budget.
fn cost(chain: &Chain<'_>) -> u32 {
    let bytes = chain.readable.len().saturating_add(chain.writable.len());
    u32::try_from(bytes / BYTES_AS_A_CHAIN).unwrap_or(u32::MAX).saturating_add(1)
}

fn append<'a>(ram: &'a GuestRam, area: &mut Area<'a>, descriptor: Descriptor) -> Result<(), GuestFault> {
    let (addr, len) = (descriptor.addr(), descriptor.len());
    let fault = || GuestFault::Address { addr: addr.0, len: u64::from(len) };
    let count = usize::try_from(len).map_err(|_| fault())?;
    if count > 0 && !ram.check_range(addr, count) {
        return Err(fault());
    }
    for piece in ram.get_slices(addr, count) {
        area.push(piece.map_err(|_| fault())?);
    }
    Ok(())
}

#[cfg(test)]
#[path = "queue/tests.rs"]
mod tests;
