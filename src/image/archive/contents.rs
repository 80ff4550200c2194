//! The entries of an archive or layout by name, each readable at any time and from several threads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{ArchiveError, compression_of};
use crate::image::decompress::{DecompressError, Decompressor};
use crate::image::ingest::{IngestError, SourceError, is_full};
use crate::image::layer::{Budget, Deadline};
use crate::image::store::StoreError;
use crate::image::tar::{EntryKind, Reader, TarError, TarPath};

/// Most entries of an archive: blobs and documents of its images.
const MAX_ENTRIES: usize = 20_000;

/// A readable archive.
#[derive(Debug)]
pub(super) struct Contents {
    shown: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Tar { file: File, entries: BTreeMap<String, Slot> },
}

/// Where an entry of a tar is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    File {
        offset: u64,
        len: u64,
    },
    /// A symbolic or hard link to another entry, by that entry's name.
    Link(String),
    Other,
}

impl Contents {
    pub(super) fn folder(path: &Path) -> Self {
        Self { shown: path.display().to_string(), place: Place::Folder(path.to_owned()) }
    }

    /// A plain tar file, read once to find its entries.
    pub(super) fn tar(shown: &str, file: File, budget: &Budget) -> Result<Self, IngestError> {
        let entries = index(shown, BufReader::with_capacity(256 << 10, &file), None, budget)?;
        Ok(Self { shown: shown.to_owned(), place: Place::Tar { file, entries } })
    }

    /// A stream, unpacked into a file of the scratch folder while its entries are found.
    pub(super) fn spool(
        shown: &str,
        stream: &mut dyn Read,
        scratch: &Path,
        budget: &Budget,
    ) -> Result<Self, IngestError> {
        let path = scratch.join("archive");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(StoreError::io("create", &path))?;
        let mut magic = [0; 4];
        let count = read_up_to(stream, &mut magic)
            .map_err(|source| SourceError::from(ArchiveError::Open { archive: shown.to_owned(), source }))?;
        let late = Cell::new(false);
        let deadline = Deadline::new(budget);
        let mut whole = Timed { inner: (&magic[..count]).chain(stream), deadline, late: &late };
        let unpack = |source| SourceError::from(ArchiveError::Decompress { archive: shown.to_owned(), source });
        let source = Decompressor::new(&mut whole, compression_of(&magic[..count]), budget).map_err(unpack)?;
        let spool = Spool { source, file: &file };
        let entries = index(shown, BufReader::with_capacity(256 << 10, spool), Some(&path), budget);
        let entries = entries.map_err(|error| {
            let time = || SourceError::Time { what: shown.to_owned(), limit: deadline.limit };
            if late.get() { time().into() } else { error }
        })?;
        Ok(Self { shown: shown.to_owned(), place: Place::Tar { file, entries } })
    }

    /// For messages.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn has(&self, entry: &str) -> Result<bool, SourceError> {
        match self.open(entry) {
            Ok(_) => Ok(true),
            Err(ArchiveError::Missing { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// A reader of an entry, and its length in bytes. `entry` is one of the names that layouts are made of; in a folder it is looked up without
    /// following a link at its end.
    pub(super) fn open(&self, entry: &str) -> Result<(Box<dyn Read + '_>, u64), ArchiveError> {
        match &self.place {
            Place::Folder(folder) => {
                let file = self.open_in(folder, entry)?;
                let metadata = file.metadata().map_err(|source| self.cannot_read(entry, source))?;
                if !metadata.is_file() {
                    return Err(self.not_a_file(entry));
                }
                Ok((Box::new(file), metadata.len()))
            }
            Place::Tar { file, entries } => {
                let missing = || ArchiveError::Missing { archive: self.shown.clone(), entry: entry.to_owned() };
                let slot = match entries.get(entry).ok_or_else(missing)? {
                    Slot::Link(target) => entries.get(target),
                    slot => Some(slot),
                };
                let Some(Slot::File { offset, len }) = slot else { return Err(self.not_a_file(entry)) };
                Ok((Box::new(Piece { file, at: *offset, left: *len }), *len))
            }
        }
    }

    fn open_in(&self, folder: &Path, entry: &str) -> Result<File, ArchiveError> {
        let plain = entry.split('/').all(|c| !matches!(c, "" | "." | "..")) && !entry.contains('\0');
        if !plain {
            return Err(self.not_a_file(entry));
        }
        let mut options = OpenOptions::new();
        // A pipe in the layout must not make us wait.
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
        options.open(folder.join(entry)).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT) => ArchiveError::Missing { archive: self.shown.clone(), entry: entry.to_owned() },
            Some(libc::ELOOP) => self.not_a_file(entry),
            _ => self.cannot_read(entry, source),
        })
    }

    /// A document of limited length.
    pub(super) fn document(&self, entry: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let (reader, size) = self.open(entry)?;
        if size > limit {
            let (archive, entry) = (self.shown.clone(), entry.to_owned());
            return Err(ArchiveError::TooLong { archive, entry, size, limit });
        }
        let mut bytes = Vec::new();
        reader.take(limit).read_to_end(&mut bytes).map_err(|source| self.cannot_read(entry, source))?;
        Ok(bytes)
    }

    pub(super) fn cannot_read(&self, entry: &str, source: io::Error) -> ArchiveError {
        ArchiveError::Read { archive: self.shown.clone(), entry: entry.to_owned(), source }
    }

    fn not_a_file(&self, entry: &str) -> ArchiveError {
        ArchiveError::NotAFile { archive: self.shown.clone(), entry: entry.to_owned() }
    }
}

/// Reads a whole tar and notes where its entries are. `spool` is where it goes meanwhile, for messages.
fn index(
    shown: &str,
    input: BufReader<impl Read>,
    spool: Option<&Path>,
    budget: &Budget,
) -> Result<BTreeMap<String, Slot>, IngestError> {
    let refused = |source: TarError| -> IngestError {
        match spool.filter(|_| is_full(&source)) {
            Some(path) => StoreError::io("write", path)(io::ErrorKind::StorageFull.into()).into(),
            None => SourceError::from(ArchiveError::Tar { archive: shown.to_owned(), source }).into(),
        }
    };
    let mut reader = Reader::new(input, budget);
    let mut entries = BTreeMap::new();
    while let Some(entry) = reader.next().map_err(refused)? {
        let Ok(name) = String::from_utf8(entry.path.as_bytes().to_vec()) else { continue };
        let slot = match entry.kind {
            EntryKind::Directory => continue,
            EntryKind::File { size, map: None } => Slot::File { offset: reader.position(), len: size },
            EntryKind::HardLink(target) => Slot::Link(target.display()),
            EntryKind::Symlink(target) => link_target(&entry.path, &target).map_or(Slot::Other, Slot::Link),
            _ => Slot::Other,
        };
        if entries.insert(name.clone(), slot).is_some() {
            return Err(SourceError::from(ArchiveError::Twice { archive: shown.to_owned(), entry: name }).into());
        }
        if entries.len() > MAX_ENTRIES {
            let archive = shown.to_owned();
            return Err(SourceError::from(ArchiveError::Entries { archive, limit: MAX_ENTRIES }).into());
        }
    }
    reader.finish().map_err(refused)?;
    Ok(entries)
}

/// The entry that a relative symbolic link names: old versions of Docker save a layer once and link to it from where it comes again.
fn link_target(link: &TarPath, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok().filter(|t| !t.starts_with('/'))?;
    let folder = std::str::from_utf8(link.split_last()?.0).ok()?;
    let mut path: Vec<&str> = folder.split('/').filter(|c| !c.is_empty()).collect();
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(path.pop()?),
            name => path.push(name),
        }
    }
    Some(path.join("/"))
}

/// Reads until the buffer is full or the input ends.
pub(super) fn read_up_to(input: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0usize;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// A stretch of a file.
struct Piece<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        let advance = u64::try_from(count).unwrap_or(u64::MAX);
        self.at = self.at.saturating_add(advance);
        self.left = self.left.saturating_sub(advance);
        Ok(count)
    }
}

/// A stream that ends with an error when its time is over, and says so.
struct Timed<'a, R> {
    inner: R,
    deadline: Deadline,
    late: &'a Cell<bool>,
}

impl<R: Read> Read for Timed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.deadline.left().is_none() {
            self.late.set(true);
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.read(buffer)
    }
}

/// Unpacked bytes that are kept in a file as they pass.
struct Spool<'a> {
    source: Decompressor<'a>,
    file: &'a File,
}

impl Read for Spool<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.fill(buffer).map_err(|e: DecompressError| io::Error::other(e))?;
        self.file.write_all(&buffer[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let at = |link: &str, target: &str| {
            link_target(&TarPath::parse(link.as_bytes(), &Budget::default()).unwrap(), target.as_bytes())
        };
        assert_eq!(at("a/layer.tar", "../b/layer.tar").as_deref(), Some("b/layer.tar"));
        assert_eq!(at("a/layer.tar", "x").as_deref(), Some("a/x"));
        assert_eq!(at("a/layer.tar", "../../etc/passwd"), None);
        assert_eq!(at("a/layer.tar", "/etc/passwd"), None);
    }
}
