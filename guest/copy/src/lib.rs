//! Files on their way into a sandbox or out of it, as a tar stream: one end walks a tree and writes the stream, the other reads it and makes the
//! tree. Both ends run on either side of a sandbox's walls.
//!
//! ```text
//! source  --walk-->  Writer  ~~~ tar (ustar, PAX where that is too short) ~~~>  Entries  --Landing-->  destination
//! ```
//!
//! Neither end believes the files it meets: paths are resolved below a root where there is one (openat2(2), RESOLVE_IN_ROOT), the magic links
//! of `/proc` are not followed, what is read is a file by its own descriptor, and what is made is made beneath a folder's handle without
//! following any link.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod base;
mod format;
mod landing;
mod reader;
mod source;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use duplex_wire::Transfer;
use rustix::fs::{CWD, Mode, OFlags};

pub use base::Base;
pub use format::Writer;
pub use landing::{Landing, Owner};
pub use reader::Reader;
pub use source::{Source, Told};

/// Deepest folder below the one that is copied.
pub const DEPTH: u32 = 200;

/// A file, folder or link of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names from the stream's root down with `/` between them; empty for the root itself. None is empty, `.` or `..`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky (07777).
    pub mode: u32,
    /// Owner and owning group.
    pub owner: (u32, u32),
    /// Time of the last change, in seconds since 1970.
    pub modified_s: i64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of so many bytes, which follow.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link with its target.
    Link(Vec<u8>),
    /// Another name of an earlier file of the stream.
    Again(Vec<u8>),
    /// A named pipe.
    Pipe,
}

/// A stream that is read from front to end. `Read` gives the content of the entry that came last.
pub trait Entries: Read {
    /// The next entry, `None` at the end of the stream. Content that was not read is skipped.
    ///
    /// # Errors
    /// When the stream is damaged or cut short.
    fn next_entry(&mut self) -> Result<Option<Entry>, Box<dyn std::error::Error + Send + Sync>>;
}

/// Why something is not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A system call.
    #[error("Cannot {operation} '{path}'")]
    File {
        /// The verb.
        operation: &'static str,
        /// The file or folder.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path that must be a folder.
    #[error("'{0}' is not a directory")]
    NotFolder(String),
    /// A folder that is not there.
    #[error("The directory '{0}' does not exist: make it first")]
    NoFolder(String),
    /// A folder onto something else.
    #[error("Cannot copy a directory onto '{0}', which is none")]
    FolderOnFile(String),
    /// Something else onto a folder.
    #[error("Cannot replace the directory '{0}' with what is none")]
    FileOnFolder(String),
    /// A socket or device.
    #[error("'{0}' is a socket or a device, which are not copied")]
    Special(String),
    /// Too many folders in each other.
    #[error("'{0}' is more than {DEPTH} folders deep")]
    Deep(String),
    /// Symbolic links that do not end, or one of `/proc` that leads out.
    #[error("'{0}' leads through symbolic links that have no end here")]
    Links(String),
    /// A file that is shorter than it was.
    #[error("'{0}' became shorter while it was read: copy it again")]
    Shrunk(String),
    /// A file that does not tell its size and has too much in it.
    #[error("'{0}' does not tell its size, and has more than 16 MiB in it: copy it by a command inside")]
    Endless(String),
    /// A mount point that cannot be written in place.
    #[error("'{0}' is a mount of its own, which only the content of a file can be copied onto")]
    Mounted(String),
    /// A stream that has nothing in it.
    #[error("Nothing was sent")]
    Nothing,
    /// A stream with an entry that does not belong there.
    #[error("The stream has '{0}', which was not asked for")]
    Unasked(String),
    /// The stream cannot be written.
    #[error("Cannot send the files")]
    Send(#[source] io::Error),
    /// The stream cannot be read.
    #[error("Cannot receive the files")]
    Receive(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CopyError {
    pub(crate) fn of(operation: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = shown(path);
        move |errno| Self::File { operation, path, source: errno.into() }
    }
}

/// Bytes moved at once.
const CHUNK: usize = 128 << 10;

/// The inside's end of a transfer, in a process whose root is the sandbox's. What went wrong, or was left out, is a line on `stderr`. Returns the
/// exit code: 0, or 1 for a failure.
pub fn serve(transfer: &Transfer, stdin: impl Read, stdout: File, mut stderr: File) -> u8 {
    let root = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(CopyError::of("open", b"/"));
    let (line, code) = match root.and_then(|root| carry(transfer, &Base::within(root), stdin, stdout)) {
        Ok(told) if told.count == 0 => return 0,
        Ok(told) => (told.to_string(), 0),
        Err(error) => (chain(&error), 1),
    };
    // A reader that has gone does not want to know.
    let _ = writeln!(stderr, "{line}");
    code
}

/// One end of a transfer below this base.
///
/// # Errors
/// What cannot be read, made or sent.
pub fn carry(transfer: &Transfer, base: &Base, stdin: impl Read, stdout: impl Write) -> Result<Told, CopyError> {
    match transfer {
        Transfer::Out { path, follow } => {
            let mut writer = Writer::new(BufWriter::with_capacity(CHUNK, stdout));
            let told = Source::new(path.as_bytes(), *follow).send(base, &mut writer)?;
            writer.finish().map_err(CopyError::Send)?;
            Ok(told)
        }
        Transfer::In { path, wanted, keep_owner } => {
            let owner = if *keep_owner { Owner::Kept } else { Owner::Own };
            let mut reader = Reader::new(BufReader::with_capacity(CHUNK, stdin));
            Landing::receive(base, path.as_bytes(), wanted, owner, &mut reader)?;
            Ok(Told::default())
        }
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let texts = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}

/// A name for messages: escaped where it is not printable, cut where it is long.
pub(crate) fn shown(raw: &[u8]) -> String {
    const MOST: usize = 256;
    let head = raw.get(..MOST).unwrap_or(raw);
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let text: String = String::from_utf8_lossy(head).chars().map(escape).collect();
    if raw.len() > MOST { format!("{text}...") } else { text }
}

/// The names of a path, without empty ones and `.`.
pub(crate) fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b"."))
}
