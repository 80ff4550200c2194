//! Images for tests, made in memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::decompress::Compression;
use crate::spec::Digest;

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// A tar of these files.
pub(super) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_path(name).unwrap();
        header.set_cksum();
        builder.append(&header, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn pack(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

#[derive(Clone)]
pub(super) struct Layer {
    pub(super) tar: Vec<u8>,
    pub(super) packed: Vec<u8>,
    pub(super) compression: Compression,
}

#[derive(Clone)]
pub(super) struct TestImage {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
    pub(super) layers: Vec<Layer>,
}

pub(super) fn layer(files: &[(&str, &[u8])], compression: Compression) -> Layer {
    let tar = tar_of(files);
    Layer { packed: pack(&tar, compression), tar, compression }
}

/// An image of these layers; `mark` makes it differ from others.
pub(super) fn image(mark: &str, layers: &[Layer]) -> TestImage {
    let diff_ids: Vec<Digest> = layers.iter().map(|l| sha256(&l.tar)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2024-02-29T12:34:56Z",
        "config": { "Cmd": ["/hello"], "Env": ["PATH=/bin"], "Labels": { "mark": mark } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string().into_bytes();
    let described: Vec<Value> = layers
        .iter()
        .map(|l| {
            let packed = match l.compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            let kind = format!("application/vnd.oci.image.layer.v1.tar{packed}");
            json!({ "mediaType": kind, "digest": sha256(&l.packed), "size": l.packed.len() })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(&config), "size": config.len()
        },
        "layers": described,
    });
    TestImage { config, manifest: manifest.to_string().into_bytes(), layers: layers.to_vec() }
}

/// Two layers, one gzip and one zstd.
pub(super) fn small(mark: &str) -> TestImage {
    let base = layer(&[("etc/base", b"from the base"), ("hello", b"hello")], Compression::Gzip);
    let top = layer(&[("etc/mark", mark.as_bytes())], Compression::Zstd);
    image(mark, &[base, top])
}

impl TestImage {
    pub(super) fn digest(&self) -> Digest {
        sha256(&self.manifest)
    }

    pub(super) fn blobs(&self) -> BTreeMap<Digest, Vec<u8>> {
        let layers = self.layers.iter().map(|l| l.packed.clone());
        let all = layers.chain([self.config.clone(), self.manifest.clone()]);
        all.map(|bytes| (sha256(&bytes), bytes)).collect()
    }

    pub(super) fn descriptor(&self, annotations: &Value) -> Value {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.digest(),
            "size": self.manifest.len(), "annotations": annotations,
        })
    }

    /// What `docker save` wrote before version 25.
    pub(super) fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let config = format!("{}.json", sha256(&self.config).hex());
        let names: Vec<String> = self.layers.iter().map(|l| format!("{}/layer.tar", sha256(&l.packed).hex())).collect();
        let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": names }]).to_string();
        let mut files: Vec<(&str, &[u8])> =
            names.iter().zip(&self.layers).map(|(name, l)| (name.as_str(), l.packed.as_slice())).collect();
        files.push((&config, &self.config));
        files.push(("manifest.json", manifest.as_bytes()));
        tar_of(&files)
    }
}

/// Paths and contents of an OCI layout with these images and their annotations.
pub(super) fn layout(images: &[(&TestImage, Value)]) -> BTreeMap<String, Vec<u8>> {
    let entries: Vec<Value> = images.iter().map(|(image, annotations)| image.descriptor(annotations)).collect();
    let mut files = BTreeMap::new();
    files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files.insert("index.json".to_owned(), json!({ "schemaVersion": 2, "manifests": entries }).to_string().into_bytes());
    for (digest, bytes) in images.iter().flat_map(|(image, _)| image.blobs()) {
        files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
    }
    files
}

/// The layout as a tar.
pub(super) fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    tar_of(&files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>())
}

/// The layout as a folder.
pub(super) fn write(files: &BTreeMap<String, Vec<u8>>, folder: &Path) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
