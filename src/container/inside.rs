//! The image's root as its own programs see it: every path is resolved below the root (openat2(2), RESOLVE_IN_ROOT), whatever symbolic
//! links the image brings.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The root of an image, mounted on the host.
#[derive(Debug)]
pub(super) struct Inside {
    root: OwnedFd,
}

/// Why something inside the image cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {operation} {path} in the image")]
pub(super) struct InsideError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Inside {
    pub(super) fn open(root: &Path) -> Result<Self, InsideError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(failed("open", root))?;
        Ok(Self { root })
    }

    /// The root itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn resolve(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let open = || rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::IN_ROOT);
        // EAGAIN: something was renamed while a `..` was resolved.
        let settled = |r: &Result<OwnedFd, Errno>| !matches!(r, Err(Errno::AGAIN));
        std::iter::repeat_with(open).take(16).find(settled).unwrap_or(Err(Errno::AGAIN))
    }

    /// Content of a regular file, `None` if there is none. At most `limit` bytes and one more are read.
    pub(super) fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, InsideError> {
        let path = Path::new(path);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match self.resolve(path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.map_err(failed("open", path))?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(failed("read", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let read = File::from(fd).take(most).read_to_end(&mut bytes);
        read.map_err(|source| InsideError { operation: "read", path: path.to_owned(), source })?;
        Ok(Some(bytes))
    }

    /// A file of the image that is to be executed.
    pub(super) fn program(&self, path: &Path) -> Result<OwnedFd, InsideError> {
        self.resolve(path, OFlags::PATH, Mode::empty()).map_err(failed("open", path))
    }

    /// Makes a folder and those above it where they are missing, owned by root.
    pub(super) fn make_folders(&self, path: &Path) -> Result<OwnedFd, InsideError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut so_far = PathBuf::from("/");
        let mut folder = self.resolve(&so_far, flags, Mode::empty()).map_err(failed("open", &so_far))?;
        for part in tidy(path).iter().skip(1) {
            so_far.push(part);
            match self.resolve(&so_far, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, part, Mode::from(0o755)).map_err(failed("make", &so_far))?;
                    folder = self.resolve(&so_far, flags, Mode::empty()).map_err(failed("open", &so_far))?;
                }
                other => folder = other.map_err(failed("open", &so_far))?,
            }
        }
        Ok(folder)
    }

    /// Makes sure that `/name` is a folder and no symbolic link, so that nobody who mounts there can be led elsewhere.
    pub(super) fn make_plain_folder(&self, name: &str) -> Result<(), InsideError> {
        let path = Path::new("/").join(name);
        match rustix::fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
            Ok(_) => rustix::fs::unlinkat(&self.root, name, AtFlags::empty()).map_err(failed("replace", &path))?,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(failed("look at", &path)(e)),
        }
        rustix::fs::mkdirat(&self.root, name, Mode::from(0o755)).map_err(failed("make", &path))
    }

    /// Puts a file with this content in place of whatever has the name, a folder excepted: that one stays.
    pub(super) fn replace_file(&self, folder: &str, name: &str, content: &str) -> Result<(), InsideError> {
        let path = Path::new(folder).join(name);
        let home = self.make_folders(Path::new(folder))?;
        match rustix::fs::unlinkat(&home, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => return Ok(()),
            Err(e) => return Err(failed("replace", &path)(e)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&home, name, flags, Mode::from(0o644)).map_err(failed("make", &path))?;
        let written = File::from(fd).write_all(content.as_bytes());
        written.map_err(|source| InsideError { operation: "write", path, source })
    }
}

/// An absolute path without `.` and `..`, as `path.Clean` makes it.
pub(super) fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => tidy.push(part),
            Component::ParentDir => drop(tidy.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    tidy
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> InsideError + use<> {
    let path = path.to_owned();
    move |errno| InsideError { operation, path, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn image() -> (tempfile::TempDir, Inside) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(dir.path().join("host")).unwrap();
        std::fs::write(dir.path().join("host/secret"), "host").unwrap();
        let inside = Inside::open(&root).unwrap();
        (dir, inside)
    }

    #[test]
    fn links_do_not_lead_out() {
        let (dir, inside) = image();
        let root = dir.path().join("root");
        symlink("../../host", root.join("up")).unwrap();
        symlink(dir.path().join("host/secret"), root.join("etc/passwd")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        assert_eq!(inside.read("/etc/passwd", 10).unwrap(), None);
        assert_eq!(inside.read("/up/secret", 10).unwrap(), None);
        inside.make_folders(Path::new("/../../../made/here")).unwrap();
        assert!(root.join("made/here").is_dir());
        assert!(inside.make_folders(Path::new("/up/x")).is_err(), "a dangling link is no folder");
        assert!(inside.make_folders(Path::new("/magic/x")).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("host")).unwrap().count(), 1);
    }

    #[test]
    fn files_replace_links_and_not_what_they_point_to() {
        let (dir, inside) = image();
        let root = dir.path().join("root");
        symlink(dir.path().join("host/secret"), root.join("etc/hosts")).unwrap();
        inside.replace_file("/etc", "hosts", "new").unwrap();
        assert_eq!(std::fs::read_to_string(root.join("etc/hosts")).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(dir.path().join("host/secret")).unwrap(), "host");
        symlink("/etc", root.join("dev")).unwrap();
        inside.make_plain_folder("dev").unwrap();
        assert!(root.join("dev").symlink_metadata().unwrap().is_dir());
        std::fs::create_dir(root.join("etc/resolv.conf")).unwrap();
        inside.replace_file("/etc", "resolv.conf", "x").unwrap();
    }

    #[test]
    fn only_regular_files_are_read_and_with_a_limit() {
        let (dir, inside) = image();
        let root = dir.path().join("root");
        rustix::fs::mkfifoat(CWD, root.join("etc/passwd"), Mode::from(0o644)).unwrap();
        assert_eq!(inside.read("/etc/passwd", 10).unwrap(), None);
        std::fs::write(root.join("etc/group"), "0123456789").unwrap();
        assert_eq!(inside.read("/etc/group", 4).unwrap().unwrap().len(), 5, "the reader sees that it is too long");
    }

    #[test]
    fn paths_are_tidied_as_docker_does() {
        for (path, expected) in [("", "/"), ("a/./b", "/a/b"), ("/a/../../b", "/b"), ("/..", "/")] {
            assert_eq!(tidy(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
