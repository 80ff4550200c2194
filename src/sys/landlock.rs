//! Landlock (landlock(7)): the kernel's version of it, and giving up all that it governs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `LANDLOCK_CREATE_RULESET_VERSION` (linux/landlock.h).
const VERSION: u32 = 1;

/// `struct landlock_ruleset_attr` (linux/landlock.h). Kernels of older versions know only its beginning.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

impl Ruleset {
    /// Everything that this version governs, and the bytes of the structure that it knows.
    fn of_everything(abi: u32) -> (Self, usize) {
        // LANDLOCK_ACCESS_FS_*: 13 at first, then REFER, TRUNCATE and IOCTL_DEV.
        let (fs, size) = match abi {
            1 => (13, 8),
            2 => (14, 8),
            3 => (15, 8),
            4 => (15, 16),
            5 => (16, 16),
            _ => (16, 24),
        };
        // Binding and connecting of TCP; abstract sockets and signals to outside.
        let (net, scoped) = (if abi >= 4 { 0b11 } else { 0 }, if abi >= 6 { 0b11 } else { 0 });
        (Self { handled_access_fs: (1 << fs) - 1, handled_access_net: net, scoped }, size)
    }
}

/// The kernel's Landlock ABI; `None` if it has none or it is switched off.
pub fn abi() -> Option<u32> {
    // SAFETY: with this flag the call reads no attributes (the pointer must be null and the size 0) and makes no descriptor.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}

/// Gives up, for this thread and those that it will start, every right that Landlock governs: opening or changing any file, TCP, and, where the
/// kernel knows it, signals and sockets to outside. Descriptors that are open stay as they are. Nothing happens on a kernel without
/// Landlock. Needs no_new_privs.
///
/// # Errors
/// `EPERM` without no_new_privs; `E2BIG` under 16 layers of Landlock.
pub fn give_up_everything() -> io::Result<()> {
    let Some(abi) = abi() else { return Ok(()) };
    let (attr, size) = Ruleset::of_everything(abi);
    // SAFETY: the structure lives through the call and is at least `size` bytes long.
    let ruleset = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0) };
    let ruleset = i32::try_from(ruleset).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a new descriptor that nothing else owns.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    // SAFETY: the call takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rights are a thread's: the others keep theirs.
    #[test]
    fn who_has_given_up_opens_nothing() {
        let opened = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            let before = std::fs::File::open("/dev/null");
            give_up_everything().unwrap();
            (before.is_ok(), std::fs::File::open("/dev/null").is_ok(), std::fs::read_dir("/").is_ok())
        });
        let without = abi().is_none();
        assert_eq!(opened.join().unwrap(), (true, without, without));
    }
}
