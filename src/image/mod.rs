//! Images: references, registry client, content-addressed store, layers, EROFS writer, archives.
//!
//! ```text
//! registry ─┐
//! archive  ─┼─> ingest ─> layer::convert ─> store (one data blob and one tree per layer)
//! embedded ─┘        └──> merge, erofs   ─> store (one metadata image per image)  ─> RootDisk
//! ```

mod archive;
mod config;
mod embedded;
#[cfg(test)]
mod fixture;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod ingest;
mod manifest;
mod progress;
mod pull;
mod reference;
mod registry;
mod store;

pub mod decompress;
pub mod erofs;
pub mod layer;
pub mod merge;
pub mod tar;
pub mod tree;

use std::path::PathBuf;

pub use archive::ArchiveError;
pub use config::{ConfigError, ImageConfig};
pub use ingest::{IngestError, SourceError};
pub use manifest::ManifestError;
pub use progress::{Event, Progress};
pub use pull::{Added, LoadError, PullError};
pub use reference::{Reference, ReferenceError};
pub use registry::{RegistryError, RegistryOptions};
pub use store::{ImageSummary, Lease, RemoveError, Removed, ResolveError, Store, StoreError};

use crate::spec::Digest;

/// An image in the store, ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The reference by which it was asked for.
    pub reference: Reference,
    /// Digest of its manifest: its identity.
    pub manifest: Digest,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Its root file system.
    pub disk: RootDisk,
}

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
