//! What a sandbox's first process does with a volume, the same in a microVM and in a container: it mounts the volume's ext4, fills a new one
//! from the image, and finds the place in the image where it belongs.
//!
//! ```text
//! ext4 of the volume
//!   lost+found
//!   _data          what the sandbox sees; it is there once the volume has been filled
//!   _data.new      a filling that was not finished: removed and begun again
//! ```
//!
//! The bytes of a volume were written by sandboxes and are not believed: nothing in it is followed as a link, and `_data` is a folder or
//! refused.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod copy;
mod place;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

pub use place::{file_in, folder_in};

/// The folder of a volume's file system that sandboxes see.
const DATA: &str = "_data";
const UNFINISHED: &str = "_data.new";

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What could not be done, and why.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {doing}")]
pub struct VolumeError {
    doing: String,
    #[source]
    source: std::io::Error,
}

/// Names what failed.
pub(crate) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, VolumeError>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, VolumeError> {
        self.map_err(|e| VolumeError { doing: doing(), source: e.into() })
    }
}

/// A volume's ext4 on this block device, on a mount that is attached nowhere yet. Freed blocks are given back to the device. What the
/// superblock says about errors does not count: they close the file system and harm nobody else.
///
/// # Errors
/// What the kernel says.
pub fn mount_disk(device: &str, read_only: bool) -> Result<OwnedFd, VolumeError> {
    let mount = || {
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device)?;
        fsconfig_set_string(&context, "errors", "remount-ro")?;
        let mut flags = MountAttrFlags::MOUNT_ATTR_NODEV;
        if read_only {
            fsconfig_set_flag(&context, "ro")?;
            flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        } else {
            fsconfig_set_flag(&context, "discard")?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    mount().doing(|| "mount the volume's file system (ext4)".into())
}

/// An empty folder that refuses writes, on a mount that is attached nowhere yet: what a reader sees of a volume that nobody has written to.
///
/// # Errors
/// What the kernel says.
pub fn nothing() -> Result<OwnedFd, VolumeError> {
    let mount = || {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [("source", "volume"), ("mode", "0755"), ("size", "4096")] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    mount().doing(|| "mount an empty folder".into())
}

/// What sandboxes see of a volume whose file system is attached at `volume`, on a mount of its own. A volume that is empty is first filled
/// with what is in `image`, if that is given; who dies on the way leaves it empty. `None`: it is empty and may not be written.
///
/// # Errors
/// If the volume is not what it should be, is full, or cannot be written.
pub fn data(
    volume: BorrowedFd<'_>,
    image: Option<BorrowedFd<'_>>,
    read_only: bool,
) -> Result<Option<OwnedFd>, VolumeError> {
    let found = match rustix::fs::statat(volume, DATA, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => true,
        Ok(_) => return Err(Errno::NOTDIR).doing(|| "use the volume: its data are no folder".into()),
        Err(Errno::NOENT) => false,
        Err(e) => return Err(e).doing(|| "look into the volume".into()),
    };
    if read_only && !found {
        return Ok(None);
    }
    if !read_only && (!found || (image.map_or(Ok(false), has_entries)? && is_empty(volume)?)) {
        fill(volume, image, found)?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let data = open_tree(volume, DATA, flags).doing(|| "take the volume's data".into())?;
    let stat = rustix::fs::fstat(&data).doing(|| "look at the volume's data".into())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR).doing(|| "use the volume: its data are no folder".into());
    }
    Ok(Some(data))
}

fn is_empty(volume: BorrowedFd<'_>) -> Result<bool, VolumeError> {
    let data = rustix::fs::openat(volume, DATA, FOLDER, Mode::empty()).doing(|| "open the volume's data".into())?;
    Ok(!has_entries(data.as_fd())?)
}

fn has_entries(folder: BorrowedFd<'_>) -> Result<bool, VolumeError> {
    Ok(!copy::names(folder)?.is_empty())
}

fn fill(volume: BorrowedFd<'_>, image: Option<BorrowedFd<'_>>, replaces: bool) -> Result<(), VolumeError> {
    copy::remove(volume, UNFINISHED)?;
    rustix::fs::mkdirat(volume, UNFINISHED, Mode::from(0o755)).doing(|| "make the volume's data".into())?;
    if let Some(image) = image {
        let fresh = rustix::fs::openat(volume, UNFINISHED, FOLDER, Mode::empty());
        let fresh = fresh.doing(|| "open the volume's new data".into())?;
        copy::tree(image, fresh.as_fd())?;
    }
    // Data before the name that says they are whole.
    rustix::fs::syncfs(volume).doing(|| "write the volume".into())?;
    if replaces {
        rustix::fs::unlinkat(volume, DATA, AtFlags::REMOVEDIR).doing(|| "replace the volume's data".into())?;
    }
    rustix::fs::renameat(volume, UNFINISHED, volume, DATA).doing(|| "name the volume's data".into())?;
    rustix::fs::syncfs(volume).doing(|| "write the volume".into())
}

/// Attaches a mount over this file or folder.
///
/// # Errors
/// What the kernel says.
pub fn attach(mount: BorrowedFd<'_>, over: BorrowedFd<'_>) -> Result<(), VolumeError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", over, "", flags).doing(|| "attach a mount".into())
}
