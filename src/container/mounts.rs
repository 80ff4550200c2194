//! What is mounted into a container beside its image, before its command's own mount namespace is made from this process's: whatever the
//! runtime, the container finds it there, and it goes with the last process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use duplex_volume::{VolumeError, attach, data, file_in, folder_in, mount_disk, nothing};
use rustix::fs::{FileType, Mode, OFlags};

use super::inside::Inside;
use super::orders::Orders;
use super::rootfs::{RootfsError, by_number};
use crate::spec::{MountSource, MountSpec, SandboxSpec};
use crate::sys::loops;
use crate::sys::users::Users;

/// Why something is not mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("Cannot mount {target}")]
    Mount {
        target: String,
        #[source]
        source: VolumeError,
    },
    #[error("Cannot make a place for the mount at {target}")]
    Place {
        target: String,
        #[source]
        source: std::io::Error,
    },
    #[error("There is no loop device for the volume at {target} (`modprobe loop`)")]
    Loop {
        target: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "The file system of the mount at {target} cannot show its files as the container's users': use --userns host, or put what is mounted on \
        ext4, XFS, Btrfs or tmpfs"
    )]
    Shift {
        target: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Attach(#[from] RootfsError),
    #[error("The descriptor of the mount at {0} is missing")]
    Missing(String),
}

/// How many descriptors come with the orders for the mounts: one for each, in order.
pub(super) fn descriptors(spec: &SandboxSpec) -> usize {
    spec.mounts.len()
}

/// Mounts all of them in the container's root. What user n owns there is the user n's of its user namespace, if it has one of its own.
pub(super) fn mount(
    orders: &Orders,
    sources: Vec<OwnedFd>,
    inside: &Inside,
    users: Option<&Users>,
) -> Result<(), MountError> {
    let mut sources = sources.into_iter();
    for (number, mount) in orders.spec.mounts.iter().enumerate() {
        let wrong = |source| MountError::Mount { target: mount.target.clone(), source };
        let mut source = || sources.next().ok_or_else(|| MountError::Missing(mount.target.clone()));
        let at = Path::new(&mount.target);
        match &mount.source {
            MountSource::Volume { copy, .. } => {
                let over = folder_in(inside.root(), at).map_err(wrong)?;
                let folder = orders.folder.join(format!("mnt/volume-{number}"));
                let volume = volume(mount, (*copy, users), &source()?, &over, &folder)?;
                attach(volume.as_fd(), over.as_fd()).map_err(wrong)?;
            }
            MountSource::Bind { .. } => {
                let view = source()?;
                shift(users, view.as_fd(), &mount.target)?;
                let place = |e: rustix::io::Errno| MountError::Place { target: mount.target.clone(), source: e.into() };
                let stat = rustix::fs::fstat(&view).map_err(place)?;
                let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let over = if is_folder { folder_in(inside.root(), at) } else { file_in(inside.root(), at) };
                attach(view.as_fd(), over.map_err(wrong)?.as_fd()).map_err(wrong)?;
            }
        }
    }
    Ok(())
}

/// Shows the files of a mount, and of those below it, as the container's users'.
fn shift(users: Option<&Users>, mount: BorrowedFd<'_>, target: &str) -> Result<(), MountError> {
    let shifted = users.map_or(Ok(()), |users| users.shift(mount, true));
    shifted.map_err(|source| MountError::Shift { target: target.to_owned(), source })
}

/// The volume's data on a mount of its own. Its file system is attached in the sandbox's own folder, where nothing of the container leads.
fn volume(
    mount: &MountSpec,
    (copy, users): (bool, Option<&Users>),
    disk: &OwnedFd,
    image: &OwnedFd,
    folder: &Path,
) -> Result<OwnedFd, MountError> {
    let target = || mount.target.clone();
    let wrong = |source| MountError::Mount { target: target(), source };
    std::fs::create_dir(folder).map_err(|source| MountError::Place { target: target(), source })?;
    let device = loops::attach(disk.as_fd(), mount.read_only);
    let device = device.map_err(|source| MountError::Loop { target: target(), source })?;
    let whole = mount_disk(&by_number(&device), mount.read_only).map_err(wrong)?;
    shift(users, whole.as_fd(), &mount.target)?;
    super::rootfs::attach(&whole, "volume", folder)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(&whole, ".", flags, Mode::empty());
    let top = top.map_err(|e| MountError::Place { target: target(), source: e.into() })?;
    match data(top.as_fd(), copy.then(|| image.as_fd()), mount.read_only).map_err(wrong)? {
        Some(data) => Ok(data),
        None => nothing().map_err(wrong),
    }
}
