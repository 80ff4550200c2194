//! Trees of files copied and removed by descriptors: no path is resolved twice and no link is followed.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, major, makedev, minor,
};
use rustix::io::Errno;

use crate::{Doing, FOLDER, VolumeError};

/// Deepest folder.
const DEPTH: u32 = 128;

/// Most bytes of an attribute's value and of a list of names (xattr(7)).
const ATTRIBUTE: usize = 64 << 10;

/// The names in a folder but `.` and `..`.
pub(crate) fn names(folder: BorrowedFd<'_>) -> Result<Vec<CString>, VolumeError> {
    let doing = || "list a folder".to_owned();
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder).doing(doing)? {
        let entry = entry.doing(doing)?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes whatever has this name; nothing is no error.
pub(crate) fn remove(folder: BorrowedFd<'_>, name: &str) -> Result<(), VolumeError> {
    let name = CString::new(name).doing(|| format!("remove {name}"))?;
    remove_below(folder, &name, 0)
}

fn remove_below(folder: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), VolumeError> {
    let doing = || format!("remove {}", name.to_string_lossy());
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e).doing(doing),
    }
    if depth >= DEPTH {
        return Err(Errno::NAMETOOLONG).doing(doing);
    }
    let inside = rustix::fs::openat(folder, name, FOLDER, Mode::empty()).doing(doing)?;
    for name in names(inside.as_fd())? {
        remove_below(inside.as_fd(), &name, depth.saturating_add(1))?;
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).doing(doing)
}

/// Copies all that is in a folder into an empty one, and the folder's own owner, mode, attributes and time.
pub(crate) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), VolumeError> {
    let stat = rustix::fs::fstat(from).doing(|| "look at the image's folder".into())?;
    let mut copy = Copy { device: stat.st_dev, top: to, links: HashMap::new() };
    copy.folder(from, to, Path::new(""), 0)?;
    dress(from, to, &stat, Path::new("/"))
}

struct Copy<'a> {
    /// The image's file system: what is mounted in it is not the image's.
    device: u64,
    top: BorrowedFd<'a>,
    /// Where files with several names are already.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn folder(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: &Path, depth: u32) -> Result<(), VolumeError> {
        if depth >= DEPTH {
            return Err(Errno::NAMETOOLONG).doing(|| format!("copy {}: it is too deep", at.display()));
        }
        for name in names(from)? {
            use std::os::unix::ffi::OsStrExt;
            let path = at.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
            self.entry(from, to, &name, &path, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        depth: u32,
    ) -> Result<(), VolumeError> {
        let doing = || format!("copy {} of the image into the volume", path.display());
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
        if stat.st_dev != self.device && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(());
        }
        if stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return rustix::fs::linkat(self.top, first, to, name, AtFlags::empty()).doing(doing);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::from(0o700)).doing(doing)?;
                let (from, to) = (open(from, name, FOLDER).doing(doing)?, open(to, name, FOLDER).doing(doing)?);
                self.folder(from.as_fd(), to.as_fd(), path, depth.saturating_add(1))?;
                dress(from.as_fd(), to.as_fd(), &stat, path)
            }
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = open(from, name, flags | OFlags::RDONLY | OFlags::NONBLOCK).doing(doing)?;
                let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let to = rustix::fs::openat(to, name, create, Mode::from(0o600)).doing(doing)?;
                let (mut from, mut to) = (File::from(from), File::from(to));
                std::io::copy(&mut from, &mut to).doing(doing)?;
                dress(from.as_fd(), to.as_fd(), &stat, path)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).doing(doing)?;
                rustix::fs::symlinkat(&*target, to, name).doing(doing)?;
                own(to, name, &stat).doing(doing)
            }
            kind => {
                let device = makedev(major(stat.st_rdev), minor(stat.st_rdev));
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::mknodat(to, name, kind, mode, device).doing(doing)?;
                own(to, name, &stat).doing(doing)?;
                rustix::fs::chmodat(to, name, mode, AtFlags::empty()).doing(doing)
            }
        }
    }
}

fn open(folder: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

fn own(folder: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(folder, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
}

/// Owner, attributes, mode and time, in this order: a new owner clears set-user-id and file capabilities.
fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat, path: &Path) -> Result<(), VolumeError> {
    let doing = || format!("give {} in the volume its owner, mode and attributes", path.display());
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(user), Some(group)).doing(doing)?;
    attributes(from, to).doing(doing)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).doing(doing)?;
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::futimens(to, &times).doing(doing)
}

fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut list = vec![0_u8; ATTRIBUTE];
    let count = match rustix::fs::flistxattr(from, &mut list[..]) {
        Ok(count) => count,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut value = vec![0_u8; ATTRIBUTE];
    let names = list.get(..count).unwrap_or_default().split(|b| *b == 0).filter(|name| !name.is_empty());
    for name in names {
        let size = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, value.get(..size).unwrap_or_default(), XattrFlags::empty()) {
            // A kind of attribute that this file system does not keep.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_all_that_files_have() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/file"), "content").unwrap();
        std::fs::set_permissions(from.join("a/file"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::set_permissions(from.join("a/b"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::fs::set_permissions(&from, PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::hard_link(from.join("a/file"), from.join("a/b/again")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let (open, into) = (File::open(&from).unwrap(), File::open(&to).unwrap());
        tree(open.as_fd(), into.as_fd()).unwrap();
        let of = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(std::fs::read(to.join("a/file")).unwrap(), b"content");
        assert_eq!(of("a/file").mode() & 0o7777, 0o4751);
        assert_eq!(of("a/b").mode() & 0o7777, 0o1777);
        assert_eq!(of("").mode() & 0o7777, 0o700);
        assert_eq!(of("a/file").ino(), of("a/b/again").ino(), "one file with two names");
        assert_eq!(of("a/file").mtime(), std::fs::metadata(from.join("a/file")).unwrap().mtime());
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
    }

    #[test]
    fn a_removal_does_not_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("gone/deep")).unwrap();
        std::fs::create_dir(dir.path().join("kept")).unwrap();
        std::fs::write(dir.path().join("kept/file"), "x").unwrap();
        symlink("../kept", dir.path().join("gone/link")).unwrap();
        let open = File::open(dir.path()).unwrap();
        remove(open.as_fd(), "gone").unwrap();
        remove(open.as_fd(), "gone").unwrap();
        assert!(!dir.path().join("gone").exists() && dir.path().join("kept/file").exists());
    }
}
