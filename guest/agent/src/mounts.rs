//! What is mounted beside the image. Volumes are mounted by the agent before the command's process is made, which inherits them, and closed
//! after its last one is gone: what was written is on the disk when the host hears of the end.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use duplex_volume::{VolumeError, attach, data, folder_in, mount_disk, nothing};
use duplex_wire::Mount;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags, mount as mount_at, move_mount, unmount};

use crate::root::ROOT;
use crate::trouble::{Doing, Trouble};

/// Where the volumes' file systems are for the agent; a command's mount namespace loses it.
pub(crate) const HOME: &str = "/volumes";

/// How long the kernel may take to let go of a volume whose last process is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Volumes that are mounted for writing.
pub(crate) struct Volumes {
    any: bool,
    written: Vec<(String, OwnedFd)>,
}

/// Mounts all of them in the image.
pub(crate) fn mount(mounts: &[Mount]) -> Result<Volumes, Trouble> {
    let mut volumes = Volumes { any: !mounts.is_empty(), written: Vec::new() };
    if mounts.is_empty() {
        return Ok(volumes);
    }
    std::fs::create_dir(HOME).doing(|| format!("make {HOME}"))?;
    mount_at("tmpfs", HOME, "tmpfs", MountFlags::empty(), c"mode=0700").doing(|| format!("mount {HOME}"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(ROOT, flags, Mode::empty()).doing(|| format!("open {ROOT}"))?;
    for mount in mounts {
        let wrong = |e: VolumeError| Trouble::new(format!("mount {}", mount.target), e);
        let over = folder_in(root.as_fd(), Path::new(&mount.target)).map_err(wrong)?;
        let made = volumes.mount(mount, &over)?;
        attach(made.as_fd(), over.as_fd()).map_err(wrong)?;
    }
    Ok(volumes)
}

impl Volumes {
    fn mount(&mut self, mount: &Mount, image: &OwnedFd) -> Result<OwnedFd, Trouble> {
        let wrong = |e: VolumeError| Trouble::new(format!("mount {}", mount.target), e);
        let disk = &mount.disk;
        if disk.is_empty() || !disk.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Trouble::new("mount a volume", format!("'{disk}' is not a name of a disk")));
        }
        let device = format!("/dev/{disk}");
        let whole = mount_disk(&device, mount.read_only).map_err(wrong)?;
        let folder = format!("{HOME}/{disk}");
        std::fs::create_dir(&folder).doing(|| format!("make {folder}"))?;
        move_mount(&whole, "", rustix::fs::CWD, &folder, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing(|| format!("mount {folder}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(&folder, flags, Mode::empty()).doing(|| format!("open {folder}"))?;
        let data = data(top.as_fd(), mount.copy.then(|| image.as_fd()), mount.read_only).map_err(wrong)?;
        if !mount.read_only {
            self.written.push((device, top));
        }
        data.map_or_else(|| nothing().map_err(wrong), Ok)
    }

    /// Writes all that the command has written, and lets go of the file systems.
    pub(crate) fn close(self) -> Result<(), Trouble> {
        if !self.any {
            return Ok(());
        }
        let mut devices = Vec::new();
        let mut synced = Ok(());
        for (device, top) in self.written {
            let done = rustix::fs::syncfs(&top).doing(|| format!("write what is left for the volume on {device}"));
            synced = synced.and(done);
            devices.push(device);
        }
        for place in [ROOT, HOME] {
            unmount(place, UnmountFlags::DETACH).doing(|| format!("detach {place}"))?;
        }
        // The last mounts go with the namespace of the command, perhaps a moment after its last process. Only a device that is not mounted
        // opens exclusively. One that stays busy is whole nevertheless: its journal is replayed by the next sandbox.
        let deadline = Instant::now() + PATIENCE;
        let busy = |device: &String| {
            let opened = rustix::fs::open(device, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty());
            opened.map(File::from).is_err()
        };
        while devices.iter().any(busy) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        synced
    }
}
