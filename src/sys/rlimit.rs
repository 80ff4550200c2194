//! Resource limits by number.

use std::io;

/// Sets a limit of this process (setrlimit(2)); `None` is no limit.
///
/// # Errors
/// `EINVAL` for a number that is no resource or a soft limit above the hard one, `EPERM` to raise a hard limit without CAP_SYS_RESOURCE.
pub fn set(resource: u8, soft: Option<u64>, hard: Option<u64>) -> io::Result<()> {
    let limit =
        libc::rlimit { rlim_cur: soft.unwrap_or(libc::RLIM_INFINITY), rlim_max: hard.unwrap_or(libc::RLIM_INFINITY) };
    // SAFETY: the kernel only reads the structure, which lives until the call returns.
    let failed = unsafe { libc::setrlimit(u32::from(resource), &raw const limit) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the hard limit of this process to this much, if it is below.
///
/// # Errors
/// As [`set`].
pub fn allow(resource: u8, most: Option<u64>) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel only writes the structure, which lives until the call returns.
    if unsafe { libc::getrlimit(u32::from(resource), &raw mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let most = most.unwrap_or(libc::RLIM_INFINITY);
    if now.rlim_max >= most { Ok(()) } else { set(resource, Some(now.rlim_cur), Some(most)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_set_and_nonsense_is_refused() {
        set(4, Some(0), Some(0)).unwrap();
        let now = rustix::process::getrlimit(rustix::process::Resource::Core);
        assert_eq!((now.current, now.maximum), (Some(0), Some(0)));
        assert_eq!(set(4, Some(2), Some(1)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(set(99, None, None).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
