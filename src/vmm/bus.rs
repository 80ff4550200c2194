//! The bus: which device answers an address. Addresses and interrupts are fixed by a device's number.

use std::sync::Arc;

use crate::spec::MachineExit;
use crate::vmm::ioapic::{self, IoApic};
use crate::vmm::ports::Ports;
use crate::vmm::virtio::counters::Count;
use crate::vmm::virtio::mmio::{MmioDevice, WINDOW};

/// Address of the first device's window, in the hole below 4 GiB and clear of the interrupt chips.
pub const FIRST_WINDOW: u64 = 0xd000_0000;

/// IOAPIC pins of the devices, by number, from the lowest: the IOAPIC is as large as the highest pin in use. Left out are those that Linux takes
/// for itself (0 and 2, the timer and the second PIC) and the serial port's.
const PINS: [u32; 16] = [1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18];

/// Most devices on the bus.
pub const MOST_DEVICES: usize = PINS.len();

/// The interrupt of device `number`; none beyond [`MOST_DEVICES`].
pub fn pin(number: usize) -> Option<u32> {
    PINS.get(number).copied()
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
    strays: Count,
}

impl Bus {
    /// With these devices at the windows of their numbers.
    pub fn new(ports: Ports, ioapic: Arc<IoApic>, devices: Vec<MmioDevice>) -> Self {
        Self { ports, ioapic, devices, strays: Count::default() }
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

    fn at(&self, addr: u64) -> Option<(&MmioDevice, u64)> {
        let inside = addr.checked_sub(FIRST_WINDOW)?;
        let device = self.devices.get(usize::try_from(inside / WINDOW).ok()?)?;
        Some((device, inside % WINDOW))
    }

    /// A vCPU reads device memory. Addresses that nobody has read as ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.at(addr) {
            Some((device, offset)) => device.read(offset, data),
            None if (ioapic::ADDR..ioapic::ADDR + ioapic::WINDOW).contains(&addr) => {
                self.ioapic.read(addr - ioapic::ADDR, data)
            }
            None => self.strays.add(),
        }
    }

    /// A vCPU writes device memory.
    pub fn write(&self, addr: u64, data: &[u8]) {
        match self.at(addr) {
            Some((device, offset)) => device.write(offset, data),
            None if (ioapic::ADDR..ioapic::ADDR + ioapic::WINDOW).contains(&addr) => {
                self.ioapic.write(addr - ioapic::ADDR, data)
            }
            None => self.strays.add(),
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
