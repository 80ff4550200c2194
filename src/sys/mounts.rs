//! Mount attributes (mount_setattr(2)), which rustix lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

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

fn set_read_only(mount: impl AsFd) -> io::Result<()> {
    let attr = MountAttr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string, the structure has the size that is passed, and both outlive the call.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
