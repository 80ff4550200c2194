//! A machine in a file, and one that goes on from it.
//!
//! ```text
//! 0        header: magic, version, place and checksum of the state, checksum of the header
//! 4096     pages of memory that are not zero, in the order of their addresses
//! then     state: processors, interrupt chips, clock, and where each run of pages belongs
//! ```
//!
//! The pages are mapped privately: all machines that go on from a file share what none of them changes. The header is written last, so that a file
//! whose writer was interrupted is none.

pub mod format;
pub mod hot;
mod restore;
mod save;

pub use restore::{Saved, place};
pub use save::{Kept, SaveError, Saver};

use serde::{Deserialize, Serialize};

use super::ioapic::IoApicState;
use super::kvm::{VcpuState, VmState};
use super::ports::SerialState;
use super::virtio::mmio::DeviceState;

/// All of a machine but its memory, and but what is behind its devices.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Size of memory, in MiB.
    pub memory_mib: u32,
    /// The processors, the boot processor first.
    pub vcpus: Vec<VcpuState>,
    /// What they share.
    pub vm: VmState,
    /// The IOAPIC.
    pub ioapic: IoApicState,
    /// The serial port.
    pub serial: SerialState,
    /// The devices, if they had appeared: those of a template appear when it goes on.
    pub devices: Option<Vec<DeviceState>>,
    /// Where the pages of the file belong, in the file's order.
    pub extents: Vec<Extent>,
}

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}
