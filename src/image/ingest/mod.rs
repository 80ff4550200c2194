//! From wherever an image comes into the store: verify, convert, merge, publish.
//!
//! ```text
//! Plan (manifest, config: verified) -> layers, two at a time: Source -> Verified -> convert -> publish_layer
//!                                   -> trees -> merge -> erofs -> publish_image
//! ```
//! Nothing is published before its digests are right: the compressed bytes against the manifest, the uncompressed ones against the config.

mod error;
mod layers;
mod verified;

use std::io::{BufReader, BufWriter, Read, Write};

pub(super) use error::is_full;
pub use error::{IngestError, SourceError};

use super::config::Config;
use super::decompress::Compression;
use super::erofs::{self, Device};
use super::manifest::Manifest;
use super::merge::merge;
use super::progress::{Event, Progress};
use super::store::{ImageRecord, LayerRecord, StoreError, Writer};
use super::tree::Tree;
use crate::spec::Digest;
pub(super) use verified::Verified;

/// Where layers come from.
pub(super) trait Source: Sync {
    /// The layer's bytes, packed as they are there. What is wrong while reading comes as an [`std::io::Error`] around a [`SourceError`].
    fn open(&self, layer: &PlannedLayer) -> Result<Box<dyn Read + '_>, SourceError>;
}

/// An image that is to be in the store.
#[derive(Debug)]
pub(super) struct Plan {
    /// Digest of the manifest.
    pub(super) manifest: Digest,
    /// The manifest, verified.
    pub(super) manifest_bytes: Vec<u8>,
    /// Digest of the config.
    pub(super) config_digest: Digest,
    /// The config, verified.
    pub(super) config_bytes: Vec<u8>,
    /// What it says.
    pub(super) config: Config,
    /// The layers, lowest first.
    pub(super) layers: Vec<PlannedLayer>,
}

/// A layer and where to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedLayer {
    /// Its place in its source: a digest, or a path in an archive.
    pub(super) key: String,
    /// Digest of the packed bytes.
    pub(super) digest: Digest,
    /// Number of packed bytes.
    pub(super) size: u64,
    /// How it is packed.
    pub(super) compression: Compression,
    /// Digest of the unpacked bytes.
    pub(super) diff_id: Digest,
}

impl Plan {
    /// Pairs manifest and config.
    pub(super) fn new(
        (manifest, manifest_bytes): (Digest, Vec<u8>),
        parsed: Manifest,
        config_bytes: Vec<u8>,
    ) -> Result<Self, IngestError> {
        let config_digest = parsed.config.digest;
        let config = Config::parse(&config_bytes)
            .map_err(|source| IngestError::Config { digest: config_digest.clone(), source: Box::new(source) })?;
        if config.diff_ids.len() != parsed.layers.len() {
            let (manifest, config) = (parsed.layers.len(), config.diff_ids.len());
            return Err(IngestError::LayerCount { manifest, config });
        }
        let layers = parsed
            .layers
            .into_iter()
            .zip(&config.diff_ids)
            .map(|((blob, compression), diff_id)| PlannedLayer {
                key: blob.digest.to_string(),
                digest: blob.digest,
                size: blob.size,
                compression,
                diff_id: diff_id.clone(),
            })
            .collect();
        Ok(Self { manifest, manifest_bytes, config_digest, config_bytes, config, layers })
    }
}

/// Puts the image into the store unless it is there. `true` if it was not.
pub(super) fn ingest(
    writer: &Writer<'_>,
    source: &dyn Source,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<bool, IngestError> {
    progress.note(Event::Found { manifest: &plan.manifest, layers: plan.layers.len() });
    if writer.has_image(&plan.manifest)? {
        for (layer, planned) in plan.layers.iter().enumerate() {
            progress.note(Event::Present { layer, diff_id: &planned.diff_id });
        }
        return Ok(false);
    }
    layers::bring(writer, source, &plan.layers, progress)?;
    let mut records = Vec::with_capacity(plan.layers.len());
    for layer in &plan.layers {
        let record = writer.store().whole_layer(&layer.diff_id)?;
        records.push(record.ok_or_else(|| IngestError::LayerGone(layer.diff_id.clone()))?);
    }
    publish(writer, plan, records)?;
    Ok(true)
}

fn publish(writer: &Writer<'_>, plan: &Plan, layers: Vec<LayerRecord>) -> Result<(), IngestError> {
    let trees = layers.iter().map(|l| read_tree(writer, l)).collect::<Result<Vec<_>, _>>()?;
    let devices: Vec<Device> =
        layers.iter().map(|l| Device { data_len: l.data_len, digest: l.diff_id.clone() }).collect();
    let tree = merge(trees).map_err(IngestError::Merge)?;
    let (folder, mut meta) = writer.draft_image(&plan.manifest)?;
    let path = folder.join("meta");
    let meta_len = erofs::write(&tree, &devices, &mut meta).map_err(|source| error::erofs(&path, source))?;
    let record = ImageRecord {
        manifest: plan.manifest.clone(),
        config_digest: plan.config_digest.clone(),
        config: plan.config.image.clone(),
        meta_len,
        layers,
    };
    let documents = [("manifest.json", plan.manifest_bytes.as_slice()), ("config.json", &plan.config_bytes)];
    Ok(writer.publish_image(&folder, &meta, &record, documents)?)
}

fn read_tree(writer: &Writer<'_>, layer: &LayerRecord) -> Result<Tree, IngestError> {
    let (file, path) = writer.store().open_tree(&layer.diff_id)?;
    Tree::read_from(&mut BufReader::new(file)).map_err(|source| IngestError::Tree { path, source })
}

/// Writes a tree and returns its length in bytes.
fn write_tree(tree: &Tree, file: &std::fs::File, path: &std::path::Path) -> Result<u64, IngestError> {
    let mut out = BufWriter::new(file);
    tree.write_to(&mut out).map_err(|source| error::tree(path, source))?;
    out.flush().map_err(StoreError::io("write", path))?;
    drop(out);
    Ok(file.metadata().map_err(StoreError::io("read length of", path))?.len())
}
