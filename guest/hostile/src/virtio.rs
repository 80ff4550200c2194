//! Virtio devices on the MMIO transport as a driver sees them (virtio 1.2, 2.7 and 4.2), with every number the case's own.

use crate::sys::{self, RINGS, peek, poke};
use crate::words::{Words, memory_end, number};
use crate::{Trouble, Verdict, ensure};

/// The port on which a guest says how the machine ends, and the byte for an orderly end (`guest/wire`).
pub(crate) const EXIT_PORT: u16 = 0x5f0;
/// The port on which an agent says that it waits for its devices.
pub(crate) const READY_PORT: u16 = 0x5f1;
pub(crate) const SHUTDOWN: u8 = 0x10;

/// Registers.
pub(crate) mod register {
    pub(crate) const MAGIC: u64 = 0x000;
    pub(crate) const KIND: u64 = 0x008;
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_PAGE: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_PAGE: u64 = 0x024;
    pub(crate) const QUEUE: u64 = 0x030;
    pub(crate) const QUEUE_MOST: u64 = 0x034;
    pub(crate) const QUEUE_SIZE: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const NOTIFY: u64 = 0x050;
    pub(crate) const INTERRUPTS: u64 = 0x060;
    pub(crate) const ACKNOWLEDGE: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const TABLE: u64 = 0x080;
    pub(crate) const AVAIL: u64 = 0x090;
    pub(crate) const USED: u64 = 0x0a0;
    pub(crate) const CONFIG: u64 = 0x100;
}
use register as reg;

/// VIRTIO_F_VERSION_1 and VIRTIO_F_EVENT_IDX.
pub(crate) const F_VERSION_1: u64 = 1 << 32;
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_BLK_F_RO.
const F_RO: u64 = 1 << 5;

/// Descriptor flags: another one follows, the device writes, a table of descriptors.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Status bits: the four steps, DEVICE_NEEDS_RESET and FAILED.
pub(crate) const STEPS: [u32; 4] = [1, 3, 11, 15];
pub(crate) const LIVE: u32 = 15;
pub(crate) const NEEDS_RESET: u32 = 64;
pub(crate) const FAILED: u32 = 128;

/// Descriptors in each ring that is laid out in order.
pub(crate) const RING_SIZE: u16 = 64;
/// How often is looked for an answer that another thread of the monitor may give.
const PATIENCE: u32 = 100_000;

/// What a case attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// No device: the processor, ports, addresses. The read-only disk tells whether all is well afterwards.
    Machine,
    /// A read-only disk.
    DiskRo,
    /// A disk that can be written.
    DiskRw,
    /// A network device.
    Net,
    /// The socket device.
    Vsock,
    /// The console.
    Console,
    /// The entropy device.
    Rng,
    /// The balloon.
    Balloon,
    /// A file system device.
    Fs,
}

impl Target {
    /// The devices that the monitor serves by itself.
    pub const DEVICES: &[Self] =
        &[Self::DiskRo, Self::DiskRw, Self::Net, Self::Vsock, Self::Console, Self::Rng, Self::Balloon];

    /// Its name in the names of cases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::DiskRo => "disk_ro",
            Self::DiskRw => "disk_rw",
            Self::Net => "net",
            Self::Vsock => "vsock",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Fs => "fs",
        }
    }

    /// Its number in the specification.
    pub(crate) fn kind(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Machine | Self::DiskRo | Self::DiskRw => 2,
            Self::Console => 3,
            Self::Rng => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
            Self::Fs => 26,
        }
    }

    /// How many queues it has.
    pub(crate) fn queues(self) -> u16 {
        match self {
            Self::Machine | Self::DiskRo | Self::DiskRw | Self::Rng => 1,
            Self::Net | Self::Console | Self::Fs => 2,
            Self::Vsock => 3,
            Self::Balloon => 5,
        }
    }

    /// The queue on which it takes what the driver has to say.
    pub(crate) fn queue(self) -> u16 {
        match self {
            Self::Machine | Self::DiskRo | Self::DiskRw | Self::Rng | Self::Balloon => 0,
            Self::Net | Self::Vsock | Self::Console | Self::Fs => 1,
        }
    }
}

/// Most devices on the bus.
const MOST: usize = 24;

/// The machine's devices.
pub(crate) struct Bus {
    windows: [u64; MOST],
    memory_end: u64,
}

impl Bus {
    /// As the command line names them.
    pub(crate) fn find(words: &Words, zero_page: u64) -> Self {
        let mut windows = [0; MOST];
        let mut places = windows.iter_mut();
        words.each("virtio_mmio.device=", |value| {
            let addr = value.split(|byte| *byte == b'@').nth(1).map_or(0, number);
            if let Some(place) = places.next() {
                *place = addr;
            }
        });
        Self { windows, memory_end: memory_end(zero_page) }
    }

    /// The first device of this kind.
    pub(crate) fn device(&self, target: Target) -> Result<Device, Trouble> {
        let windows = self.windows.iter().filter(|addr| **addr != 0);
        let mut devices = windows.map(|addr| Device { base: *addr, target, memory_end: self.memory_end });
        devices.find(Device::is_the_target).ok_or(Trouble("no such device", 0))
    }
}

/// A device.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    pub(crate) base: u64,
    pub(crate) target: Target,
    /// First address behind memory.
    pub(crate) memory_end: u64,
}

impl Device {
    fn is_the_target(&self) -> bool {
        self.read(reg::KIND) == self.target.kind()
            && match self.target {
                Target::DiskRw => self.offered() & F_RO == 0,
                Target::DiskRo | Target::Machine => self.offered() & F_RO != 0,
                _ => true,
            }
    }

    /// Reads a register.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        peek(self.base + offset)
    }

    /// Writes a register.
    pub(crate) fn write(&self, offset: u64, value: u32) {
        poke(self.base + offset, value);
    }

    /// The features that it offers.
    pub(crate) fn offered(&self) -> u64 {
        let page = |page| {
            self.write(reg::DEVICE_FEATURES_PAGE, page);
            u64::from(self.read(reg::DEVICE_FEATURES))
        };
        page(0) | page(1) << 32
    }

    /// Its status.
    pub(crate) fn status(&self) -> u32 {
        self.read(reg::STATUS)
    }

    /// Sets its status.
    pub(crate) fn set_status(&self, value: u32) {
        self.write(reg::STATUS, value);
    }

    /// Resets it.
    pub(crate) fn reset(&self) {
        self.set_status(0);
    }

    /// Resets it and agrees on features. True if the device agrees.
    pub(crate) fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.set_status(1);
        self.set_status(3);
        for page in 0..2 {
            self.write(reg::DRIVER_FEATURES_PAGE, page);
            self.write(reg::DRIVER_FEATURES, (features >> (page * 32)) as u32);
        }
        self.set_status(11);
        self.status() == 11
    }

    /// Lays out a queue.
    pub(crate) fn lay(&self, queue: u16, ring: &Ring) {
        self.write(reg::QUEUE, queue.into());
        self.write(reg::QUEUE_SIZE, ring.size);
        for (offset, addr) in [(reg::TABLE, ring.table), (reg::AVAIL, ring.avail), (reg::USED, ring.used)] {
            self.write(offset, addr as u32);
            self.write(offset + 4, (addr >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
    }

    /// A ring for this queue, empty.
    pub(crate) fn ring(&self, queue: u16) -> Ring {
        let most = self.most(queue);
        Ring::at(RINGS + u64::from(queue) * 0x1_0000, RING_SIZE.min(most as u16))
    }

    /// The queue's greatest size.
    pub(crate) fn most(&self, queue: u16) -> u32 {
        self.write(reg::QUEUE, queue.into());
        self.read(reg::QUEUE_MOST)
    }

    /// Resets it and gets it to work with these features and empty rings.
    pub(crate) fn start_with(&self, features: u64) -> Verdict {
        let status = if self.negotiate(features) { 11 } else { self.status() };
        ensure(status == 11, "features are not agreed", status.into())?;
        for queue in 0..self.target.queues() {
            let ring = self.ring(queue);
            ring.clear();
            self.lay(queue, &ring);
        }
        self.go()
    }

    /// DRIVER_OK.
    pub(crate) fn go(&self) -> Verdict {
        self.set_status(LIVE);
        ensure(self.status() == LIVE, "the device does not start", self.status().into())
    }

    /// Resets it and gets it to work.
    pub(crate) fn start(&self) -> Verdict {
        self.start_with(F_VERSION_1)
    }

    /// Tells it that there is something in this queue.
    pub(crate) fn notify(&self, queue: u16) {
        self.write(reg::NOTIFY, queue.into());
    }

    /// Waits until it has given back so many chains of this ring.
    pub(crate) fn expect_used(&self, ring: &Ring, count: u16) -> Verdict {
        for _ in 0..PATIENCE {
            if ring.used_index() == count {
                return Ok(());
            }
            if self.status() & NEEDS_RESET != 0 {
                return Err(Trouble("the device asks for a reset", self.status().into()));
            }
            sys::wait(100);
        }
        Err(Trouble("chains do not come back", ring.used_index().into()))
    }

    /// Expects that it asks for a reset.
    pub(crate) fn expect_broken(&self) -> Verdict {
        ensure(self.status() & NEEDS_RESET != 0, "a broken rule goes unnoticed", self.status().into())
    }

    /// Expects that it goes on as if nothing had been.
    pub(crate) fn expect_live(&self) -> Verdict {
        ensure(self.status() == LIVE, "the device is not live", self.status().into())
    }
}

/// One part of a chain.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Part {
    /// The device reads it.
    pub(crate) const fn out(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// The device writes it.
    pub(crate) const fn into(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }

    /// With these flags beside its own, and this one next.
    pub(crate) const fn with(self, flags: u16, next: u16) -> Self {
        Self { flags: self.flags | flags, next, ..self }
    }
}

/// A queue's rings.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) size: u32,
    pub(crate) table: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

impl Ring {
    /// From this address on.
    pub(crate) fn at(addr: u64, size: u16) -> Self {
        Self { size: size.into(), table: addr, avail: addr + 0x4000, used: addr + 0x8000 }
    }

    /// With this size, whatever it is.
    pub(crate) fn with_size(self, size: u32) -> Self {
        Self { size, ..self }
    }

    /// Empties it.
    pub(crate) fn clear(&self) {
        sys::fill(self.table, 0, u64::from(self.size) * 16);
        sys::fill(self.avail, 0, u64::from(self.size) * 2 + 6);
        sys::fill(self.used, 0, u64::from(self.size) * 8 + 6);
    }

    /// Writes a descriptor.
    pub(crate) fn set(&self, index: u16, part: Part) {
        let at = self.table + u64::from(index) * 16;
        poke(at, part.addr);
        poke(at + 8, part.len);
        poke(at + 12, part.flags);
        poke(at + 14, part.next);
    }

    /// Writes a chain from this descriptor on. Returns the one behind it.
    pub(crate) fn chain(&self, first: u16, parts: &[Part]) -> u16 {
        let mut index = first;
        for (place, part) in parts.iter().enumerate() {
            let more = place + 1 < parts.len();
            self.set(index, if more { part.with(NEXT, index + 1) } else { *part });
            index += 1;
        }
        index
    }

    /// The index of the available ring.
    pub(crate) fn avail_index(&self) -> u16 {
        peek(self.avail + 2)
    }

    /// Sets the index of the available ring.
    pub(crate) fn set_avail_index(&self, index: u16) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        poke(self.avail + 2, index);
    }

    /// Offers the chain that begins here.
    pub(crate) fn offer(&self, head: u16) {
        let index = self.avail_index();
        poke(self.avail + 4 + u64::from(index) % u64::from(self.size) * 2, head);
        self.set_avail_index(index.wrapping_add(1));
    }

    /// The index of the used ring.
    pub(crate) fn used_index(&self) -> u16 {
        peek(self.used + 2)
    }

    /// The used ring's element: a chain's first descriptor and how many bytes were written.
    pub(crate) fn used_element(&self, index: u16) -> (u32, u32) {
        let at = self.used + 4 + u64::from(index) % u64::from(self.size) * 8;
        (peek(at), peek(at + 4))
    }
}
