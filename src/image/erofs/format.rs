//! Numbers of the on-disk format and the fixed structures as bytes. Names are those of `fs/erofs/erofs_fs.h` (Linux 6.12).

use crate::image::tree::{DeviceNumber, Kind};

/// Bytes of a block (`blkszbits` 12).
pub(super) const BLOCK_LEN: usize = 4096;
pub(super) const BLOCK: u64 = BLOCK_LEN as u64;
pub(super) const BLOCK_BITS: u8 = 12;
/// EROFS_SUPER_OFFSET, size of `struct erofs_super_block`, EROFS_DEVT_SLOT_SIZE.
pub(super) const SUPER_OFFSET: usize = 1024;
pub(super) const SUPER_SIZE: usize = 128;
pub(super) const DEVICE_SLOT: usize = 128;
/// Inodes lie on multiples of this; a nid counts them from the start of the metadata area, here byte 0.
pub(super) const INODE_SLOT: u64 = 32;
pub(super) const COMPACT_INODE: u64 = 32;
pub(super) const EXTENDED_INODE: u64 = 64;
/// `struct erofs_inode_chunk_index`.
pub(super) const CHUNK_INDEX_LEN: usize = 8;
pub(super) const CHUNK_INDEX: u64 = CHUNK_INDEX_LEN as u64;
/// EROFS_NULL_ADDR: a chunk that is a hole.
pub(super) const NULL_ADDRESS: u32 = u32::MAX;
/// EROFS_CHUNK_FORMAT_INDEXES.
pub(super) const CHUNK_FORMAT_INDEXES: u16 = 0x20;
/// Largest chunk that is used, 1 GiB: the format allows 31 bits above the block, tools count in 32 bits.
pub(super) const MOST_CHUNK_BITS: u8 = 30;

const MAGIC: u32 = 0xe0f5_e1e2;
/// EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME.
const FEATURE_COMPAT: u32 = 0x1 | 0x2;
/// EROFS_FEATURE_INCOMPAT_CHUNKED_FILE, EROFS_FEATURE_INCOMPAT_DEVICE_TABLE.
const CHUNKED_FILE: u32 = 0x4;
const DEVICE_TABLE: u32 = 0x8;

/// Data layouts of an inode (`enum` behind `struct erofs_super_block`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    FlatPlain = 0,
    FlatInline = 2,
    ChunkBased = 4,
}

/// What goes into the super block.
#[derive(Debug)]
pub(super) struct Super {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) build_time: (i64, u32),
    pub(super) blocks: u32,
    pub(super) xattr_block: u32,
    pub(super) devices: u16,
    pub(super) uuid: [u8; 16],
}

impl Super {
    /// `struct erofs_super_block` with the checksum left 0.
    pub(super) fn bytes(&self) -> [u8; SUPER_SIZE] {
        let mut bytes = [0; SUPER_SIZE];
        let mut at = Placer(&mut bytes);
        let has_devices = if self.devices > 0 { DEVICE_TABLE } else { 0 };
        at.put(0, &MAGIC.to_le_bytes());
        at.put(8, &FEATURE_COMPAT.to_le_bytes());
        at.put(12, &[BLOCK_BITS]);
        at.put(14, &self.root_nid.to_le_bytes());
        at.put(16, &self.inodes.to_le_bytes());
        at.put(24, &self.build_time.0.to_le_bytes());
        at.put(32, &self.build_time.1.to_le_bytes());
        at.put(36, &self.blocks.to_le_bytes());
        // meta_blkaddr (40) stays 0: nids count from the first byte.
        at.put(44, &self.xattr_block.to_le_bytes());
        at.put(48, &self.uuid);
        at.put(80, &(CHUNKED_FILE | has_devices).to_le_bytes());
        at.put(86, &self.devices.to_le_bytes());
        // devt_slotoff: the table follows the super block.
        at.put(88, &9_u16.to_le_bytes());
        bytes
    }
}

/// `struct erofs_deviceslot`.
pub(super) fn device_slot(tag: &str, blocks: u32, mapped_block: u32) -> [u8; DEVICE_SLOT] {
    let mut bytes = [0; DEVICE_SLOT];
    let mut at = Placer(&mut bytes);
    at.put(0, tag.as_bytes());
    at.put(64, &blocks.to_le_bytes());
    at.put(68, &mapped_block.to_le_bytes());
    bytes
}

/// Fields of an inode that do not come from the tree alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeFields {
    pub(super) layout: DataLayout,
    /// i_xattr_icount.
    pub(super) xattr_count: u16,
    /// Type and permissions.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// `union erofs_inode_i_u`.
    pub(super) union: u32,
    /// Number for 32-bit stat, counted from 1.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
}

impl InodeFields {
    /// Appends `struct erofs_inode_extended`, or `struct erofs_inode_compact` if `compact`.
    pub(super) fn append(&self, compact: bool, out: &mut Vec<u8>) {
        // Bit 0 of i_format is the version, the data layout lies above it.
        let version = if compact { 0 } else { 1 };
        let format = (self.layout as u16) << 1 | version;
        out.extend(format.to_le_bytes());
        out.extend(self.xattr_count.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        if compact {
            out.extend(low16(self.links).to_le_bytes());
            out.extend(low32(self.size).to_le_bytes());
            out.extend([0; 4]);
            out.extend(self.union.to_le_bytes());
            out.extend(self.number.to_le_bytes());
            out.extend(low16(self.uid).to_le_bytes());
            out.extend(low16(self.gid).to_le_bytes());
            out.extend([0; 4]);
        } else {
            out.extend([0; 2]);
            out.extend(self.size.to_le_bytes());
            out.extend(self.union.to_le_bytes());
            out.extend(self.number.to_le_bytes());
            out.extend(self.uid.to_le_bytes());
            out.extend(self.gid.to_le_bytes());
            out.extend(self.mtime.0.to_le_bytes());
            out.extend(self.mtime.1.to_le_bytes());
            out.extend(self.links.to_le_bytes());
            out.extend([0; 16]);
        }
    }

    /// Whether the compact form holds all of it: the time is the image's, owners and links fit 16 bits, the size 32.
    pub(super) fn fits_compact(&self, build_time: (i64, u32)) -> bool {
        self.mtime == build_time
            && [self.links, self.uid, self.gid].iter().all(|n| *n <= u32::from(u16::MAX))
            && self.size <= u64::from(u32::MAX)
    }
}

fn low16(n: u32) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn low32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// S_IFMT bits and the dirent's file type (EROFS_FT_*, the generic FT_* numbers).
pub(super) fn type_of(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File(_) => (0o100_000, 1),
        Kind::Directory(_) => (0o040_000, 2),
        Kind::CharDevice(_) => (0o020_000, 3),
        Kind::BlockDevice(_) => (0o060_000, 4),
        Kind::Fifo => (0o010_000, 5),
        Kind::Symlink(_) => (0o120_000, 7),
    }
}

/// The 32-bit form of a device number that `new_decode_dev` of the kernel reads (include/linux/kdev_t.h).
pub(super) fn device_number(number: DeviceNumber) -> u32 {
    let (major, minor) = (u32::from(number.major()), number.minor());
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

/// Writes fields at fixed offsets.
pub(super) struct Placer<'b>(pub(super) &'b mut [u8]);

impl Placer<'_> {
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        let field = self.0.get_mut(offset..).unwrap_or_default();
        for (to, from) in field.iter_mut().zip(bytes) {
            *to = *from;
        }
    }
}
