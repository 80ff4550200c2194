//! Mount attributes (mount_setattr(2)), which rustix lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    open_tree,
};

/// `struct mount_attr` (include/uapi/linux/mount.h), its first version.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A read-only view of one file, on a mount of its own that is attached nowhere: whoever reaches the file through the returned descriptor, or
/// runs it and reaches it through `/proc/PID/exe`, cannot write to it, root included.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOSYS` before Linux 5.12.
pub fn read_only_view(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = open_tree(rustix::fs::CWD, path, flags)?;
    set_read_only(&view)?;
    Ok(view)
}

/// What is at this path and below it, on mounts of their own that are attached nowhere: who attaches them sees it elsewhere, and whatever
/// happens to the path afterwards does not matter. Mounts made later on either side stay there.
///
/// # Errors
/// `ENOENT`, or as [`read_only_view`].
pub fn tree_view(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let attr_set = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    view(path, attr_set)
}

/// The same for a process that only serves files: nothing of it is a device or a program to it.
///
/// # Errors
/// As [`tree_view`].
pub fn files_view(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let attr_set = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    view(path, attr_set | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)
}

/// The same for a process that only runs programs that are there, and reads their libraries.
///
/// # Errors
/// As [`tree_view`].
pub fn programs_view(path: &Path) -> io::Result<OwnedFd> {
    view(path, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID)
}

/// An empty read-only folder with one empty file of this name, over which something can be attached, on a mount that is attached nowhere.
///
/// # Errors
/// As [`read_only_view`].
pub fn folder_of_one(name: &str) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "share"), ("mode", "0755"), ("size", "4096"), ("nr_inodes", "4")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let folder = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(&folder, name, flags, Mode::from(0o600))?;
    set_read_only(&folder)?;
    Ok(folder)
}

fn view(path: &Path, attr_set: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let view = open_tree(rustix::fs::CWD, path, flags)?;
    let attr = MountAttr { attr_set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    set(&view, &attr, libc::AT_RECURSIVE)?;
    Ok(view)
}

/// [`super::users::Users::shift`].
pub(super) fn shift(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, below: bool) -> io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
    let attr = MountAttr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    set(mount, &attr, if below { libc::AT_RECURSIVE } else { 0 })
}

pub(super) fn set_read_only(mount: impl AsFd) -> io::Result<()> {
    set(mount, &MountAttr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 }, 0)
}

fn set(mount: impl AsFd, attr: &MountAttr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the path is an empty C string, the structure has the size that is passed, and both outlive the call.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
