//! OCI layouts (OCI image spec, "image-layout.md").

use std::collections::BTreeMap;

use super::{ArchiveError, Contents, Found};
use crate::image::ingest::{IngestError, Plan, SourceError, Verified};
use crate::image::manifest::{Descriptor, Document, Index, MAX_MANIFEST, Manifest};
use crate::image::reference::Reference;
use crate::spec::Digest;

/// The tag, or what tools put there ("annotations.md").
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, by containerd and Docker.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// How long an index may point to another index.
const MAX_DEPTH: usize = 3;

/// All images that `index.json` names.
pub(super) fn images(contents: &Contents, stem: Option<&str>) -> Result<Vec<Found>, IngestError> {
    check_version(contents)?;
    let bytes = contents.document("index.json", MAX_MANIFEST).map_err(SourceError::from)?;
    let digest = sha256(&bytes);
    let index = match Document::parse(&bytes, None) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => {
            let (archive, entry) = (contents.shown().to_owned(), "index.json".to_owned());
            return Err(SourceError::from(ArchiveError::Version { archive, entry }).into());
        }
        Err(source) => return Err(IngestError::Manifest { digest, source: Box::new(source) }),
    };
    // Entries of one name are one image for several platforms. Without names, entries that state no platform are images of their own.
    let mut groups: BTreeMap<String, Vec<Descriptor>> = BTreeMap::new();
    for (number, entry) in index.manifests.into_iter().enumerate().filter(|(_, d)| d.is_document()) {
        let name = annotation(&entry, IMAGE_NAME).or_else(|| annotation(&entry, REF_NAME));
        let own_group = if entry.platform.is_some() { String::new() } else { format!(" {number}") };
        groups.entry(name.map_or(own_group, str::to_owned)).or_default().push(entry);
    }
    let mut found = Vec::new();
    for manifests in groups.into_values() {
        let names = manifests.first().map_or(Ok(None), |first| name_of(contents, first, stem))?;
        let group = Index { manifests };
        let entry = group
            .for_this_platform()
            .or_else(|e| if let [only] = group.manifests.as_slice() { Ok(only) } else { Err(e) })
            .map_err(|source| IngestError::Manifest { digest: digest.clone(), source: Box::new(source) })?;
        found.push(Found { plan: plan(contents, entry)?, names: names.into_iter().collect() });
    }
    Ok(found)
}

/// `oci-layout` must say version 1, if it is there: Docker's archives of some versions lack it.
fn check_version(contents: &Contents) -> Result<(), SourceError> {
    let bytes = match contents.document("oci-layout", MAX_MANIFEST) {
        Ok(bytes) => bytes,
        Err(ArchiveError::Missing { .. }) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let layout: Result<BTreeMap<String, String>, _> = serde_json::from_slice(&bytes);
    let version = layout.ok().and_then(|mut layout| layout.remove("imageLayoutVersion"));
    if version.is_some_and(|version| version.starts_with("1.")) {
        return Ok(());
    }
    let (archive, entry) = (contents.shown().to_owned(), "oci-layout".to_owned());
    Err(ArchiveError::Version { archive, entry }.into())
}

fn plan(contents: &Contents, entry: &Descriptor) -> Result<Plan, IngestError> {
    let mut entry = entry.clone();
    for _ in 0..=MAX_DEPTH {
        let bytes = blob(contents, &entry, MAX_MANIFEST, "manifest")?;
        let refuse = |source| IngestError::Manifest { digest: entry.digest.clone(), source: Box::new(source) };
        match Document::parse(&bytes, entry.stated_type()).map_err(refuse)? {
            Document::Manifest(manifest) => return complete(contents, entry.digest, bytes, manifest),
            Document::Index(index) => entry = index.for_this_platform().map_err(refuse)?.clone(),
        }
    }
    Err(IngestError::IndexDepth { digest: entry.digest, depth: MAX_DEPTH })
}

fn complete(contents: &Contents, digest: Digest, bytes: Vec<u8>, manifest: Manifest) -> Result<Plan, IngestError> {
    let config = blob(contents, &manifest.config, manifest.config.size, "config")?;
    let mut plan = Plan::new((digest, bytes), manifest, config)?;
    for layer in &mut plan.layers {
        layer.key = blob_path(&layer.digest);
    }
    Ok(plan)
}

fn blob(contents: &Contents, blob: &Descriptor, limit: u64, what: &str) -> Result<Vec<u8>, IngestError> {
    let entry = blob_path(&blob.digest);
    let (reader, size) = contents.open(&entry).map_err(SourceError::from)?;
    if blob.size > limit || size > limit {
        let archive = contents.shown().to_owned();
        let size = blob.size.max(size);
        return Err(SourceError::from(ArchiveError::TooLong { archive, entry, size, limit }).into());
    }
    Verified::new(reader, format!("{what} {}", blob.digest), blob.digest.clone(), blob.size).document()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations.as_ref().and_then(|a| a.get(key)).map(String::as_str).filter(|text| !text.is_empty())
}

/// The image's name: a whole one if an annotation has one; else the archive's own name with the tag from the annotation, if that makes a name.
fn name_of(contents: &Contents, entry: &Descriptor, stem: Option<&str>) -> Result<Option<Reference>, SourceError> {
    let refuse = |name: &str, source| {
        let (archive, name) = (contents.shown().to_owned(), name.to_owned());
        SourceError::from(ArchiveError::Name { archive, name, source })
    };
    let whole = |name: &str| name.parse().map(Some).map_err(|e| refuse(name, e));
    if let Some(name) = annotation(entry, IMAGE_NAME) {
        return whole(name);
    }
    match annotation(entry, REF_NAME) {
        Some(name) if name.contains(['/', ':']) => whole(name),
        Some(tag) => match stem.and_then(|stem| stem.parse::<Reference>().ok()).filter(|r| r.id().is_none()) {
            Some(reference) => reference.with_tag(tag).map(Some).map_err(|e| refuse(tag, e)),
            None => Ok(None),
        },
        None => Ok(None),
    }
}
