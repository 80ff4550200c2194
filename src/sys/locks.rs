//! Locks on files and folders (flock(2)) that processes hold for moments. They are polled: they may be on a file system without waiting locks. And
//! locks on single bytes of a file (fcntl(2), "Open file description locks"), which say what is taken.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
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

/// The file with a lock on its byte of this number, which holds until the file is closed everywhere it was passed to; or the file again, if another
/// has that lock.
///
/// # Errors
/// What the kernel says.
pub fn byte(file: File, number: u64) -> io::Result<Result<File, File>> {
    // SAFETY: zeros are a valid value of this structure of numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_WRLCK).map_err(io::Error::other)?;
    lock.l_whence = i16::try_from(libc::SEEK_SET).map_err(io::Error::other)?;
    lock.l_start = i64::try_from(number).map_err(io::Error::other)?;
    lock.l_len = 1;
    // SAFETY: the kernel reads the structure, which lives until the call returns.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(Ok(file));
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(Err(file)),
        e => Err(e),
    }
}
