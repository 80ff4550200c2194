//! What can be wrong with an archive.

use std::io;

use crate::image::decompress::DecompressError;
use crate::image::reference::ReferenceError;
use crate::image::tar::TarError;

/// An archive or layout cannot be read, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be opened.
    #[error("Cannot open {archive}")]
    Open {
        /// The file or folder.
        archive: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("Cannot read {entry} of {archive}")]
    Read {
        /// The file or folder.
        archive: String,
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be unpacked.
    #[error("Cannot unpack {archive}")]
    Decompress {
        /// The file.
        archive: String,
        /// Why.
        #[source]
        source: DecompressError,
    },
    /// It is not a tar archive, or a damaged one.
    #[error("{archive} is not an image archive: a tar file, perhaps packed with gzip or zstd, that is whole")]
    Tar {
        /// The file.
        archive: String,
        /// Why.
        #[source]
        source: TarError,
    },
    /// A tar or folder of something else.
    #[error("{archive} has neither index.json (OCI layout) nor manifest.json (docker save): it is not an image")]
    Kind {
        /// The file or folder.
        archive: String,
    },
    /// No image in it.
    #[error("{archive} holds no image")]
    Empty {
        /// The file or folder.
        archive: String,
    },
    /// Something it says it has is not there.
    #[error("{archive} is incomplete: {entry} is missing")]
    Missing {
        /// The file or folder.
        archive: String,
        /// The entry.
        entry: String,
    },
    /// A document is longer than allowed.
    #[error("{entry} of {archive} has {size} bytes; at most {limit} are allowed")]
    TooLong {
        /// The file or folder.
        archive: String,
        /// The entry.
        entry: String,
        /// Its length in bytes.
        size: u64,
        /// Most bytes taken.
        limit: u64,
    },
    /// A document is not what Docker writes.
    #[error("{entry} of {archive} is not what 'docker save' writes")]
    Json {
        /// The file or folder.
        archive: String,
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document's version or form is not known.
    #[error("{entry} of {archive} is of a version that is not known")]
    Version {
        /// The file or folder.
        archive: String,
        /// The entry.
        entry: String,
    },
    /// Two entries with one name.
    #[error("{archive} has two entries {entry}: it is not clear which one counts")]
    Twice {
        /// The file or folder.
        archive: String,
        /// The entry.
        entry: String,
    },
    /// An entry that should be a file is something else.
    #[error("{entry} of {archive} is not a file, or a link to something that is not in the archive")]
    NotAFile {
        /// The file or folder.
        archive: String,
        /// The entry.
        entry: String,
    },
    /// More entries than an archive of images has.
    #[error("{archive} has more than {limit} entries")]
    Entries {
        /// The file or folder.
        archive: String,
        /// Most entries taken.
        limit: usize,
    },
    /// A name in it that is none.
    #[error("{archive} calls an image '{name}'")]
    Name {
        /// The file or folder.
        archive: String,
        /// The name.
        name: String,
        /// Why it is none.
        #[source]
        source: ReferenceError,
    },
}
