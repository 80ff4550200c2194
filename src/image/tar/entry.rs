//! One entry, assembled from its header and the extended headers in front of it.

use std::io::BufRead;

use super::header::{self, Dialect, Header};
use super::pax::Pax;
use super::sparse::{self, Failure};
use super::{DeviceNumber, Extensions, Reader, Refusal, SparseMap, TarError, TarPath, Time};

/// A file, directory, link or device of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it belongs.
    pub path: TarPath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-user-ID, set-group-ID and sticky (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Time of the last change.
    pub mtime: Time,
    /// Extended attributes in the order of the archive: full name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset of its header in the archive.
    pub at: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; the content follows.
    File {
        /// Size in bytes, holes included.
        size: u64,
        /// Where its stored bytes belong, if it has holes.
        map: Option<SparseMap>,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target, which nobody here follows.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    HardLink(TarPath),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// Makes the entry. Returns it with the number of stored bytes that follow.
pub(crate) fn assemble<R: BufRead>(
    reader: &mut Reader<R>,
    header: &Header,
    extensions: Extensions,
) -> Result<(Entry, u64), TarError> {
    let mut pax = extensions.pax.unwrap_or_default();
    pax.inherit(reader.global());
    let long_name = extensions.long_name;
    let raw = pax.sparse.name.clone().or_else(|| pax.path.clone()).or_else(|| long_name.clone());
    let raw = raw.unwrap_or_else(|| header.path());
    let refuse = |refusal: Refusal| refusal.of(&raw, header.at);
    if differ(&pax.path, &long_name) || differ(&pax.link_target, &extensions.long_link) {
        return Err(refuse(Refusal::TwoNames));
    }
    let target = pax.link_target.take().or(extensions.long_link).unwrap_or_else(|| header.link_target().to_vec());
    let made = parts(reader, header, &pax, (&raw, &target));
    let (path, kind, stored) = made.map_err(|failure| match failure {
        Failure::Tar(error) => error,
        Failure::Refusal(refusal) => refuse(refusal),
    })?;
    let mode = header.mode()?;
    let owner = |extended: Option<u64>, field| {
        let number = match extended {
            Some(number) => number,
            None => header.unsigned(field)?,
        };
        u32::try_from(number).ok().filter(|n| *n != u32::MAX).ok_or_else(|| refuse(Refusal::Owner(number)))
    };
    let mtime = match pax.mtime {
        Some(time) => time,
        None => Time::new(header.number(header::MTIME)?, 0).ok_or_else(|| refuse(Refusal::Time))?,
    };
    let entry = Entry {
        kind,
        mode,
        uid: owner(pax.uid, header::UID)?,
        gid: owner(pax.gid, header::GID)?,
        mtime,
        xattrs: pax.xattrs,
        at: header.at,
        path,
    };
    Ok((entry, stored))
}

fn differ(pax: &Option<Vec<u8>>, gnu: &Option<Vec<u8>>) -> bool {
    matches!((pax, gnu), (Some(pax), Some(gnu)) if pax != gnu)
}

/// Path, kind and stored bytes.
fn parts<R: BufRead>(
    reader: &mut Reader<R>,
    header: &Header,
    pax: &Pax,
    (raw, target): (&[u8], &[u8]),
) -> Result<(TarPath, EntryKind, u64), Failure> {
    // The one size that all steps use: PAX overrides the header (POSIX.1-2017 pax, "size").
    let stored = match pax.size {
        Some(size) => size,
        None => header.unsigned(header::SIZE)?,
    };
    let path = TarPath::parse(raw, reader.budget())?;
    let slash = raw.last() == Some(&b'/');
    let flag = header.typeflag();
    // Before POSIX a directory was a file whose name ends with a slash.
    let file = matches!(flag, b'0' | b'7' | b'S') || (flag == 0 && !slash);
    if path.is_root() && !matches!(flag, b'5' | 0) || path.is_root() && file {
        return Err(Refusal::Root.into());
    }
    if file {
        if slash {
            return Err(Refusal::TrailingSlash.into());
        }
        let (kind, stored) = regular(reader, header, pax, stored)?;
        return Ok((path, kind, stored));
    }
    let shown_flag = char::from(flag);
    let kind = match flag {
        b'5' | 0 => EntryKind::Directory,
        b'1' if target.is_empty() => return Err(Refusal::NoTarget.into()),
        b'1' => EntryKind::HardLink(TarPath::parse(target, reader.budget())?),
        b'2' => symlink(target, reader.budget().link_bytes)?,
        b'3' => EntryKind::CharDevice(device(header)?),
        b'4' => EntryKind::BlockDevice(device(header)?),
        b'6' => EntryKind::Fifo,
        _ => return Err(Refusal::Type(shown_flag).into()),
    };
    if stored != 0 {
        return Err(Refusal::Content(shown_flag, stored).into());
    }
    if pax.sparse.is_present() {
        return Err(Refusal::Sparse("only a file can be sparse").into());
    }
    Ok((path, kind, 0))
}

fn regular<R: BufRead>(
    reader: &mut Reader<R>,
    header: &Header,
    pax: &Pax,
    stored: u64,
) -> Result<(EntryKind, u64), Failure> {
    let old_gnu = header.typeflag() == b'S';
    let (map, stored) = match (old_gnu, pax.sparse.is_present()) {
        (false, false) => (None, stored),
        (true, false) if header.dialect() == Dialect::Gnu => (Some(sparse::old_gnu(reader, header, stored)?), stored),
        (false, true) => {
            let (map, stored) = sparse::pax(reader, &pax.sparse, stored)?;
            (Some(map), stored)
        }
        _ => return Err(Refusal::Sparse("old GNU type in another format").into()),
    };
    let size = map.as_ref().map_or(stored, |m| m.size);
    if size > reader.budget().file_bytes {
        return Err(Refusal::Exceeds("file_bytes", reader.budget().file_bytes).into());
    }
    Ok((EntryKind::File { size, map }, stored))
}

fn symlink(target: &[u8], limit: u64) -> Result<EntryKind, Refusal> {
    if target.is_empty() {
        return Err(Refusal::NoTarget);
    }
    if target.contains(&0) {
        return Err(Refusal::Nul);
    }
    if target.len() as u64 > limit {
        return Err(Refusal::Exceeds("link_bytes", limit));
    }
    Ok(EntryKind::Symlink(target.to_vec()))
}

fn device(header: &Header) -> Result<DeviceNumber, Failure> {
    let (major, minor) = match header.dialect() {
        Dialect::V7 => (0, 0),
        Dialect::Ustar | Dialect::Gnu => (header.unsigned(header::DEV_MAJOR)?, header.unsigned(header::DEV_MINOR)?),
    };
    DeviceNumber::new(major, minor).ok_or(Refusal::Device(major, minor).into())
}
