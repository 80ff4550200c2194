//! A raw disk composed of pieces of files laid end to end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::super::area::Area;
use super::request::SECTOR;
use crate::vmm::memory::{read_at, write_at};

/// Unit in which a composed disk is cut.
const BLOCK: u64 = 4096;

/// A piece of a file.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The file.
    pub file: Arc<OwnedFd>,
    /// First byte of the piece in the file.
    pub offset: u64,
    /// Length in bytes as the guest sees it.
    pub len: u64,
}

/// Why extents are not a disk.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DiskError {
    /// There is none.
    #[error("A disk needs at least one extent")]
    Empty,
    /// An extent of several is not a whole number of blocks.
    #[error("Extent {index} of a disk is {len} bytes long, not a whole number of {unit}-byte units above zero")]
    Length {
        /// Which.
        index: usize,
        /// Its length.
        len: u64,
        /// The unit: 4096 bytes, or 512 for a lone extent.
        unit: u64,
    },
    /// Offsets and lengths go beyond what a file can hold.
    #[error("Extent {index} of a disk ends beyond the largest file offset")]
    Overflow {
        /// Which.
        index: usize,
    },
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    /// Each extent with the disk offset at which it begins, in order.
    extents: Vec<(u64, Extent)>,
    len: u64,
    read_only: bool,
}

impl Disk {
    /// Lays extents end to end.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn new(extents: Vec<Extent>, read_only: bool) -> Result<Self, DiskError> {
        let unit = match extents.len() {
            0 => return Err(DiskError::Empty),
            1 => SECTOR,
            _ => BLOCK,
        };
        let mut len = 0_u64;
        let mut placed = Vec::with_capacity(extents.len());
        for (index, extent) in extents.into_iter().enumerate() {
            if extent.len == 0 || !extent.len.is_multiple_of(unit) {
                return Err(DiskError::Length { index, len: extent.len, unit });
            }
            let in_file = extent.offset.checked_add(extent.len).is_some_and(|end| i64::try_from(end).is_ok());
            let begin = len;
            len = len
                .checked_add(extent.len)
                .filter(|end| in_file && i64::try_from(*end).is_ok())
                .ok_or(DiskError::Overflow { index })?;
            placed.push((begin, extent));
        }
        Ok(Self { extents: placed, len, read_only })
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a disk has at least one sector.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads from `offset` until the area is full. What lies past a file's end is zeroes.
    ///
    /// # Errors
    /// If the range is not on the disk, or the host cannot read.
    pub fn read(&self, offset: u64, mut area: Area<'_>) -> io::Result<()> {
        self.each(offset, area.len(), |extent, inside, count| {
            let mut part = area.take_front(count);
            let got = read_at(&extent.file, part.pieces(), extent.offset.saturating_add(inside))?;
            part.take_front(got as u64);
            part.clear();
            Ok(())
        })
    }

    /// Writes the whole area at `offset`.
    ///
    /// # Errors
    /// If the disk is read-only, the range is not on it, or the host cannot write.
    pub fn write(&self, offset: u64, mut area: Area<'_>) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.each(offset, area.len(), |extent, inside, count| {
            let part = area.take_front(count);
            let put = write_at(&extent.file, part.pieces(), extent.offset.saturating_add(inside))?;
            if put as u64 == count { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        })
    }

    /// Gives the space of a range back to the host where its file can.
    ///
    /// # Errors
    /// If the disk is read-only, the range is not on it or empty, or the host cannot: [`io::ErrorKind::Unsupported`] if never.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.each(offset, len, |extent, inside, count| {
            Ok(rustix::fs::fallocate(&extent.file, hole, extent.offset.saturating_add(inside), count)?)
        })
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        for (_, extent) in &self.extents {
            rustix::fs::fdatasync(&extent.file)?;
        }
        Ok(())
    }

    /// Calls `act` with every extent that the range touches, the offset inside it and the number of bytes.
    fn each<F>(&self, offset: u64, len: u64, mut act: F) -> io::Result<()>
    where
        F: FnMut(&Extent, u64, u64) -> io::Result<()>,
    {
        let end = offset.checked_add(len).filter(|end| *end <= self.len).ok_or(io::ErrorKind::InvalidInput)?;
        let first = self.extents.partition_point(|(begin, _)| *begin <= offset).saturating_sub(1);
        let mut at = offset;
        for (begin, extent) in self.extents.iter().skip(first) {
            if at >= end {
                break;
            }
            let inside = at.saturating_sub(*begin);
            let count = extent.len.saturating_sub(inside).min(end.saturating_sub(at));
            act(extent, inside, count)?;
            at = at.saturating_add(count);
        }
        Ok(())
    }
}
