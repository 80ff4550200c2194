//! Locks on files and folders (flock(2)) that processes hold for moments. They are polled: they may be on a file system without waiting locks.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// The only one who has the lock of this file or folder, until it is dropped.
///
/// # Errors
/// `EWOULDBLOCK` if another has it for longer than `patience`, else what the kernel says.
pub fn exclusive(file: File, patience: Duration) -> io::Result<File> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(e.into()),
        }
    }
}
