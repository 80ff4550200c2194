//! Manifests and indexes (OCI image spec, "manifest.md" and "image-index.md"; Docker's "Image Manifest V 2, Schema 2"), and the choice of one
//! platform among several.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config::MAX_LAYERS;
use super::decompress::Compression;
use super::tar;
use crate::spec::Digest;

/// Longest manifest or index, in bytes (distribution spec, "Pushing Manifests": registries should take at least 4 MiB).
pub(super) const MAX_MANIFEST: u64 = 4 << 20;
/// Longest config, in bytes.
pub(super) const MAX_CONFIG: u64 = 8 << 20;
/// Most entries of one index.
const MAX_ENTRIES: usize = 1024;
/// Most platforms that an error lists.
const MOST_SHOWN: usize = 16;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A pointer to a blob: its digest, its length and what it is. `urls`, where a registry may name other places to fetch it from, are not even
/// read: content comes from where the user said.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    /// Bytes.
    pub(super) size: u64,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// What a manifest in an index runs on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
}

/// An image: its config and its layers, lowest first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<(Descriptor, Compression)>,
}

/// A list of manifests, one for each platform, or the contents of an OCI layout.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

/// What stands behind a reference.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Why a manifest or an index is not used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the specified form.
    #[error("The manifest is not what the OCI image specification says")]
    Json(#[source] serde_json::Error),
    /// Version 1, or something newer than we know.
    #[error(
        "The manifest has schema version {0}; only version 2 is supported (push the image again with a current tool)"
    )]
    Schema(u64),
    /// A document that two readers could take for two things.
    #[error("The manifest has both layers and manifests, so it is neither an image nor an index")]
    Ambiguous,
    /// The media type says another thing than the fields do, or one that is not an image.
    #[error("Media type '{0}' is not that of an image manifest or index with these fields")]
    MediaType(String),
    /// Something else in an image's clothes: a Helm chart, a signature ...
    #[error("The manifest's config is of type '{0}': it is not a container image")]
    NotAnImage(String),
    /// A layer that may not be distributed.
    #[error(
        "Layer {layer} is a foreign layer ({media_type}) that is to be fetched from elsewhere; Duplex takes layers from the image's own source only"
    )]
    Foreign {
        /// The layer.
        layer: Digest,
        /// What it calls itself.
        media_type: String,
    },
    /// A layer of unknown kind.
    #[error("Layer {layer} is of unknown type '{media_type}' (known: tar, tar+gzip, tar+zstd)")]
    LayerType {
        /// The layer.
        layer: Digest,
        /// What it calls itself.
        media_type: String,
    },
    /// Too many layers.
    #[error("The image has {0} layers; at most {MAX_LAYERS} are allowed")]
    Layers(usize),
    /// Too many entries.
    #[error("The index has {0} entries; at most {MAX_ENTRIES} are allowed")]
    Entries(usize),
    /// A config that states a length we do not take.
    #[error("The image's config is {0} bytes long; at most {MAX_CONFIG} are allowed")]
    ConfigSize(u64),
    /// No entry for us.
    #[error("The image is not available for linux/amd64; it has: {}", .0.join(", "))]
    NoPlatform(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads and checks a manifest or an index. `stated` is the media type by which it was announced (descriptor or HTTP header), if it was.
    pub(super) fn parse(bytes: &[u8], stated: Option<&str>) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if raw.schema_version != 2 {
            return Err(ManifestError::Schema(raw.schema_version));
        }
        let (document, types) = match (raw.config, raw.layers, raw.manifests) {
            (Some(config), layers, None) => {
                (Self::Manifest(Manifest::check(config, layers.unwrap_or_default())?), [OCI_MANIFEST, DOCKER_MANIFEST])
            }
            (None, None, Some(manifests)) => (Self::Index(Index::check(manifests)?), [OCI_INDEX, DOCKER_LIST]),
            (None, None, None) => return Err(ManifestError::MediaType(shown(&raw.media_type.unwrap_or_default()))),
            _ => return Err(ManifestError::Ambiguous),
        };
        for kind in [raw.media_type.as_deref(), stated].into_iter().flatten() {
            if !types.contains(&kind) {
                return Err(ManifestError::MediaType(shown(kind)));
            }
        }
        Ok(document)
    }
}

impl Manifest {
    fn check(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, ManifestError> {
        if !CONFIGS.contains(&config.media_type.as_str()) {
            return Err(ManifestError::NotAnImage(shown(&config.media_type)));
        }
        if config.size > MAX_CONFIG {
            return Err(ManifestError::ConfigSize(config.size));
        }
        if layers.len() > MAX_LAYERS {
            return Err(ManifestError::Layers(layers.len()));
        }
        let typed = |layer: Descriptor| layer_compression(&layer).map(|compression| (layer, compression));
        Ok(Self { config, layers: layers.into_iter().map(typed).collect::<Result<_, _>>()? })
    }
}

fn layer_compression(layer: &Descriptor) -> Result<Compression, ManifestError> {
    let kind = layer.media_type.as_str();
    match kind {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Ok(Compression::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Ok(Compression::Zstd)
        }
        _ if kind.contains("nondistributable") || kind.contains("rootfs.foreign") => {
            Err(ManifestError::Foreign { layer: layer.digest.clone(), media_type: shown(kind) })
        }
        _ => Err(ManifestError::LayerType { layer: layer.digest.clone(), media_type: shown(kind) }),
    }
}

impl Index {
    fn check(manifests: Vec<Descriptor>) -> Result<Self, ManifestError> {
        if manifests.len() > MAX_ENTRIES {
            Err(ManifestError::Entries(manifests.len()))
        } else {
            Ok(Self { manifests })
        }
    }

    /// The entry for linux/amd64. One that states no platform (layouts made by simple tools) is taken if it is the only one.
    pub(super) fn for_this_platform(&self) -> Result<&Descriptor, ManifestError> {
        let fits = |d: &&Descriptor| {
            d.is_document() && d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == "amd64")
        };
        let baseline = |d: &&Descriptor| {
            let variant = d.platform.as_ref().and_then(|p| p.variant.as_deref());
            matches!(variant, None | Some("" | "v1"))
        };
        let mut matching = self.manifests.iter().filter(fits);
        if let Some(found) = matching.clone().find(baseline).or_else(|| matching.next()) {
            return Ok(found);
        }
        let mut unstated = self.manifests.iter().filter(|d| d.is_document() && d.platform.is_none());
        match (unstated.next(), unstated.next()) {
            (Some(only), None) => Ok(only),
            _ => {
                let mut has: Vec<String> = self.manifests.iter().filter_map(Descriptor::platform_name).collect();
                has.sort();
                has.dedup();
                let more = has.len().saturating_sub(MOST_SHOWN);
                has.truncate(MOST_SHOWN);
                has.extend((more > 0).then(|| format!("{more} more")));
                Err(ManifestError::NoPlatform(has))
            }
        }
    }
}

/// Text of a document for messages.
fn shown(text: &str) -> String {
    tar::shown(text.as_bytes())
}

impl Descriptor {
    /// It says it is a manifest or an index, or nothing.
    pub(super) fn is_document(&self) -> bool {
        self.media_type.is_empty()
            || [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].contains(&self.media_type.as_str())
    }

    /// The media type to hold a document to, if one was stated.
    pub(super) fn stated_type(&self) -> Option<&str> {
        Some(self.media_type.as_str()).filter(|t| !t.is_empty())
    }

    fn platform_name(&self) -> Option<String> {
        let platform = self.platform.as_ref().filter(|p| p.os != "unknown")?;
        let variant = platform.variant.as_ref().map(|v| format!("/{v}")).unwrap_or_default();
        Some(shown(&format!("{}/{}{variant}", platform.os, platform.architecture)))
    }
}

#[cfg(test)]
mod tests;
