//! Tar archives that depend on their content only: time 0, owner root, order as given.

use std::io;

use tar::{Builder, EntryType, Header};

/// Writes a ustar archive in memory.
pub(crate) struct Archive(Builder<Vec<u8>>);

impl Archive {
    /// An empty archive.
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// A file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, owner: u32, content: &[u8]) -> io::Result<()> {
        let mut header = Self::header(EntryType::Regular, mode, owner);
        header.set_size(content.len().try_into().map_err(io::Error::other)?);
        self.0.append_data(&mut header, path, content)
    }

    /// A folder.
    pub(crate) fn folder(&mut self, path: &str, mode: u32, owner: u32) -> io::Result<()> {
        let mut header = Self::header(EntryType::Directory, mode, owner);
        header.set_size(0);
        self.0.append_data(&mut header, path, io::empty())
    }

    fn header(kind: EntryType, mode: u32, owner: u32) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.into());
        header.set_gid(owner.into());
        header.set_mtime(0);
        header
    }

    /// The archive's bytes.
    pub(crate) fn finish(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}
