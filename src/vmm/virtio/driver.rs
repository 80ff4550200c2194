//! A driver written from the specification, for tests: lays out queues in guest memory, drives the registers, and breaks rules on request.
#![cfg_attr(not(test), allow(dead_code, reason = "fuzzing uses its part"))]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::device::{F_VERSION_1, Sources, VirtioDevice};
use super::interrupt::{Interrupt, IrqLine};
use super::mmio::{MmioDevice, QUEUE_NOTIFY};
use super::status::NEEDS_RESET;
use crate::vmm::events::{Poller, Token, Wake};
use crate::vmm::memory::{GuestRam, reserve};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Guest memory of the model, in MiB.
const MEMORY: u32 = 4;
/// Where buffers are taken from.
const BUFFERS: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Line(AtomicU32);

impl IrqLine for Line {
    fn pulse(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One queue as the driver keeps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) table: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    next_descriptor: u16,
    offered: u16,
    seen: u16,
}

/// A buffer of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Buffer<'a> {
    /// For the device to read.
    Out(&'a [u8]),
    /// For the device to write, so many bytes.
    In(u32),
}

pub(super) struct Driver {
    pub(super) device: MmioDevice,
    pub(super) ram: Arc<GuestRam>,
    pub(super) poller: Arc<Poller>,
    pub(super) rings: Vec<Ring>,
    line: Arc<Line>,
    free: u64,
}

impl Driver {
    /// Registers untouched. `make` gets what watches descriptors.
    pub(super) fn new<D: VirtioDevice + 'static>(make: impl FnOnce(Sources) -> D) -> Self {
        Self::over(Arc::new(reserve(MEMORY).unwrap()), make)
    }

    /// The same over this memory, which has at least as much.
    pub(super) fn over<D: VirtioDevice + 'static>(ram: Arc<GuestRam>, make: impl FnOnce(Sources) -> D) -> Self {
        let poller = Arc::new(Poller::new().unwrap());
        let device = make(Sources::new(poller.clone(), 0));
        let line = Arc::new(Line::default());
        let rings =
            (0_u64..).zip(device.queue_sizes()).map(|(n, size)| Ring::at(0x1_0000 + n * 0x1_0000, *size)).collect();
        let wake = Arc::new(Wake::new().unwrap());
        let device = MmioDevice::new(Box::new(device), ram.clone(), Interrupt::new(line.clone()), wake);
        Self { device, ram, poller, rings, line, free: BUFFERS }
    }

    /// Initialised by the book (3.1.1), with these device features and VERSION_1.
    pub(super) fn ready<D: VirtioDevice + 'static>(features: u64, make: impl FnOnce(Sources) -> D) -> Self {
        let mut driver = Self::new(make);
        driver.initialise(features);
        assert_eq!(driver.read(0x070), 15);
        driver
    }

    /// Another device with its own transport over the same memory, as the machine that goes on has it.
    pub(super) fn another(&self, device: impl VirtioDevice + 'static) -> MmioDevice {
        let (line, wake) = (Interrupt::new(self.line.clone()), Arc::new(Wake::new().unwrap()));
        MmioDevice::new(Box::new(device), self.ram.clone(), line, wake)
    }

    pub(super) fn initialise(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.write(0x070, status);
        }
        self.accept(features | F_VERSION_1);
        self.write(0x070, 11);
        for n in 0..self.rings.len() {
            self.rings[n].restart();
            self.lay_out(n);
        }
        self.write(0x070, 15);
    }

    pub(super) fn accept(&self, features: u64) {
        for (page, shift) in [(0, 0), (1, 32)] {
            self.write(0x024, page);
            self.write(0x020, u32::try_from((features >> shift) & 0xffff_ffff).unwrap());
        }
    }

    /// Writes a queue's registers and makes it ready.
    pub(super) fn lay_out(&self, n: usize) {
        let ring = self.rings[n];
        let halves = |addr: u64| (u32::try_from(addr & 0xffff_ffff).unwrap(), u32::try_from(addr >> 32).unwrap());
        self.write(0x030, u32::try_from(n).unwrap());
        self.write(0x038, u32::from(ring.size));
        for (register, addr) in [(0x080, ring.table), (0x090, ring.avail), (0x0a0, ring.used)] {
            let (low, high) = halves(addr);
            self.write(register, low);
            self.write(register + 4, high);
        }
        self.write(0x044, 1);
    }

    pub(super) fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    pub(super) fn kick(&self, queue: usize) {
        self.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Memory for a buffer.
    pub(super) fn allocate(&mut self, len: u64) -> u64 {
        let at = self.free;
        self.free += len.next_multiple_of(16);
        assert!(self.free < u64::from(MEMORY) << 20, "the model's memory is used up");
        at
    }

    /// Writes one descriptor.
    pub(super) fn descriptor(&self, queue: usize, index: u16, (addr, len): (u64, u32), flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.write_slice(&bytes, GuestAddress(self.rings[queue].table + u64::from(index) * 16)).unwrap();
    }

    /// Puts a chain's head into the available ring.
    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = ring.avail + 4 + u64::from(ring.offered % ring.size) * 2;
        ring.offered = ring.offered.wrapping_add(1);
        self.ram.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.ram.write_obj(ring.offered.to_le(), GuestAddress(ring.avail + 2)).unwrap();
    }

    /// Builds a chain and offers it. Returns its head and the addresses of its buffers.
    pub(super) fn add(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> (u16, Vec<u64>) {
        let mut places = Vec::new();
        let size = self.rings[queue].size;
        let first = self.rings[queue].next_descriptor;
        for (n, buffer) in buffers.iter().enumerate() {
            let index = (first + u16::try_from(n).unwrap()) % size;
            let (len, flag) = match buffer {
                Buffer::Out(bytes) => (u32::try_from(bytes.len()).unwrap(), 0),
                Buffer::In(len) => (*len, WRITE),
            };
            let addr = self.allocate(len.into());
            if let Buffer::Out(bytes) = buffer {
                self.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
            }
            let more = if n + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(queue, index, (addr, len), flag | more, (index + 1) % size);
            places.push(addr);
        }
        self.rings[queue].next_descriptor = (first + u16::try_from(buffers.len()).unwrap()) % size;
        self.offer(queue, first);
        (first, places)
    }

    /// Builds a chain, offers it and kicks.
    pub(super) fn send(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> (u16, Vec<u64>) {
        let added = self.add(queue, buffers);
        self.kick(queue);
        added
    }

    /// Takes the next used element: head and bytes written.
    pub(super) fn take_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &mut self.rings[queue];
        let index: u16 = self.ram.read_obj(GuestAddress(ring.used + 2)).unwrap();
        if index == ring.seen {
            return None;
        }
        let slot = ring.used + 4 + u64::from(ring.seen % ring.size) * 8;
        ring.seen = ring.seen.wrapping_add(1);
        let at = |addr| self.ram.read_obj::<u32>(GuestAddress(addr)).unwrap();
        Some((at(slot), at(slot + 4)))
    }

    pub(super) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// Delivers what the host's descriptors have to say.
    pub(super) fn poll(&self) {
        let soon = Some(Duration::from_millis(1));
        for (token, readiness) in self.poller.wait(soon).unwrap() {
            if let Token::Device { source, .. } = token {
                self.device.ready(source, readiness);
            }
        }
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.read(0x070) & NEEDS_RESET != 0
    }

    /// How often the interrupt line was raised.
    pub(super) fn interrupts(&self) -> u32 {
        self.line.0.load(Ordering::Relaxed)
    }
}

impl Ring {
    /// Table, available and used ring one behind the other.
    pub(super) fn at(base: u64, size: u16) -> Self {
        let avail = base + u64::from(size) * 16;
        let used = (avail + 6 + u64::from(size) * 2).next_multiple_of(4);
        Self { size, table: base, avail, used, next_descriptor: 0, offered: 0, seen: 0 }
    }

    fn restart(&mut self) {
        (self.next_descriptor, self.offered, self.seen) = (0, 0, 0);
    }
}
