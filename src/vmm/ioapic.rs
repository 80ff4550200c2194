//! The machine's IOAPIC: interrupt lines in, messages to the local APICs out.
//!
//! KVM has one of its own, always with 24 pins. Linux goes through all pins of an IOAPIC three times before it uses the first, 16 accesses
//! a pin and each an exit: a quarter of all exits of a boot. This one has as many pins as the machine needs. All lines are edge-triggered, as
//! the MP table says, so that no local APIC has to tell it when an interrupt ends.
//!
//! Intel 82093AA data sheet, chapter 3; messages as in Intel SDM volume 3, 11.11.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::virtio::interrupt::IrqLine;

/// Guest address of its registers: beside that of KVM's own, which no table names.
pub const ADDR: u64 = 0xfec1_0000;
/// Length of its register window.
pub const WINDOW: u64 = 0x1000;
/// Most pins that fit its index register (0x10 to 0x3f).
pub const MOST_PINS: usize = 24;
/// "APIC version" of an IOAPIC without an end-of-interrupt register.
pub const VERSION: u8 = 0x11;

/// IOREGSEL and IOWIN, offsets of the two registers in the window.
const SELECT: u64 = 0x00;
const DATA: u64 = 0x10;

/// Indirect registers.
const ID: u8 = 0x00;
const VERSION_AND_PINS: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const TABLE: u8 = 0x10;

/// Bits of a redirection entry: those the guest may write (all but delivery status and remote IRR, which stay 0), and the mask.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const MASKED: u64 = 1 << 16;
const ID_BITS: u32 = 0x0f00_0000;

/// Where interrupts go.
pub trait Messages: Send + Sync + fmt::Debug {
    /// Sends one message signalled interrupt.
    fn send(&self, address: u32, data: u32);
}

/// A redirection entry, and whether its line was raised while it was masked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Entry {
    bits: u64,
    missed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Registers {
    id: u32,
    select: u8,
    table: Vec<Entry>,
}

/// The chip's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IoApicState(Registers);

/// The chip.
#[derive(Debug)]
pub struct IoApic {
    registers: Mutex<Registers>,
    messages: Arc<dyn Messages>,
}

impl IoApic {
    /// With `pins` pins, at most [`MOST_PINS`] and at least one, all masked.
    pub fn new(pins: usize, messages: Arc<dyn Messages>) -> Self {
        let table = vec![Entry { bits: MASKED, missed: false }; pins.clamp(1, MOST_PINS)];
        Self { registers: Mutex::new(Registers { id: 0, select: 0, table }), messages }
    }

    /// Its state.
    pub fn save(&self) -> IoApicState {
        IoApicState(self.registers().clone())
    }

    /// Goes on with this state, as far as the chip has the pins.
    pub fn restore(&self, IoApicState(saved): &IoApicState) {
        let mut registers = self.registers();
        (registers.id, registers.select) = (saved.id & ID_BITS, saved.select);
        for (entry, saved) in registers.table.iter_mut().zip(&saved.table) {
            *entry = Entry { bits: saved.bits & WRITABLE, missed: saved.missed };
        }
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises a pin once. A masked one delivers when it is unmasked.
    fn pulse(&self, pin: u32) {
        let mut registers = self.registers();
        let entry = usize::try_from(pin).ok().and_then(|pin| registers.table.get_mut(pin));
        if let Some(entry) = entry {
            if entry.bits & MASKED == 0 {
                self.deliver(entry.bits);
            } else {
                entry.missed = true;
            }
        }
    }

    /// Destination in bits 56 to 63, mode in bit 11, vector and delivery mode in the low eleven: as in a message, trigger mode always edge.
    fn deliver(&self, bits: u64) {
        let [vector, modes, .., destination] = bits.to_le_bytes();
        let logical = u32::from(modes >> 3 & 1);
        let address = 0xfee0_0000 | u32::from(destination) << 12 | logical << 2;
        self.messages.send(address, u32::from(modes & 7) << 8 | u32::from(vector));
    }

    /// A vCPU reads `data` from the window. Only aligned 32-bit accesses are defined; others read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        let value = match offset {
            SELECT => u32::from(registers.select),
            DATA => registers.read(),
            _ => 0,
        };
        data.fill(0);
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = value.to_le_bytes();
        }
    }

    /// A vCPU writes `data` into the window. Others than aligned 32-bit accesses are ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let mut registers = self.registers();
        match offset {
            SELECT => registers.select = bytes[0],
            DATA => {
                if let Some(missed) = registers.write(u32::from_le_bytes(bytes)) {
                    self.deliver(missed);
                }
            }
            _ => {}
        }
    }
}

impl Registers {
    /// The entry that is selected, and whether its upper half is.
    fn selected(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(TABLE)?;
        let pin = usize::from(index / 2);
        (pin < self.table.len()).then_some((pin, index % 2 == 1))
    }

    fn read(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION_AND_PINS => {
                let last = u8::try_from(self.table.len().saturating_sub(1)).unwrap_or(u8::MAX);
                u32::from_le_bytes([VERSION, 0, last, 0])
            }
            _ => self.selected().and_then(|(pin, upper)| Some((self.table.get(pin)?, upper))).map_or(
                0,
                |(entry, upper)| {
                    let [a, b, c, d, e, f, g, h] = entry.bits.to_le_bytes();
                    u32::from_le_bytes(if upper { [e, f, g, h] } else { [a, b, c, d] })
                },
            ),
        }
    }

    /// Returns an entry that was missed and is to be delivered now.
    fn write(&mut self, value: u32) -> Option<u64> {
        if self.select == ID {
            self.id = value & ID_BITS;
        }
        let (pin, upper) = self.selected()?;
        let entry = self.table.get_mut(pin)?;
        let half = u64::from(u32::MAX);
        let bits =
            if upper { entry.bits & half | u64::from(value) << 32 } else { entry.bits & !half | u64::from(value) };
        entry.bits = bits & WRITABLE;
        (entry.bits & MASKED == 0 && std::mem::take(&mut entry.missed)).then_some(entry.bits)
    }
}

/// A pin of the chip, for the device that raises it.
#[derive(Debug)]
pub struct Pin {
    chip: Arc<IoApic>,
    number: u32,
}

impl Pin {
    /// A pin that the chip lacks is one that nobody hears.
    pub fn new(chip: Arc<IoApic>, number: u32) -> Self {
        Self { chip, number }
    }
}

impl IrqLine for Pin {
    fn pulse(&self) {
        self.chip.pulse(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default)]
    struct Sent(Mutex<Vec<(u32, u32)>>);

    impl Messages for Sent {
        fn send(&self, address: u32, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    impl Sent {
        fn take(&self) -> Vec<(u32, u32)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn chip(pins: usize) -> (Arc<IoApic>, Arc<Sent>) {
        let sent = Arc::new(Sent::default());
        (Arc::new(IoApic::new(pins, sent.clone())), sent)
    }

    fn write(chip: &IoApic, register: u8, value: u32) {
        chip.write(SELECT, &u32::from(register).to_le_bytes());
        chip.write(DATA, &value.to_le_bytes());
    }

    fn read(chip: &IoApic, register: u8) -> u32 {
        chip.write(SELECT, &u32::from(register).to_le_bytes());
        let mut bytes = [0; 4];
        chip.read(DATA, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_driver_finds_as_many_pins_as_there_are() {
        for (pins, found) in [(0, 0), (1, 0), (6, 5), (24, 23), (1000, 23)] {
            assert_eq!(read(&chip(pins).0, VERSION_AND_PINS), found << 16 | u32::from(VERSION));
        }
        let (chip, _) = chip(2);
        assert_eq!(read(&chip, TABLE + 2), 1 << 16, "masked at first");
        assert_eq!(read(&chip, TABLE + 4), 0, "no third pin");
        write(&chip, ID, u32::MAX);
        assert_eq!((read(&chip, ID), read(&chip, ARBITRATION)), (0x0f00_0000, 0x0f00_0000));
    }

    #[test]
    fn an_unmasked_pin_sends_its_message() {
        let (chip, sent) = chip(3);
        write(&chip, TABLE + 5, 0x0300_0000);
        write(&chip, TABLE + 4, 0x31);
        Pin::new(chip.clone(), 2).pulse();
        assert_eq!(sent.take(), [(0xfee0_3000, 0x31)], "physical destination 3, fixed, vector 0x31");
        write(&chip, TABLE + 4, 0x0931 | 1 << 15);
        Pin::new(chip.clone(), 2).pulse();
        assert_eq!(
            sent.take(),
            [(0xfee0_3004, 0x131)],
            "logical destination, lowest priority, edge whatever the guest says"
        );
        Pin::new(chip.clone(), 3).pulse();
        Pin::new(chip, u32::MAX).pulse();
        assert_eq!(sent.take(), []);
    }

    #[test]
    fn a_masked_pin_is_heard_once_it_is_unmasked() {
        let (chip, sent) = chip(1);
        let pin = Pin::new(chip.clone(), 0);
        pin.pulse();
        pin.pulse();
        assert_eq!(sent.take(), []);
        write(&chip, TABLE, 0x40);
        assert_eq!(sent.take(), [(0xfee0_0000, 0x40)]);
        write(&chip, TABLE, 0x40);
        assert_eq!(sent.take(), [], "only once");
    }

    proptest! {
        #[test]
        fn no_access_of_a_guest_is_too_strange(
            accesses in prop::collection::vec((any::<bool>(), 0..0x20_u64, prop::collection::vec(any::<u8>(), 0..9)), 0..100)
        ) {
            let (chip, _) = chip(5);
            for (read, offset, mut data) in accesses {
                if read { chip.read(offset, &mut data) } else { chip.write(offset, &data) }
                let bits: Vec<_> = chip.registers().table.iter().map(|entry| entry.bits).collect();
                prop_assert!(bits.iter().all(|bits| bits & !WRITABLE == 0));
            }
        }
    }
}
