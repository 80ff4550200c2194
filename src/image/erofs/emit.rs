//! Second pass: the bytes, from the first to the last. Only the first block is written again at the end, with its UUID and checksum.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use crate::image::tree::{self, Content, InodeId, Kind};

use super::crc32c::crc32c;
use super::directory;
use super::format::{
    BLOCK, BLOCK_LEN, CHUNK_INDEX, CHUNK_INDEX_LEN, DEVICE_SLOT, InodeFields, NULL_ADDRESS, Placer, SUPER_OFFSET,
    SUPER_SIZE, Super, device_slot,
};
use super::layout::{Layout, Shape, block_number, chunk_bits};
use super::{ErofsError, inode};

/// Writes are collected up to this many bytes.
const BUFFER: usize = 1 << 20;

/// An image that is written front to back.
struct Emitter<'o> {
    out: &'o mut File,
    hash: Sha256,
    first_block: Vec<u8>,
    buffer: Vec<u8>,
    flushed: u64,
}

pub(super) fn emit(plan: &Layout<'_>, out: &mut File) -> Result<u64, ErofsError> {
    let mut emitter = Emitter { out, hash: Sha256::new(), first_block: Vec::new(), buffer: Vec::new(), flushed: 0 };
    let end_of_super = SUPER_OFFSET.saturating_add(SUPER_SIZE) as u64;
    emitter.fill_to(end_of_super)?;
    for slot in &plan.slots {
        let bytes: [u8; DEVICE_SLOT] = device_slot(&slot.tag, slot.blocks, slot.mapped_block);
        emitter.put(&bytes)?;
    }
    for id in &plan.order {
        emitter.inode(plan, *id)?;
    }
    emitter.fill_to(u64::from(plan.xattr_block).saturating_mul(BLOCK))?;
    emitter.put(&plan.shared.area)?;
    for id in &plan.order {
        emitter.outer_blocks(plan, *id)?;
    }
    emitter.finish(plan)
}

impl Emitter<'_> {
    fn position(&self) -> u64 {
        self.flushed.saturating_add(self.buffer.len() as u64)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Zeros up to an offset ahead.
    fn fill_to(&mut self, offset: u64) -> Result<(), ErofsError> {
        let gap = offset.saturating_sub(self.position());
        let len = usize::try_from(gap).unwrap_or_default().saturating_add(self.buffer.len());
        self.buffer.resize(len, 0);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ErofsError> {
        if self.first_block.is_empty() {
            self.first_block = self.buffer.get(..BLOCK_LEN).unwrap_or(&self.buffer).to_vec();
        }
        self.hash.update(&self.buffer);
        let at = self.flushed;
        self.out.write_all_at(&self.buffer, at).map_err(|source| ErofsError::Write { at, source })?;
        self.flushed = self.position();
        self.buffer.clear();
        Ok(())
    }

    fn inode(&mut self, plan: &Layout<'_>, id: InodeId) -> Result<(), ErofsError> {
        let shape = plan.shape(id)?;
        self.fill_to(plan.place(id).offset)?;
        let Shape { fields, compact, xattrs, inline, chunks, .. } = &shape;
        let mut head = Vec::with_capacity(64);
        fields.append(*compact, &mut head);
        self.put(&head)?;
        self.put(xattrs)?;
        if *inline > 0 {
            let content = content(plan, id)?;
            let from = usize::try_from(fields.size.saturating_sub(*inline)).unwrap_or_default();
            self.put(content.get(from..).unwrap_or_default())?;
        }
        if *chunks > 0 {
            self.fill_to(self.position().next_multiple_of(CHUNK_INDEX))?;
            if let Kind::File(file) = &inode(plan.tree, id)?.kind {
                self.chunk_indexes(file, *chunks)?;
            }
        }
        Ok(())
    }

    /// `struct erofs_inode_chunk_index` for every chunk.
    fn chunk_indexes(&mut self, file: &tree::File, chunks: u64) -> Result<(), ErofsError> {
        // Device 0 is the metadata image itself.
        let device = file.layer.checked_add(1).ok_or(ErofsError::TooLarge("number of layers"))?;
        let chunk = 1_u64 << chunk_bits(file);
        match &file.content {
            Content::Whole(address) => {
                for number in 0..chunks {
                    self.chunk_index(device, Some(address.saturating_add(number.saturating_mul(chunk))))?;
                }
            }
            Content::Sparse(sparse) => {
                let mut next = 0_u64;
                for run in &sparse.runs {
                    for _ in next..run.first {
                        self.chunk_index(device, None)?;
                    }
                    for number in 0..run.chunks {
                        self.chunk_index(device, Some(run.address.saturating_add(number.saturating_mul(chunk))))?;
                    }
                    next = run.first.saturating_add(run.chunks);
                }
                for _ in next..chunks {
                    self.chunk_index(device, None)?;
                }
            }
        }
        Ok(())
    }

    fn chunk_index(&mut self, device: u16, address: Option<u64>) -> Result<(), ErofsError> {
        let (device, block) = match address {
            Some(address) => (device, block_number(address / BLOCK)?),
            None => (0, NULL_ADDRESS),
        };
        let mut index = [0; CHUNK_INDEX_LEN];
        let mut at = Placer(&mut index);
        at.put(2, &device.to_le_bytes());
        at.put(4, &block.to_le_bytes());
        self.put(&index)
    }

    /// Blocks of a directory or link that are not behind its inode.
    fn outer_blocks(&mut self, plan: &Layout<'_>, id: InodeId) -> Result<(), ErofsError> {
        if !matches!(inode(plan.tree, id)?.kind, Kind::Directory(_) | Kind::Symlink(_)) {
            return Ok(());
        }
        let Shape { fields: InodeFields { size, .. }, inline, outer_blocks, .. } = plan.shape(id)?;
        if outer_blocks == 0 {
            return Ok(());
        }
        let content = content(plan, id)?;
        let end = usize::try_from(size.saturating_sub(inline)).unwrap_or_default();
        self.put(content.get(..end).unwrap_or(&content))?;
        self.fill_to(self.position().next_multiple_of(BLOCK))
    }

    /// Writes the super block with what was learnt on the way.
    fn finish(mut self, plan: &Layout<'_>) -> Result<u64, ErofsError> {
        let len = u64::from(plan.blocks).saturating_mul(BLOCK);
        self.fill_to(len)?;
        self.flush()?;
        if self.flushed != len {
            return Err(ErofsError::Tree("its parts do not fill their places"));
        }
        let mut uuid = [0; 16];
        uuid.iter_mut().zip(self.hash.finalize()).for_each(|(to, from)| *to = from);
        // RFC 9562: version 8 (custom), variant 10.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let root = plan.nid(InodeId::ROOT);
        let header = Super {
            root_nid: u16::try_from(root).map_err(|_| ErofsError::TooLarge("number of layers"))?,
            inodes: plan.order.len() as u64,
            build_time: plan.build_time,
            blocks: plan.blocks,
            xattr_block: plan.xattr_block,
            devices: u16::try_from(plan.slots.len()).map_err(|_| ErofsError::TooLarge("number of layers"))?,
            uuid,
        };
        let mut block = self.first_block;
        let mut at = Placer(&mut block);
        at.put(SUPER_OFFSET, &header.bytes());
        let checksum = crc32c(block.get(SUPER_OFFSET..).unwrap_or_default());
        let mut at = Placer(&mut block);
        at.put(SUPER_OFFSET.saturating_add(4), &checksum.to_le_bytes());
        let failed = |source| ErofsError::Write { at: 0, source };
        self.out.write_all_at(&block, 0).map_err(failed)?;
        self.out.set_len(len).map_err(failed)?;
        Ok(len)
    }
}

/// The bytes of a directory, or the target of a link.
fn content(plan: &Layout<'_>, id: InodeId) -> Result<Vec<u8>, ErofsError> {
    match &inode(plan.tree, id)?.kind {
        Kind::Directory(_) => Ok(directory::bytes(&plan.dirents(id)?)),
        Kind::Symlink(target) => Ok(target.to_vec()),
        _ => Ok(Vec::new()),
    }
}
