//! What `docker save` writes (and podman, skopeo, bazel ... after it): `manifest.json` names configs and layers by path.
//!
//! Such an archive has no manifest in the sense of the OCI image spec, so one is made: always the same one for the same image.

use std::io::{self, Read};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{ArchiveError, Contents, Found, compression_of, contents};
use crate::image::config::Config;
use crate::image::decompress::Compression;
use crate::image::ingest::{IngestError, Plan, PlannedLayer, SourceError};
use crate::image::manifest::{MAX_CONFIG, MAX_MANIFEST, OCI_MANIFEST};
use crate::image::reference::Reference;
use crate::spec::Digest;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// All images that `manifest.json` names.
pub(super) fn images(contents: &Contents) -> Result<Vec<Found>, IngestError> {
    let bytes = contents.document("manifest.json", MAX_MANIFEST).map_err(SourceError::from)?;
    let entries: Vec<Entry> = serde_json::from_slice(&bytes).map_err(|source| {
        let (archive, entry) = (contents.shown().to_owned(), "manifest.json".to_owned());
        SourceError::from(ArchiveError::Json { archive, entry, source })
    })?;
    entries.into_iter().map(|entry| image(contents, entry)).collect()
}

fn image(contents: &Contents, entry: Entry) -> Result<Found, IngestError> {
    let config_bytes = contents.document(&plain(&entry.config), MAX_CONFIG).map_err(SourceError::from)?;
    let config_digest = Digest::from_sha256(Sha256::digest(&config_bytes).into());
    if let Some(expected) = stated_digest(&entry.config).filter(|stated| *stated != config_digest) {
        let what = format!("config {}", entry.config);
        return Err(IngestError::WrongDigest { what, expected, found: config_digest });
    }
    let config = Config::parse(&config_bytes)
        .map_err(|source| IngestError::Config { digest: config_digest.clone(), source: Box::new(source) })?;
    let paths = entry.layers.unwrap_or_default();
    if paths.len() != config.diff_ids.len() {
        return Err(IngestError::LayerCount { manifest: paths.len(), config: config.diff_ids.len() });
    }
    let layers = paths
        .iter()
        .zip(&config.diff_ids)
        .map(|(path, diff_id)| layer(contents, &plain(path), diff_id))
        .collect::<Result<Vec<_>, SourceError>>()?;
    let manifest_bytes = manifest(&config_digest, config_bytes.len(), &layers);
    let manifest = Digest::from_sha256(Sha256::digest(&manifest_bytes).into());
    let plan = Plan { manifest, manifest_bytes, config_digest, config_bytes, config, layers };
    let names = entry
        .repo_tags
        .unwrap_or_default()
        .into_iter()
        .map(|name| {
            name.parse::<Reference>().map_err(|source| {
                SourceError::from(ArchiveError::Name { archive: contents.shown().to_owned(), name, source })
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Found { plan, names })
}

/// Entries are found by their plain names: without a leading `./`.
fn plain(path: &str) -> String {
    path.split('/').filter(|c| !matches!(*c, "" | ".")).collect::<Vec<_>>().join("/")
}

/// Configs are named by their digests: `<hex>.json`, `sha256:<hex>` or `blobs/sha256/<hex>`.
fn stated_digest(path: &str) -> Option<Digest> {
    let name = path.rsplit(['/', ':']).next()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}

/// A plain layer's digest is its diff id; that of a packed one is nowhere stated and found by reading it.
fn layer(contents: &Contents, path: &str, diff_id: &Digest) -> Result<PlannedLayer, SourceError> {
    let (mut reader, size) = contents.open(path)?;
    let mut magic = [0; 4];
    let failed = |source| SourceError::from(contents.cannot_read(path, source));
    let count = contents::read_up_to(&mut reader, &mut magic).map_err(failed)?;
    let compression = compression_of(&magic[..count]);
    let digest = match compression {
        Compression::None => diff_id.clone(),
        _ => {
            let mut hasher = Sha256::new();
            io::copy(&mut (&magic[..count]).chain(reader), &mut hasher).map_err(failed)?;
            Digest::from_sha256(hasher.finalize().into())
        }
    };
    Ok(PlannedLayer { key: path.to_owned(), digest, size, compression, diff_id: diff_id.clone() })
}

fn manifest(config: &Digest, config_size: usize, layers: &[PlannedLayer]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let packed = match layer.compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            let kind = format!("application/vnd.oci.image.layer.v1.tar{packed}");
            json!({ "mediaType": kind, "digest": layer.digest, "size": layer.size })
        })
        .collect();
    let kind = "application/vnd.oci.image.config.v1+json";
    let config = json!({ "mediaType": kind, "digest": config, "size": config_size });
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
    manifest.to_string().into_bytes()
}
