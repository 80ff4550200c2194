//! A device's interrupt: the status bits of the MMIO transport and the line they raise.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// An edge-triggered interrupt line.
pub trait IrqLine: Send + Sync + fmt::Debug {
    /// Raises it once.
    fn pulse(&self);
}

/// "Used Buffer Notification", bit 0 of InterruptStatus (virtio 1.2, 4.2.2).
pub const USED_BUFFER: u32 = 1;
/// "Configuration Change Notification", bit 1 of InterruptStatus.
pub const CONFIG_CHANGE: u32 = 2;

/// InterruptStatus with its line. Read and acknowledged by vCPUs without the device's lock.
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<dyn IrqLine>,
}

impl Interrupt {
    /// An interrupt with nothing pending.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { status: Arc::default(), line }
    }

    /// Sets status bits and raises the line.
    pub fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        self.line.pulse();
    }

    /// Sets InterruptStatus and raises nothing.
    pub fn set(&self, bits: u32) {
        self.status.store(bits, Ordering::SeqCst);
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}
