//! The bus: which device answers an address. Addresses and interrupts are fixed by a device's number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::spec::MachineExit;
use crate::vmm::ioapic::{self, IoApic};
use crate::vmm::ports::Ports;
use crate::vmm::virtio::counters::Count;
use crate::vmm::virtio::mmio::{DeviceRefused, DeviceState, MmioDevice, WINDOW, read_placeholder};

/// Address of the first device's window, in the hole below 4 GiB and clear of the interrupt chips.
pub const FIRST_WINDOW: u64 = 0xd000_0000;

/// Interrupts of the devices, by number, from the lowest. Left out are those that Linux takes for itself (0 and 2, the timer and the second PIC)
/// and the serial port's.
const IRQS: [u32; 21] = [1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// First interrupt that is none of the ISA bus: Linux takes its number for that of the pin.
const FIRST_WITH_OWN_PIN: u32 = 16;

/// Most devices on the bus.
pub const MOST_DEVICES: usize = IRQS.len();

/// The interrupt of device `number`; none beyond [`MOST_DEVICES`].
pub fn irq(number: usize) -> Option<u32> {
    IRQS.get(number).copied()
}

/// Interrupts and the IOAPIC pins they go to, one pin after the other as far as that is possible: each pin costs a boot some 30 exits.
#[derive(Clone, Debug)]
pub struct Routes(Vec<(u32, u32)>);

impl Routes {
    /// For these interrupts.
    pub fn new(irqs: impl Iterator<Item = u32>) -> Self {
        let irqs: BTreeSet<u32> = irqs.collect();
        let packed = irqs.last().is_none_or(|last| *last < FIRST_WITH_OWN_PIN);
        Self((0..).zip(irqs).map(|(place, irq)| (irq, if packed { place } else { irq })).collect())
    }

    /// The pin of an interrupt; one that no chip has if it was not asked for.
    pub fn pin(&self, irq: u32) -> u32 {
        self.0.iter().find(|(known, _)| *known == irq).map_or(u32::MAX, |(_, pin)| *pin)
    }

    /// Number of pins that the chip needs.
    pub fn pins(&self) -> usize {
        self.0.last().and_then(|(_, pin)| usize::try_from(*pin).ok()).map_or(0, |last| last + 1)
    }

    /// All, as (interrupt, pin).
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().copied()
    }
}

/// The address of device `number`.
pub fn window(number: usize) -> u64 {
    FIRST_WINDOW + number as u64 * WINDOW
}

/// Everything a vCPU can reach outside memory.
#[derive(Debug)]
pub struct Bus {
    /// I/O ports.
    pub ports: Ports,
    ioapic: Arc<IoApic>,
    devices: Vec<MmioDevice>,
    slots: Option<Slots>,
    strays: Count,
}

/// Every place of a device answers, and those without a device as one that is empty (virtio 1.2, 4.2.2: device id 0).
#[derive(Debug, Default)]
pub struct Slots {
    /// The devices have appeared.
    filled: AtomicBool,
}

impl Slots {
    /// With the devices in their places, or still without.
    pub fn new(filled: bool) -> Self {
        Self { filled: filled.into() }
    }
}

/// Who answers an address.
enum Place<'a> {
    Device(&'a MmioDevice, u64),
    Empty(u64),
    IoApic(u64),
    Nobody,
}

impl Bus {
    /// With these devices at the windows of their numbers.
    pub fn new(ports: Ports, ioapic: Arc<IoApic>, devices: Vec<MmioDevice>, slots: Option<Slots>) -> Self {
        Self { ports, ioapic, devices, slots, strays: Count::default() }
    }

    /// From now on the devices are in their places.
    pub fn fill(&self) {
        if let Some(slots) = &self.slots {
            slots.filled.store(true, Ordering::SeqCst);
        }
    }

    /// The state of all devices, while no processor runs.
    pub fn save_devices(&self) -> Vec<DeviceState> {
        self.devices.iter().map(MmioDevice::save).collect()
    }

    /// All devices go on from their saved states.
    ///
    /// # Errors
    /// The first that does not, by its number; `None` if they are more or fewer.
    pub fn restore_devices(&self, saved: &[DeviceState]) -> Result<(), Option<(usize, DeviceRefused)>> {
        if saved.len() != self.devices.len() {
            return Err(None);
        }
        for (number, (device, saved)) in self.devices.iter().zip(saved).enumerate() {
            device.restore(saved).map_err(|refused| Some((number, refused)))?;
        }
        self.devices.iter().for_each(MmioDevice::remind);
        Ok(())
    }

    /// The interrupt chip.
    pub fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// The device with this number.
    pub fn device(&self, number: u32) -> Option<&MmioDevice> {
        self.devices.get(usize::try_from(number).ok()?)
    }

    /// All devices.
    pub fn devices(&self) -> &[MmioDevice] {
        &self.devices
    }

    /// Accesses to addresses that nobody has.
    pub fn strays(&self) -> u64 {
        self.strays.get()
    }

    fn at(&self, addr: u64) -> Place<'_> {
        if let Some(offset) = addr.checked_sub(ioapic::ADDR).filter(|offset| *offset < ioapic::WINDOW) {
            return Place::IoApic(offset);
        }
        let Some(inside) = addr.checked_sub(FIRST_WINDOW) else { return Place::Nobody };
        let number = usize::try_from(inside / WINDOW).unwrap_or(usize::MAX);
        let offset = inside % WINDOW;
        let filled = self.slots.as_ref().is_none_or(|slots| slots.filled.load(Ordering::SeqCst));
        match self.devices.get(number) {
            Some(device) if filled => Place::Device(device, offset),
            _ if self.slots.is_some() && number < MOST_DEVICES => Place::Empty(offset),
            _ => Place::Nobody,
        }
    }

    /// A vCPU reads device memory. Addresses that nobody has read as ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.at(addr) {
            Place::Device(device, offset) => device.read(offset, data),
            Place::Empty(offset) => read_placeholder(offset, data),
            Place::IoApic(offset) => self.ioapic.read(offset, data),
            Place::Nobody => self.strays.add(),
        }
    }

    /// A vCPU writes device memory.
    pub fn write(&self, addr: u64, data: &[u8]) {
        match self.at(addr) {
            Place::Device(device, offset) => device.write(offset, data),
            Place::IoApic(offset) => self.ioapic.write(offset, data),
            Place::Empty(_) | Place::Nobody => self.strays.add(),
        }
    }

    /// A vCPU reads a port.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port, data);
    }

    /// A vCPU writes a port. Returns how the machine ends, if that ends it.
    pub fn port_out(&self, port: u16, data: &[u8]) -> Option<MachineExit> {
        self.ports.write(port, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_follow_each_other_unless_one_must_have_its_own() {
        let few = Routes::new([4, 1, 3].into_iter());
        assert_eq!(few.iter().collect::<Vec<_>>(), [(1, 0), (3, 1), (4, 2)]);
        assert_eq!((few.pins(), few.pin(4), few.pin(5)), (3, 2, u32::MAX));
        let many = Routes::new(IRQS.into_iter().chain([4]));
        assert!(many.iter().all(|(irq, pin)| irq == pin));
        assert_eq!(many.pins(), 24);
        assert_eq!(Routes::new([].into_iter()).pins(), 0);
    }
}
