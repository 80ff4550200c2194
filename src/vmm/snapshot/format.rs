//! The header of a machine in a file. Frozen: another layout of the header or of what it leads to has another version.

use std::io;

use crate::vmm::virtio::mmio::DeviceRefused;

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"DUPLEXTM";

/// Version of the format. Any change to the header's layout or the state's encoding is a new one.
pub const VERSION: u32 = 2;

/// Bytes of the header; memory begins behind it.
pub const HEADER: u64 = 4096;

/// Longest state, in bytes: eight processors have less than 100 KiB, and 64 Ki runs of pages 1 MiB.
pub const LONGEST_STATE: u64 = 4 << 20;

/// Why a file is not a machine that can go on.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It cannot be read.
    #[error("The saved machine cannot be read")]
    Read(#[source] io::Error),
    /// Another file, or one whose writer did not end.
    #[error("The file is not a whole saved machine")]
    NotOne,
    /// Of another build.
    #[error("The saved machine has version {0} of the format, not {VERSION}")]
    Version(u32),
    /// Bits have changed.
    #[error("The {0} of the saved machine is damaged")]
    Damaged(&'static str),
    /// The file is shorter than its header says.
    #[error("The saved machine's file has {has} bytes, not {wanted}")]
    Length {
        /// What it has.
        has: u64,
        /// What it should have.
        wanted: u64,
    },
    /// The machine is to be another one.
    #[error("The saved machine has {0}")]
    Shape(String),
    /// Its devices are others.
    #[error("The saved machine has other devices than this one")]
    Devices,
    /// A device does not go on.
    #[error("Device {number} of the saved machine does not go on: {why}")]
    Device {
        /// Its number on the bus.
        number: usize,
        /// Why.
        why: DeviceRefused,
    },
    /// The state's numbers lead outside.
    #[error("A run of pages of the saved machine lies outside memory or file")]
    Extent,
}

/// Where the state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset of the state in the file: the end of memory.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// CRC-32 of its bytes.
    pub checksum: u32,
}

/// Bytes of the header that say something: magic, version, checksum of the state, offset and length of the state, checksum of all before.
const USED: usize = 36;

impl Header {
    /// The header's bytes; those behind are zero.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.checksum.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a header of a file of this length.
    ///
    /// # Errors
    /// [`FormatError`] for all that is not one, or leads outside the file.
    pub fn decode(bytes: &[u8], file: u64) -> Result<Self, FormatError> {
        let (bytes, sum) = bytes.get(..USED).and_then(|b| b.split_last_chunk::<4>()).ok_or(FormatError::NotOne)?;
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or(FormatError::NotOne)?;
        let version = u32::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if crc32fast::hash(bytes) != u32::from_le_bytes(*sum) {
            return Err(FormatError::Damaged("header"));
        }
        let checksum = u32::from_le_bytes(take(&mut rest)?);
        let (offset, len) = (u64::from_le_bytes(take(&mut rest)?), u64::from_le_bytes(take(&mut rest)?));
        let wanted = offset.saturating_add(len);
        if wanted != file || offset < HEADER || len > LONGEST_STATE {
            return Err(FormatError::Length { has: file, wanted });
        }
        Ok(Self { offset, len, checksum })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], FormatError> {
    let (first, more) = rest.split_first_chunk::<N>().ok_or(FormatError::NotOne)?;
    *rest = more;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Header = Header { offset: 0x5000, len: 0x123, checksum: 0xdead_beef };

    #[test]
    fn the_layout_is_frozen() {
        let bytes = SAMPLE.encode();
        assert_eq!(bytes.len(), USED);
        assert_eq!(bytes[..12], *b"DUPLEXTM\x02\0\0\0");
        assert_eq!(bytes[12..32], [0xef, 0xbe, 0xad, 0xde, 0, 0x50, 0, 0, 0, 0, 0, 0, 0x23, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Header::decode(&bytes, 0x5123).unwrap(), SAMPLE);
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let bytes = SAMPLE.encode();
        for bit in 0..USED * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes, 0x5123).is_err(), "bit {bit}");
        }
        for len in 0..USED {
            assert!(matches!(Header::decode(&bytes[..len], 0x5123), Err(FormatError::NotOne)), "{len} bytes");
        }
        for file in [0, 0x5122, 0x5124, u64::MAX] {
            assert!(matches!(Header::decode(&bytes, file), Err(FormatError::Length { wanted: 0x5123, .. })));
        }
        let outside = Header { offset: 0, len: 5, checksum: 0 };
        assert!(Header::decode(&outside.encode(), 5).is_err(), "state within the header");
        assert!(matches!(Header::decode(&[0; 4096], 4096), Err(FormatError::NotOne)));
    }
}
