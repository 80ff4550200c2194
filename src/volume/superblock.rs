//! What the superblock of an ext4 file system says (Linux, Documentation/filesystems/ext4, "Super Block"). A volume's bytes were written by
//! sandboxes, and the host's kernel is to mount them: features that no volume of ours has, a journal elsewhere or mount options in the
//! superblock are refused before the kernel sees them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where it is in the file system, and how long.
const AT: u64 = 1024;
const LENGTH: usize = 1024;

const MAGIC: u16 = 0xef53;

/// has_journal, ext_attr, resize_inode, dir_index.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x10 | 0x20;
/// filetype, extents, 64bit, flex_bg; and [`RECOVER`].
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200 | RECOVER;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// The journal has what the file system lacks.
const RECOVER: u32 = 0x4;

/// What matters of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The journal must be replayed before the file system can be read.
    pub(super) needs_recovery: bool,
}

/// Why it is not a volume's.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// The file.
    #[error("It cannot be read")]
    Read(#[source] io::Error),
    /// No ext4.
    #[error("It holds no ext4 file system")]
    Magic,
    /// Made or changed by something else.
    #[error(
        "Its ext4 has features that no volume has (compatible {0:#x}, incompatible {1:#x}, read-only compatible {2:#x})"
    )]
    Features(u32, u32, u32),
    /// It names another device or changes how it is mounted.
    #[error("Its superblock names a journal elsewhere or mount options")]
    Strange,
    /// It ends beyond the file.
    #[error("Its ext4 is larger than the file")]
    Size,
}

impl Superblock {
    /// Reads it from the file of a volume.
    pub(super) fn read(disk: &File) -> Result<Self, SuperblockError> {
        let mut bytes = [0; LENGTH];
        match disk.read_exact_at(&mut bytes, AT) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(SuperblockError::Magic),
            other => other.map_err(SuperblockError::Read)?,
        }
        let length = disk.metadata().map_err(SuperblockError::Read)?.len();
        Self::parse(&bytes, length)
    }

    fn parse(bytes: &[u8; LENGTH], length: u64) -> Result<Self, SuperblockError> {
        let u32_at = |at: usize| {
            let four = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
            u32::from_le_bytes(four.copied().unwrap_or_default())
        };
        let magic = bytes.get(0x38..).and_then(|b| b.first_chunk::<2>()).copied().unwrap_or_default();
        if u16::from_le_bytes(magic) != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let (compatible, incompatible, read_only) = (u32_at(0x5c), u32_at(0x60), u32_at(0x64));
        let strange = |found: u32, known: u32| found & !known != 0;
        if strange(compatible, COMPATIBLE)
            || strange(incompatible, INCOMPATIBLE)
            || strange(read_only, READ_ONLY_COMPATIBLE)
        {
            return Err(SuperblockError::Features(compatible, incompatible, read_only));
        }
        let options = bytes.get(0x200..0x240).unwrap_or_default();
        if u32_at(0xe0) != 8 || u32_at(0xe4) != 0 || options.iter().any(|b| *b != 0) {
            return Err(SuperblockError::Strange);
        }
        let blocks = u64::from(u32_at(0x4)) | u64::from(u32_at(0x150)) << 32;
        // Blocks of 4096 bytes only: 1024 << 2.
        if u32_at(0x18) != 2 || blocks.checked_mul(4096).is_none_or(|bytes| bytes > length) {
            return Err(SuperblockError::Size);
        }
        Ok(Self { needs_recovery: incompatible & RECOVER != 0 })
    }
}

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
/// A target of fuzzing: a superblock that a sandbox has written, mostly with what makes it ext4.
pub(crate) fn fuzz(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let mut bytes = [0; LENGTH];
    let count = rest.len().min(LENGTH);
    bytes[..count].copy_from_slice(&rest[..count]);
    if first & 1 == 0 {
        (bytes[0x38], bytes[0x39]) = (MAGIC.to_le_bytes()[0], MAGIC.to_le_bytes()[1]);
    }
    if Superblock::parse(&bytes, 1 << 30).is_ok() {
        assert!(bytes[0x200..0x240].iter().all(|b| *b == 0) && bytes[0xe4..0xe8] == [0; 4]);
        assert!(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) <= 1 << 18);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let fields: [(usize, u32); 8] = [
            (0x4, 16),
            (0x18, 2),
            (0x38, u32::from(MAGIC)),
            (0x5c, 0x2c),
            (0x60, 0x2c2),
            (0x64, 0x46b),
            (0xe0, 8),
            (0xe4, 0),
        ];
        for (at, value) in fields {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_volumes_own_superblock_is_taken() {
        assert!(!Superblock::parse(&good(), 65536).unwrap().needs_recovery);
        let mut dirty = good();
        dirty[0x60] |= 4;
        assert!(Superblock::parse(&dirty, 65536).unwrap().needs_recovery);
    }

    #[test]
    fn what_a_sandbox_could_write_to_trick_the_host_is_refused() {
        for (at, value) in [
            (0x38, 0),    // no ext4
            (0x5c, 0xff), // features
            (0x60, 0xff),
            (0x61, 0x12),
            (0x66, 0x01),
            (0xe4, 8), // a journal on another device
            (0xe0, 9),
            (0x200, b'j'), // mount options
            (0x23f, b'j'),
            (0x4, 17), // longer than the file
            (0x150, 1),
            (0x18, 6),
        ] {
            let mut bytes = good();
            bytes[at] = value;
            assert!(Superblock::parse(&bytes, 65536).is_err(), "{at:#x}");
        }
    }
}
