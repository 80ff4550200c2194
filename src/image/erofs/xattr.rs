//! Extended attributes: behind the inode, or once for all inodes in the shared area ("Documentation/filesystems/erofs.rst", "Extended attributes").

use std::collections::BTreeMap;

use crate::image::tree::{Tree, Xattrs};

use super::ErofsError;
use super::format::BLOCK_LEN;

/// Size of `struct erofs_xattr_ibody_header` and of an id in it.
const HEADER_LEN: usize = 12;
const HEADER: u64 = HEADER_LEN as u64;
const SHARED_ID: u64 = 4;

/// Most shared ids of an inode (8 bits, `h_shared_count`).
const MOST_SHARED: usize = 255;

/// A name of the tree split into the format's index of its prefix (EROFS_XATTR_INDEX_*) and the rest.
fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?))),
    }
}

/// One attribute as `struct erofs_xattr_entry` with name and value, filled up to 4 bytes.
fn entry(name: &[u8], value: &[u8]) -> Result<Vec<u8>, ErofsError> {
    let (index, rest) = split_name(name).ok_or(ErofsError::Tree("an extended attribute of an unknown namespace"))?;
    let name_len = u8::try_from(rest.len()).map_err(|_| ErofsError::TooLarge("name of an extended attribute"))?;
    let value_len = u16::try_from(value.len()).map_err(|_| ErofsError::TooLarge("value of an extended attribute"))?;
    let mut bytes = vec![name_len, index];
    bytes.extend(value_len.to_le_bytes());
    bytes.extend(rest);
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

/// Attributes that more than one inode has, each once, and where.
#[derive(Debug, Default)]
pub(super) struct Shared<'t> {
    ids: BTreeMap<(&'t [u8], &'t [u8]), u32>,
    /// Bytes of the area.
    pub(super) area: Vec<u8>,
}

impl<'t> Shared<'t> {
    /// Collects what comes more than once.
    pub(super) fn collect(tree: &'t Tree) -> Result<Self, ErofsError> {
        let mut counts: BTreeMap<(&[u8], &[u8]), u32> = BTreeMap::new();
        for (name, value) in tree.inodes().iter().filter_map(|i| i.attributes.xattrs.as_deref()).flatten() {
            let count = counts.entry((name, value)).or_default();
            *count = count.saturating_add(1);
        }
        let mut shared = Self::default();
        for ((name, value), _) in counts.into_iter().filter(|(_, count)| *count > 1) {
            // An id is the offset in units of 4 bytes.
            let id = u32::try_from(shared.area.len() >> 2).map_err(|_| ErofsError::TooLarge("shared attributes"))?;
            shared.area.extend(entry(name, value)?);
            shared.ids.insert((name, value), id);
        }
        let full = shared.area.len().next_multiple_of(BLOCK_LEN);
        shared.area.resize(full, 0);
        Ok(shared)
    }

    /// The bytes behind an inode with these attributes; none for none.
    pub(super) fn behind_inode(&self, xattrs: Option<&Xattrs>) -> Result<Vec<u8>, ErofsError> {
        let mut bytes = vec![0; HEADER_LEN];
        let mut inline = Vec::new();
        let mut count = 0_usize;
        for (name, value) in xattrs.into_iter().flatten() {
            let id = self.ids.get(&(name.as_ref(), value.as_ref()));
            match id.filter(|_| count < MOST_SHARED) {
                Some(id) => {
                    bytes.extend(id.to_le_bytes());
                    count = count.saturating_add(1);
                }
                None => inline.extend(entry(name, value)?),
            }
        }
        if count == 0 && inline.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(shared_count) = bytes.get_mut(4) {
            *shared_count = u8::try_from(count).unwrap_or(u8::MAX);
        }
        bytes.extend(inline);
        Ok(bytes)
    }
}

/// `i_xattr_icount` for so many bytes behind the inode: the header counts as one, then units of 4 bytes.
pub(super) fn icount(len: usize) -> Result<u16, ErofsError> {
    let Some(units) = (len as u64).checked_sub(HEADER) else { return Ok(0) };
    u16::try_from((units / SHARED_ID).saturating_add(1))
        .map_err(|_| ErofsError::TooLarge("extended attributes of a file"))
}
