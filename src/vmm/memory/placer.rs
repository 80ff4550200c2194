//! A file for loaders that "read" it into guest memory: what may be mapped is mapped.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::OwnedFd;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::{GuestRam, MemoryError, copy_file, place_file};

/// The file, with a position of its own.
#[derive(Debug)]
pub struct FilePlacer<'a> {
    ram: &'a GuestRam,
    file: &'a OwnedFd,
    position: u64,
    /// Parts of the file that the guest does not write to.
    mappable: Vec<Range<u64>>,
    error: Option<MemoryError>,
}

impl<'a> FilePlacer<'a> {
    /// At the file's begin. `mappable` are the parts that are worth mapping.
    pub fn new(ram: &'a GuestRam, file: &'a OwnedFd, mappable: Vec<Range<u64>>) -> Self {
        Self { ram, file, position: 0, mappable, error: None }
    }

    /// Why placing failed, if it did.
    pub fn take_error(&mut self) -> Option<MemoryError> {
        self.error.take()
    }

    /// The guest address of a piece of guest memory.
    fn address(&self, host: usize) -> Option<u64> {
        self.ram.iter().find_map(|region| {
            let inside = host.checked_sub(region.as_ptr().addr())? as u64;
            (inside < region.len()).then(|| region.start_addr().0 + inside)
        })
    }
}

impl ReadVolatile for FilePlacer<'_> {
    fn read_volatile<B: BitmapSlice>(&mut self, buf: &mut VolatileSlice<'_, B>) -> Result<usize, VolatileMemoryError> {
        let count = buf.len() as u64;
        let outside = || VolatileMemoryError::IOError(io::ErrorKind::InvalidInput.into());
        let addr = self.address(buf.ptr_guard().as_ptr().addr()).ok_or_else(outside)?;
        let end = self.position.checked_add(count).ok_or_else(outside)?;
        let mappable = self.mappable.iter().any(|part| part.start <= self.position && end <= part.end);
        let place = if mappable { place_file } else { copy_file };
        match place(self.ram, addr, self.file, self.position, count) {
            Ok(()) => {
                self.position = end;
                Ok(buf.len())
            }
            Err(e) => {
                self.error = Some(e);
                Err(VolatileMemoryError::IOError(io::ErrorKind::Other.into()))
            }
        }
    }
}

impl Read for FilePlacer<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = rustix::io::pread(self.file, buf, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for FilePlacer<'_> {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        let to = match pos {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => {
                let length = u64::try_from(rustix::fs::fstat(self.file)?.st_size).map_err(io::Error::other)?;
                length.checked_add_signed(by)
            }
        };
        self.position = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
