//! Guest memory: where it lies, how files are mapped into it, and vectored file I/O straight into it.
//!
//! ```text
//! 0                      3 GiB        4 GiB
//! | RAM ................ | MMIO hole  | RAM above 3 GiB ...
//! ```
//!
//! RAM is anonymous private memory. Parts of files (the kernel, the initramfs) are laid over it with `MAP_PRIVATE | MAP_FIXED`: no byte is
//! copied, clean pages are shared by all machines that map the same file, and the guest's writes stay its own.
#![allow(unsafe_code)]

mod file_io;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestUsize};

pub use file_io::{read_at, write_at};

use crate::spec::MIB;

/// The machine's memory.
pub type GuestRam = GuestMemoryMmap<()>;

/// First address of the hole below 4 GiB in which devices live.
pub const HOLE_BEGIN: u64 = 3 << 30;
/// First address behind the hole.
pub const HOLE_END: u64 = 4 << 30;
/// Size of a page, the unit in which files are mapped.
pub const PAGE: u64 = 4096;

/// Why memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused.
    #[error("Guest memory of {mib} MiB could not be reserved")]
    Reserve {
        /// Its size.
        mib: u32,
        /// The cause.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// A file could not be mapped.
    #[error("{len} bytes of a file at offset {offset} could not be mapped at guest address {addr:#x}")]
    Map {
        /// Guest physical address.
        addr: u64,
        /// Offset in the file.
        offset: u64,
        /// Length.
        len: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file could not be read into memory.
    #[error("{len} bytes of a file at offset {offset} could not be read to guest address {addr:#x}")]
    Read {
        /// Guest physical address.
        addr: u64,
        /// Offset in the file.
        offset: u64,
        /// Length.
        len: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The address ranges of RAM as (begin, length), in order.
pub fn ranges(mib: u32) -> Vec<(u64, u64)> {
    let size = u64::from(mib) * MIB;
    if size <= HOLE_BEGIN { vec![(0, size)] } else { vec![(0, HOLE_BEGIN), (HOLE_END, size - HOLE_BEGIN)] }
}

/// Reserves the machine's memory. Pages cost nothing until they are touched.
///
/// # Errors
/// [`MemoryError::Reserve`] if the host has no address space for it.
pub fn reserve(mib: u32) -> Result<GuestRam, MemoryError> {
    let ranges: Vec<_> = ranges(mib)
        .into_iter()
        .map(|(begin, len)| (GuestAddress(begin), usize::try_from(len).unwrap_or(usize::MAX)))
        .collect();
    GuestRam::from_ranges(&ranges).map_err(|source| MemoryError::Reserve { mib, source })
}

/// Puts `len` bytes of a file at a guest address: whole pages are mapped if file and memory agree in their alignment, the rest is copied.
/// Bytes past the file's end are an error.
///
/// # Errors
/// [`MemoryError`] if the range is not in one piece of RAM, the file is too short or cannot be mapped or read.
pub fn place_file(ram: &GuestRam, addr: u64, file: &impl AsFd, offset: u64, len: u64) -> Result<(), MemoryError> {
    let aligned = addr.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE);
    let mapped = if aligned { len - len % PAGE } else { 0 };
    if mapped > 0 {
        map_pages(ram, addr, file, offset, mapped).map_err(|source| MemoryError::Map {
            addr,
            offset,
            len: mapped,
            source,
        })?;
    }
    copy_file(ram, addr + mapped, file, offset + mapped, len - mapped).map_err(|source| MemoryError::Read {
        addr: addr + mapped,
        offset: offset + mapped,
        len: len - mapped,
        source,
    })
}

fn copy_file(ram: &GuestRam, mut addr: u64, file: &impl AsFd, mut offset: u64, mut len: u64) -> io::Result<()> {
    let mut buffer = vec![0_u8; 64 << 10];
    while len > 0 {
        let want = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
        let got = rustix::io::pread(file, &mut buffer[..want], offset)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        ram.write_slice(&buffer[..got], GuestAddress(addr)).map_err(io::Error::other)?;
        let got = got as u64;
        (addr, offset, len) = (addr + got, offset + got, len - got);
    }
    Ok(())
}

fn map_pages(ram: &GuestRam, addr: u64, file: &impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let count = usize::try_from(len).map_err(|_| invalid())?;
    let at = libc::off_t::try_from(offset).map_err(|_| invalid())?;
    let size = rustix::fs::fstat(file)?.st_size;
    if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_ok_and(|end| end > size)) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (region, inside) = ram.to_region_addr(GuestAddress(addr)).ok_or_else(invalid)?;
    let end = inside.0.checked_add(len as GuestUsize).ok_or_else(invalid)?;
    if end > region.len() || !addr.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
        return Err(invalid());
    }
    let host = region.get_host_address(inside).map_err(io::Error::other)?;
    // SAFETY: [host, host + count) lies inside one region's own mapping (checked above) and starts and ends on page boundaries, so MAP_FIXED
    // replaces only pages that this region owns; the region unmaps the whole range when it is dropped. All access to guest memory goes
    // through volatile slices, so that the file's content may change under the mapping without breaking Rust's rules.
    let mapped = unsafe {
        libc::mmap(
            host.cast::<libc::c_void>(),
            count,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_fd().as_raw_fd(),
            at,
        )
    };
    if ptr::eq(mapped, libc::MAP_FAILED) { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    #[test]
    fn memory_leaves_the_hole_free() {
        assert_eq!(ranges(512), [(0, 512 * MIB)]);
        assert_eq!(ranges(3072), [(0, HOLE_BEGIN)]);
        assert_eq!(ranges(4096), [(0, HOLE_BEGIN), (HOLE_END, 1024 * MIB)]);
    }

    #[test]
    fn an_aligned_file_is_mapped_and_its_tail_copied() {
        let bytes = pattern(3 * 4096 + 100);
        let file = file(&bytes);
        let ram = reserve(1).unwrap();
        place_file(&ram, 0x4000, &file, 0, bytes.len() as u64).unwrap();
        let mut read = vec![0; bytes.len() + 1];
        ram.read_slice(&mut read, GuestAddress(0x4000)).unwrap();
        assert_eq!(read[..bytes.len()], bytes);
        assert_eq!(read[bytes.len()], 0, "behind the file's end memory stays zero");
        ram.write_slice(b"guest", GuestAddress(0x4000)).unwrap();
        let mut first = [0; 5];
        rustix::io::pread(&file, &mut first, 0).unwrap();
        assert_eq!(first, bytes[..5], "the guest's writes do not reach the file");
    }

    #[test]
    fn an_unaligned_file_is_copied() {
        let bytes = pattern(9000);
        let file = file(&bytes);
        let ram = reserve(1).unwrap();
        place_file(&ram, 0x4000, &file, 10, 8000).unwrap();
        let mut read = vec![0; 8000];
        ram.read_slice(&mut read, GuestAddress(0x4000)).unwrap();
        assert_eq!(read, bytes[10..8010]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let file = file(&pattern(8192));
        let ram = reserve(1).unwrap();
        assert!(matches!(place_file(&ram, 0, &file, 0, 12288), Err(MemoryError::Map { .. })), "file too short");
        assert!(
            matches!(place_file(&ram, MIB - 4096, &file, 0, 8192), Err(MemoryError::Map { .. })),
            "memory too short"
        );
        assert!(matches!(place_file(&ram, 2 * MIB, &file, 0, 4096), Err(MemoryError::Map { .. })), "outside memory");
        assert!(matches!(place_file(&ram, 1, &file, 8000, 300), Err(MemoryError::Read { .. })), "tail past the end");
    }
}
