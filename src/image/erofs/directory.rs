//! Directories as EROFS keeps them: blocks of `struct erofs_dirent` followed by their names, all names of a directory in byte order, `.` and
//! `..` among them ("Documentation/filesystems/erofs.rst", "Directories").

use super::format::{BLOCK, BLOCK_LEN};

/// Size of `struct erofs_dirent`.
const DIRENT: u64 = 12;

/// A name with what it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirent<'t> {
    pub(super) name: &'t [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// How many entries go into each block: as many as fit, in order.
fn blocks<'d, 't>(entries: &'d [Dirent<'t>]) -> impl Iterator<Item = &'d [Dirent<'t>]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut used = 0_u64;
        let fitting = rest.iter().take_while(|entry| {
            used = used.saturating_add(DIRENT).saturating_add(entry.name.len() as u64);
            used <= BLOCK
        });
        let (block, others) = rest.split_at(fitting.count());
        rest = others;
        (!block.is_empty()).then_some(block)
    })
}

fn used(block: &[Dirent<'_>]) -> u64 {
    block.iter().fold(0, |sum, entry| sum.saturating_add(DIRENT).saturating_add(entry.name.len() as u64))
}

/// Size of a directory: whole blocks, and the bytes used of the last one.
pub(super) fn size(entries: &[Dirent<'_>]) -> u64 {
    let mut size = 0_u64;
    let mut tail = 0_u64;
    for block in blocks(entries) {
        if tail > 0 {
            size = size.saturating_add(BLOCK);
        }
        tail = used(block);
    }
    size.saturating_add(tail)
}

/// The bytes of a directory; all blocks but the last are filled up with zeros.
pub(super) fn bytes(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    for block in blocks(entries) {
        let start = out.len().next_multiple_of(BLOCK_LEN);
        out.resize(start, 0);
        let mut name_offset = DIRENT.saturating_mul(block.len() as u64);
        for entry in block {
            out.extend(entry.nid.to_le_bytes());
            out.extend(u16::try_from(name_offset).unwrap_or_default().to_le_bytes());
            out.extend([entry.file_type, 0]);
            name_offset = name_offset.saturating_add(entry.name.len() as u64);
        }
        for entry in block {
            out.extend(entry.name);
        }
    }
    out
}
