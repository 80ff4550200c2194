//! What one layer or archive may cost: every quantity that an image drives has a limit here.

use crate::spec::MIB;

/// Limits of one conversion. An archive that passes one of them is refused with the limit's name and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most bytes that the compressed stream may inflate to.
    pub inflated_bytes: u64,
    /// Highest ratio of inflated to compressed bytes, looked at once more than [`Budget::ratio_from`] bytes have come out.
    pub ratio: u64,
    /// Inflated bytes from which on the ratio counts. DEFLATE makes 1 byte of up to 1032 zeros, so that an honest layer with a file of
    /// zeros has a high ratio for a while; nothing honest keeps it.
    pub ratio_from: u64,
    /// Most files, directories and links, those included that are only implied by a longer path.
    pub entries: u64,
    /// Longest path in bytes (`PATH_MAX` of Linux less the terminator).
    pub path_bytes: u64,
    /// Most components of a path.
    pub path_depth: u64,
    /// Longest target of a symbolic link in bytes.
    pub link_bytes: u64,
    /// Most extended attributes of one entry.
    pub xattrs: u64,
    /// Most bytes of names and values of the extended attributes of one entry.
    pub xattr_bytes: u64,
    /// Longest extended header (PAX record block or GNU long name) in bytes.
    pub header_bytes: u64,
    /// Most bytes of names, link targets and extended attributes of the whole archive: what is kept in memory.
    pub metadata_bytes: u64,
    /// Largest size of one file in bytes, holes included.
    pub file_bytes: u64,
    /// Largest data blob of a layer in bytes, holes included.
    pub data_bytes: u64,
    /// Most data regions of one sparse file.
    pub sparse_regions: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            inflated_bytes: 65_536 * MIB,
            ratio: 1000,
            ratio_from: 256 * MIB,
            entries: 1_000_000,
            path_bytes: 4095,
            path_depth: 256,
            link_bytes: 4095,
            xattrs: 128,
            xattr_bytes: 128 << 10,
            header_bytes: MIB,
            metadata_bytes: 128 * MIB,
            file_bytes: 65_536 * MIB,
            data_bytes: 2 * 65_536 * MIB,
            sparse_regions: 65_536,
        }
    }
}
