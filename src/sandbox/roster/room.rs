//! Standings on a disk that is full: a sandbox whose output has filled it must be able to end, and to go.

use std::fs;
use std::io;
use std::path::Path;

use super::{RosterError, STANDING, failed, stored};
use crate::spec::Standing;

/// The file whose bytes are given up.
const ROOM: &str = "room";

/// What a standing takes on disk, twice: the old one goes when the new one is there.
const BYTES: usize = 8 << 10;

/// Takes the room.
pub(super) fn keep(folder: &Path) -> Result<(), RosterError> {
    let room = folder.join(ROOM);
    fs::write(&room, [0; BYTES]).map_err(|e| failed("write", &room, e))
}

/// Writes the standing, if need be in the room that is kept for it.
pub(super) fn save(folder: &Path, standing: &Standing) -> Result<(), RosterError> {
    let file = folder.join(STANDING);
    match stored::write(&file, standing) {
        Err(error) if is_want_of_room(&error) && fs::remove_file(folder.join(ROOM)).is_ok() => {
            stored::write(&file, standing)
        }
        other => other,
    }
}

/// The same for a sandbox that goes, whose output goes with it.
pub(super) fn save_or_make_room(folder: &Path, standing: &Standing) -> Result<(), RosterError> {
    match save(folder, standing) {
        Err(error) if is_want_of_room(&error) => {
            remove_logs(folder)?;
            save(folder, standing)
        }
        other => other,
    }
}

fn is_want_of_room(error: &RosterError) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(error, RosterError::File { source, .. } if full.contains(&source.kind()))
}

fn remove_logs(folder: &Path) -> Result<(), RosterError> {
    let entries = fs::read_dir(folder).map_err(|e| failed("read", folder, e))?;
    for file in entries.filter_map(|e| Some(e.ok()?.path())) {
        if file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"log.")) {
            fs::remove_file(&file).map_err(|e| failed("remove", &file, e))?;
        }
    }
    Ok(())
}
