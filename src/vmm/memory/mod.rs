//! Guest memory: where it lies, how files are mapped into it, and vectored file I/O straight into it.
//!
//! ```text
//! 0                      3 GiB        4 GiB
//! | RAM ................ | MMIO hole  | RAM above 3 GiB ...
//! ```
//!
//! RAM is anonymous private memory. Large read-only parts of files (the kernel's code) are laid over it with `MAP_PRIVATE | MAP_FIXED`: no byte
//! is copied, clean pages are shared by all machines that map the same file, and the guest's writes stay its own. Only whole [`HUGE`] ranges
//! are mapped: a mapping within such a range would keep the host from backing the rest of it by one huge page, and each small page of it
//! costs the guest an exit of its own at first touch, which is more than copying it.
//!
//! A machine whose devices have back ends in other processes has memory that those see too ([`reserve_shared`]), without such mappings.
#![allow(unsafe_code)]

mod file_io;
mod placer;
mod shared;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestUsize, VolatileSlice};

pub use file_io::{read_at, write_at};
pub use placer::FilePlacer;
pub use shared::{Piece, is_shared, pieces, reserve_shared};

use crate::spec::MIB;

/// The machine's memory.
pub type GuestRam = GuestMemoryMmap<()>;

/// First address of the hole below 4 GiB in which devices live.
pub const HOLE_BEGIN: u64 = 3 << 30;
/// First address behind the hole.
pub const HOLE_END: u64 = 4 << 30;
/// Size of a page.
pub const PAGE: u64 = PAGE_BYTES as u64;
/// The same on the host's side.
pub const PAGE_BYTES: usize = 4096;
/// Size of a huge page, the unit in which files are mapped.
pub const HUGE: u64 = 2 << 20;

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
    /// The host refused a file for memory that is shared.
    #[error("A file for guest memory of {mib} MiB could not be made")]
    File {
        /// Its size.
        mib: u32,
        /// The cause.
        #[source]
        source: io::Error,
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

/// Puts `len` bytes of a file at a guest address: whole huge-page ranges are mapped if file and memory agree in their alignment and memory is
/// not shared, the rest is copied. Bytes past the file's end are an error.
///
/// # Errors
/// [`MemoryError`] if the range is not in one piece of RAM, the file is too short or cannot be mapped or read.
pub fn place_file(ram: &GuestRam, addr: u64, file: &impl AsFd, offset: u64, len: u64) -> Result<(), MemoryError> {
    let begin = addr.checked_next_multiple_of(HUGE).unwrap_or(u64::MAX);
    let end = addr.saturating_add(len) / HUGE * HUGE;
    let (head, mapped) = (begin - addr, end.saturating_sub(begin));
    if mapped == 0 || addr % PAGE != offset % PAGE || is_shared(ram) {
        return copy_file(ram, addr, file, offset, len);
    }
    copy_file(ram, addr, file, offset, head)?;
    map_pages(ram, begin, file, offset + head, mapped).map_err(|source| MemoryError::Map {
        addr: begin,
        offset: offset + head,
        len: mapped,
        source,
    })?;
    let done = head + mapped;
    copy_file(ram, addr + done, file, offset + done, len - done)
}

/// Reads `len` bytes of a file straight into guest memory.
///
/// # Errors
/// [`MemoryError::Read`] if the range is not in RAM, or the file is too short or cannot be read.
pub fn copy_file(ram: &GuestRam, addr: u64, file: &impl AsFd, offset: u64, len: u64) -> Result<(), MemoryError> {
    let copy = || {
        let count = usize::try_from(len).map_err(io::Error::other)?;
        let pieces: Result<Vec<_>, _> = ram.get_slices(GuestAddress(addr), count).collect();
        let read = read_at(file, &pieces.map_err(io::Error::other)?, offset)?;
        if read == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    if len == 0 {
        return Ok(());
    }
    copy().map_err(|source| MemoryError::Read { addr, offset, len, source })
}

/// Lays whole pages of a file, which are there already, over guest memory, wherever in a huge page: from then on other machines have the same ones.
/// Memory that is shared with another process stays as it is.
///
/// # Errors
/// [`MemoryError::Map`] if the range is not whole pages in one piece of RAM, or the file is too short or cannot be mapped.
pub fn share_pages(ram: &GuestRam, addr: u64, file: &impl AsFd, offset: u64, len: u64) -> Result<(), MemoryError> {
    if is_shared(ram) {
        return Ok(());
    }
    map_pages(ram, addr, file, offset, len).map_err(|source| MemoryError::Map { addr, offset, len, source })
}

/// Puts the first `len` bytes of a file at a guest address, a page's begin: its whole pages as [`share_pages`] does, the rest copied.
///
/// # Errors
/// [`MemoryError`] if the range is not in one piece of RAM, the file is too short or cannot be mapped or read.
pub fn share_file(ram: &GuestRam, addr: u64, file: &impl AsFd, len: u64) -> Result<(), MemoryError> {
    let whole = if is_shared(ram) { 0 } else { len / PAGE * PAGE };
    if whole > 0 {
        share_pages(ram, addr, file, 0, whole)?;
    }
    copy_file(ram, addr + whole, file, whole, len - whole)
}

/// Gives a range of guest memory pages of its own before the guest writes to it, one call instead of two exits for each page. What cannot be
/// done now (before Linux 5.14, or outside memory) happens at the first write.
pub fn make_own(ram: &GuestRam, addr: u64, len: u64) {
    let slice = usize::try_from(len).ok().and_then(|count| ram.get_slice(GuestAddress(addr), count).ok());
    if let Some(slice) = slice {
        // SAFETY: the range lies in guest memory (a volatile slice of it was made); the call only fills page tables, contents stay.
        let _ = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_POPULATE_WRITE) };
    }
}

/// Gives the whole pages within a slice of guest memory back to the host. The guest finds zeroes there, or what a mapped file has. Returns the
/// bytes given back.
pub fn give_back(ram: &GuestRam, slice: &VolatileSlice<'_>) -> u64 {
    let guard = slice.ptr_guard_mut();
    let (begin, end) = (guard.as_ptr().addr(), guard.as_ptr().addr().saturating_add(slice.len()));
    let (first, last) = (begin.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
    let Some(len) = last.checked_sub(first).filter(|len| *len > 0) else { return 0 };
    // Pages of a file that others have mapped too go by a hole in the file (madvise(2)).
    let advice = if is_shared(ram) { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    // SAFETY: [first, last) lies within the slice, and slices are made of guest memory only, which nothing of ours refers to except through
    // volatile accesses that expect it to change at any time; the mapping itself stays.
    let done = unsafe { libc::madvise(guard.as_ptr().with_addr(first).cast(), len, advice) };
    if done == 0 { len as u64 } else { 0 }
}

/// Lays whole pages of a file over guest memory and reads none of them yet.
///
/// # Errors
/// As [`share_pages`].
pub fn map_saved(ram: &GuestRam, addr: u64, file: &impl AsFd, offset: u64, len: u64) -> Result<(), MemoryError> {
    lay_over(ram, addr, file, offset, len).map(drop).map_err(|source| MemoryError::Map { addr, offset, len, source })
}

/// Runs of guest memory that have pages, as (begin, length) in whole pages. What lies outside of them is zero.
///
/// # Errors
/// If the kernel does not tell.
pub fn resident(ram: &GuestRam) -> io::Result<Vec<(u64, u64)>> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for region in ram.iter() {
        let count = usize::try_from(region.len() / PAGE).map_err(io::Error::other)?;
        let mut there = vec![0_u8; count];
        // SAFETY: the range is one region's own mapping, whole pages, and the vector has a byte for each (mincore(2)).
        let told = unsafe { libc::mincore(region.as_ptr().cast(), count * PAGE_BYTES, there.as_mut_ptr()) };
        if told != 0 {
            return Err(io::Error::last_os_error());
        }
        for (addr, _) in (region.start_addr().0..).step_by(PAGE_BYTES).zip(&there).filter(|(_, bits)| *bits & 1 != 0) {
            match runs.last_mut() {
                Some((begin, len)) if *begin + *len == addr => *len += PAGE,
                _ => runs.push((addr, PAGE)),
            }
        }
    }
    Ok(runs)
}

fn map_pages(ram: &GuestRam, addr: u64, file: &impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let mapped = lay_over(ram, addr, file, offset, len)?;
    // SAFETY: the mapping just made; this only fills its page tables (Linux 5.14), and what it cannot do now happens at the first touch.
    let _ = unsafe { libc::madvise(mapped.0, mapped.1, libc::MADV_POPULATE_READ) };
    Ok(())
}

fn lay_over(
    ram: &GuestRam,
    addr: u64,
    file: &impl AsFd,
    offset: u64,
    len: u64,
) -> io::Result<(*mut libc::c_void, usize)> {
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
    if ptr::eq(mapped, libc::MAP_FAILED) {
        return Err(io::Error::last_os_error());
    }
    Ok((mapped, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

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
    fn huge_ranges_are_mapped_and_the_ends_copied() {
        let bytes = pattern(5 << 20);
        let file = file(&bytes);
        for (addr, offset) in [(HUGE, 0), (HUGE + 0x3000, 0x1000), (HUGE - 0x5000, 0x7000), (HUGE + 5, 6)] {
            let ram = reserve(10).unwrap();
            let len = bytes.len() - usize::try_from(offset).unwrap();
            place_file(&ram, addr, &file, offset, len as u64).unwrap();
            let mut read = vec![0; len + 1];
            ram.read_slice(&mut read, GuestAddress(addr)).unwrap();
            assert!(read[..len] == bytes[bytes.len() - len..], "at {addr:#x}");
            assert_eq!(read[len], 0, "behind the file's end memory stays zero");
            ram.write_slice(&vec![0; len], GuestAddress(addr)).unwrap();
        }
        let mut still = vec![0; bytes.len()];
        rustix::io::pread(&file, &mut still[..], 0).unwrap();
        assert!(still == bytes, "the guest's writes do not reach the file");
    }

    #[test]
    fn a_shared_file_is_whole_wherever_it_ends() {
        for len in [1, 0xfff, 0x1000, 0x5000, 0x5001] {
            let bytes = pattern(len);
            let file = file(&bytes);
            let ram = reserve(4).unwrap();
            share_file(&ram, HUGE, &file, len as u64).unwrap();
            let mut read = vec![0; len + 1];
            ram.read_slice(&mut read, GuestAddress(HUGE)).unwrap();
            assert!(read[..len] == bytes, "{len} bytes");
            assert_eq!(read[len], 0, "behind the file's end memory stays zero");
            ram.write_slice(&vec![0; len], GuestAddress(HUGE)).unwrap();
            let mut still = vec![0; len];
            rustix::io::pread(&file, &mut still[..], 0).unwrap();
            assert!(still == bytes, "the guest's writes do not reach the file");
            assert!(
                share_file(&ram, HUGE, &file, len as u64 + 1).is_err(),
                "a file of {len} bytes is too short for one more"
            );
        }
    }

    #[test]
    fn shared_and_own_pages_read_alike() {
        let bytes = pattern(3 << 20);
        let file = file(&bytes);
        let ram = reserve(8).unwrap();
        place_file(&ram, HUGE, &file, 0, 3 * MIB).unwrap();
        share_pages(&ram, HUGE + 0x3000, &file, 0x3000, 0x5000).unwrap();
        make_own(&ram, HUGE, HUGE);
        make_own(&ram, 0, 8 * MIB);
        make_own(&ram, 7 * MIB, 2 * MIB);
        let mut read = vec![0; bytes.len()];
        ram.read_slice(&mut read, GuestAddress(HUGE)).unwrap();
        assert!(read == bytes);
        for (addr, offset, len) in [(HUGE + 1, 1, PAGE), (HUGE, 0, 5), (8 * MIB, 0, PAGE), (HUGE, 3 * MIB, PAGE)] {
            assert!(share_pages(&ram, addr, &file, offset, len).is_err(), "{addr:#x} {offset:#x} {len:#x}");
        }
    }

    #[test]
    fn whole_pages_are_given_back() {
        let ram = reserve(4).unwrap();
        ram.write_slice(&pattern(5 * 4096), GuestAddress(PAGE)).unwrap();
        let back = |addr: u64, len: usize| give_back(&ram, &ram.get_slice(GuestAddress(addr), len).unwrap());
        assert_eq!((back(PAGE + 1, 4096), back(2 * PAGE - 1, 4096), back(PAGE, 4095)), (0, 0, 0), "no page is whole");
        assert_eq!(back(2 * PAGE - 5, 3 * 4096), 2 * PAGE);
        let mut read = vec![0; 5 * 4096];
        ram.read_slice(&mut read, GuestAddress(PAGE)).unwrap();
        let mut expected = pattern(5 * 4096);
        expected[4096..3 * 4096].fill(0);
        assert!(read == expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let file = file(&pattern(3 << 20));
        let ram = reserve(4).unwrap();
        let refused = |addr, offset, len| place_file(&ram, addr, &file, offset, len).unwrap_err();
        assert!(matches!(refused(0, 0, 4 * MIB), MemoryError::Map { .. }), "mapped beyond the file's end");
        assert!(matches!(refused(1, 3 * MIB - 8, 9), MemoryError::Read { .. }), "copied beyond the file's end");
        assert!(matches!(refused(4 * MIB - 4096, 0, 8192), MemoryError::Read { .. }), "memory ends within");
        assert!(matches!(refused(4 * MIB, 0, HUGE), MemoryError::Map { .. }), "outside memory");
        assert!(matches!(refused(u64::MAX - 10, 0, 100), MemoryError::Read { .. }), "nowhere");
    }
}
