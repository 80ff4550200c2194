//! `duplex pull` and `duplex load`: from a registry or an archive into the store, with names.

use std::io::Read;
use std::path::Path;

use super::archive::Archive;
use super::embedded::is_embedded;
use super::ingest::{IngestError, Plan, Source, ingest};
use super::layer::{Budget, Deadline};
use super::progress::Progress;
use super::reference::Reference;
use super::registry::{RegistryOptions, Repository};
use super::store::{Store, Writer};
use crate::spec::Digest;

/// How often an image that vanishes before it has its name is made again.
const ATTEMPTS: u32 = 8;

/// An image that is in the store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its names from the archive, or the one it was pulled by; may be none in an archive.
    pub names: Vec<Reference>,
    /// It was not in the store before.
    pub new: bool,
}

/// A pull failed; the store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is not one that a registry has.
    #[error("'{0}' is part of Duplex: it is always there and not pulled")]
    Embedded(Reference),
    /// Anything on the way.
    #[error("Cannot pull '{reference}'")]
    Failed {
        /// What was to be pulled.
        reference: Reference,
        /// Why it was not.
        #[source]
        source: Box<IngestError>,
    },
}

/// A load failed. Images of the archive before the failing one may be in the store.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The archive takes the name of what is part of Duplex.
    #[error("{archive} calls an image '{name}', which is part of Duplex")]
    Embedded {
        /// The archive.
        archive: String,
        /// The name.
        name: Reference,
    },
    /// Anything on the way.
    #[error("Cannot load images from {archive}")]
    Failed {
        /// The archive.
        archive: String,
        /// Why they were not.
        #[source]
        source: Box<IngestError>,
    },
}

/// Puts an image into the store and names it. `true` if it was not there before. Another process may remove it between the two, together with
/// its last name; then it is made again, from layers that nobody collects while the writer lives.
pub(super) fn bring(
    writer: &Writer<'_>,
    source: &dyn Source,
    plan: &Plan,
    names: &[Reference],
    progress: &dyn Progress,
) -> Result<bool, IngestError> {
    let mut new = false;
    'again: for _ in 0..ATTEMPTS {
        new |= ingest(writer, source, plan, progress)?;
        for name in names {
            if !writer.name(name, &plan.manifest)? {
                continue 'again;
            }
        }
        return Ok(new);
    }
    Err(IngestError::ImageGone(plan.manifest.clone()))
}

impl Store {
    /// Fetches an image from its registry, anonymously, and names it.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &RegistryOptions,
        progress: &dyn Progress,
    ) -> Result<Added, PullError> {
        if is_embedded(reference) {
            return Err(PullError::Embedded(reference.clone()));
        }
        let pull = || -> Result<Added, IngestError> {
            let deadline = Deadline::new(self.budget());
            let repository = Repository::new(reference, options, deadline)?;
            let plan = repository.plan(reference)?;
            let writer = self.writer_until(deadline)?;
            let new = bring(&writer, &repository, &plan, std::slice::from_ref(reference), progress)?;
            Ok(Added { manifest: plan.manifest, names: vec![reference.clone()], new })
        };
        pull().map_err(|source| PullError::Failed { reference: reference.clone(), source: Box::new(source) })
    }

    /// Adds the images of an OCI layout (a folder), or of an archive written by `docker save` or from an OCI layout (a tar, perhaps packed with
    /// gzip or zstd).
    pub fn load(&self, path: &Path, progress: &dyn Progress) -> Result<Vec<Added>, LoadError> {
        let shown = path.display().to_string();
        self.load_from(&shown, |scratch, budget| Archive::open(path, scratch, budget), progress)
    }

    /// The same from a stream, such as standard input; `shown` is what messages call it.
    pub fn load_stream(
        &self,
        shown: &str,
        stream: &mut dyn Read,
        progress: &dyn Progress,
    ) -> Result<Vec<Added>, LoadError> {
        self.load_from(shown, |scratch, budget| Archive::read(shown, stream, scratch, budget), progress)
    }

    fn load_from(
        &self,
        shown: &str,
        open: impl FnOnce(&Path, &Budget) -> Result<Archive, IngestError>,
        progress: &dyn Progress,
    ) -> Result<Vec<Added>, LoadError> {
        let failed = |source| LoadError::Failed { archive: shown.to_owned(), source: Box::new(source) };
        let writer = self.writer().map_err(|e| failed(e.into()))?;
        let archive = open(writer.scratch(), self.budget()).map_err(failed)?;
        let images = archive.images().map_err(failed)?;
        if let Some(name) = images.iter().flat_map(|i| &i.names).find(|name| is_embedded(name)) {
            return Err(LoadError::Embedded { archive: shown.to_owned(), name: name.clone() });
        }
        let mut added: Vec<Added> = Vec::new();
        for image in images {
            let new = bring(&writer, &archive, &image.plan, &image.names, progress).map_err(failed)?;
            let manifest = image.plan.manifest;
            match added.iter_mut().find(|a| a.manifest == manifest) {
                Some(known) => known.names.extend(image.names),
                None => added.push(Added { manifest, names: image.names, new }),
            }
        }
        Ok(added)
    }
}

#[cfg(test)]
mod tests;
