//! Reading what was written, while more is being written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{HEADER, LOST, RECORD};
use crate::keeper::wire::Stream;

/// One piece of a sandbox's story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// It wrote this.
    Output {
        /// When, nanoseconds since 1970.
        at_ns: u64,
        /// Where to.
        stream: Stream,
        /// The bytes as they came: any part of a line, or several lines.
        bytes: Vec<u8>,
    },
    /// So many bytes could not be kept; in words why.
    Lost(u64, String),
    /// Older output has been removed to make room.
    Removed,
}

/// Reads a sandbox's log from its oldest record on.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    file: Option<(u64, File)>,
    at: u64,
}

impl Reader {
    /// Of the log in this folder, which may not be there yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None, at: 0 }
    }

    /// The next piece; `None` if nothing more is there now.
    ///
    /// # Errors
    /// What the file system says.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        loop {
            let Some((number, file)) = &self.file else {
                let Some(first) = numbers(&self.folder)?.first().copied() else { return Ok(None) };
                if !self.open(first)? {
                    continue;
                }
                return if first > 0 { Ok(Some(Piece::Removed)) } else { continue };
            };
            if let Some((piece, next)) = record(file, self.at)? {
                self.at = next;
                return Ok(Some(piece));
            }
            let number = *number;
            let Some(later) = numbers(&self.folder)?.into_iter().find(|n| *n > number) else { return Ok(None) };
            // The writer begins a file after the last record of the one before: look once more.
            if let Some((piece, next)) = record(file, self.at)? {
                self.at = next;
                return Ok(Some(piece));
            }
            if self.open(later)? && later > number + 1 {
                return Ok(Some(Piece::Removed));
            }
        }
    }

    /// False if the file has just been removed.
    fn open(&mut self, number: u64) -> io::Result<bool> {
        match File::open(path(&self.folder, number)) {
            Ok(file) => {
                (self.file, self.at) = (Some((number, file)), 0);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The record at this offset and the offset behind it, if it is there whole.
fn record(file: &File, at: u64) -> io::Result<Option<(Piece, u64)>> {
    let mut header = [0; HEADER];
    if !read_whole(file, &mut header, at)? {
        return Ok(None);
    }
    let [t0, t1, t2, t3, t4, t5, t6, t7, kind, l0, l1, l2, l3] = header;
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > RECORD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a record of the log is longer than any that is written",
        ));
    }
    let mut bytes = vec![0; length];
    let body = at.saturating_add(HEADER as u64);
    if !read_whole(file, &mut bytes, body)? {
        return Ok(None);
    }
    let at_ns = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
    let piece = match (kind, Stream::of(kind)) {
        (LOST, _) => {
            let (count, why) = bytes.split_at_checked(8).unwrap_or_default();
            let count = u64::from_le_bytes(count.try_into().unwrap_or_default());
            Piece::Lost(count, String::from_utf8_lossy(why).into_owned())
        }
        (_, Some(stream)) => Piece::Output { at_ns, stream, bytes },
        (_, None) => return Err(io::Error::new(io::ErrorKind::InvalidData, "the log has a record of no known kind")),
    };
    Ok(Some((piece, body.saturating_add(u64::try_from(length).unwrap_or(u64::MAX)))))
}

fn read_whole(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, at) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}

/// How many bytes of a file are whole records.
pub(super) fn whole_records(file: &File) -> io::Result<u64> {
    let (mut at, length) = (0_u64, file.metadata()?.len());
    let mut header = [0; HEADER];
    while read_whole(file, &mut header, at)? {
        let [.., l0, l1, l2, l3] = header;
        let behind = at.saturating_add(HEADER as u64).saturating_add(u64::from(u32::from_le_bytes([l0, l1, l2, l3])));
        if behind > length {
            break;
        }
        at = behind;
    }
    Ok(at)
}

/// Numbers of the log's files, the oldest first.
pub(super) fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let number = |e: io::Result<fs::DirEntry>| e.ok()?.file_name().to_str()?.strip_prefix("log.")?.parse().ok();
    let mut numbers: Vec<u64> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("log.{number}"))
}

impl Iterator for Reader {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_piece().transpose()
    }
}
