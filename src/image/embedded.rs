//! The image that is part of Duplex: an OCI archive beside the program, in the store from its first use on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::archive::{Archive, ArchiveError};
use super::ingest::{IngestError, SourceError};
use super::pull::{LoadError, bring};
use super::reference::Reference;
use super::store::Store;
use crate::spec::Digest;

/// Its name.
const NAME: &str = "docker.io/library/workloads:latest";

/// The archive as it was when it was loaded. One that looks the same is not read again: a start must not cost the reading of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    path: std::path::PathBuf,
    length: u64,
    inode: u64,
    modified: (i64, i64),
    manifest: Digest,
}

/// The reference means the embedded image.
pub(super) fn is_embedded(reference: &Reference) -> bool {
    reference.canonical() == NAME
}

impl Store {
    /// Loads the archive unless the store has its image already, and returns the image's manifest.
    pub(super) fn bring_embedded(&self, path: &Path) -> Result<Digest, LoadError> {
        let shown = path.display().to_string();
        let failed = |source: IngestError| LoadError::Failed { archive: shown.clone(), source: Box::new(source) };
        let metadata = fs::metadata(path).map_err(|source| {
            failed(SourceError::from(ArchiveError::Open { archive: shown.clone(), source }).into())
        })?;
        let looks = |manifest| Seen {
            path: path.to_owned(),
            length: metadata.len(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            manifest,
        };
        // A record that cannot be read is as good as none.
        if let Ok(Some(seen)) = self.embedded_record::<Seen>()
            && seen == looks(seen.manifest.clone())
            && self.has_record(&seen.manifest)
        {
            return Ok(seen.manifest);
        }
        let load = || -> Result<Digest, IngestError> {
            let writer = self.writer()?;
            let archive = Archive::open(path, writer.scratch(), self.budget())?;
            let images = archive.images()?;
            let Some(image) = images.first().filter(|_| images.len() == 1) else {
                return Err(SourceError::from(ArchiveError::Empty { archive: shown.clone() }).into());
            };
            let manifest = &image.plan.manifest;
            let name: Vec<Reference> = NAME.parse().into_iter().collect();
            bring(&writer, &archive, &image.plan, &name, &())?;
            writer.note_embedded(&looks(manifest.clone()))?;
            Ok(manifest.clone())
        };
        load().map_err(failed)
    }
}
