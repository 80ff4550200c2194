//! Why an image cannot be put into the store.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::image::archive::ArchiveError;
use crate::image::config::ConfigError;
use crate::image::erofs::ErofsError;
use crate::image::layer::LayerError;
use crate::image::manifest::ManifestError;
use crate::image::merge::MergeError;
use crate::image::registry::RegistryError;
use crate::image::store::StoreError;
use crate::image::tree::TreeError;
use crate::spec::Digest;

/// A failure of where the image comes from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The archive or layout.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The time of the whole pull or load is over.
    #[error("There was no time left for {what}: all of it must be here after {limit} s (limit time = {limit})")]
    Time {
        /// What was being read.
        what: String,
        /// The limit in seconds.
        limit: u64,
    },
    /// A read that failed, with what was being read.
    #[error("Cannot read {what}")]
    Read {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// Takes out of a reader's error what the source put into it.
    pub(super) fn from_read(error: io::Error, what: &str) -> Self {
        let plain = |source| Self::Read { what: what.to_owned(), source };
        if error.get_ref().is_some_and(|inner| inner.is::<Self>()) {
            match error.into_inner().map(|inner| inner.downcast::<Self>()) {
                Some(Ok(inner)) => *inner,
                Some(Err(other)) => plain(io::Error::other(other)),
                None => plain(io::ErrorKind::Other.into()),
            }
        } else {
            plain(error)
        }
    }
}

/// Why an image was not put into the store. Nothing of it is there then.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Where it comes from failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its manifest, or the index that leads to it, is not used.
    #[error("Manifest {digest} is refused")]
    Manifest {
        /// The document.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<ManifestError>,
    },
    /// Its config is not used.
    #[error("Config {digest} is refused")]
    Config {
        /// The document.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<ConfigError>,
    },
    /// An index of an index of an index ...
    #[error("Index {digest} is behind {depth} others: that is no image")]
    IndexDepth {
        /// Where we stopped.
        digest: Digest,
        /// How many lead there.
        depth: usize,
    },
    /// Layers in manifest and config do not pair.
    #[error("The manifest has {manifest} layers and the config {config}: one of them is wrong")]
    LayerCount {
        /// Layers in the manifest.
        manifest: usize,
        /// `rootfs.diff_ids` in the config.
        config: usize,
    },
    /// Other bytes than announced.
    #[error("Wrong digest of {what}: expected {expected}, got {found}")]
    WrongDigest {
        /// Which blob.
        what: String,
        /// As the manifest or the reference says.
        expected: Digest,
        /// Of the bytes that came.
        found: Digest,
    },
    /// The layer's uncompressed bytes are not what the config says.
    #[error("Wrong digest of {what}, unpacked: the config says {expected}, it is {found}")]
    WrongDiffId {
        /// Which layer.
        what: String,
        /// As the config says.
        expected: Digest,
        /// Of the bytes that came.
        found: Digest,
    },
    /// Less came than announced.
    #[error("{what} is cut short: {found} of {expected} bytes")]
    Truncated {
        /// Which blob.
        what: String,
        /// Bytes as announced.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// More came than announced.
    #[error("{what} is longer than the {expected} bytes it was announced with")]
    TooLong {
        /// Which blob.
        what: String,
        /// Bytes as announced.
        expected: u64,
    },
    /// The reader of a document failed.
    #[error("Cannot read {what}")]
    Read {
        /// Which blob.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layer's bytes are the announced ones, and bad.
    #[error("Cannot convert {what}")]
    Layer {
        /// Which layer.
        what: String,
        /// Why.
        #[source]
        source: Box<LayerError>,
    },
    /// No room for the layer.
    #[error(
        "The disk of {} is full: {what} had {} MiB to fill and needs more: free some space, or remove images with 'duplex rmi', and try again",
        path.display(), room >> 20
    )]
    DiskFull {
        /// Which layer.
        what: String,
        /// A folder on that disk.
        path: PathBuf,
        /// Bytes that were there for the layer: free ones and those it had filled.
        room: u64,
        /// The error as the system gave it.
        #[source]
        source: Box<LayerError>,
    },
    /// A layer's tree in the store cannot be read or written.
    #[error("The tree {} of a layer cannot be used", path.display())]
    Tree {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// The layers cannot be laid over each other.
    #[error("The layers cannot be merged")]
    Merge(#[source] MergeError),
    /// The metadata image cannot be written.
    #[error("Cannot write the metadata image {}", path.display())]
    Erofs {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ErofsError,
    },
    /// A layer vanished from the store while it was used.
    #[error("Layer {0} vanished from the store meanwhile: try again")]
    LayerGone(Digest),
    /// The image was removed again before it had its name.
    #[error("Image {} was removed by another process meanwhile: try again", .0.short())]
    ImageGone(Digest),
    /// Given up because another layer failed.
    #[error("Stopped because another layer failed")]
    Stopped,
    /// The store's files.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IngestError {
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::Store(StoreError::DiskFull { .. }))
    }
}

/// A failed conversion; `written` bytes of data were on the disk of `path` by then.
pub(super) fn layer(source: LayerError, what: String, path: &Path, written: u64) -> IngestError {
    let full = is_full(&source);
    let source = Box::new(source);
    if !full {
        return IngestError::Layer { what, source };
    }
    let room = StoreError::free_bytes(path).saturating_add(written);
    IngestError::DiskFull { what, path: path.to_owned(), room, source }
}

pub(super) fn tree(path: &Path, source: TreeError) -> IngestError {
    match system_error(&source) {
        Some(e) => StoreError::io("write", path)(e).into(),
        None => IngestError::Tree { path: path.to_owned(), source },
    }
}

pub(super) fn erofs(path: &Path, source: ErofsError) -> IngestError {
    match system_error(&source) {
        Some(e) => StoreError::io("write", path)(e).into(),
        None => IngestError::Erofs { path: path.to_owned(), source },
    }
}

/// The disk is full somewhere down the chain of causes.
pub(in crate::image) fn is_full(error: &(dyn Error + 'static)) -> bool {
    let kind = system_error(error).map(|e| e.kind());
    matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// The system's error in a chain of causes, if there is one.
fn system_error(error: &(dyn Error + 'static)) -> Option<io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(io::Error::from_raw_os_error(code));
        }
        cause = error.source();
    }
    None
}
