//! A strict, streaming tar reader: V7, ustar, GNU and PAX, for layers and for archives of whole images.
//!
//! Strict means: one meaning or none. What other readers are known to take in different ways (sizes, doubled names, `..`, links) is refused with
//! an error that names the entry; the size that counts is used for every step alike (CVE-2025-62518). The reader touches no host path.
//!
//! ```text
//! next() --> entry --> data()/consume() or Read --> next() skips what is left --> ... --> None --> finish() reads on to the end
//! ```
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::{self, BufRead, Read};

use crate::image::layer::Budget;
use crate::image::tree::{DeviceNumber, Time};

mod entry;
mod error;
mod header;
mod path;
mod pax;
mod sparse;

pub use entry::{Entry, EntryKind};
pub use error::{Refusal, TarError};
pub use path::TarPath;
pub(crate) use path::{is_plain, shown};
pub use sparse::{Region, SparseMap};

use header::{BLOCK, Header};
use pax::Pax;

/// A tar archive, read once from front to end.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    at: u64,
    budget: Budget,
    global: Pax,
    entries: u64,
    ended: bool,
    content: Content,
}

/// What is left of the current entry's content.
#[derive(Debug, Default)]
struct Content {
    /// Stored bytes not yet consumed.
    stored: u64,
    /// Bytes behind them up to the next block.
    padding: u64,
    /// For `Read`: position in the file, its size, and the regions not yet passed.
    position: u64,
    size: u64,
    regions: std::collections::VecDeque<Region>,
    path: String,
}

/// Extended headers seen in front of an entry.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) pax: Option<Pax>,
    pub(crate) long_name: Option<Vec<u8>>,
    pub(crate) long_link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: BufRead> Reader<R> {
    /// A reader of `input`, which stands at the first byte of the archive.
    pub fn new(input: R, budget: &Budget) -> Self {
        Self {
            input,
            at: 0,
            budget: budget.clone(),
            global: Pax::default(),
            entries: 0,
            ended: false,
            content: Content::default(),
        }
    }

    /// The next entry, or `None` at the end marker. Content of the entry before it that was not read is skipped.
    ///
    /// # Errors
    /// When the archive is damaged, cut short, or the entry is one that is refused.
    #[allow(clippy::should_implement_trait)] // An iterator could not lend its content.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        if self.ended {
            return Ok(None);
        }
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                self.ended = true;
                return if extensions.is_empty() { Ok(None) } else { Err(TarError::Dangling { at: self.at }) };
            };
            match header.typeflag() {
                b'x' | b'X' => {
                    let records = self.extension(&header)?;
                    let pax = Pax::parse(&records, &self.budget).map_err(|r| r.at_header(header.at))?;
                    set_once(&mut extensions.pax, pax, header.at)?;
                }
                b'g' => {
                    let records = self.extension(&header)?;
                    let mut pax = Pax::parse(&records, &self.budget).map_err(|r| r.at_header(header.at))?;
                    if !pax.allowed_globally() {
                        return Err(Refusal::GlobalHeader.at_header(header.at));
                    }
                    pax.inherit(&self.global);
                    self.global = pax;
                }
                b'L' => {
                    let name = self.long_name(&header)?;
                    set_once(&mut extensions.long_name, name, header.at)?;
                }
                b'K' => {
                    let name = self.long_name(&header)?;
                    set_once(&mut extensions.long_link, name, header.at)?;
                }
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Counts the entry, makes it, and remembers what belongs to its content.
    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, TarError> {
        self.entries = self.entries.saturating_add(1);
        if self.entries > self.budget.entries {
            return Err(Refusal::Exceeds("entries", self.budget.entries).at_header(header.at));
        }
        let (entry, stored) = entry::assemble(self, header, extensions)?;
        let (size, regions) = match &entry.kind {
            EntryKind::File { size, map: None } => (*size, vec![Region { offset: 0, len: *size }]),
            EntryKind::File { size, map: Some(map) } => (*size, map.regions.clone()),
            _ => (0, Vec::new()),
        };
        self.content = Content {
            stored,
            padding: padding(stored),
            position: 0,
            size,
            regions: regions.into_iter().filter(|r| r.len > 0).collect(),
            path: entry.path.display(),
        };
        Ok(entry)
    }

    /// The next stored bytes of the current entry (for a sparse file: of its regions, one behind the other), as many as are at hand;
    /// empty at their end. Follow with [`Reader::consume`].
    ///
    /// # Errors
    /// When the input fails or ends too early.
    pub fn data(&mut self) -> Result<&[u8], TarError> {
        if self.content.stored == 0 {
            return Ok(&[]);
        }
        let at = self.at;
        let buffered = loop {
            match self.input.fill_buf() {
                Ok(_) => break self.input.fill_buf().map_err(|source| TarError::Read { at, source })?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { at, source }),
            }
        };
        if buffered.is_empty() {
            return Err(TarError::Truncated { at, what: format!("content of '{}'", self.content.path) });
        }
        let most = usize::try_from(self.content.stored).unwrap_or(usize::MAX);
        Ok(buffered.get(..most).unwrap_or(buffered))
    }

    /// Takes `n` bytes of what [`Reader::data`] gave.
    pub fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.at = self.at.saturating_add(n as u64);
        self.content.stored = self.content.stored.saturating_sub(n as u64);
    }

    /// Reads the input to its end and returns it: what stands behind the end marker has no meaning, but may belong to a digest.
    ///
    /// # Errors
    /// When the input fails.
    pub fn finish(mut self) -> Result<R, TarError> {
        let at = self.at;
        io::copy(&mut self.input, &mut io::sink()).map_err(|source| TarError::Read { at, source })?;
        Ok(self.input)
    }

    /// Offset of the next byte in the archive.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) fn global(&self) -> &Pax {
        &self.global
    }

    /// Reads exactly this many bytes of structure.
    pub(crate) fn exact(&mut self, buf: &mut [u8], what: &str) -> Result<(), TarError> {
        let at = self.at;
        self.input.read_exact(buf).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated { at, what: what.to_owned() },
            _ => TarError::Read { at, source },
        })?;
        self.at = self.at.saturating_add(buf.len() as u64);
        Ok(())
    }

    /// Skips what is left of the current entry.
    fn skip_content(&mut self) -> Result<(), TarError> {
        loop {
            let n = self.data()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        let mut padding = [0; BLOCK];
        let len = usize::try_from(self.content.padding).unwrap_or_default();
        if let Some(padding) = padding.get_mut(..len) {
            let what = format!("padding behind '{}'", self.content.path);
            self.exact(padding, &what)?;
        }
        self.content = Content::default();
        Ok(())
    }

    /// The next header block. `None` at the end marker: two blocks of zeros, of which the second may be missing at the end of the input.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.at;
        let mut block = [0; BLOCK];
        self.exact(&mut block, "header, or an end marker,")?;
        if let Some(header) = Header::parse(block, at)? {
            return Ok(Some(header));
        }
        let at = self.at;
        match self.exact(&mut block, "end marker") {
            Err(TarError::Truncated { .. }) => Ok(None),
            Err(e) => Err(e),
            Ok(()) if block.iter().all(|b| *b == 0) => Ok(None),
            Ok(()) => Err(TarError::LoneZeroBlock { at }),
        }
    }

    /// Content of an extended header. Its size is its own header's: a PAX size speaks of the entry behind it.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.unsigned(header::SIZE)?;
        if size > self.budget.header_bytes {
            return Err(Refusal::Exceeds("header_bytes", self.budget.header_bytes).at_header(header.at));
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
        self.exact(&mut content, "extended header")?;
        let mut rest = [0; BLOCK];
        let len = usize::try_from(padding(size)).unwrap_or_default();
        if let Some(rest) = rest.get_mut(..len) {
            self.exact(rest, "extended header")?;
        }
        Ok(content)
    }

    /// Content of a GNU long name: a path with NULs behind it.
    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension(header)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        if name.contains(&0) {
            return Err(Refusal::Nul.at_header(header.at));
        }
        Ok(name)
    }
}

/// The content of the current entry, holes filled with zeros.
impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.content.regions.front().is_some_and(|r| r.offset.saturating_add(r.len) <= self.content.position) {
            self.content.regions.pop_front();
        }
        let position = self.content.position;
        let (in_data, end) = match self.content.regions.front() {
            Some(region) if region.offset <= position => (true, region.offset.saturating_add(region.len)),
            Some(region) => (false, region.offset),
            None => (false, self.content.size),
        };
        let most = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = if in_data {
            let data = self.data().map_err(io::Error::other)?;
            let n = data.len().min(most);
            for (to, from) in buf.iter_mut().zip(data.iter().take(n)) {
                *to = *from;
            }
            self.consume(n);
            n
        } else {
            buf.iter_mut().take(most).for_each(|b| *b = 0);
            most
        };
        self.content.position = position.saturating_add(n as u64);
        Ok(n)
    }
}

/// Bytes from the end of this many up to the next block.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % 512
}

/// Sets what must not have been set before the same entry.
fn set_once<T>(slot: &mut Option<T>, value: T, at: u64) -> Result<(), TarError> {
    if slot.is_some() {
        return Err(Refusal::DoubledHeader.at_header(at));
    }
    *slot = Some(value);
    Ok(())
}
