//! Landlock (landlock(7)): the kernel's version of it, giving up all that it governs, and keeping some of it below some paths.

use std::io;
use std::ops::BitOr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
    restrict(&create(&attr, size)?)
}

/// What may be done with files below a path. Bits are the kernel's `LANDLOCK_ACCESS_FS_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u64);

impl Rights {
    /// Reading files and folders.
    pub const READ: Self = Self(1 << 2 | 1 << 3);
    /// Executing programs.
    pub const EXECUTE: Self = Self(1);
    /// Writing, making, moving and removing everything but device nodes.
    pub const WRITE: Self =
        Self(1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14);
    /// Requests to devices.
    pub const REQUESTS: Self = Self(1 << 15);
    /// What there is to do with a thing that is no folder.
    const FILE: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A path, opened in whatever way, whether it is a folder, and what may be done from there on downwards.
#[derive(Clone, Copy, Debug)]
pub struct Below<'a> {
    /// Where.
    pub path: BorrowedFd<'a>,
    /// It is a folder.
    pub folder: bool,
    /// What.
    pub rights: Rights,
}

/// `struct landlock_path_beneath_attr` (linux/landlock.h), which is packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// `LANDLOCK_RULE_PATH_BENEATH` (linux/landlock.h).
const PATH_BENEATH: u32 = 1;

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` (linux/landlock.h).
const ABSTRACT_SOCKETS: u64 = 1;

/// From now on this thread, and those that it will start, open and change files only as `rules` say. Networks stay as they are, but for unix
/// sockets with names of no file, which reach nobody outside where the kernel knows that. Needs no_new_privs.
///
/// # Errors
/// `EOPNOTSUPP` on a kernel without Landlock, `EPERM` without no_new_privs, `E2BIG` under 16 layers of Landlock.
pub fn keep_only(rules: &[Below<'_>]) -> io::Result<()> {
    let abi = abi().ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    let (all, size) = Ruleset::of_everything(abi);
    let attr = Ruleset { handled_access_net: 0, scoped: all.scoped & ABSTRACT_SOCKETS, ..all };
    let ruleset = create(&attr, size)?;
    for rule in rules {
        let known = rule.rights.0 & attr.handled_access_fs;
        let rights = if rule.folder { known } else { known & Rights::FILE };
        let beneath = PathBeneath { allowed_access: rights, parent_fd: rule.path.as_raw_fd() };
        // SAFETY: the structure lives through the call, which only reads it.
        let added = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const beneath, 0)
        };
        if added != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    restrict(&ruleset)
}

fn create(attr: &Ruleset, size: usize) -> io::Result<OwnedFd> {
    // SAFETY: the structure lives through the call and is at least `size` bytes long.
    let ruleset = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const *attr, size, 0) };
    let ruleset = i32::try_from(ruleset).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(ruleset) })
}

fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

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

    #[test]
    fn what_is_kept_is_kept_and_nothing_else() {
        if abi().is_none() {
            return;
        }
        // Its end is this thread's: the other may not remove it.
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().to_owned();
        let (open, shut) = (folder.path().join("open"), folder.path().join("shut"));
        std::fs::create_dir(&open).unwrap();
        std::fs::create_dir(&shut).unwrap();
        let tried = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let opened = [&whole, &open].map(|path| std::fs::File::open(path).unwrap());
            let below = |number: usize, rights| Below { path: opened[number].as_fd(), folder: true, rights };
            keep_only(&[below(0, Rights::READ), below(1, Rights::READ | Rights::WRITE)]).unwrap();
            let write = |path: &std::path::Path| std::fs::write(path.join("file"), "x").is_ok();
            (write(&open), write(&shut), std::fs::read_dir(&shut).is_ok(), std::fs::read_dir("/").is_ok())
        });
        assert_eq!(tried.join().unwrap(), (true, false, true, false));
    }
}
