//! The MMIO transport, version 2 (virtio 1.2, 4.2).
//!
//! ```text
//! Setup(queue registers) --DRIVER_OK, layouts good--> Live(queues) --a broken rule--> Broken
//!        ^------------------------- status 0 -------------'----------------------------'
//! ```

mod saved;

use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::counters::Counters;
use super::device::{DeviceIo, F_EVENT_IDX, F_VERSION_1, Next, VirtioDevice};
use super::fault::GuestFault;
use super::interrupt::{CONFIG_CHANGE, Interrupt};
use super::queue::{LiveQueue, QueueSetup};
use super::status::{NEEDS_RESET, Status, Step};
use crate::vmm::events::{Readiness, Wake};
use crate::vmm::memory::GuestRam;

/// Bytes of address space of one device.
pub const WINDOW: u64 = 0x1000;
/// Offset of QueueNotify.
pub const QUEUE_NOTIFY: u64 = 0x050;

pub use saved::{DeviceRefused, DeviceState};

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"DPLX");
const CONFIG: u64 = 0x100;

const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;

/// The guest reads at `offset` of a place without a device: device id 0, and nothing behind it.
pub fn read_placeholder(offset: u64, data: &mut [u8]) {
    data.fill(0);
    let value = match offset {
        0x000 => MAGIC,
        0x004 => VERSION,
        _ => return,
    };
    if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
        *word = value.to_le_bytes();
    }
}

#[derive(Debug)]
enum Phase {
    /// The driver lays out queues.
    Setup,
    /// The layout is frozen.
    Live(Vec<Option<LiveQueue>>),
    /// The driver broke a rule, or the host's side of the device is gone; waits for its reset.
    Broken,
}

/// One device on the bus: registers and the device behind them.
#[derive(Debug)]
pub struct MmioDevice {
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    counters: Counters,
    /// Written to be called again from the event loop.
    again: Arc<Wake>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    device: Box<dyn VirtioDevice>,
    status: Status,
    phase: Phase,
    setups: Vec<QueueSetup>,
    queue: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    /// Queues that wait for the event loop, one bit each.
    pending: u32,
    /// The event loop knows that the host's side is gone.
    loss_told: bool,
}

impl MmioDevice {
    /// Puts a device behind the transport. `again` is signalled when the event loop shall call [`MmioDevice::resume`].
    pub fn new(device: Box<dyn VirtioDevice>, ram: Arc<GuestRam>, interrupt: Interrupt, again: Arc<Wake>) -> Self {
        let setups = setups(&*device);
        let state = State {
            device,
            status: Status::Reset,
            phase: Phase::Setup,
            setups,
            queue: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            pending: 0,
            loss_told: false,
        };
        Self { ram, interrupt, counters: Counters::default(), again, state: Mutex::new(state) }
    }

    /// What the device did so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the driver has finished its set-up.
    pub fn is_live(&self) -> bool {
        matches!(self.lock().phase, Phase::Live(_))
    }

    /// Bytes that the guest has handed over and the host has not taken yet.
    pub fn undelivered(&self) -> u64 {
        self.lock().device.undelivered()
    }

    /// Why the host's side of the device is gone, once.
    pub fn take_loss(&self) -> Option<String> {
        let mut state = self.lock();
        let loss = state.device.lost().map(str::to_owned).filter(|_| !state.loss_told);
        state.loss_told |= loss.is_some();
        loss
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic is an abort in release builds; in tests the state is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            self.lock().device.read_config(offset.saturating_sub(CONFIG), data);
            return;
        }
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else {
            self.counters.strays.add();
            return;
        };
        *word = match offset {
            INTERRUPT_STATUS => self.interrupt.status(),
            _ => self.lock().register(offset).unwrap_or_else(|| {
                self.counters.strays.add();
                0
            }),
        }
        .to_le_bytes();
    }

    /// The guest writes at `offset` of the window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            self.counters.strays.add();
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            QUEUE_NOTIFY => self.call(|device, io| match u16::try_from(value) {
                Ok(queue) if io.queues.get(usize::from(queue)).is_some_and(Option::is_some) => device.kick(queue, io),
                _ => {
                    io.counters.strays.add();
                    Ok(Next::Wait)
                }
            }),
            _ => {
                let mut state = self.lock();
                if !state.write_register(offset, value, self) {
                    self.counters.strays.add();
                }
            }
        }
    }

    /// A descriptor that the device watches became ready.
    pub fn ready(&self, source: u32, readiness: Readiness) {
        self.call(|device, io| device.ready(source, readiness, io));
    }

    /// Goes on with the queues whose budget was spent.
    pub fn resume(&self) {
        let pending = std::mem::take(&mut self.lock().pending);
        for queue in (0..u16::try_from(u32::BITS).unwrap_or(0)).filter(|q| pending & (1_u32 << q) != 0) {
            self.call(|device, io| device.kick(queue, io));
        }
    }

    /// Calls the device if it is live, and deals with what it says.
    fn call<F>(&self, call: F)
    where
        F: FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> Result<Next, GuestFault>,
    {
        let mut state = self.lock();
        let State { device, phase, pending, driver_features: features, .. } = &mut *state;
        let Phase::Live(queues) = phase else {
            self.counters.strays.add();
            return;
        };
        let (ram, interrupt, counters, features) = (&*self.ram, &self.interrupt, &self.counters, *features);
        let mut io = DeviceIo { ram, queues, interrupt, counters, features };
        match call(&mut **device, &mut io) {
            Ok(_) if device.lost().is_some() => self.lose(&mut state),
            Ok(Next::Wait) => {}
            Ok(Next::Again(queue)) => {
                *pending |= 1_u32.checked_shl(u32::from(queue)).unwrap_or(0);
                self.again.ring();
            }
            Err(_fault) => self.break_down(&mut state),
        }
    }

    /// The driver broke a rule.
    fn break_down(&self, state: &mut State) {
        self.counters.faults.add();
        self.ask_for_reset(state);
    }

    /// The host's side of the device is gone, which the event loop tells.
    fn lose(&self, state: &mut State) {
        self.ask_for_reset(state);
        self.again.ring();
    }

    /// DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2).
    fn ask_for_reset(&self, state: &mut State) {
        state.phase = Phase::Broken;
        state.pending = 0;
        self.interrupt.raise(CONFIG_CHANGE);
    }

    /// The driver says DRIVER_OK: freezes the queues and starts the device.
    fn go_live(&self, state: &mut State) {
        let event_idx = state.driver_features & F_EVENT_IDX != 0;
        let queues: Result<Vec<_>, _> =
            (0_u16..).zip(&state.setups).map(|(index, setup)| setup.freeze(index, event_idx, &self.ram)).collect();
        state.status = Status::Live;
        match queues {
            Ok(queues) => state.phase = Phase::Live(queues),
            Err(_fault) => return self.break_down(state),
        }
        self.begin(state);
    }

    /// Starts the device, whose queues are live.
    fn begin(&self, state: &mut State) {
        let State { device, phase: Phase::Live(queues), driver_features: features, .. } = state else { return };
        let (ram, interrupt, counters, features) = (&*self.ram, &self.interrupt, &self.counters, *features);
        let mut io = DeviceIo { ram, queues, interrupt, counters, features };
        let started = device.start(&mut io);
        if device.lost().is_some() {
            self.lose(state);
        } else if started.is_err() {
            self.break_down(state);
        }
    }
}

fn setups(device: &dyn VirtioDevice) -> Vec<QueueSetup> {
    device.queue_sizes().iter().map(|size| QueueSetup::new(*size)).collect()
}

impl State {
    fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_EVENT_IDX
    }

    fn selected(&mut self) -> Option<&mut QueueSetup> {
        self.setups.get_mut(usize::try_from(self.queue).ok()?)
    }

    /// A register's value; `None` if it cannot be read.
    fn register(&mut self, offset: u64) -> Option<u32> {
        Some(match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.device.kind(),
            0x00c => VENDOR,
            0x010 => word(self.offered(), self.device_features_page),
            // A queue that does not exist has no descriptors and is not ready.
            0x034 => self.selected().map_or(0, |q| u32::from(q.max)),
            0x044 => self.selected().map_or(0, |q| u32::from(q.ready)),
            0x070 => self.status.bits() | if matches!(self.phase, Phase::Broken) { NEEDS_RESET } else { 0 },
            // Length and base of a shared memory region that does not exist (4.2.2).
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => u32::MAX,
            // Configuration never changes.
            0x0fc => 0,
            _ => return None,
        })
    }

    /// Writes a register. False if it cannot be written, or not now.
    fn write_register(&mut self, offset: u64, value: u32, device: &MmioDevice) -> bool {
        match offset {
            0x014 => self.device_features_page = value,
            0x024 => self.driver_features_page = value,
            0x020 => return self.accept_features(value),
            0x030 => self.queue = value,
            0x038 | 0x044 | 0x080..=0x0a4 => return self.lay_out(offset, value),
            0x070 => return self.write_status(value, device),
            0x0ac => {}
            _ => return false,
        }
        true
    }

    fn accept_features(&mut self, value: u32) -> bool {
        if self.status != Status::Driver {
            return false;
        }
        let value = u64::from(value);
        self.driver_features = match self.driver_features_page {
            0 => (self.driver_features & !0xffff_ffff) | value,
            1 => (self.driver_features & 0xffff_ffff) | (value << 32),
            _ => return value == 0,
        };
        true
    }

    /// Queue registers: only between FEATURES_OK and DRIVER_OK, and addresses only while the queue is not ready (4.2.2.2).
    fn lay_out(&mut self, offset: u64, value: u32) -> bool {
        if self.status != Status::FeaturesOk || !matches!(self.phase, Phase::Setup) {
            return false;
        }
        let Some(queue) = self.selected() else { return false };
        if queue.ready && offset != 0x044 {
            return false;
        }
        match offset {
            0x038 => queue.size = value,
            0x044 => queue.ready = value == 1,
            0x080 => set_low(&mut queue.table, value),
            0x084 => set_high(&mut queue.table, value),
            0x090 => set_low(&mut queue.avail, value),
            0x094 => set_high(&mut queue.avail, value),
            0x0a0 => set_low(&mut queue.used, value),
            0x0a4 => set_high(&mut queue.used, value),
            _ => return false,
        }
        true
    }

    fn write_status(&mut self, value: u32, device: &MmioDevice) -> bool {
        match self.status.step(value) {
            Step::Stay => {}
            Step::Refused => return false,
            Step::Reset => self.reset(device),
            Step::To(Status::FeaturesOk) => {
                // Bits never offered, or no VERSION_1: FEATURES_OK stays clear, and the driver sees that (3.1.1).
                let agreed = self.driver_features & !self.offered() == 0 && self.driver_features & F_VERSION_1 != 0;
                if agreed {
                    self.status = Status::FeaturesOk;
                }
            }
            Step::To(Status::Live) => device.go_live(self),
            Step::To(status) => self.status = status,
        }
        true
    }

    fn reset(&mut self, device: &MmioDevice) {
        self.device.reset();
        self.setups = setups(&*self.device);
        self.phase = Phase::Setup;
        self.status = Status::Reset;
        (self.queue, self.device_features_page, self.driver_features_page) = (0, 0, 0);
        (self.driver_features, self.pending) = (0, 0);
        device.interrupt.acknowledge(u32::MAX);
        if self.device.lost().is_some() {
            device.again.ring();
        }
    }
}

/// The 32 bits of a feature set that a page selects.
fn word(bits: u64, page: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
    match page {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = (*address & !0xffff_ffff) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = (*address & 0xffff_ffff) | (u64::from(value) << 32);
}

#[cfg(test)]
#[path = "mmio/tests.rs"]
mod tests;
