//! Descriptors that a program inherits by number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of an inherited descriptor and marks it close-on-exec.
///
/// The caller takes each number at most once: a second owner of one number would close it under the first.
///
/// # Errors
/// `EBADF` if the number names no open descriptor.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD passes no pointer; on a number that is not open it fails with EBADF.
    let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, as fcntl just showed, and by this function's contract nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        assert_eq!(take(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(take(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn an_open_number_is_taken() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = take(file.into_raw_fd()).unwrap();
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}
