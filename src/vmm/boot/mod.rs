//! Loading: the kernel, its command line, the initramfs, and the tables that a Linux kernel is handed over with.
//!
//! ```text
//! 0x500    GDT            0x7000  zero page (boot_params)     0x9000   page tables
//! 0x20000  command line   0x9fc00 MP table (reserved)         0x100000 memory above the legacy area
//! kernel at its own physical address (16 MiB by default)      initramfs behind it, at the next huge page
//! ```

mod elf;
mod mptable;
mod sections;
mod zero_page;

use std::io;
use std::os::fd::OwnedFd;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::{Cmdline, load_cmdline};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub use elf::{Image, ImageError};

use super::bus::Routes;
use super::kvm::{BootState, write_tables};
use super::memory::{self, GuestRam, HOLE_BEGIN, HUGE, MemoryError, PAGE, share_file};
use crate::spec::MIB;

const ZERO_PAGE_ADDR: u64 = 0x7000;
const CMDLINE_ADDR: u64 = 0x2_0000;
/// COMMAND_LINE_SIZE of x86, the closing zero byte included.
const CMDLINE_MOST: usize = 2048;
/// Memory above the kernel and twice the initramfs (packed and unpacked) below which Linux has been seen not to reach user space.
const SLACK: u64 = 10 * MIB;

/// Why a machine cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel file is not one.
    #[error("The kernel cannot be loaded")]
    Kernel(#[from] ImageError),
    /// The initramfs cannot be looked at.
    #[error("The initramfs cannot be read")]
    Initramfs(#[source] io::Error),
    /// Not enough memory.
    #[error(
        "Memory of {memory_mib} MiB is too small to boot: the kernel ends at {kernel_end_mib} MiB and the initramfs has {initramfs_kib} KiB, \
         at least {needed_mib} MiB are needed"
    )]
    TooSmall {
        /// What the machine has.
        memory_mib: u32,
        /// Where the kernel ends.
        kernel_end_mib: u64,
        /// The initramfs.
        initramfs_kib: u64,
        /// What would do.
        needed_mib: u64,
    },
    /// The loader refused.
    #[error("The kernel cannot be placed in memory")]
    Loader(#[source] linux_loader::loader::Error),
    /// The command line does not fit or cannot be one.
    #[error("The kernel command line does not fit {CMDLINE_MOST} bytes or holds what none can hold")]
    Cmdline(#[source] linux_loader::cmdline::Error),
    /// The command line could not be written.
    #[error("The kernel command line cannot be written to memory")]
    WriteCmdline(#[source] linux_loader::loader::Error),
    /// The boot parameters could not be written.
    #[error("The boot parameters cannot be written to memory")]
    BootParams(#[source] linux_loader::configurator::Error),
    /// Files could not be placed.
    #[error("The machine's files could not be placed in its memory")]
    Place(#[from] MemoryError),
    /// Tables could not be written.
    #[error("The machine's tables could not be written to its memory")]
    Tables(#[from] GuestMemoryError),
}

/// What goes into a machine's memory before it runs.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The kernel file and what was read of it.
    pub kernel: (&'a OwnedFd, &'a Image),
    /// The initramfs.
    pub initramfs: Option<&'a OwnedFd>,
    /// The whole command line.
    pub cmdline: &'a Cmdline,
    /// Processors.
    pub vcpus: u8,
    /// Interrupts with a device and their IOAPIC pins.
    pub routes: &'a Routes,
}

/// Size of a file in bytes.
fn size(file: &OwnedFd) -> io::Result<u64> {
    u64::try_from(rustix::fs::fstat(file)?.st_size).map_err(io::Error::other)
}

/// Checks that kernel and initramfs fit into this much memory.
///
/// # Errors
/// [`LoadError::TooSmall`] with what would do.
pub fn check_memory(image: &Image, initramfs: Option<&OwnedFd>, memory_mib: u32) -> Result<u64, LoadError> {
    let initramfs = initramfs.map_or(Ok(0), size).map_err(LoadError::Initramfs)?;
    let kernel_end = image.end().saturating_add(HUGE);
    let needed = initramfs.saturating_mul(2).saturating_add(kernel_end).saturating_add(SLACK);
    if needed > (u64::from(memory_mib) * MIB).min(HOLE_BEGIN) {
        return Err(LoadError::TooSmall {
            memory_mib,
            kernel_end_mib: image.end().div_ceil(MIB),
            initramfs_kib: initramfs.div_ceil(1024),
            needed_mib: needed.div_ceil(MIB),
        });
    }
    Ok(initramfs)
}

/// Where the initramfs begins: at a huge page behind the kernel. Not at the end of memory: the kernel takes its own early memory from there, which
/// shall be huge pages.
fn initramfs_addr(image: &Image) -> u64 {
    image.end().next_multiple_of(HUGE)
}

/// Parts of memory that lie in small pages, most of them a file's until the kernel writes to them, as (guest address, length) in whole pages.
pub fn mapped(image: &Image, initramfs: Option<&OwnedFd>) -> Vec<(u64, u64)> {
    let len = initramfs.and_then(|file| size(file).ok()).unwrap_or(0) / PAGE * PAGE;
    image.mapped().chain((len > 0).then(|| (initramfs_addr(image), len))).collect()
}

/// Fills the machine's memory. Returns the boot processor's state.
///
/// # Errors
/// [`LoadError`].
pub fn load(ram: &GuestRam, memory_mib: u32, payload: &Payload<'_>) -> Result<BootState, LoadError> {
    let (kernel, image) = payload.kernel;
    let initramfs_len = check_memory(image, payload.initramfs, memory_mib)?;
    image.place(ram, kernel)?;
    let initramfs_addr = initramfs_addr(image);
    if let Some(file) = payload.initramfs {
        // The kernel takes a file's whole pages as they lie there, so that the agent's are the same ones in all machines.
        share_file(ram, initramfs_addr, file, initramfs_len)?;
    }
    load_cmdline(ram, GuestAddress(CMDLINE_ADDR), payload.cmdline).map_err(LoadError::WriteCmdline)?;
    let mp_table = mptable::build(payload.vcpus, payload.routes.iter());
    ram.write_slice(&mp_table, GuestAddress(mptable::ADDR))?;
    let params = zero_page::build(&zero_page::Facts {
        cmdline: (CMDLINE_ADDR, CMDLINE_MOST as u64),
        initramfs: payload.initramfs.map(|_| (initramfs_addr, initramfs_len)),
        ram: &memory::ranges(memory_mib),
        reserved: (mptable::ADDR, mptable::END),
    });
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE_ADDR));
    LinuxBootConfigurator::write_bootparams(&params, ram).map_err(LoadError::BootParams)?;
    write_tables(ram)?;
    Ok(BootState { entry: image.entry(), boot_params: ZERO_PAGE_ADDR })
}

/// The command line `base` with a device at each window (address, length, interrupt), ahead of the `--` that begins init's own arguments.
///
/// # Errors
/// [`LoadError::Cmdline`].
pub fn cmdline(base: &str, windows: &[(u64, u64, u32)]) -> Result<Cmdline, LoadError> {
    let mut cmdline = Cmdline::try_from(base, CMDLINE_MOST).map_err(LoadError::Cmdline)?;
    for (addr, len, pin) in windows {
        cmdline.add_virtio_mmio_device(*len, GuestAddress(*addr), *pin, None).map_err(LoadError::Cmdline)?;
    }
    // Fails for a zero byte within.
    cmdline.as_cstring().map_err(LoadError::Cmdline)?;
    Ok(cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_go_before_inits_arguments() {
        let windows = [(0xd000_0000, 0x1000, 16), (0xd000_1000, 0x1000, 17)];
        let devices = "virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17";
        for (base, expected) in [("a b", format!("a b {devices}")), ("a -- x y", format!("a {devices} -- x y"))] {
            let line = cmdline(base, &windows).unwrap();
            assert_eq!(line.as_cstring().unwrap().to_str().unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_command_line_is_refused() {
        assert!(cmdline(&"x".repeat(CMDLINE_MOST - 1), &[]).is_ok());
        assert!(matches!(cmdline(&"x".repeat(CMDLINE_MOST), &[]), Err(LoadError::Cmdline(_))));
        assert!(matches!(cmdline(&"x".repeat(CMDLINE_MOST - 10), &[(0, 4096, 5)]), Err(LoadError::Cmdline(_))));
        assert!(matches!(cmdline("a\0b", &[]), Err(LoadError::Cmdline(_))));
    }
}
