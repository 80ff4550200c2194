//! Reads a machine. Nothing of the file is believed: each number is checked against memory and file before it is used.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::MachineState;
use super::format::{FormatError, HEADER, Header};
use crate::vmm::memory::{self, GuestRam, MemoryError, PAGE};

/// A saved machine whose state has been read.
#[derive(Debug)]
pub struct Saved {
    /// All but memory.
    pub state: MachineState,
    /// End of the pages in the file.
    end: u64,
}

impl Saved {
    /// Reads the state and checks that it is a machine of this size.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn read(file: &OwnedFd, memory_mib: u32, vcpus: u8) -> Result<Self, FormatError> {
        let size = rustix::fs::fstat(file).map_err(|e| FormatError::Read(e.into()))?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        let header = Header::decode(&bytes(file, 0, HEADER)?, size)?;
        let bytes = bytes(file, header.offset, header.len)?;
        if crc32fast::hash(&bytes) != header.checksum {
            return Err(FormatError::Damaged("state"));
        }
        let state: MachineState = postcard::from_bytes(&bytes).map_err(|_| FormatError::Damaged("state"))?;
        if state.memory_mib != memory_mib {
            return Err(FormatError::Shape(format!("{} MiB of memory, not {memory_mib}", state.memory_mib)));
        }
        if state.vcpus.len() != usize::from(vcpus) {
            return Err(FormatError::Shape(format!("{} processors, not {vcpus}", state.vcpus.len())));
        }
        let saved = Self { state, end: header.offset };
        saved.check()?;
        Ok(saved)
    }

    /// All runs are whole pages inside memory, in order, and the file has them all.
    fn check(&self) -> Result<(), FormatError> {
        let ranges = memory::ranges(self.state.memory_mib);
        let mut offset = HEADER;
        let mut behind = 0;
        for extent in &self.state.extents {
            let end = extent.addr.checked_add(extent.len).ok_or(FormatError::Extent)?;
            let inside = ranges.iter().any(|(begin, len)| *begin <= extent.addr && end <= begin + len);
            let whole = extent.len > 0 && extent.addr.is_multiple_of(PAGE) && extent.len.is_multiple_of(PAGE);
            if !inside || !whole || extent.addr < behind {
                return Err(FormatError::Extent);
            }
            (behind, offset) = (end, offset.saturating_add(extent.len));
        }
        if offset == self.end { Ok(()) } else { Err(FormatError::Extent) }
    }
}

/// Lays the saved pages over memory, which must be fresh.
///
/// # Errors
/// [`MemoryError`] if the file cannot be mapped.
pub fn place(ram: &GuestRam, file: &OwnedFd, saved: &Saved) -> Result<(), MemoryError> {
    let mut offset = HEADER;
    for extent in &saved.state.extents {
        memory::map_saved(ram, extent.addr, file, offset, extent.len)?;
        offset += extent.len;
    }
    Ok(())
}

fn bytes(file: &OwnedFd, mut offset: u64, len: u64) -> Result<Vec<u8>, FormatError> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let mut rest = bytes.as_mut_slice();
    while !rest.is_empty() {
        match rustix::io::pread(file, &mut *rest, offset) {
            Ok(0) => return Err(FormatError::NotOne),
            Ok(count) => {
                rest = rest.get_mut(count..).unwrap_or_default();
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(FormatError::Read(e.into())),
        }
    }
    Ok(bytes)
}
