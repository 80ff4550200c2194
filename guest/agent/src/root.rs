//! The command's root file system: the image as EROFS, a layer of memory over it.

use duplex_wire::Root;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};

use crate::trouble::{Doing, Trouble};
use crate::{boot, mounts};

/// The image, read-only.
const IMAGE: &str = "/image";

/// Upper and work folder of the overlay, in memory.
const MEMORY: &str = "/memory";

/// The overlay of both.
pub(crate) const ROOT: &str = "/root";

/// Makes the layer of memory, which is the same for every image.
pub(crate) fn mount_memory() -> Result<(), Trouble> {
    mount("tmpfs", MEMORY, "tmpfs", MountFlags::empty(), c"mode=0755").doing(|| format!("mount {MEMORY}"))?;
    for folder in ["/memory/upper", "/memory/work"] {
        std::fs::create_dir(folder).doing(|| format!("make {folder}"))?;
    }
    Ok(())
}

/// Mounts image and overlay. A read-only root has the layer of memory too, for mount points that the image lacks: it is closed once
/// they are there.
pub(crate) fn mount_image(root: &Root) -> Result<(), Trouble> {
    let disk = &root.disk;
    if disk.is_empty() || !disk.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Trouble::new("mount the image", format!("'{disk}' is not a name of a disk")));
    }
    let device = format!("/dev/{disk}");
    mount(&device, IMAGE, "erofs", MountFlags::RDONLY, None)
        .doing(|| format!("mount the image on {device} as EROFS"))?;
    let layers = c"lowerdir=/image,upperdir=/memory/upper,workdir=/memory/work";
    mount("overlay", ROOT, "overlay", MountFlags::empty(), layers).doing(|| "mount the overlay".into())
}

/// Makes [`ROOT`] the root of the calling process and drops the agent's own mounts from its mount namespace, which must be new. The
/// initial RAM file system cannot be the old root of pivot_root(2): the new root is moved over it instead, which leaves no way back either,
/// as `..` of the moved mount is the moved mount.
pub(crate) fn enter() -> Result<(), Trouble> {
    rustix::process::chdir(ROOT).doing(|| format!("enter {ROOT}"))?;
    for own in boot::OWN_MOUNTS.iter().chain(&[MEMORY, IMAGE, mounts::HOME]) {
        match unmount(*own, UnmountFlags::DETACH) {
            // Without volumes there is no place for them.
            Err(Errno::INVAL | Errno::NOENT) if *own == mounts::HOME => {}
            other => other.doing(|| format!("detach {own}"))?,
        }
    }
    mount_move(".", "/").doing(|| "move the root into its place".into())?;
    rustix::process::chroot(".").doing(|| "change the root".into())?;
    rustix::process::chdir("/").doing(|| "enter the new root".into())
}
