//! The host's end of a copy: the frames of a keeper as streams, and archives of strangers as the entries that are copied.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;

use duplex_copy::{Entries, Entry, Kind};

use crate::image::layer::Budget;
use crate::image::tar::{self, EntryKind};
use crate::keeper::wire::{Frame, Reply, Stream, receive, send_bytes};
use crate::spec::{Exit, Outcome};

/// Most bytes of the sandbox's words that are kept.
const LONGEST_WORDS: usize = 8 << 10;

/// Most bytes that may follow the end of an archive.
const MOST_BEHIND: u64 = 1 << 20;

/// What the sandbox's end has said.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    words: Vec<u8>,
    /// Its end; `None` if the keeper is gone, or could not tell.
    outcome: Option<Outcome>,
    /// Why the keeper could not.
    refused: Option<String>,
}

impl Heard {
    /// Why the sandbox's end failed, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        let said = || self.notes().next().map(str::to_owned);
        match (&self.outcome, &self.refused) {
            (_, Some(words)) => Some(words.clone()),
            (None, None) => None,
            (Some(outcome), None) => match outcome.exit {
                Exit::Code(0) => None,
                Exit::Code(_) => Some(self.text().trim().to_owned()).filter(|text| !text.is_empty()),
                Exit::Signal(9) => {
                    Some("It was ended in the middle: by the sandbox's end, or for want of memory".into())
                }
                _ => outcome.reason.clone().or_else(said),
            }
            .or_else(|| (outcome.exit != Exit::Code(0)).then(|| "It failed without a word".to_owned())),
        }
    }

    /// Lines that are no failure.
    pub(crate) fn notes(&self) -> std::vec::IntoIter<&str> {
        let done = self.outcome.as_ref().is_some_and(|outcome| outcome.exit == Exit::Code(0));
        let lines = if done { std::str::from_utf8(&self.words).unwrap_or_default() } else { "" };
        lines.lines().filter(|line| !line.chars().any(char::is_control)).collect::<Vec<_>>().into_iter()
    }

    /// The sandbox's own words, which may hold anything.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.words).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }

    fn add(&mut self, words: &[u8]) {
        let room = LONGEST_WORDS.saturating_sub(self.words.len());
        self.words.extend_from_slice(words.get(..room).unwrap_or(words));
    }
}

/// Hears until the end, what is said on standard output apart.
pub(crate) fn hear(stream: UnixStream) -> Heard {
    let mut incoming = Incoming::new(stream);
    let _ = io::copy(&mut incoming, &mut io::sink());
    incoming.heard
}

/// What the sandbox sends.
#[derive(Debug)]
pub(crate) struct Incoming {
    from: UnixStream,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
    heard: Heard,
}

impl Incoming {
    pub(crate) fn new(from: UnixStream) -> Self {
        Self { from, bytes: Vec::new(), at: 0, ended: false, heard: Heard::default() }
    }

    /// Hears the rest: what is behind an archive's end means nothing, and has an end of its own.
    pub(crate) fn finish(mut self) -> Heard {
        let _ = io::copy(&mut (&mut self).take(MOST_BEHIND), &mut io::sink());
        self.heard
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.bytes.len() {
            if self.ended {
                return Ok(0);
            }
            match receive::<Reply>(&mut self.from) {
                Ok(Frame::Bytes(Stream::Output, bytes)) => (self.bytes, self.at) = (bytes, 0),
                Ok(Frame::Bytes(Stream::Error, words)) => self.heard.add(&words),
                Ok(Frame::Message(Reply::Ended(outcome))) => {
                    (self.heard.outcome, self.ended) = (Some(outcome), true);
                }
                Ok(Frame::Message(Reply::Failed(causes))) => {
                    (self.heard.refused, self.ended) = (Some(causes.join(": ")), true);
                }
                Ok(Frame::Message(_)) => {}
                Err(_) => {
                    let words = "The sandbox's keeper is gone: 'duplex ps -a' tells what became of the sandbox";
                    (self.heard.refused, self.ended) = (Some(words.to_owned()), true);
                }
            }
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.at = self.at.saturating_add(count);
        Ok(count)
    }
}

/// What the sandbox is sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    to: UnixStream,
    sent: u64,
}

impl Outgoing {
    pub(crate) fn new(to: UnixStream) -> Self {
        Self { to, sent: 0 }
    }

    /// Bytes so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Says that this is all.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        send_bytes(&mut self.to, Stream::Output, b"")
    }

    /// Says that the rest will not come. What has come stays.
    pub(crate) fn leave(&mut self) {
        let _ = self.to.shutdown(std::net::Shutdown::Write);
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            send_bytes(&mut self.to, Stream::Output, bytes)?;
            self.sent = self.sent.saturating_add(bytes.len() as u64);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// An archive from a sandbox or a user, by the strict reader of images and within its limits. Devices are refused.
#[derive(Debug)]
pub(crate) struct Strict<R> {
    from: tar::Reader<R>,
    most_bytes: u64,
    bytes: u64,
}

/// Why an archive is not copied.
#[derive(Debug, thiserror::Error)]
enum StrictError {
    #[error(transparent)]
    Tar(#[from] tar::TarError),
    #[error("'{0}' is a device, which are not copied")]
    Device(String),
    #[error("The files are larger than {0} bytes in all, which is the most that is copied at once")]
    Large(u64),
}

impl<R: BufRead> Strict<R> {
    pub(crate) fn new(from: R) -> Self {
        let budget = Budget::default();
        Self { from: tar::Reader::new(from, &budget), most_bytes: budget.data_bytes, bytes: 0 }
    }

    fn next(&mut self) -> Result<Option<Entry>, StrictError> {
        let Some(entry) = self.from.next()? else { return Ok(None) };
        let kind = match entry.kind {
            EntryKind::File { size, .. } => {
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > self.most_bytes {
                    return Err(StrictError::Large(self.most_bytes));
                }
                Kind::File(size)
            }
            EntryKind::Directory => Kind::Folder,
            EntryKind::Symlink(target) => Kind::Link(target),
            EntryKind::HardLink(target) => Kind::Again(target.as_bytes().to_vec()),
            EntryKind::Fifo => Kind::Pipe,
            EntryKind::CharDevice(_) | EntryKind::BlockDevice(_) => {
                return Err(StrictError::Device(entry.path.display()));
            }
        };
        Ok(Some(Entry {
            path: entry.path.as_bytes().to_vec(),
            kind,
            mode: u32::from(entry.mode),
            owner: (entry.uid, entry.gid),
            modified_s: entry.mtime.seconds(),
        }))
    }
}

impl<R: BufRead> Entries for Strict<R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.next()?)
    }
}

impl<R: BufRead> Read for Strict<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::wire::send;

    /// The frames of a keeper, and what is heard of them.
    fn heard(send: impl FnOnce(&mut UnixStream)) -> (Vec<u8>, Heard) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        send(&mut theirs);
        drop(theirs);
        let (mut incoming, mut bytes) = (Incoming::new(ours), Vec::new());
        incoming.read_to_end(&mut bytes).unwrap();
        (bytes, incoming.finish())
    }

    fn ended(exit: Exit) -> Reply {
        Reply::Ended(Outcome { exit, oom: false, reason: None })
    }

    #[test]
    fn streams_words_and_ends_are_told_apart() {
        let (bytes, good) = heard(|keeper| {
            send_bytes(keeper, Stream::Output, b"abc").unwrap();
            send_bytes(keeper, Stream::Error, b"a note\n\x1b[31mred\n").unwrap();
            send_bytes(keeper, Stream::Output, b"def").unwrap();
            send(keeper, &ended(Exit::Code(0))).unwrap();
        });
        assert_eq!((bytes.as_slice(), good.failure()), (&b"abcdef"[..], None));
        assert_eq!(good.notes().collect::<Vec<_>>(), ["a note"], "what a terminal would obey is left out");
        let (_, bad) = heard(|keeper| {
            send_bytes(keeper, Stream::Error, b"Cannot \x1b[31mfind it\n").unwrap();
            send(keeper, &ended(Exit::Code(1))).unwrap();
        });
        assert_eq!(bad.failure().unwrap(), "Cannot  [31mfind it");
        assert_eq!(bad.notes().count(), 0);
        let (_, long) = heard(|keeper| {
            send_bytes(keeper, Stream::Error, &[b'x'; 50_000]).unwrap();
            send(keeper, &ended(Exit::Code(1))).unwrap();
        });
        assert_eq!(long.failure().unwrap().len(), LONGEST_WORDS);
        assert!(heard(|keeper| send(keeper, &ended(Exit::Signal(9))).unwrap()).1.failure().is_some());
        assert!(heard(|keeper| send(keeper, &ended(Exit::Code(3))).unwrap()).1.failure().is_some());
        assert!(heard(|_| ()).1.failure().unwrap().contains("keeper is gone"));
    }

    /// A header with this type and device numbers.
    fn header(kind: u8) -> Vec<u8> {
        let mut writer = duplex_copy::Writer::new(Vec::new());
        let (path, kind_of) = (b"x".to_vec(), Kind::Pipe);
        writer.entry(&Entry { path, kind: kind_of, mode: 0o644, owner: (0, 0), modified_s: 1 }).unwrap();
        let mut bytes = writer.finish().unwrap();
        let sum = |bytes: &[u8]| bytes[..512].iter().map(|b| u32::from(*b)).sum::<u32>();
        bytes[156] = kind;
        bytes[148..156].copy_from_slice(b"        ");
        let text = format!("{:06o}\0 ", sum(&bytes));
        bytes[148..156].copy_from_slice(text.as_bytes());
        bytes
    }

    #[test]
    fn devices_and_too_much_are_refused() {
        for (kind, good) in [(b'6', true), (b'3', false), (b'4', false)] {
            assert_eq!(Strict::new(header(kind).as_slice()).next_entry().is_ok(), good, "{}", char::from(kind));
        }
        let mut writer = duplex_copy::Writer::new(Vec::new());
        let (path, kind) = (b"x".to_vec(), Kind::File(1 << 20));
        writer.entry(&Entry { path, kind, mode: 0o644, owner: (0, 0), modified_s: 1 }).unwrap();
        let bytes = writer.finish().unwrap();
        let mut strict = Strict { most_bytes: 1 << 19, ..Strict::new(bytes.as_slice()) };
        assert!(strict.next_entry().unwrap_err().to_string().contains("larger than 524288 bytes"));
    }
}
