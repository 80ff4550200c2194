//! A 16550A serial port, output only: what a Linux driver needs to print. It is the kernel's emergency console, silent unless it panics.
//!
//! Registers: National Semiconductor PC16550D data sheet, section 8.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::vmm::virtio::console::can_write;
use crate::vmm::virtio::interrupt::IrqLine;

/// Bytes of output that are kept.
const KEPT: usize = 4096;
/// Longest line that is looked at.
const LONGEST_LINE: usize = 1024;
/// What the Linux kernel prints before a panic's reason (`kernel/panic.c`).
const PANIC: &str = "Kernel panic - not syncing: ";

const IER_THR_EMPTY: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
const LSR_IDLE: u8 = (1 << 5) | (1 << 6);
const IIR_FIFO: u8 = 0xc0;
const IIR_NONE: u8 = 1;
const IIR_THR_EMPTY: u8 = 2;
/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// The end of what the guest wrote, and a panic's words if there were any.
#[derive(Debug, Default)]
pub struct SerialLog {
    kept: VecDeque<u8>,
    line: Vec<u8>,
    panic: Option<String>,
}

impl SerialLog {
    fn push(&mut self, byte: u8) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(byte);
        if byte == b'\n' {
            self.end_line();
        } else if self.line.len() < LONGEST_LINE {
            self.line.push(byte);
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let (None, Some((_, words))) = (&self.panic, line.split_once(PANIC)) {
            self.panic = Some(words.trim_end().chars().filter(|c| !c.is_control()).collect());
        }
        self.line.clear();
    }

    /// The reason of the first panic.
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// The last 4 KiB of output.
    pub fn tail(&self) -> Vec<u8> {
        self.kept.iter().copied().collect()
    }
}

/// The port.
#[derive(Debug)]
pub struct Serial {
    line: Arc<dyn IrqLine>,
    /// Where output is copied to besides the log, whole lines while it does not block.
    copy: Option<Arc<OwnedFd>>,
    uncopied: Vec<u8>,
    log: SerialLog,
    registers: SerialState,
}

/// The port's registers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SerialState {
    divisor: [u8; 2],
    interrupts: u8,
    /// The "transmitter empty" interrupt is due.
    empty_due: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
}

impl Serial {
    /// With its interrupt line, and a descriptor that gets a copy of what is written.
    pub fn new(line: Arc<dyn IrqLine>, copy: Option<Arc<OwnedFd>>) -> Self {
        Self {
            line,
            copy,
            uncopied: Vec::new(),
            log: SerialLog::default(),
            registers: SerialState {
                divisor: [12, 0],
                interrupts: 0,
                empty_due: false,
                line_control: 3,
                modem_control: 0,
                scratch: 0,
            },
        }
    }

    /// Its registers.
    pub fn save(&self) -> SerialState {
        self.registers
    }

    /// Goes on with these registers.
    pub fn restore(&mut self, registers: SerialState) {
        self.registers = registers;
    }

    /// What was written.
    pub fn log(&self) -> &SerialLog {
        &self.log
    }

    /// Reads register 0 to 7.
    pub fn read(&mut self, register: u16) -> u8 {
        let latch = self.registers.line_control & LCR_DLAB != 0;
        match register {
            0 if latch => self.registers.divisor[0],
            1 if latch => self.registers.divisor[1],
            1 => self.registers.interrupts,
            2 if std::mem::take(&mut self.registers.empty_due) => IIR_FIFO | IIR_THR_EMPTY,
            2 => IIR_FIFO | IIR_NONE,
            3 => self.registers.line_control,
            4 => self.registers.modem_control,
            5 => LSR_IDLE,
            // In loop mode the modem's inputs follow its outputs.
            6 if self.registers.modem_control & MCR_LOOP != 0 => loop_status(self.registers.modem_control),
            6 => MSR_CONNECTED,
            7 => self.registers.scratch,
            _ => 0,
        }
    }

    /// Writes register 0 to 7.
    pub fn write(&mut self, register: u16, value: u8) {
        let latch = self.registers.line_control & LCR_DLAB != 0;
        match register {
            0 if latch => self.registers.divisor[0] = value,
            1 if latch => self.registers.divisor[1] = value,
            0 => {
                if self.registers.modem_control & MCR_LOOP == 0 {
                    self.transmit(value);
                }
                self.raise_empty();
            }
            1 => {
                let enabled = value & !self.registers.interrupts & IER_THR_EMPTY != 0;
                self.registers.interrupts = value & 0xf;
                if enabled {
                    self.raise_empty();
                }
            }
            3 => self.registers.line_control = value,
            4 => self.registers.modem_control = value & 0x1f,
            7 => self.registers.scratch = value,
            _ => {}
        }
    }

    fn raise_empty(&mut self) {
        if self.registers.interrupts & IER_THR_EMPTY != 0 {
            self.registers.empty_due = true;
            self.line.pulse();
        }
    }

    fn transmit(&mut self, byte: u8) {
        self.log.push(byte);
        let Some(copy) = &self.copy else { return };
        self.uncopied.push(byte);
        if byte == b'\n' || self.uncopied.len() >= LONGEST_LINE {
            if can_write(copy) {
                // A log whose reader is gone is no reason to stop.
                let _ = rustix::io::write(copy, &self.uncopied);
            }
            self.uncopied.clear();
        }
    }
}

/// Modem status in loop mode: DTR is seen as DSR, RTS as CTS, OUT1 as RI, OUT2 as DCD.
fn loop_status(control: u8) -> u8 {
    let pairs = [(0, 5), (1, 4), (2, 6), (3, 7)];
    pairs.into_iter().fold(0, |status, (out, seen)| status | ((control >> out) & 1) << seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Default)]
    struct Line(AtomicU32);
    impl IrqLine for Line {
        fn pulse(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_log_keeps_the_end_and_the_first_panic() {
        let mut serial = Serial::new(Arc::new(Line::default()), None);
        let text =
            format!("{}\nKernel panic - not syncing: first\r\nKernel panic - not syncing: second\n", "x".repeat(9000));
        text.bytes().for_each(|b| serial.write(0, b));
        assert_eq!(serial.log().panic(), Some("first"));
        assert_eq!(serial.log().tail(), text.as_bytes()[text.len() - KEPT..]);
    }

    #[test]
    fn a_driver_that_waits_for_interrupts_gets_them() {
        let line = Arc::new(Line::default());
        let mut serial = Serial::new(line.clone(), None);
        assert_eq!(serial.read(2), 0xc1, "a 16550A with nothing pending");
        serial.write(1, IER_THR_EMPTY);
        assert_eq!((line.0.load(Ordering::Relaxed), serial.read(2)), (1, 0xc2));
        assert_eq!(serial.read(2), 0xc1, "reading clears it");
        serial.write(0, b'a');
        assert_eq!(line.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_divisor_hides_behind_its_latch() {
        let mut serial = Serial::new(Arc::new(Line::default()), None);
        serial.write(3, LCR_DLAB | 3);
        serial.write(0, 1);
        assert_eq!((serial.read(0), serial.log().tail().len()), (1, 0));
        serial.write(3, 3);
        assert_eq!(serial.read(5) & LSR_IDLE, LSR_IDLE);
        serial.write(4, MCR_LOOP | 0xa);
        assert_eq!(serial.read(6), 0x90);
    }
}
