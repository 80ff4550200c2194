//! Memory that another process sees too: the back end of a device ([`crate::vmm::virtio::fs`]) reads and writes the guest's buffers itself.
//!
//! All of it is one memfd that can neither shrink nor grow: who has it cannot take pages away from under the monitor. No file is mapped over it,
//! as the other process would not see that file: everything is copied.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, MemoryError, ranges};

/// A range of guest memory and where it is in its file.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the file.
    pub offset: u64,
    /// The file.
    pub file: &'a File,
}

/// Reserves memory that can be shared. Pages cost nothing until they are touched.
///
/// # Errors
/// [`MemoryError::File`] or [`MemoryError::Reserve`] if the host refuses.
pub fn reserve_shared(mib: u32) -> Result<GuestRam, MemoryError> {
    let ranges = ranges(mib);
    let file = sealed(ranges.iter().map(|(_, len)| len).sum()).map_err(|source| MemoryError::File { mib, source })?;
    let file = std::sync::Arc::new(file);
    let mut offset = 0;
    let mut pieces = Vec::new();
    for (begin, len) in ranges {
        let place = FileOffset::from_arc(file.clone(), offset);
        pieces.push((GuestAddress(begin), usize::try_from(len).unwrap_or(usize::MAX), Some(place)));
        offset += len;
    }
    GuestRam::from_ranges_with_files(&pieces).map_err(|source| MemoryError::Reserve { mib, source })
}

fn sealed(len: u64) -> io::Result<File> {
    let file = memfd_create("duplex-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Whether it can be shared.
pub fn is_shared(ram: &GuestRam) -> bool {
    ram.iter().any(|region| region.file_offset().is_some())
}

/// What there is to share; nothing of memory that cannot be.
pub fn pieces(ram: &GuestRam) -> Vec<Piece<'_>> {
    let with_place = ram.iter().filter_map(|region| Some((region, region.file_offset()?)));
    with_place
        .map(|(region, place)| Piece {
            addr: region.start_addr().0,
            len: region.len(),
            offset: place.start(),
            file: place.file(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::super::{HOLE_BEGIN, HOLE_END, HUGE, give_back, make_own, place_file, reserve, share_pages};
    use super::*;
    use crate::spec::MIB;

    #[test]
    fn what_the_guest_has_is_in_the_file() {
        let ram = reserve_shared(3074).unwrap();
        let pieces = pieces(&ram);
        let told: Vec<_> = pieces.iter().map(|p| (p.addr, p.len, p.offset)).collect();
        assert_eq!(told, [(0, HOLE_BEGIN, 0), (HOLE_END, 2 * MIB, HOLE_BEGIN)]);
        assert!(is_shared(&ram) && !is_shared(&reserve(1).unwrap()) && super::pieces(&reserve(1).unwrap()).is_empty());
        for (addr, offset) in [(0x1000, 0x1000), (HOLE_END + 5, HOLE_BEGIN + 5)] {
            ram.write_slice(b"seen", GuestAddress(addr)).unwrap();
            let mut bytes = [0; 4];
            pieces[0].file.read_exact_at(&mut bytes, offset).unwrap();
            assert_eq!(&bytes, b"seen");
        }
        assert!(pieces[0].file.set_len(MIB).is_err() && pieces[0].file.set_len(4096 * MIB).is_err(), "it is sealed");
    }

    #[test]
    fn files_are_copied_and_pages_given_back() {
        let bytes: Vec<u8> = (0..3_usize << 20).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let kernel = tempfile::tempfile().unwrap();
        kernel.write_all_at(&bytes, 0).unwrap();
        let ram = reserve_shared(8).unwrap();
        place_file(&ram, HUGE, &kernel, 0, 3 * MIB).unwrap();
        share_pages(&ram, HUGE + 0x3000, &kernel, 0x3000, 0x5000).unwrap();
        make_own(&ram, HUGE, HUGE);
        let file = pieces(&ram)[0].file;
        let mut seen = vec![0; bytes.len()];
        file.read_exact_at(&mut seen, HUGE).unwrap();
        assert!(seen == bytes, "another process sees it as the guest does");
        let used = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        let before = used();
        let slice = ram.get_slice(GuestAddress(HUGE), 1 << 20).unwrap();
        assert_eq!(give_back(&ram, &slice), MIB);
        assert_eq!(before - used(), MIB, "the host has it again");
        file.read_exact_at(&mut seen[..1 << 20], HUGE).unwrap();
        assert!(seen[..1 << 20].iter().all(|b| *b == 0));
    }
}
