//! The few I/O ports of the machine: an emergency serial port, the keyboard controller's reset line, and the agent's exit port.

mod serial;

use std::sync::{Mutex, PoisonError};

pub use serial::{Serial, SerialLog, SerialState};

use crate::spec::{EXIT_PORT, MachineExit, guest_exit};
use crate::vmm::virtio::counters::Count;

/// First port of the serial port (COM1), of eight.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt.
pub const SERIAL_IRQ: u32 = 4;

/// Keyboard controller: data, and status (read) or command (write).
const I8042_DATA: u16 = 0x60;
const I8042_COMMAND: u16 = 0x64;
/// Command "pulse output line 0": the processor's reset.
const I8042_RESET: u8 = 0xfe;

/// All ports.
#[derive(Debug)]
pub struct Ports {
    serial: Mutex<Serial>,
    /// Accesses to ports that nobody has.
    pub strays: Count,
}

impl Ports {
    /// With this serial port.
    pub fn new(serial: Serial) -> Self {
        Self { serial: Mutex::new(serial), strays: Count::default() }
    }

    fn serial(&self) -> std::sync::MutexGuard<'_, Serial> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The serial port's registers.
    pub fn save(&self) -> SerialState {
        self.serial().save()
    }

    /// Goes on with these registers of the serial port.
    pub fn restore(&self, registers: SerialState) {
        self.serial().restore(registers);
    }

    /// The guest reads a port; every byte of `data` is one read.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            SERIAL_PORT..0x400 => data.fill_with(|| self.serial().read(port - SERIAL_PORT)),
            // No key, no data: controller idle.
            I8042_DATA | I8042_COMMAND => data.fill(0),
            _ => {
                self.strays.add();
                data.fill(0xff);
            }
        }
    }

    /// The guest writes a port; every byte of `data` is one write. Returns how the machine ends, if that ends it.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<MachineExit> {
        match port {
            SERIAL_PORT..0x400 => {
                let mut serial = self.serial();
                data.iter().for_each(|byte| serial.write(port - SERIAL_PORT, *byte));
                None
            }
            I8042_COMMAND if data.contains(&I8042_RESET) => Some(self.reset()),
            I8042_DATA | I8042_COMMAND => None,
            EXIT_PORT => Some(match data.first() {
                Some(&guest_exit::SHUTDOWN) => MachineExit::Shutdown,
                Some(&code) => MachineExit::AgentFailed(code),
                None => return None,
            }),
            _ => {
                self.strays.add();
                None
            }
        }
    }

    /// What a reset means: a kernel that panicked resets the machine after its last words.
    fn reset(&self) -> MachineExit {
        self.panic().map_or(MachineExit::Reset, MachineExit::Panic)
    }

    /// The kernel's words if it panicked.
    pub fn panic(&self) -> Option<String> {
        self.serial().log().panic().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::virtio::interrupt::IrqLine;
    use std::sync::Arc;

    #[derive(Debug)]
    struct NoLine;
    impl IrqLine for NoLine {
        fn pulse(&self) {}
    }

    fn ports() -> Ports {
        Ports::new(Serial::new(Arc::new(NoLine), None))
    }

    #[test]
    fn each_end_is_told_apart() {
        assert_eq!(ports().write(EXIT_PORT, &[guest_exit::SHUTDOWN]), Some(MachineExit::Shutdown));
        assert_eq!(ports().write(EXIT_PORT, &[77]), Some(MachineExit::AgentFailed(77)));
        assert_eq!(ports().write(I8042_COMMAND, &[I8042_RESET]), Some(MachineExit::Reset));
        let panicked = ports();
        for byte in b"[    0.1] Kernel panic - not syncing: Attempted to kill init!\r\n" {
            assert_eq!(panicked.write(SERIAL_PORT, &[*byte]), None);
        }
        let words = "Attempted to kill init!".to_owned();
        assert_eq!(panicked.write(I8042_COMMAND, &[I8042_RESET]), Some(MachineExit::Panic(words)));
    }

    #[test]
    fn nobodys_ports_read_as_ones() {
        let ports = ports();
        let mut data = [0; 4];
        ports.read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(ports.write(0xcf8, &[1]), None);
        assert_eq!(ports.strays.get(), 2);
        ports.read(I8042_COMMAND, &mut data[..1]);
        assert_eq!(data[0], 0, "a guest that waits for the controller to take its reset command does not wait");
    }
}
