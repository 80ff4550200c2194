//! Folders of the host that commands write through to, mounted when the first command asks for them.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::mount::mount_bind;

use super::boot::HOST;

/// Trees that are the lab's own.
const OWN: [&str; 5] = ["/proc", "/sys", "/dev", "/run", HOST];

/// The folders that are live by now.
#[derive(Debug, Default)]
pub(super) struct Live {
    mounted: Mutex<Vec<PathBuf>>,
}

impl Live {
    /// Makes `path` live, if it can be: what is the lab's own or not on the host stays as it is.
    pub(super) fn ensure(&self, path: &Path) -> io::Result<()> {
        if !may_be_live(path) {
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

/// Neither the root nor a part of the lab's own trees, and plain: absolute, without `..`.
fn may_be_live(path: &Path) -> bool {
    let plain = path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    plain && path != Path::new("/") && path != Path::new("/tmp") && !OWN.iter().any(|own| path.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_own_trees_stay_its_own() {
        for own in ["/", "/tmp", "/run/duplex", "/proc", "/dev/shm", "relative", "/a/../b", "/host/x"] {
            assert!(!may_be_live(Path::new(own)), "{own}");
        }
        for live in ["/tmp/x", "/root", "/var/lib/duplex", "/runner", "/devel"] {
            assert!(may_be_live(Path::new(live)), "{live}");
        }
    }
}
