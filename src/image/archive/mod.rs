//! Images in files: OCI layouts (a folder, or a tar of one), and what `docker save` writes.
//!
//! ```text
//! folder ────────────────────────────────┐
//! tar file ── index of entries ──────────┼─> Contents ─> oci | docker ─> Plans, names
//! tar.gz, tar.zst, stdin ── spool, index ┘
//! ```
//! An archive says what is in it at its end, so one that cannot be read twice is spooled into the store's scratch folder first, unpacked.
//! Names of entries are keys of a table here: none becomes a path on the host.

mod contents;
mod docker;
mod error;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(super) mod fuzz;
mod oci;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use error::ArchiveError;

use super::decompress::Compression;
use super::ingest::{IngestError, Plan, PlannedLayer, Source, SourceError};
use super::layer::Budget;
use super::reference::Reference;
use contents::Contents;

/// An image found in an archive, with its names.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) plan: Plan,
    pub(super) names: Vec<Reference>,
}

/// An archive or layout that can be read from at any place.
#[derive(Debug)]
pub(super) struct Archive {
    contents: Contents,
    /// What its images are called that have a tag but no name.
    stem: Option<String>,
}

impl Archive {
    /// Opens a folder or a file. `scratch` takes what has to be spooled.
    pub(super) fn open(path: &Path, scratch: &Path, budget: &Budget) -> Result<Self, IngestError> {
        let shown = path.display().to_string();
        let cannot_open = |source| SourceError::from(ArchiveError::Open { archive: shown.clone(), source });
        let metadata = std::fs::metadata(path).map_err(cannot_open)?;
        let stem = stem_of(path);
        if metadata.is_dir() {
            return Ok(Self { contents: Contents::folder(path), stem });
        }
        let mut file = File::open(path).map_err(cannot_open)?;
        if !metadata.is_file() {
            return Ok(Self { contents: Contents::spool(&shown, &mut file, scratch, budget)?, stem });
        }
        let contents = if compression(&mut file).map_err(cannot_open)? == Compression::None {
            Contents::tar(&shown, file, budget)?
        } else {
            Contents::spool(&shown, &mut file, scratch, budget)?
        };
        Ok(Self { contents, stem })
    }

    /// Reads an archive that comes as a stream.
    pub(super) fn read(
        shown: &str,
        stream: &mut dyn Read,
        scratch: &Path,
        budget: &Budget,
    ) -> Result<Self, IngestError> {
        Ok(Self { contents: Contents::spool(shown, stream, scratch, budget)?, stem: None })
    }

    /// What is in it.
    pub(super) fn images(&self) -> Result<Vec<Found>, IngestError> {
        let found = if self.contents.has("index.json")? {
            oci::images(&self.contents, self.stem.as_deref())?
        } else if self.contents.has("manifest.json")? {
            docker::images(&self.contents)?
        } else {
            return Err(SourceError::from(ArchiveError::Kind { archive: self.contents.shown().to_owned() }).into());
        };
        if found.is_empty() {
            return Err(SourceError::from(ArchiveError::Empty { archive: self.contents.shown().to_owned() }).into());
        }
        Ok(found)
    }
}

impl Source for Archive {
    fn open(&self, layer: &PlannedLayer) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(self.contents.open(&layer.key)?.0)
    }
}

/// `debian` of `/x/debian.tar.gz`.
fn stem_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let endings = [".tar.gz", ".tar.zst", ".tar", ".tgz", ".oci"];
    let stem = endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    Some(stem.to_owned())
}

/// How a tar is packed, by its first bytes: those of gzip (RFC 1952) and zstd (RFC 8878) begin no archive that we or `docker save` write. Reads on
/// from where it is.
fn compression(input: &mut (impl Read + io::Seek)) -> io::Result<Compression> {
    let mut magic = [0; 4];
    let count = contents::read_up_to(input, &mut magic)?;
    input.seek(io::SeekFrom::Start(0))?;
    Ok(compression_of(&magic[..count]))
}

fn compression_of(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}
