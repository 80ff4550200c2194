//! Locks that tell whether a folder's owner lives: flock(2) on its file `lock`, held by the owner for its whole life. They are polled: the
//! folder may be on a file system without waiting locks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// What a try for a folder's lock brought.
#[derive(Debug)]
pub(super) enum Grip {
    /// Nobody has it; now we have it. `None`: the folder has no lock file (any more), only its emptiness tells.
    Free(Option<File>),
    /// Its owner lives.
    Held,
    /// The folder went away meanwhile.
    Gone,
}

/// Makes a folder's lock, held by the caller from the moment that it has its name: one that is free has no owner any more.
pub(super) fn make(path: &Path) -> io::Result<File> {
    let part = path.with_extension("part");
    let lock = File::options().create_new(true).write(true).mode(0o600).open(&part)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    fs::rename(&part, path)?;
    Ok(lock)
}

/// Tries to become the owner.
pub(super) fn try_lock(folder: &Path) -> io::Result<Grip> {
    let path = folder.join("lock");
    let file = match File::options().write(true).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Removal ends with the lock and then the folder: a folder without a lock is empty and was about to go.
            return Ok(if folder.exists() { Grip::Free(None) } else { Grip::Gone });
        }
        Err(e) => return Err(e),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Grip::Held),
        Err(e) => return Err(e.into()),
    }
    // The file may have been removed, and another made, between open and lock.
    let same = fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|m| m.ino() == now.ino()));
    Ok(if same { Grip::Free(Some(file)) } else { Grip::Gone })
}

/// Whether an owner lives. A shared lock: those who look do not take each other for the owner.
pub(super) fn is_held(folder: &Path) -> bool {
    let Ok(file) = File::options().write(true).open(folder.join("lock")) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}
