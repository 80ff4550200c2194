//! Where paths begin: this process's own root, or a root that nothing leads out of.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Most symbolic links on the way to a destination, as in the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// What paths are relative to.
#[derive(Debug)]
pub struct Base(Option<OwnedFd>);

/// Where a path leads.
#[derive(Debug)]
pub(crate) enum Found {
    /// To something.
    Here(OwnedFd, Stat),
    /// To nothing yet.
    Nothing,
}

/// A path with the symbolic links at its end followed by hand.
#[derive(Debug)]
pub(crate) struct Settled {
    /// The path that does not end with a link.
    pub(crate) path: Vec<u8>,
    pub(crate) found: Found,
}

impl Base {
    /// This process's own root and working folder; links lead where they lead.
    pub fn own() -> Self {
        Self(None)
    }

    /// Nothing leads out of this folder.
    pub fn within(root: OwnedFd) -> Self {
        Self(Some(root))
    }

    /// Opens a path.
    pub(crate) fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC;
        let Some(root) = &self.0 else { return rustix::fs::openat(CWD, path, flags, Mode::empty()) };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
        // EAGAIN: something was renamed while a `..` was resolved.
        let settled = |r: &Result<OwnedFd, Errno>| !matches!(r, Err(Errno::AGAIN));
        std::iter::repeat_with(open).take(64).find(settled).unwrap_or(Err(Errno::AGAIN))
    }

    /// A handle of what the path names, and of a link itself where it ends with one.
    pub(crate) fn handle(&self, path: &[u8], follow: bool) -> Result<(OwnedFd, Stat), Errno> {
        let link = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let handle = self.open(path, OFlags::PATH | link)?;
        let stat = rustix::fs::fstat(&handle)?;
        Ok((handle, stat))
    }

    /// Follows the links at the end of a path, also to where nothing is yet.
    pub(crate) fn settle(&self, path: &[u8]) -> Result<Settled, Errno> {
        let mut path = path.to_vec();
        for _ in 0..MOST_LINKS {
            let (handle, stat) = match self.handle(&path, false) {
                Ok(found) => found,
                Err(Errno::NOENT) => return Ok(Settled { path, found: Found::Nothing }),
                Err(other) => return Err(other),
            };
            if kind_of(&stat) != FileType::Symlink {
                return Ok(Settled { path, found: Found::Here(handle, stat) });
            }
            let target = rustix::fs::readlinkat(&handle, c"", Vec::new())?.into_bytes();
            path = if target.first() == Some(&b'/') { target } else { [parent(&path), &target].concat() };
        }
        Err(Errno::LOOP)
    }
}

/// What is in front of a path's last name, with the slash.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last.saturating_add(1));
    let trimmed = path.get(..end).unwrap_or_default();
    let slash = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash.saturating_add(1));
    path.get(..slash).unwrap_or_default()
}

/// The kind of a file.
pub(crate) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What a name in a folder is, links not followed; `None` if it is nothing.
pub(crate) fn look(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(folder.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_keep_their_slash() {
        for (path, expected) in [("a/b", "a/"), ("/a", "/"), ("a", ""), ("/a/b/", "/a/"), ("/", ""), ("a//b", "a//")] {
            assert_eq!(parent(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }
}
