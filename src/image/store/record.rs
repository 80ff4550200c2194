//! What the store remembers, in JSON, each record with its version first.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::image::{ImageConfig, Reference};
use crate::spec::Digest;

/// Longest record read: a config of 8 MiB, its texts escaped.
const MAX_RECORD: u64 = 64 << 20;

/// A layer as it lies in the store: `layers/<diff id>/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::image) struct LayerRecord {
    /// Digest of the uncompressed layer.
    pub(in crate::image) diff_id: Digest,
    /// Bytes of `data`, a multiple of 4096.
    pub(in crate::image) data_len: u64,
    /// Bytes of `tree`.
    pub(in crate::image) tree_len: u64,
}

/// An image as it lies in the store: `images/<manifest>/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::image) struct ImageRecord {
    /// Digest of the manifest.
    pub(in crate::image) manifest: Digest,
    /// Digest of the config: what Docker calls the image id.
    pub(in crate::image) config_digest: Digest,
    /// The config.
    pub(in crate::image) config: ImageConfig,
    /// Bytes of `meta`, a multiple of 4096.
    pub(in crate::image) meta_len: u64,
    /// The layers, lowest first.
    pub(in crate::image) layers: Vec<LayerRecord>,
}

/// A name: `references/<sha256 of the canonical form>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NameRecord {
    /// The name.
    pub(super) reference: Reference,
    /// What it names.
    pub(super) manifest: Digest,
}

/// Reads a record; `None` if it is not there.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|f| f.take(MAX_RECORD).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("read", path)(e)),
    }
    let record = serde_json::from_slice(&bytes);
    record.map(Some).map_err(|source| StoreError::Record { path: path.to_owned(), source })
}

/// A record's bytes.
pub(super) fn bytes<T: Serialize>(record: &T, path: &Path) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|source| StoreError::Record { path: path.to_owned(), source })
}
