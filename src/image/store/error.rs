//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::{LoadError, Reference};
use crate::spec::Digest;

/// The store's files cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No room.
    #[error(
        "The disk of {} is full ({} MiB free): free some space, or remove images with 'duplex rmi', and try again",
        path.display(), free >> 20
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// Bytes free there now.
        free: u64,
        /// The error as the system gave it.
        #[source]
        source: io::Error,
    },
    /// Made by another version.
    #[error(
        "{} belongs to an image store of format '{found}'; this Duplex knows '{known}' (use another --root, or remove the folder and pull again)",
        path.display()
    )]
    Version {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        known: &'static str,
    },
    /// A record that we did not write, or that was damaged.
    #[error("{} is damaged (remove the image and pull or load it again)", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another process holds a lock for too long.
    #[error("{} is locked by another duplex process since {seconds} s", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        seconds: u64,
    },
}

impl StoreError {
    /// For `map_err`: says what was tried on which path, and tells a full disk from other failures.
    pub(in crate::image) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { free: Self::free_bytes(&path), path, source }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// Bytes that an ordinary write could still take on the file system of the nearest existing ancestor.
    pub(in crate::image) fn free_bytes(path: &Path) -> u64 {
        let stat = path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok());
        stat.map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
    }
}

/// An image cannot be found, or not be used.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nothing of that name.
    #[error(
        "No image '{reference}' here: fetch it with 'duplex pull {reference}', or read it from a file with 'duplex load -i FILE'{}",
        near_words(near)
    )]
    Unknown {
        /// What was asked for.
        reference: Reference,
        /// Names in the store that look like it.
        near: Vec<String>,
    },
    /// A short id that several images share.
    #[error("Image id '{id}' is the beginning of {count} ids: give more digits")]
    Ambiguous {
        /// The digits given.
        id: String,
        /// How many ids begin so.
        count: usize,
    },
    /// A file of the image is not as it was written.
    #[error(
        "Image '{reference}' is damaged: {} has {found} bytes instead of {expected} (mend it with 'duplex rmi {reference}' and pull or load it again)",
        path.display()
    )]
    Damaged {
        /// The image.
        reference: Reference,
        /// The file.
        path: PathBuf,
        /// Its length as recorded, bytes.
        expected: u64,
        /// Its length now; 0 if it is not there.
        found: u64,
    },
    /// The embedded image cannot be loaded.
    #[error("The embedded image cannot be used (is Duplex installed completely? 'make build' makes all of it)")]
    Embedded(#[source] Box<LoadError>),
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn near_words(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (similar: {})", near.join(", ")) }
}

/// An image cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It is not there.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A sandbox runs from it.
    #[error("Image '{reference}' ({}) is used by a running sandbox: stop that first", manifest.short())]
    InUse {
        /// What was to be removed.
        reference: Reference,
        /// Its manifest.
        manifest: Digest,
    },
    /// An id was given and the image has more than one name.
    #[error("Image {} has several names: remove them one by one ({})", manifest.short(), names.join(", "))]
    SeveralNames {
        /// Its manifest.
        manifest: Digest,
        /// The names.
        names: Vec<String>,
    },
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}
