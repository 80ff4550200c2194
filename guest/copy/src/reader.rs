//! The stream's reader for the inside of a sandbox: takes what [`crate::Writer`] writes on the host, and nothing else. (What comes out of a
//! sandbox is read by the strict reader of images.)

use std::io::{self, BufRead, Read};

use crate::format::BLOCK;
use crate::{Entries, Entry, Kind};

/// Longest PAX header in bytes.
const LONGEST_RECORDS: u64 = 64 << 10;

/// Why a stream is not one of ours.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("The stream cannot be read")]
    Read(#[from] io::Error),
    #[error("The stream is damaged at byte {0}")]
    Damaged(u64),
}

/// Reads a tar stream.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    at: u64,
    /// Bytes of the current content that are left, and padding behind them.
    left: u64,
    padding: u64,
    ended: bool,
}

/// What a PAX header says.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    user: Option<u32>,
    group: Option<u32>,
    time: Option<i64>,
}

impl<R: BufRead> Reader<R> {
    /// A stream that begins here.
    pub fn new(from: R) -> Self {
        Self { from, at: 0, left: 0, padding: 0, ended: false }
    }

    fn damaged(&self) -> StreamError {
        StreamError::Damaged(self.at)
    }

    fn take(&mut self, length: u64) -> Result<Vec<u8>, StreamError> {
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| self.damaged())?];
        self.from.read_exact(&mut bytes)?;
        self.at = self.at.saturating_add(length);
        Ok(bytes)
    }

    fn skip(&mut self) -> Result<(), StreamError> {
        let wanted = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut self.from.by_ref().take(wanted), &mut io::sink())?;
        self.at = self.at.saturating_add(skipped);
        (self.left, self.padding) = (0, 0);
        if skipped == wanted { Ok(()) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) }
    }

    fn next(&mut self) -> Result<Option<Entry>, StreamError> {
        self.skip()?;
        if self.ended {
            return Ok(None);
        }
        let mut records = Records::default();
        loop {
            let block = self.take(BLOCK as u64)?;
            if block.iter().all(|byte| *byte == 0) {
                self.ended = true;
                return Ok(None);
            }
            let sum = block.iter().enumerate().fold(0_u64, |sum, (at, byte)| {
                sum.saturating_add(u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            });
            if octal(field(&block, 148, 8)) != Some(sum) {
                return Err(self.damaged());
            }
            if block.get(156) != Some(&b'x') {
                return self.entry(&block, records).map(Some);
            }
            let length = octal(field(&block, 124, 12)).filter(|length| *length <= LONGEST_RECORDS);
            let length = length.ok_or_else(|| self.damaged())?;
            let content = self.take(length)?;
            self.take(padding(length))?;
            records = parse(&content).ok_or_else(|| self.damaged())?;
        }
    }

    fn entry(&mut self, block: &[u8], records: Records) -> Result<Entry, StreamError> {
        let damaged = self.damaged();
        let number = |at: usize, length: usize| octal(field(block, at, length));
        let small = |at: usize| number(at, 8).and_then(|n| u32::try_from(n).ok());
        let read = || {
            let path = records.path.unwrap_or_else(|| text(field(block, 0, 100)));
            let target = records.target.unwrap_or_else(|| text(field(block, 157, 100)));
            let size = records.size.or_else(|| number(124, 12))?;
            let kind = match *block.get(156)? {
                b'0' => Kind::File(size),
                b'1' => Kind::Again(plain(&target)?),
                b'2' => Kind::Link(Some(target).filter(|target| !target.is_empty())?),
                b'5' => Kind::Folder,
                b'6' => Kind::Pipe,
                _ => return None,
            };
            let owner = (records.user.or_else(|| small(108))?, records.group.or_else(|| small(116))?);
            let modified_s = records.time.or_else(|| number(136, 12)?.try_into().ok())?;
            Some(Entry { path: plain(&path)?, kind, mode: small(100)? & 0o7777, owner, modified_s })
        };
        let entry = read().ok_or(damaged)?;
        if let Kind::File(size) = entry.kind {
            (self.left, self.padding) = (size, padding(size));
        }
        Ok(entry)
    }
}

impl<R: BufRead> Entries for Reader<R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.next()?)
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.by_ref().take(self.left).read(buffer)?;
        let read = u64::try_from(count).unwrap_or(0);
        self.at = self.at.saturating_add(read);
        self.left = self.left.saturating_sub(read);
        Ok(count)
    }
}

fn padding(length: u64) -> u64 {
    length.wrapping_neg() % 512
}

fn field(block: &[u8], at: usize, length: usize) -> &[u8] {
    block.get(at..at.saturating_add(length)).unwrap_or_default()
}

/// A text up to its first NUL.
fn text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field);
    let digits = digits.trim_ascii();
    (!digits.is_empty()).then_some(())?;
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit.saturating_sub(b'0'))),
        _ => None,
    })
}

/// The names of a path joined anew; `None` if one leads upwards.
fn plain(path: &[u8]) -> Option<Vec<u8>> {
    let names: Vec<&[u8]> = crate::names(path).collect();
    (!names.contains(&&b".."[..])).then(|| names.join(&b'/'))
}

fn parse(mut content: &[u8]) -> Option<Records> {
    let mut records = Records::default();
    while !content.is_empty() {
        let blank = content.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(content.get(..blank)?).ok()?.parse().ok()?;
        let record = content.get(blank.checked_add(1)?..length.checked_sub(1)?)?;
        (content.get(length.checked_sub(1)?) == Some(&b'\n')).then_some(())?;
        content = content.get(length..)?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (record.get(..equals)?, record.get(equals.checked_add(1)?..)?);
        let decimal = || std::str::from_utf8(value).ok();
        match key {
            b"path" => records.path = Some(value.to_vec()),
            b"linkpath" => records.target = Some(value.to_vec()),
            b"size" => records.size = Some(decimal()?.parse().ok()?),
            b"uid" => records.user = Some(decimal()?.parse().ok()?),
            b"gid" => records.group = Some(decimal()?.parse().ok()?),
            b"mtime" => records.time = Some(decimal()?.parse().ok()?),
            _ => return None,
        }
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;

    fn entry(path: &[u8], kind: Kind) -> Entry {
        Entry { path: path.to_vec(), kind, mode: 0o4755, owner: (1000, 0), modified_s: 1_700_000_000 }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = [[b'n'; 90]; 3].join(&b'/');
        let mut all = vec![
            entry(b"", Kind::Folder),
            entry(b"a", Kind::Folder),
            entry(b"a/file", Kind::File(700)),
            entry(&long, Kind::File(0)),
            entry(b"a/\xff\n", Kind::Link(b"../up and away".to_vec())),
            entry(b"deep", Kind::Link(long.clone())),
            entry(b"again", Kind::Again(b"a/file".to_vec())),
            entry(b"pipe", Kind::Pipe),
        ];
        all.push(Entry { owner: (u32::MAX - 1, 0o1000_0000), modified_s: -5, ..entry(b"odd", Kind::File(3)) });
        let mut writer = Writer::new(Vec::new());
        for entry in &all {
            writer.entry(entry).unwrap();
            if let Kind::File(size) = entry.kind {
                assert!(writer.content(&mut io::repeat(7), size).unwrap());
            }
        }
        let stream = writer.finish().unwrap();
        let mut reader = Reader::new(stream.as_slice());
        for (number, expected) in all.iter().enumerate() {
            assert_eq!(reader.next_entry().unwrap().as_ref(), Some(expected));
            // Content may be read or left.
            if let (Kind::File(size), 0) = (&expected.kind, number % 2) {
                let mut content = Vec::new();
                reader.read_to_end(&mut content).unwrap();
                assert_eq!(content, vec![7; usize::try_from(*size).unwrap()]);
            }
        }
        assert_eq!(reader.next_entry().unwrap(), None);
        assert_eq!(reader.next_entry().unwrap(), None);
        for cut in [1, 512, 600, stream.len() - 1025] {
            let mut reader = Reader::new(&stream[..cut]);
            let failed = std::iter::repeat_with(|| reader.next_entry()).take(20).any(|next| next.is_err());
            assert!(failed, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry(b"../up", Kind::File(0))).unwrap();
        assert!(Reader::new(writer.finish().unwrap().as_slice()).next_entry().is_err());
        let mut bytes = [b'x'; 512];
        assert!(Reader::new(&bytes[..]).next_entry().is_err());
        bytes[0] = 0;
        assert!(Reader::new(&bytes[..]).next_entry().is_err());
    }
}
