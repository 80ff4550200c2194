//! Versioned JSON files: `{"version": N, "content": ...}`. The version is read without the content.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::{RosterError, failed};

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    version: u32,
    content: T,
}

/// What the file holds; `None` if it is not there.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RosterError> {
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| failed("read", path, e))?,
    };
    let damaged = |source| RosterError::Damaged { path: path.to_owned(), source };
    let head: Stored<IgnoredAny> = serde_json::from_slice(&text).map_err(damaged)?;
    if head.version != VERSION {
        return Err(RosterError::Version { path: path.to_owned(), found: head.version, known: VERSION });
    }
    let stored: Stored<T> = serde_json::from_slice(&text).map_err(damaged)?;
    Ok(Some(stored.content))
}

/// Writes the file whole: who reads sees the old one or the new one. The folder is gone after a reboot, so nothing is synced.
pub(super) fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), RosterError> {
    let part = path.with_extension("part");
    write_new(&part, content)?;
    fs::rename(&part, path).map_err(|e| failed("write", path, e))
}

/// Writes a file that nobody reads yet.
pub(super) fn write_new<T: Serialize>(path: &Path, content: &T) -> Result<(), RosterError> {
    let text = serde_json::to_vec(&Stored { version: VERSION, content })
        .map_err(|source| RosterError::Damaged { path: path.to_owned(), source })?;
    fs::write(path, text).map_err(|e| failed("write", path, e))
}
