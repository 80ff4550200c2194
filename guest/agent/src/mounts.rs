//! What is mounted beside the image. Volumes and shares are mounted by the agent before the command's process is made, which inherits them, and
//! volumes closed after its last one is gone: what was written is on the disk when the host hears of the end. What was written to a share is
//! with the host already, mapped pages since their last process has gone.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use duplex_volume::{VolumeError, attach, data, file_in, folder_in, mount_disk, nothing};
use duplex_wire::{Mount, MountSource};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount as mount_at, move_mount, open_tree, unmount,
};

use crate::root::ROOT;
use crate::trouble::{Doing, Trouble};

/// Where the file systems of volumes and shares are for the agent; a command's mount namespace loses it.
pub(crate) const HOME: &str = "/volumes";

/// How long the kernel may take to let go of a volume whose last process is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is mounted.
pub(crate) struct Mounts {
    any: bool,
    /// Volumes that are mounted for writing.
    written: Vec<(String, OwnedFd)>,
    /// Shares are kept to the machine's end: with the last mount of one goes the wish that the host write all of its own disk.
    shares: Vec<OwnedFd>,
}

/// Mounts all of them in the image.
pub(crate) fn mount(mounts: &[Mount]) -> Result<Mounts, Trouble> {
    let mut made = Mounts { any: !mounts.is_empty(), written: Vec::new(), shares: Vec::new() };
    if mounts.is_empty() {
        return Ok(made);
    }
    std::fs::create_dir(HOME).doing(|| format!("make {HOME}"))?;
    mount_at("tmpfs", HOME, "tmpfs", MountFlags::empty(), c"mode=0700").doing(|| format!("mount {HOME}"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(ROOT, flags, Mode::empty()).doing(|| format!("open {ROOT}"))?;
    for mount in mounts {
        let wrong = |e: VolumeError| Trouble::new(format!("mount {}", mount.target), e);
        let target = Path::new(&mount.target);
        let is_file = matches!(mount.source, MountSource::Share { file: Some(_), .. });
        let over = if is_file { file_in(root.as_fd(), target) } else { folder_in(root.as_fd(), target) };
        let over = over.map_err(wrong)?;
        let shown = match &mount.source {
            MountSource::Volume { disk, copy } => made.volume(mount, disk, copy.then_some(&over))?,
            MountSource::Share { tag, file } => made.share(mount, tag, file.as_deref())?,
        };
        attach(shown.as_fd(), over.as_fd()).map_err(wrong)?;
    }
    Ok(made)
}

/// Attaches a file system below [`HOME`] and opens its top.
fn at_home(mount: &OwnedFd, name: &str) -> Result<OwnedFd, Trouble> {
    let folder = format!("{HOME}/{name}");
    std::fs::create_dir(&folder).doing(|| format!("make {folder}"))?;
    move_mount(mount, "", rustix::fs::CWD, &folder, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| format!("mount {folder}"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&folder, flags, Mode::empty()).doing(|| format!("open {folder}"))
}

/// A word of the host's that becomes part of a path here.
fn plain<'a>(what: &str, word: &'a str) -> Result<&'a str, Trouble> {
    let good = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric());
    if good { Ok(word) } else { Err(Trouble::new(format!("mount a {what}"), format!("'{word}' is not a name of one"))) }
}

impl Mounts {
    fn volume(&mut self, mount: &Mount, disk: &str, image: Option<&OwnedFd>) -> Result<OwnedFd, Trouble> {
        let wrong = |e: VolumeError| Trouble::new(format!("mount {}", mount.target), e);
        let device = format!("/dev/{}", plain("volume", disk)?);
        let whole = mount_disk(&device, mount.read_only).map_err(wrong)?;
        let top = at_home(&whole, disk)?;
        let data = data(top.as_fd(), image.map(AsFd::as_fd), mount.read_only).map_err(wrong)?;
        if !mount.read_only {
            self.written.push((device, top));
        }
        data.map_or_else(|| nothing().map_err(wrong), Ok)
    }

    /// A share, or one file of it, on a mount of its own.
    fn share(&mut self, mount: &Mount, tag: &str, file: Option<&str>) -> Result<OwnedFd, Trouble> {
        let name = plain("share", tag)?;
        let make = || {
            let context = fsopen("virtiofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(&context, "source", name)?;
            fsconfig_create(&context)?;
            let read_only = if mount.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV | read_only)
        };
        let whole = make().doing(|| format!("mount the share at {}", mount.target))?;
        let top = at_home(&whole, name)?;
        let (path, flags) = match file {
            Some(file) => (plain("file", file)?, OpenTreeFlags::AT_SYMLINK_NOFOLLOW),
            None => ("", OpenTreeFlags::AT_EMPTY_PATH),
        };
        let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let shown = open_tree(&top, path, flags).doing(|| format!("take the share at {}", mount.target))?;
        self.shares.push(top);
        Ok(shown)
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
        std::mem::forget(self.shares);
        synced
    }
}
