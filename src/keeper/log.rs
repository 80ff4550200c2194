//! What a sandbox has written, on disk: files `log.<n>` of records, the oldest removed when there are too many. Output that could not be
//! kept is counted, and the count stands where it is missing.
//!
//! | bytes of a record | what |
//! |---|---|
//! | 0..8 | time, nanoseconds since 1970, little-endian |
//! | 8 | kind: 1 output, 2 error, 3 lost |
//! | 9..13 | length of what follows, little-endian |
//! | 13.. | the bytes; of a lost record: how many bytes were lost (8, little-endian) and why, in words |

mod lines;
mod read;

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use lines::{Line, Lines};
pub use read::{Piece, Reader};

use super::wire::Stream;
use crate::spec::LogLimits;

const HEADER: usize = 13;
const LOST: u8 = 3;

/// Longest record that a reader believes in, in bytes.
const RECORD: usize = 1 << 20;

/// Writes one sandbox's output.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    limits: LogLimits,
    file: Option<File>,
    number: u64,
    size: u64,
    lost: u64,
    reason: String,
}

impl Log {
    /// Of the log in this folder; no file is touched before there is something to write.
    pub(super) fn new(folder: &Path, limits: LogLimits) -> Self {
        let (folder, reason) = (folder.to_owned(), String::new());
        Self { folder, limits, file: None, number: 0, size: 0, lost: 0, reason }
    }

    /// Goes on behind what is there. A record that a killed writer has left half written is cut off.
    fn open(&mut self) -> io::Result<()> {
        self.number = read::numbers(&self.folder)?.last().copied().unwrap_or(0);
        let mut file = self.make(self.number)?;
        self.size = read::whole_records(&file)?;
        file.set_len(self.size)?;
        file.seek(SeekFrom::End(0))?;
        self.file = Some(file);
        Ok(())
    }

    fn make(&self, number: u64) -> io::Result<File> {
        let path = read::path(&self.folder, number);
        File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
    }

    /// Keeps these bytes, or counts them as lost: a full disk does not keep the sandbox from writing.
    pub(super) fn write(&mut self, at_ns: u64, stream: Stream, bytes: &[u8]) {
        if self.limits.files == 0 {
            return;
        }
        for part in bytes.chunks(RECORD / 2) {
            let told = self.tell_lost(at_ns);
            let kept = told.and_then(|()| self.append(at_ns, stream.number(), part));
            if let Err(error) = kept {
                self.lost = self.lost.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
                self.reason = error.to_string();
            }
        }
    }

    fn tell_lost(&mut self, at_ns: u64) -> io::Result<()> {
        if self.lost == 0 {
            return Ok(());
        }
        let mut bytes = self.lost.to_le_bytes().to_vec();
        bytes.extend_from_slice(self.reason.as_bytes());
        self.append(at_ns, LOST, &bytes)?;
        self.lost = 0;
        Ok(())
    }

    fn append(&mut self, at_ns: u64, kind: u8, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.open()?;
        }
        if self.size >= self.limits.file_bytes {
            self.rotate()?;
        }
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut record = Vec::with_capacity(HEADER + bytes.len());
        record.extend_from_slice(&at_ns.to_le_bytes());
        record.push(kind);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(bytes);
        match self.put(&record) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull && self.remove_oldest() => self.put(&record),
            other => other,
        }
    }

    /// Writes a record whole or not at all.
    fn put(&mut self, record: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let written = file.write_all(record);
        if written.is_err() {
            let cut = file.set_len(self.size).and_then(|()| file.seek(SeekFrom::Start(self.size)));
            if cut.is_err() {
                // Behind half a record nothing can be read: the next one begins a new file.
                self.size = u64::MAX;
            }
        } else {
            self.size = self.size.saturating_add(u64::try_from(record.len()).unwrap_or(0));
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = self.number + 1;
        self.file = Some(self.make(next)?);
        (self.number, self.size) = (next, 0);
        let most = usize::try_from(self.limits.files).unwrap_or(usize::MAX);
        while read::numbers(&self.folder)?.len() > most {
            if !self.remove_oldest() {
                break;
            }
        }
        Ok(())
    }

    /// False if there is none but the one that is written.
    fn remove_oldest(&self) -> bool {
        let numbers = read::numbers(&self.folder).unwrap_or_default();
        let oldest = numbers.first().filter(|n| **n != self.number);
        oldest.is_some_and(|n| fs::remove_file(read::path(&self.folder, *n)).is_ok())
    }
}

impl Drop for Log {
    /// What is still to be told about losses is told now, or never.
    fn drop(&mut self) {
        // A folder that is gone is not missed.
        let _ = self.tell_lost(crate::sys::clock::realtime_ns());
    }
}

#[cfg(test)]
mod tests;
