//! The stream's writer: ustar headers (POSIX.1-1988), with a PAX header (POSIX.1-2001) in front where a value does not fit.

use std::io::{self, Read, Write};

use crate::{Entry, Kind};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// Longest name and largest numbers of a ustar header.
const NAME: usize = 100;
const LARGEST_OWNER: u64 = 0o777_7777;
const LARGEST_SIZE: u64 = 0o777_7777_7777;

/// Writes a tar stream.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// A stream that begins here.
    pub fn new(to: W) -> Self {
        Self { to }
    }

    /// Writes an entry's headers. A file's content must follow.
    ///
    /// # Errors
    /// What the output says.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let (flag, size, target): (u8, u64, &[u8]) = match &entry.kind {
            Kind::File(size) => (b'0', *size, b""),
            Kind::Again(target) => (b'1', 0, target),
            Kind::Link(target) => (b'2', 0, target),
            Kind::Folder => (b'5', 0, b""),
            Kind::Pipe => (b'6', 0, b""),
        };
        let folder = entry.kind == Kind::Folder;
        let path: Vec<u8> = match (entry.path.as_slice(), folder) {
            (b"", _) => b"./".to_vec(),
            (path, true) => [path, b"/"].concat(),
            (path, false) => path.to_vec(),
        };
        let mut records = Vec::new();
        let (user, group) = (u64::from(entry.owner.0), u64::from(entry.owner.1));
        let time = u64::try_from(entry.modified_s).ok().filter(|time| *time <= LARGEST_SIZE);
        for (key, value) in [
            ("path", (path.len() > NAME).then_some(path.clone())),
            ("linkpath", (target.len() > NAME).then(|| target.to_vec())),
            ("size", (size > LARGEST_SIZE).then(|| size.to_string().into_bytes())),
            ("uid", (user > LARGEST_OWNER).then(|| user.to_string().into_bytes())),
            ("gid", (group > LARGEST_OWNER).then(|| group.to_string().into_bytes())),
            ("mtime", time.is_none().then(|| entry.modified_s.to_string().into_bytes())),
        ] {
            value.into_iter().for_each(|value| records.extend(record(key, &value)));
        }
        if !records.is_empty() {
            let length = u64::try_from(records.len()).unwrap_or(u64::MAX);
            let fields = Fields { flag: b'x', size: length, mode: 0o644, ..Fields::default() };
            self.to.write_all(&header(b"PaxHeader", b"", &fields))?;
            self.to.write_all(&records)?;
            self.pad(length)?;
        }
        let fits = |number: u64, largest: u64| if number > largest { 0 } else { number };
        let fields = Fields {
            flag,
            mode: u64::from(entry.mode & 0o7777),
            user: fits(user, LARGEST_OWNER),
            group: fits(group, LARGEST_OWNER),
            size: fits(size, LARGEST_SIZE),
            time: time.unwrap_or(0),
        };
        self.to.write_all(&header(&path, target, &fields))
    }

    /// Writes a file's content: `size` bytes of `from`. False if it ended before that; the stream is of no use then.
    ///
    /// # Errors
    /// What either side says.
    pub fn content(&mut self, from: &mut impl Read, size: u64) -> io::Result<bool> {
        let copied = io::copy(&mut from.take(size), &mut self.to)?;
        self.pad(size)?;
        Ok(copied == size)
    }

    /// Writes the end of the stream.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn pad(&mut self, length: u64) -> io::Result<()> {
        let rest = usize::try_from(length.wrapping_neg() % 512).unwrap_or(0);
        self.to.write_all([0; BLOCK].get(..rest).unwrap_or_default())
    }
}

/// The fields of a header that are numbers.
#[derive(Default)]
struct Fields {
    flag: u8,
    mode: u64,
    user: u64,
    group: u64,
    size: u64,
    time: u64,
}

fn header(path: &[u8], target: &[u8], fields: &Fields) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, path.get(..NAME).unwrap_or(path));
    for (at, digits, number) in [
        (100, 7, fields.mode),
        (108, 7, fields.user),
        (116, 7, fields.group),
        (124, 11, fields.size),
        (136, 11, fields.time),
        (329, 7, 0),
        (337, 7, 0),
    ] {
        put(&mut block, at, format!("{number:0digits$o}").as_bytes());
    }
    put(&mut block, 156, &[fields.flag]);
    put(&mut block, 157, target.get(..NAME).unwrap_or(target));
    put(&mut block, 257, b"ustar\x0000");
    put(&mut block, 148, b"        ");
    let sum = block.iter().fold(0_u32, |sum, byte| sum.saturating_add(u32::from(*byte)));
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    loop {
        let digits = length.to_string();
        let whole = rest.len().saturating_add(digits.len());
        if whole == length {
            return [digits.as_bytes(), &rest].concat();
        }
        length = whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        assert_eq!(record("path", b"x"), b"9 path=x\n");
        assert_eq!(record("path", &[b'x'; 90]).len(), 99);
        assert!(record("path", &[b'x'; 91]).starts_with(b"101 path="), "the third digit counts too");
    }
}
