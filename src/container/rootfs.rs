//! The root file system: the image as EROFS, read-only, below an overlay whose upper layer is a tmpfs of limited size. All of it is mounted
//! in the caller's own mount namespace and gone with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use crate::sys::loops;
use crate::sys::users::Users;

/// Where things are mounted below the sandbox's folder.
const LOWER: &str = "mnt/lower";
const SCRATCH: &str = "mnt/scratch";
const ROOT: &str = "mnt/root";

/// Folders of the host that all its users may enter, as whose a runtime looks for the root of a container in a user namespace. It is mounted over
/// the first that is there, in container-init's own namespace of mounts, where nothing else is looked for in it.
const OPEN: [&str; 5] = ["/mnt", "/media", "/srv", "/opt", "/dev/shm"];

/// Why the root file system cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootfsError {
    /// The image's EROFS is refused.
    #[error("Cannot mount the image (EROFS of {pieces} pieces); the kernel's log says what it dislikes")]
    Image {
        pieces: usize,
        #[source]
        source: io::Error,
    },
    /// Neither files nor loop devices can be mounted.
    #[error("The image cannot be mounted from its files here, and there is no loop device for it (`modprobe loop`)")]
    Loop(#[source] io::Error),
    /// The mount shows no other owners.
    #[error("This kernel cannot show the image's files as the container's users' (Linux 5.19 can): use --userns host")]
    Shift(#[source] io::Error),
    /// A host without the usual folders.
    #[error("This host has none of the folders {}, over one of which the root would be mounted: make one, or use --userns host", OPEN.join(", "))]
    NoPlace,
    /// This kernel mounts no EROFS at all.
    #[error("The kernel knows no EROFS: load it with `modprobe erofs`, or use a kernel that has CONFIG_EROFS_FS")]
    NoErofs(#[source] io::Error),
    /// The tmpfs or the overlay is refused.
    #[error("Cannot mount the {what} at {path}")]
    Mount {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A mount point cannot be made.
    #[error("Cannot make {path}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Mounts the root and returns where it is. With users of its own, the image's files are shown as theirs, and what they write is stored as theirs.
pub(super) fn mount(
    folder: &Path,
    (pieces, users): (&[OwnedFd], Option<&Users>),
    scratch_bytes: Option<u64>,
) -> Result<PathBuf, RootfsError> {
    for part in [LOWER, SCRATCH, ROOT] {
        let path = folder.join(part);
        std::fs::create_dir_all(&path).map_err(|source| RootfsError::Folder { path, source })?;
    }
    let lower = mount_image(pieces)?;
    users.map_or(Ok(()), |users| users.shift(lower.as_fd(), false)).map_err(RootfsError::Shift)?;
    attach(&lower, "image", &folder.join(LOWER))?;
    let scratch = mount_scratch(folder, users, scratch_bytes)?;
    let root = match users {
        Some(_) => open_to_all(folder)?,
        None => folder.join(ROOT),
    };
    let overlay = mount_overlay(&lower, &scratch);
    let overlay = overlay.map_err(|e| RootfsError::Mount { what: "overlay", path: root.clone(), source: e.into() })?;
    attach(&overlay, "overlay", &root)?;
    Ok(root)
}

/// A folder that leads to the root by ways that are open to all.
fn open_to_all(folder: &Path) -> Result<PathBuf, RootfsError> {
    let fits = |path: &Path| path.is_dir() && !path.is_symlink() && !folder.starts_with(path);
    OPEN.into_iter().map(PathBuf::from).find(|path| fits(path)).ok_or(RootfsError::NoPlace)
}

/// The image on a mount of its own, attached nowhere yet. From its files if the kernel can (Linux 6.12, and files on a file system with a
/// page cache of the usual kind: not tmpfs), else from loop devices.
fn mount_image(pieces: &[OwnedFd]) -> Result<OwnedFd, RootfsError> {
    match mount_erofs(pieces) {
        Err(RootfsError::Image { source, .. }) if source.raw_os_error() == Some(libc::ENOTBLK) => {
            let devices = pieces.iter().map(|piece| loops::attach(piece.as_fd(), true).map(OwnedFd::from));
            let devices: Vec<OwnedFd> = devices.collect::<io::Result<_>>().map_err(RootfsError::Loop)?;
            mount_erofs(&devices)
        }
        other => other,
    }
}

fn mount_erofs(pieces: &[OwnedFd]) -> Result<OwnedFd, RootfsError> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| RootfsError::NoErofs(e.into()))?;
    let configure = || {
        for (key, piece) in std::iter::once("source").chain(std::iter::repeat("device")).zip(pieces) {
            fsconfig_set_string(&context, key, by_number(piece))?;
        }
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY | harmless())
    };
    configure().map_err(|e| RootfsError::Image { pieces: pieces.len(), source: e.into() })
}

/// A tmpfs for what the container writes. Its pages are charged to the cgroup of whoever writes them.
fn mount_scratch(folder: &Path, users: Option<&Users>, bytes: Option<u64>) -> Result<OwnedFd, RootfsError> {
    let path = folder.join(SCRATCH);
    let make = || {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "duplex")?;
        fsconfig_set_string(&context, "mode", "0755")?;
        if let Some(bytes) = bytes {
            fsconfig_set_string(&context, "size", bytes.to_string())?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, harmless())
    };
    let scratch = make().map_err(|e| RootfsError::Mount { what: "tmpfs", path: path.clone(), source: e.into() })?;
    attach(&scratch, "tmpfs", &path)?;
    for part in ["upper", "work"] {
        rustix::fs::mkdirat(&scratch, part, Mode::from(0o755))
            .map_err(|e| RootfsError::Folder { path: path.join(part), source: e.into() })?;
        let owned = users.map_or(Ok(()), |users| users.own(&scratch, Path::new(part)));
        owned.map_err(|source| RootfsError::Folder { path: path.join(part), source })?;
    }
    Ok(scratch)
}

fn mount_overlay(lower: &OwnedFd, scratch: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::openat(scratch, "upper", flags, Mode::empty())?;
    let work = rustix::fs::openat(scratch, "work", flags, Mode::empty())?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("lowerdir", lower), ("upperdir", &upper), ("workdir", &work)] {
        fsconfig_set_string(&context, key, by_number(value))?;
    }
    fsconfig_set_string(&context, "source", "duplex")?;
    fsconfig_create(&context)?;
    // No device nodes from an image: the container's own are on the tmpfs at /dev. Set-user-id programs work, as with Docker.
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// For mounts that only the overlay looks into.
fn harmless() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID
}

/// A descriptor as a path: mount options are short (256 bytes) and paths may not be, and what is open cannot be exchanged.
pub(super) fn by_number(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub(super) fn attach(mount: impl AsFd, what: &'static str, path: &Path) -> Result<(), RootfsError> {
    let attached = move_mount(mount.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    attached.map_err(|e| RootfsError::Mount { what, path: path.to_owned(), source: e.into() })
}
