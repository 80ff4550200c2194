//! Loading: the kernel, its command line, the initramfs, and the tables that a Linux kernel is handed over with.
//!
//! ```text
//! 0x500    GDT            0x7000  zero page (boot_params)     0x9000   page tables
//! 0x20000  command line   0x9fc00 MP table (reserved)         0x100000 memory above the legacy area
//! kernel at its own physical address (16 MiB by default)      initramfs behind it, at the next huge page
//! ```

mod elf;
mod mptable;
mod zero_page;

use std::io;
use std::os::fd::OwnedFd;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub use elf::{Image, ImageError};

use super::kvm::{BootState, write_tables};
use super::memory::{self, GuestRam, HOLE_BEGIN, HUGE, MemoryError, place_file};
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
    /// The command line does not fit.
    #[error("The kernel command line has {0} bytes, at most {most} fit", most = CMDLINE_MOST - 1)]
    Cmdline(usize),
    /// A byte that ends a command line is inside.
    #[error("The kernel command line holds a zero byte")]
    CmdlineZero,
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
    pub cmdline: &'a str,
    /// Processors.
    pub vcpus: u8,
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

/// Fills the machine's memory. Returns the boot processor's state.
///
/// # Errors
/// [`LoadError`].
pub fn load(ram: &GuestRam, memory_mib: u32, payload: &Payload<'_>) -> Result<BootState, LoadError> {
    let (kernel, image) = payload.kernel;
    let initramfs_len = check_memory(image, payload.initramfs, memory_mib)?;
    image.place(ram, kernel)?;
    // Not at the end of memory: the kernel takes its own early memory from there, which shall be huge pages.
    let initramfs_addr = image.end().next_multiple_of(HUGE);
    if let Some(file) = payload.initramfs {
        place_file(ram, initramfs_addr, file, 0, initramfs_len)?;
    }
    write_cmdline(ram, payload.cmdline)?;
    let mp_table = mptable::build(payload.vcpus);
    ram.write_slice(&mp_table, GuestAddress(mptable::ADDR))?;
    let zero_page = zero_page::build(&zero_page::Facts {
        cmdline: (CMDLINE_ADDR, payload.cmdline.len() as u64),
        initramfs: payload.initramfs.map(|_| (initramfs_addr, initramfs_len)),
        ram: &memory::ranges(memory_mib),
        reserved: (mptable::ADDR, mptable::END),
    });
    ram.write_slice(&zero_page, GuestAddress(ZERO_PAGE_ADDR))?;
    write_tables(ram)?;
    Ok(BootState { entry: image.entry(), boot_params: ZERO_PAGE_ADDR })
}

fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<(), LoadError> {
    if cmdline.len() >= CMDLINE_MOST {
        return Err(LoadError::Cmdline(cmdline.len()));
    }
    if cmdline.contains('\0') {
        return Err(LoadError::CmdlineZero);
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE_ADDR))?;
    Ok(ram.write_obj(0_u8, GuestAddress(CMDLINE_ADDR + cmdline.len() as u64))?)
}

/// Adds a kernel parameter before the `--` that begins init's own arguments, or at the end.
pub fn add_parameter(cmdline: &mut String, parameter: &str) {
    let at = cmdline.find(" -- ").or_else(|| cmdline.ends_with(" --").then(|| cmdline.len() - 3));
    let at = at.unwrap_or(cmdline.len());
    let space = if at == 0 { "" } else { " " };
    cmdline.insert_str(at, &format!("{space}{parameter}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_go_before_inits_arguments() {
        for (before, after) in [("", "p"), ("a b", "a b p"), ("a -- x y", "a p -- x y"), ("a --", "a p --")] {
            let mut cmdline = before.to_owned();
            add_parameter(&mut cmdline, "p");
            assert_eq!(cmdline, after);
        }
    }

    #[test]
    fn a_command_line_too_long_is_refused() {
        let ram = memory::reserve(1).unwrap();
        assert!(write_cmdline(&ram, &"x".repeat(CMDLINE_MOST - 1)).is_ok());
        assert!(matches!(write_cmdline(&ram, &"x".repeat(CMDLINE_MOST)), Err(LoadError::Cmdline(2048))));
        assert!(matches!(write_cmdline(&ram, "a\0b"), Err(LoadError::CmdlineZero)));
    }
}
