//! Places in an image, made where they are missing. Every path is resolved below the root (openat2(2), RESOLVE_IN_ROOT), whatever symbolic
//! links the image brings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Doing, VolumeError};

fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let open = || rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
    // EAGAIN: something was renamed while a `..` was resolved.
    let settled = |r: &Result<OwnedFd, Errno>| !matches!(r, Err(Errno::AGAIN));
    std::iter::repeat_with(open).take(16).find(settled).unwrap_or(Err(Errno::AGAIN))
}

/// The folder of this path below the root, open for reading; it and those above it are made where they are missing, owned by root.
///
/// # Errors
/// If something on the way is no folder, or what the kernel says.
pub fn folder_in(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, VolumeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open = |at: &Path| format!("open {} in the image", at.display());
    let mut so_far = PathBuf::from("/");
    let mut folder = resolve(root, &so_far, flags).doing(|| open(&so_far))?;
    for part in path.components() {
        let Component::Normal(part) = part else { continue };
        so_far.push(part);
        match resolve(root, &so_far, flags) {
            Err(Errno::NOENT) => {
                let made = rustix::fs::mkdirat(&folder, part, Mode::from(0o755));
                made.doing(|| format!("make {} in the image", so_far.display()))?;
                folder = resolve(root, &so_far, flags).doing(|| open(&so_far))?;
            }
            other => folder = other.doing(|| open(&so_far))?,
        }
    }
    Ok(folder)
}

/// The same for a file: what is there, no folder, or a new empty one.
///
/// # Errors
/// As [`folder_in`]; `EISDIR` if it is a folder.
pub fn file_in(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, VolumeError> {
    let doing = || format!("make the file {} in the image", path.display());
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::ISDIR).doing(doing) };
    let found = match resolve(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {
            let folder = folder_in(root, above)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&folder, name, flags, Mode::from(0o644)).doing(doing)?;
            resolve(root, path, OFlags::PATH).doing(doing)?
        }
        other => other.doing(doing)?,
    };
    let stat = rustix::fs::fstat(found.as_fd()).doing(doing)?;
    let is_folder = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    if is_folder { Err(Errno::ISDIR).doing(doing) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_do_not_lead_out_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(dir.path().join("host")).unwrap();
        symlink("../host", root.join("up")).unwrap();
        symlink("etc", root.join("inside")).unwrap();
        let open = std::fs::File::open(&root).unwrap();
        folder_in(open.as_fd(), Path::new("/inside/a/b")).unwrap();
        assert!(root.join("etc/a/b").is_dir());
        assert!(folder_in(open.as_fd(), Path::new("/up/a")).is_err(), "a dangling link is no folder");
        file_in(open.as_fd(), Path::new("/new/file")).unwrap();
        assert!(root.join("new/file").is_file());
        assert!(file_in(open.as_fd(), Path::new("/new")).is_err());
        assert!(folder_in(open.as_fd(), Path::new("/new/file")).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("host")).unwrap().count(), 0);
    }
}
