//! The pulling half of the OCI distribution spec ("Pulling manifests", "Pulling blobs"), for anonymous users.
//!
//! ```text
//! reference -> manifest or index -> manifest for linux/amd64 -> config -> layers
//! ```
//! Each request runs to its end on the thread that makes it, on an event loop of its own: nothing asynchronous leaves this module. Plain http is
//! spoken with loopback addresses only. Everything a registry may send has a limit in bytes and in time.

mod blob;
mod challenge;
mod client;
mod error;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

pub use error::RegistryError;

use super::ingest::{IngestError, Plan, PlannedLayer, Source, SourceError, Verified};
use super::layer::Deadline;
use super::manifest::{Descriptor, Document, MAX_MANIFEST, Manifest};
use super::reference::Reference;
use crate::spec::Digest;
use blob::Blob;
use client::Client;

/// How long an index may point to another index.
const MAX_DEPTH: usize = 3;

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
/// A target of fuzzing: a header of any text is read, or is none.
pub(super) fn fuzz_challenge(header: &str) {
    if let challenge::Challenge::Bearer { realm, service, scope } = challenge::Challenge::parse(header) {
        let told = realm.len() + service.map_or(0, |s| s.len()) + scope.map_or(0, |s| s.len());
        assert!(told <= header.len());
    }
}

/// How a registry is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryOptions {
    /// A registry that sends nothing (or, in a layer, less than 1 KiB) for so long has stalled. A stalled request is made once more.
    pub stall: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self { stall: Duration::from_secs(30) }
    }
}

/// One repository of one registry.
#[derive(Debug)]
pub(super) struct Repository {
    client: Client,
}

impl Repository {
    pub(super) fn new(
        reference: &Reference,
        options: &RegistryOptions,
        deadline: Deadline,
    ) -> Result<Self, SourceError> {
        Ok(Self { client: Client::new(reference, options.clone(), deadline)? })
    }

    /// Finds out what is to be fetched.
    pub(super) fn plan(&self, reference: &Reference) -> Result<Plan, IngestError> {
        let wanted = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or("latest").to_owned(),
        };
        let (mut digest, mut bytes, mut document) = self.document(&wanted, reference.digest(), None)?;
        for _ in 0..MAX_DEPTH {
            match document {
                Document::Manifest(manifest) => return self.complete(digest, bytes, manifest),
                Document::Index(index) => {
                    let entry = index
                        .for_this_platform()
                        .map_err(|source| IngestError::Manifest { digest, source: Box::new(source) })?;
                    let next = self.document(&entry.digest.to_string(), Some(&entry.digest), Some(entry))?;
                    (digest, bytes, document) = next;
                }
            }
        }
        match document {
            Document::Manifest(manifest) => self.complete(digest, bytes, manifest),
            Document::Index(_) => Err(IngestError::IndexDepth { digest, depth: MAX_DEPTH }),
        }
    }

    fn document(
        &self,
        name: &str,
        expected: Option<&Digest>,
        entry: Option<&Descriptor>,
    ) -> Result<(Digest, Vec<u8>, Document), IngestError> {
        let answer = self.client.manifest(name, MAX_MANIFEST).map_err(SourceError::from)?;
        let digest = Digest::from_sha256(Sha256::digest(&answer.body).into());
        // The header is the registry's own word; if it differs from the content, one of them was damaged on the way.
        for expected in [expected, answer.digest.as_ref()].into_iter().flatten() {
            if *expected != digest {
                let (what, expected) = (format!("manifest {name}"), expected.clone());
                return Err(IngestError::WrongDigest { what, expected, found: digest });
            }
        }
        let found = u64::try_from(answer.body.len()).unwrap_or(u64::MAX);
        if let Some(announced) = entry.map(|entry| entry.size).filter(|announced| *announced != found) {
            let what = format!("manifest {name}");
            return Err(if found < announced {
                IngestError::Truncated { what, expected: announced, found }
            } else {
                IngestError::TooLong { what, expected: announced }
            });
        }
        let announced = entry.and_then(Descriptor::stated_type).or(answer.media_type.as_deref());
        let document = Document::parse(&answer.body, announced)
            .map_err(|source| IngestError::Manifest { digest: digest.clone(), source: Box::new(source) })?;
        Ok((digest, answer.body, document))
    }

    fn complete(&self, digest: Digest, bytes: Vec<u8>, manifest: Manifest) -> Result<Plan, IngestError> {
        let config = &manifest.config;
        let what = format!("config {}", config.digest);
        let stream = Blob::open(&self.client, &config.digest, config.size).map_err(SourceError::from)?;
        let config = Verified::new(Box::new(stream), what, config.digest.clone(), config.size).document()?;
        Plan::new((digest, bytes), manifest, config)
    }
}

impl Source for Repository {
    fn open(&self, layer: &PlannedLayer) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(Blob::open(&self.client, &layer.digest, layer.size)?))
    }
}
