//! Images: references, registry client, content-addressed store, layers, EROFS writer, archives.

use std::path::PathBuf;

/// The root disk of an image: pieces of files laid end to end, each a whole number of 4096-byte blocks. The first is the merged metadata (an
/// EROFS image with a device table), the others are the layers' data blobs at the addresses which the device table gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDisk {
    /// The pieces in order.
    pub pieces: Vec<Piece>,
}

/// One file of a root disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes, a multiple of 4096.
    pub len: u64,
}
