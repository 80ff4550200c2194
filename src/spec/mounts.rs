//! What is mounted into a sandbox beside its image.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Where it is inside: an absolute path without `.`, `..` and double slashes; never `/` itself.
    pub target: String,
    /// Writes are refused.
    pub read_only: bool,
    /// What is there.
    pub source: MountSource,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A volume of the store: a disk image that outlives the sandbox.
    Volume {
        /// Its name.
        name: String,
        /// It was made for this sandbox and nobody gave it a name.
        anonymous: bool,
        /// While it is empty it is filled with what the image has at the target.
        copy: bool,
    },
    /// A file or folder of the host.
    Bind {
        /// Absolute.
        path: PathBuf,
        /// If it is not there, it becomes a folder.
        #[serde(default)]
        create: bool,
    },
}

impl MountSpec {
    /// Name of the volume, if it is one.
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            MountSource::Volume { name, .. } => Some(name),
            MountSource::Bind { .. } => None,
        }
    }

    /// Name of the volume if it was made for this sandbox.
    pub fn anonymous(&self) -> Option<&str> {
        match &self.source {
            MountSource::Volume { name, anonymous: true, .. } => Some(name),
            _ => None,
        }
    }
}
