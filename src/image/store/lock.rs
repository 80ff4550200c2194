//! Locks between processes: flock(2) on files of the store, always polled, since the store may lie on a file system where a blocking lock
//! cannot be had.
//!
//! Order: the store's `lock` before `commit`, both before a layer's lock is *not* allowed: a layer's lock is taken while `lock` is held shared
//! and `commit` is not held.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StoreError;

const POLL: Duration = Duration::from_millis(20);

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held open: the lock lives as long as the file description")] File);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

impl Lock {
    /// The lock if it can be had at once.
    pub(super) fn try_take(path: &Path, mode: Mode) -> Result<Option<Self>, StoreError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        Self::try_on(options.open(path).map_err(StoreError::io("open lock", path))?, path, mode)
    }

    /// The same on a file that is open already.
    pub(super) fn try_on(file: File, path: &Path, mode: Mode) -> Result<Option<Self>, StoreError> {
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Some(Self(file))),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(e) => return Err(StoreError::io("lock", path)(e.into())),
            }
        }
    }

    /// The lock as soon as it can be had; `None` when `patience` is over.
    pub(super) fn wait(path: &Path, mode: Mode, patience: Duration) -> Result<Option<Self>, StoreError> {
        let begin = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(path, mode)? {
                return Ok(Some(lock));
            }
            if begin.elapsed() >= patience {
                return Ok(None);
            }
            sleep(POLL);
        }
    }

    /// The lock, or an error that names it.
    pub(super) fn take(path: &Path, mode: Mode, patience: Duration) -> Result<Self, StoreError> {
        Self::wait(path, mode, patience)?
            .ok_or_else(|| StoreError::Busy { path: path.to_owned(), seconds: patience.as_secs() })
    }
}
