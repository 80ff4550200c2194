//! The data blob of a layer: contents of files one behind the other, each from a multiple of 4096 bytes on, so that EROFS can address them as
//! blocks. Long holes are left out of the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::image::tree::{Run, Sparse};

use super::LayerError;

/// Size of a block in bytes.
const BLOCK_LEN: usize = 4096;
const BLOCK: u64 = BLOCK_LEN as u64;

/// Writes are collected up to this many bytes.
const BUFFER: usize = 1 << 20;

/// Most chunks of a sparse file: the indexes in the metadata image are 8 bytes each.
const MOST_CHUNKS: u64 = 65_536;

/// The blob while it is written.
pub(super) struct Blob<'a> {
    file: &'a mut File,
    /// Not yet in the file.
    buffer: Vec<u8>,
    /// Where the buffer belongs.
    flushed: u64,
    limit: u64,
}

impl<'a> Blob<'a> {
    pub(super) fn new(file: &'a mut File, limit: u64) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER), flushed: 0, limit }
    }

    /// Where the next byte goes.
    pub(super) fn address(&self) -> u64 {
        self.flushed.saturating_add(self.buffer.len() as u64)
    }

    /// Checks that so many bytes more are within the budget.
    pub(super) fn reserve(&self, len: u64) -> Result<(), LayerError> {
        match self.address().checked_add(len).filter(|end| *end <= self.limit) {
            Some(_) => Ok(()),
            None => Err(LayerError::TooMuchData { limit: self.limit }),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if self.buffer.len().saturating_add(bytes.len()) > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            self.write_through(bytes)
        } else {
            self.buffer.extend_from_slice(bytes);
            Ok(())
        }
    }

    /// Fills up to the next block with zeros.
    pub(super) fn align(&mut self) -> Result<(), LayerError> {
        let gap = self.address().wrapping_neg() % BLOCK;
        self.zeros(gap)
    }

    /// Goes on by `len` zeros. Whole blocks of them become a hole in the file.
    fn zeros(&mut self, len: u64) -> Result<(), LayerError> {
        self.reserve(len)?;
        let to_block = self.address().wrapping_neg() % BLOCK;
        let (head, rest) = if len <= to_block { (len, 0) } else { (to_block, len.saturating_sub(to_block)) };
        let tail = rest % BLOCK;
        let hole = rest.saturating_sub(tail);
        let block = [0; BLOCK_LEN];
        self.write(block.get(..usize::try_from(head).unwrap_or_default()).unwrap_or_default())?;
        if hole > 0 {
            self.flush()?;
            self.flushed = self.flushed.saturating_add(hole);
        }
        self.write(block.get(..usize::try_from(tail).unwrap_or_default()).unwrap_or_default())
    }

    fn flush(&mut self) -> Result<(), LayerError> {
        let buffer = std::mem::take(&mut self.buffer);
        self.write_through(&buffer)?;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    fn write_through(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        let at = self.flushed;
        self.file.write_all_at(bytes, at).map_err(|source| LayerError::Write { at, source })?;
        self.flushed = at.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Brings everything into the file, which then has exactly the length that is returned.
    pub(super) fn finish(mut self) -> Result<u64, LayerError> {
        self.align()?;
        self.flush()?;
        let len = self.flushed;
        let set = |source: io::Error| LayerError::Write { at: len, source };
        self.file.set_len(len).map_err(set)?;
        Ok(len)
    }

    /// Starts a sparse file of this size.
    pub(super) fn sparse<'b>(&'b mut self, size: u64) -> SparseWriter<'b, 'a> {
        SparseWriter { blob: self, size, chunk_bits: chunk_bits(size), runs: Vec::new(), position: None }
    }
}

/// Size of the chunks of a sparse file as a power of two.
fn chunk_bits(size: u64) -> u8 {
    let mut bits = 12_u8;
    while size.div_ceil(1 << bits) > MOST_CHUNKS {
        bits = bits.saturating_add(1);
    }
    bits
}

/// Bytes that the map of a sparse file takes in the metadata image, whatever of it is data.
pub(super) fn map_bytes(size: u64) -> u64 {
    size.div_ceil(1 << chunk_bits(size)).saturating_mul(8)
}

/// A sparse file on its way into the blob: chunks without data are left out.
pub(super) struct SparseWriter<'b, 'a> {
    blob: &'b mut Blob<'a>,
    size: u64,
    chunk_bits: u8,
    runs: Vec<Run>,
    /// Where in the file the blob stands, if a chunk is open.
    position: Option<u64>,
}

impl SparseWriter<'_, '_> {
    fn chunk(&self, offset: u64) -> u64 {
        offset.checked_shr(u32::from(self.chunk_bits)).unwrap_or_default()
    }

    /// Writes bytes that belong at `offset`, which never goes back.
    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), LayerError> {
        while !bytes.is_empty() {
            let chunk = self.chunk(offset);
            let position = match self.position.filter(|p| self.chunk(*p) == chunk) {
                Some(position) => position,
                None => self.open(chunk)?,
            };
            self.blob.zeros(offset.saturating_sub(position))?;
            let end = chunk.saturating_add(1).saturating_mul(1 << self.chunk_bits);
            let most = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
            self.blob.reserve(piece.len() as u64)?;
            self.blob.write(piece)?;
            offset = offset.saturating_add(piece.len() as u64);
            // A full chunk is closed: its end belongs to the next one.
            self.position = (offset < end).then_some(offset);
            bytes = rest;
        }
        Ok(())
    }

    /// Closes the open chunk and opens another. Returns where it starts in the file.
    fn open(&mut self, chunk: u64) -> Result<u64, LayerError> {
        self.close()?;
        let address = self.blob.address();
        match self.runs.last_mut().filter(|run| run.first.saturating_add(run.chunks) == chunk) {
            Some(run) => run.chunks = run.chunks.saturating_add(1),
            None => self.runs.push(Run { first: chunk, chunks: 1, address }),
        }
        Ok(chunk.saturating_mul(1 << self.chunk_bits))
    }

    /// Fills the open chunk up, or up to the block in which the file ends.
    fn close(&mut self) -> Result<(), LayerError> {
        if let Some(position) = self.position.take() {
            let chunk_end = self.chunk(position).saturating_add(1).saturating_mul(1 << self.chunk_bits);
            let file_end = self.size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            self.blob.zeros(chunk_end.min(file_end).saturating_sub(position))?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Sparse, LayerError> {
        self.close()?;
        self.blob.align()?;
        Ok(Sparse { chunk_bits: self.chunk_bits, runs: self.runs })
    }
}
