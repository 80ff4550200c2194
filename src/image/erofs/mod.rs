//! Writes the metadata image of a merged tree: an EROFS file system whose file contents are on other devices.
//!
//! The format is that of `fs/erofs/erofs_fs.h` and "Documentation/filesystems/erofs.rst" of Linux 6.12: uncompressed, blocks of 4096 bytes,
//! chunk-based files with indexes (feature CHUNKED_FILE), one device slot per layer (DEVICE_TABLE). Every slot has its `mapped_blkaddr`, so that
//! the kernel takes the image in two ways: as one disk `[metadata | layer 1 | layer 2 ...]` without `device=` options ("flat device" mode,
//! `erofs_map_dev` in data.c), or with one `device=` option per layer.
//!
//! ```text
//! byte 0     1024         1152           4096-aligned        4096-aligned                    = returned length
//! | zeros | super block | device slots, | shared xattrs    | directory blocks that are not  |
//! |       |             | inodes        |                  | inlined, long link targets     |
//! ```
//! Equal trees and devices give equal bytes. The UUID comes from a hash over them.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fs::File;
use std::io;

use crate::image::tree::{Inode, InodeId, Tree};
use crate::spec::Digest;

mod crc32c;
mod directory;
mod emit;
mod format;
mod layout;
mod xattr;

use layout::Layout;

/// A device behind the metadata: the data blob of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Length in bytes, a multiple of 4096.
    pub data_len: u64,
    /// Digest that names the layer; its 64 digits become the slot's tag.
    pub digest: Digest,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The file cannot be written.
    #[error("Cannot write the metadata image at byte {at}")]
    Write {
        /// Offset in the image.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More than the format's 32-bit block addresses or 16-bit device numbers reach.
    #[error("Image is too large for EROFS: {0}")]
    TooLarge(&'static str),
    /// The data of a layer is not made of whole blocks.
    #[error("Data of layer {digest} has {data_len} bytes, not a multiple of 4096")]
    Unaligned {
        /// The layer.
        digest: Digest,
        /// Its length.
        data_len: u64,
    },
    /// A file's content is not where the tree says.
    #[error("A file of {size} bytes lies outside the data of layer number {layer}")]
    OutsideDevice {
        /// Size of the file.
        size: u64,
        /// Position of the layer.
        layer: u16,
    },
    /// The tree is not one.
    #[error("The image's tree is damaged: {0}")]
    Tree(&'static str),
}

/// Writes the image from the first byte of `out` on. Returns its length in bytes, a multiple of 4096: the address of the first device on a
/// composed disk.
///
/// # Errors
/// When `out` cannot be written, or the tree and devices do not fit each other or the format.
pub fn write(tree: &Tree, devices: &[Device], out: &mut File) -> Result<u64, ErofsError> {
    let plan = Layout::plan(tree, devices)?;
    emit::emit(&plan, out)
}

/// The inode, which a layout only asks for when the tree has it.
fn inode(tree: &Tree, id: InodeId) -> Result<&Inode, ErofsError> {
    tree.get(id).ok_or(ErofsError::Tree("a name without its inode"))
}
