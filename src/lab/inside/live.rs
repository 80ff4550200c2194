//! Folders of the host that commands write through to, mounted when the first command asks for them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::mount::mount_bind;

use super::boot::HOST;

/// Trees that are the lab's own.
const OWN: [&str; 5] = ["/proc", "/sys", "/dev", "/run", HOST];

/// Places of the host whose time stamps change when programs are installed there.
const INSTALLED: [&str; 5] = ["var/lib/dpkg/status", "etc", "usr/bin", "usr/sbin", "usr/local/bin"];

/// Files of this size and more are worth holding, and so many of them at most.
const HELD_FROM: u64 = 64 << 10;
const MOST_HELD: usize = 64;

/// The folders that are live by now, and how the host's programs stood when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Live {
    mounted: Mutex<Vec<PathBuf>>,
    held: Mutex<Vec<File>>,
    stamps: Mutex<Option<Vec<Option<SystemTime>>>>,
}

impl Live {
    /// What the lab's root remembers of the host's is kept for a day; when programs were installed there since the last command, it is dropped.
    pub(super) fn drop_stale(&self) {
        let stamp = |path: &str| fs::metadata(Path::new(HOST).join(path)).and_then(|m| m.modified()).ok();
        let now: Vec<_> = INSTALLED.map(stamp).into();
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let before = stamps.replace(now.clone());
        if before.is_some_and(|before| before != now) {
            // proc(5), drop_caches: 2 is names and inodes, and with an inode goes what is cached of its file.
            let _ = fs::write("/proc/sys/vm/drop_caches", "2");
        }
    }

    /// Holds open the files that lie directly in these folders (programs, kernel): what a live file system has read of a file it forgets with the
    /// last descriptor, and each start of a microVM would wait for a second for the same bytes. Replaces those held before.
    pub(super) fn hold(&self, folders: &[PathBuf]) {
        let new: Vec<File> = folders.iter().flat_map(|folder| large_files(folder)).take(MOST_HELD).collect();
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Makes `path` live, if it can be: what is the lab's own or not on the host stays as it is.
    pub(super) fn ensure(&self, path: &Path) -> io::Result<()> {
        if !shares(path) {
            return Ok(());
        }
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if mounted.iter().any(|m| path.starts_with(m)) {
            return Ok(());
        }
        let source = Path::new(HOST).join(path.strip_prefix("/").unwrap_or(path));
        if !source.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(path)?;
        mount_bind(&source, path)?;
        mounted.push(path.to_owned());
        Ok(())
    }
}

/// The regular files of a folder from [`HELD_FROM`] on. One that cannot be opened is left out.
fn large_files(folder: &Path) -> impl Iterator<Item = File> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let large = entries.filter(|entry| entry.metadata().is_ok_and(|m| m.is_file() && m.len() >= HELD_FROM));
    // Should it be something else by now, opening must not wait for it.
    let open = |path| OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path);
    large.filter_map(move |entry| open(entry.path()).ok())
}

/// Whether commands in the lab can have this folder of the host: neither the root nor a part of the lab's own trees, and plain: absolute,
/// without `..`.
pub fn shares(path: &Path) -> bool {
    let plain = path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    plain && path != Path::new("/") && path != Path::new("/tmp") && !OWN.iter().any(|own| path.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_regular_files_are_held_until_the_next_command() {
        let folder = tempfile::tempdir().unwrap();
        for (name, size) in [("kernel", HELD_FROM), ("monitor", HELD_FROM + 1), ("note", HELD_FROM - 1)] {
            File::create(folder.path().join(name)).unwrap().set_len(size).unwrap();
        }
        fs::create_dir(folder.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("kernel", folder.path().join("link")).unwrap();
        let live = Live::default();
        live.hold(&[folder.path().to_owned(), "/nowhere".into()]);
        assert_eq!(live.held.lock().unwrap().len(), 2);
        live.hold(&[]);
        assert!(live.held.lock().unwrap().is_empty());
    }

    #[test]
    fn the_labs_own_trees_stay_its_own() {
        for own in ["/", "/tmp", "/run/duplex", "/proc", "/dev/shm", "relative", "/a/../b", "/host/x"] {
            assert!(!shares(Path::new(own)), "{own}");
        }
        for live in ["/tmp/x", "/root", "/var/lib/duplex", "/runner", "/devel"] {
            assert!(shares(Path::new(live)), "{live}");
        }
    }
}
