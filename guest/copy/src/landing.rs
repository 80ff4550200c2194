//! A stream becomes a tree of files, where Docker's rules for `cp` want it.
//!
//! | destination | a folder comes | something else comes |
//! |---|---|---|
//! | a folder | becomes one of it, or with `/.` what is in it does | becomes one of it |
//! | something else | refused | is replaced; a mount point gets the content |
//! | nothing yet | is made under this name | is made under this name, unless it ends with a slash |

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use duplex_wire::Wanted;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, fchmod, fchown, futimens,
    linkat, mkdirat, mknodat, openat, openat2, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::base::{Found, Settled, kind_of, look, parent};
use crate::{Base, CopyError, Entries, Entry, Kind, names, shown};

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// To whom new files belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// To this process's user, without set-user-ID and set-group-ID.
    Own,
    /// To the owner in the stream, with all permission bits.
    Kept,
}

/// Where a stream's entries go.
#[derive(Debug)]
pub struct Landing {
    root: OwnedFd,
    /// What stands in for the first name of each path; nothing keeps the paths as they are.
    name: Option<Vec<u8>>,
    /// The first name of each path, where it is replaced.
    first: Vec<u8>,
    owner: Owner,
    /// Mode and time of folders, set when all is in them.
    folders: Vec<(Vec<u8>, Entry)>,
    /// The folder that was used last.
    near: Option<(Vec<u8>, OwnedFd)>,
    written: u64,
}

impl Landing {
    /// Takes a stream in at a path, to its end. Returns the bytes of its files' contents.
    ///
    /// # Errors
    /// Why not, or why not all of it: what came before that is there.
    pub fn receive(
        base: &Base,
        path: &[u8],
        wanted: &Wanted,
        owner: Owner,
        from: &mut impl Entries,
    ) -> Result<u64, CopyError> {
        let first = from.next_entry().map_err(CopyError::Receive)?;
        let Some(first) = first else {
            // An archive may be empty, a file or folder is never.
            return if *wanted == Wanted::Anything {
                Self::find(base, path, wanted, true).map(|_| 0)
            } else {
                Err(CopyError::Nothing)
            };
        };
        let (root, name) = Self::find(base, path, wanted, first.kind == Kind::Folder)?;
        let top = names(&first.path).next().unwrap_or_default().to_vec();
        let mut landing = Self { root, name, first: top, owner, folders: Vec::new(), near: None, written: 0 };
        let mut next = Some(first);
        while let Some(entry) = next {
            landing.take(entry, from)?;
            next = from.next_entry().map_err(CopyError::Receive)?;
        }
        landing.finish_folders()?;
        Ok(landing.written)
    }

    /// The folder in which things are made, and the name of the first where it gets one.
    fn find(base: &Base, path: &[u8], wanted: &Wanted, folder: bool) -> Result<(OwnedFd, Option<Vec<u8>>), CopyError> {
        let slash = matches!(path.rsplit(|b| *b == b'/').next(), Some(b"" | b"."));
        let settled = base.settle(path).map_err(|errno| match errno {
            Errno::LOOP => CopyError::Links(shown(path)),
            Errno::NOTDIR => CopyError::NotFolder(shown(path)),
            other => CopyError::of("find", path)(other),
        })?;
        let reopen = |path: &[u8]| {
            base.open(path, FOLDER).map_err(|errno| match errno {
                Errno::NOENT => CopyError::NoFolder(shown(path)),
                Errno::NOTDIR => CopyError::NotFolder(shown(path)),
                other => CopyError::of("open", path)(other),
            })
        };
        match settled {
            Settled { found: Found::Here(handle, stat), .. } if kind_of(&stat) == FileType::Directory => {
                let name = match wanted {
                    Wanted::Named(name) => Some(name.clone()),
                    Wanted::Contents | Wanted::Anything => None,
                };
                Ok((handle, name))
            }
            Settled { found: Found::Here(..), .. } if slash || *wanted == Wanted::Anything => {
                Err(CopyError::NotFolder(shown(path)))
            }
            Settled { found: Found::Here(..), .. } if folder => Err(CopyError::FolderOnFile(shown(path))),
            Settled { found: Found::Nothing, .. } if *wanted == Wanted::Anything || (slash && !folder) => {
                Err(CopyError::NoFolder(shown(path)))
            }
            Settled { path, .. } => {
                let name = names(&path).next_back().filter(|name| *name != b"..");
                let name = name.ok_or_else(|| CopyError::NoFolder(shown(&path)))?.to_vec();
                Ok((reopen(above(&path))?, Some(name)))
            }
        }
    }

    fn take(&mut self, entry: Entry, content: &mut impl Read) -> Result<(), CopyError> {
        let path = self.place(&entry.path)?;
        if path.is_empty() {
            // The destination itself, which is there: it stays what it is.
            return if entry.kind == Kind::Folder { Ok(()) } else { Err(CopyError::Unasked(shown(&entry.path))) };
        }
        let cut = path.iter().rposition(|b| *b == b'/');
        let (folder, name) = match cut {
            Some(cut) => (path.get(..cut).unwrap_or_default(), path.get(cut.saturating_add(1)..).unwrap_or_default()),
            None => (&b""[..], path.as_slice()),
        };
        self.go_to(folder)?;
        let Some((_, parent)) = &self.near else { return Err(CopyError::NoFolder(shown(folder))) };
        let parent = parent.as_fd();
        let there = look(parent, name).map_err(CopyError::of("look at", &path))?;
        let mounted = !clear(parent, name, there.as_ref(), &entry, &path)?;
        if mounted && !matches!(entry.kind, Kind::File(_)) {
            return Err(CopyError::Mounted(shown(&path)));
        }
        match &entry.kind {
            Kind::Folder => {
                if there.is_none() {
                    mkdirat(parent, name, Mode::from(0o700)).map_err(CopyError::of("make", &path))?;
                }
                self.folders.push((path, entry));
                return Ok(());
            }
            Kind::File(size) => {
                if mounted {
                    // What is mounted there stays what it is, and whose it is.
                    in_place(parent, name, &path, (*size, content))?;
                    self.written = self.written.saturating_add(*size);
                    return Ok(());
                }
                let made = file(parent, name, &path, (*size, content))?;
                self.written = self.written.saturating_add(*size);
                // The very file that was made, whatever has its name by now.
                return dress_open(&made, &entry, self.owner).map_err(CopyError::of("set owner and mode of", &path));
            }
            Kind::Link(target) => {
                symlinkat(target.as_slice(), parent, name).map_err(CopyError::of("make", &path))?;
            }
            Kind::Again(target) => {
                let target = self.place(target)?;
                return self.link(&target, parent, name, &path);
            }
            Kind::Pipe => {
                mknodat(parent, name, FileType::Fifo, Mode::from(0o600), 0).map_err(CopyError::of("make", &path))?;
            }
        }
        dress(parent, name, &entry, self.owner).map_err(CopyError::of("set owner and mode of", &path))
    }

    /// Where an entry belongs below the root.
    fn place(&self, path: &[u8]) -> Result<Vec<u8>, CopyError> {
        let bad = || CopyError::Unasked(shown(path));
        let mut parts: Vec<&[u8]> = names(path).collect();
        if parts.contains(&&b".."[..]) {
            return Err(bad());
        }
        if let Some(name) = &self.name {
            match (parts.first_mut(), self.first.is_empty()) {
                // `/.` in a place of its own: all is below the new name.
                (_, true) => parts.insert(0, name),
                (Some(first), false) if *first == self.first => *first = name,
                _ => return Err(bad()),
            }
        }
        Ok(parts.join(&b'/'))
    }

    /// Opens a folder below the root, and makes those of its path that are not there. No link is followed.
    fn go_to(&mut self, path: &[u8]) -> Result<(), CopyError> {
        if self.near.as_ref().is_some_and(|(near, _)| near == path) {
            return Ok(());
        }
        let folder = self.beneath(path);
        let folder = match folder {
            Err(Errno::NOENT) => {
                let mut done = Vec::new();
                for name in names(path) {
                    let parent = self.beneath(&done).map_err(CopyError::of("open", &done))?;
                    match mkdirat(&parent, name, Mode::from(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(other) => return Err(CopyError::of("make", path)(other)),
                    }
                    if !done.is_empty() {
                        done.push(b'/');
                    }
                    done.extend_from_slice(name);
                }
                self.beneath(path)
            }
            other => other,
        };
        let folder = folder.map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => CopyError::NotFolder(shown(path)),
            other => CopyError::of("open", path)(other),
        })?;
        self.near = Some((path.to_vec(), folder));
        Ok(())
    }

    fn beneath(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = || openat2(&self.root, path, FOLDER, Mode::empty(), resolve);
        let settled = |r: &Result<OwnedFd, Errno>| !matches!(r, Err(Errno::AGAIN));
        std::iter::repeat_with(open).take(64).find(settled).unwrap_or(Err(Errno::AGAIN))
    }

    /// Another name of a file that is there.
    fn link(&self, target: &[u8], parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), CopyError> {
        let folder = above(target);
        let folder = self.beneath(folder).map_err(CopyError::of("open", folder))?;
        let last = names(target).next_back().unwrap_or_default();
        let there = look(folder.as_fd(), last).map_err(CopyError::of("look at", target))?;
        if !there.is_some_and(|stat| kind_of(&stat) == FileType::RegularFile) {
            return Err(CopyError::Unasked(shown(target)));
        }
        linkat(&folder, last, parent, name, AtFlags::empty()).map_err(CopyError::of("make", path))
    }

    /// The deepest first: a folder may close itself.
    fn finish_folders(&mut self) -> Result<(), CopyError> {
        for (path, entry) in std::mem::take(&mut self.folders).into_iter().rev() {
            let folder = self.beneath(above(&path)).map_err(CopyError::of("open", &path))?;
            let name = names(&path).next_back().unwrap_or_default();
            dress(folder.as_fd(), name, &entry, self.owner).map_err(CopyError::of("set owner and mode of", &path))?;
        }
        Ok(())
    }
}

/// The folder of a path; the working folder where it has none.
fn above(path: &[u8]) -> &[u8] {
    match parent(path) {
        b"" => b".",
        parent => parent,
    }
}

/// Takes away what is in the way, as Docker does: never a folder, and nothing for one. False if it stays, being a mount point.
fn clear(
    parent: BorrowedFd<'_>,
    name: &[u8],
    there: Option<&Stat>,
    entry: &Entry,
    path: &[u8],
) -> Result<bool, CopyError> {
    let Some(stat) = there else { return Ok(true) };
    match (kind_of(stat) == FileType::Directory, entry.kind == Kind::Folder) {
        (true, true) => Ok(true),
        (true, false) => Err(CopyError::FileOnFolder(shown(path))),
        (false, true) => Err(CopyError::FolderOnFile(shown(path))),
        (false, false) => match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(other) => Err(CopyError::of("replace", path)(other)),
        },
    }
}

/// Makes a file with its content; one whose content does not come is taken away again.
fn file(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    (size, content): (u64, &mut impl Read),
) -> Result<File, CopyError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::from(0o600)).map_err(CopyError::of("make", path))?;
    let mut made = File::from(made);
    match fill(&mut made, path, (size, content)) {
        Ok(()) => Ok(made),
        Err(failed) => {
            let _ = unlinkat(parent, name, AtFlags::empty());
            Err(failed)
        }
    }
}

/// Gives a file that is there this content in place of its own.
fn in_place(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    (size, content): (u64, &mut impl Read),
) -> Result<(), CopyError> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let there = openat(parent, name, flags, Mode::empty()).map_err(CopyError::of("write", path))?;
    let stat = rustix::fs::fstat(&there).map_err(CopyError::of("look at", path))?;
    if kind_of(&stat) != FileType::RegularFile {
        return Err(CopyError::Special(shown(path)));
    }
    rustix::fs::ftruncate(&there, 0).map_err(CopyError::of("write", path))?;
    fill(&mut File::from(there), path, (size, content))
}

fn fill(file: &mut File, path: &[u8], (size, content): (u64, &mut impl Read)) -> Result<(), CopyError> {
    match std::io::copy(&mut content.take(size), file) {
        Ok(copied) if copied == size => Ok(()),
        Ok(_) => Err(CopyError::Receive(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())),
        Err(source) => Err(CopyError::File { operation: "write", path: shown(path), source }),
    }
}

/// Owner, mode and time, in this order: a new owner clears set-user-ID.
fn dress(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry, owner: Owner) -> Result<(), Errno> {
    if matches!(entry.kind, Kind::Link(_)) {
        let time = Timespec { tv_sec: entry.modified_s, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let (user, group) = (Uid::from_raw(entry.owner.0), Gid::from_raw(entry.owner.1));
        if owner == Owner::Kept {
            rustix::fs::chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        return utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW);
    }
    // The one that was just made: a pipe is not waited for, a link that took its place is not followed.
    let access = if entry.kind == Kind::Folder { OFlags::DIRECTORY } else { OFlags::NONBLOCK };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | access;
    dress_open(&openat(parent, name, flags, Mode::empty())?, entry, owner)
}

fn dress_open(made: &impl AsFd, entry: &Entry, owner: Owner) -> Result<(), Errno> {
    let time = Timespec { tv_sec: entry.modified_s, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let set = match (owner, &entry.kind) {
        (Owner::Kept, _) => 0o7777,
        (Owner::Own, Kind::Folder) => 0o1777,
        (Owner::Own, _) => 0o777,
    };
    if owner == Owner::Kept {
        let (user, group) = (Uid::from_raw(entry.owner.0), Gid::from_raw(entry.owner.1));
        fchown(made, Some(user), Some(group))?;
    }
    fchmod(made, Mode::from_raw_mode(entry.mode & set))?;
    futimens(made, &times)
}

#[cfg(test)]
mod tests;
