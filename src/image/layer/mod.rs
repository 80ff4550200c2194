//! A layer becomes a tree and a data blob, in one pass over its compressed stream and without unpacking anything on the host.
//!
//! ```text
//! input -> Decompressor --(chunks, another thread)--> sha256 -> tar::Reader -+-> entries  -> Builder -> Tree
//!                                                                            +-> contents -> Blob    -> data file
//! ```
//! Memory: a few chunks, and the tree (about 200 bytes a file).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fs::File;
use std::io::{self, Read};

use crate::image::decompress::{Compression, DecompressError, Decompressor};
use crate::image::tar::{EntryKind, Reader, SparseMap, TarError};
use crate::image::tree::{self, Content, Kind, Tree};
use crate::spec::Digest;

mod blob;
mod budget;
mod build;
mod pipe;

use blob::Blob;
pub use budget::Budget;
pub(crate) use budget::Deadline;
pub use build::Misplaced;
use build::{Builder, Place};
use pipe::Chunks;

/// A converted layer.
#[derive(Debug)]
pub struct Converted {
    /// Its files.
    pub tree: Tree,
    /// Length of the data blob in bytes, a multiple of 4096.
    pub data_len: u64,
    /// SHA-256 of the whole inflated stream: the "DiffID" of the OCI image config.
    pub diff_id: Digest,
}

/// Why a layer cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream cannot be unpacked, or unpacks to too much.
    #[error("Cannot unpack the layer's stream")]
    Decompress(#[source] DecompressError),
    /// The archive, or an entry, is refused.
    #[error("The layer's archive is refused")]
    Tar(#[source] TarError),
    /// An entry does not fit the entries before it.
    #[error("The layer's archive is refused: entry '{path}' (header at byte {at})")]
    Entry {
        /// The entry, escaped.
        path: String,
        /// Offset of its header in the archive.
        at: u64,
        /// Why.
        #[source]
        source: Misplaced,
    },
    /// The contents of all files, holes included, are more than allowed.
    #[error("The layer's data is more than {limit} bytes (limit data_bytes = {limit})")]
    TooMuchData {
        /// The limit in bytes.
        limit: u64,
    },
    /// The data blob cannot be written.
    #[error("Cannot write the layer's data at byte {at}")]
    Write {
        /// Offset in the data blob.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

/// Converts a layer: reads `input` to its end, writes file contents to `data` from its first byte on.
///
/// # Errors
/// When the stream or archive is damaged, refused or over budget, or `data` cannot be written. What `data` holds then has no meaning.
pub fn convert(
    input: &mut dyn Read,
    compression: Compression,
    budget: &Budget,
    data: &mut File,
) -> Result<Converted, LayerError> {
    let mut source = Decompressor::new(input, compression, budget).map_err(LayerError::Decompress)?;
    let (sender, chunks) = pipe::pipe();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || unpack(chunks, budget, data));
        let pumped = pipe::pump(&mut source, sender);
        let converted = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // When the stream fails, the archive is cut short as a consequence.
        pumped.map_err(LayerError::Decompress)?;
        converted
    })
}

/// The half of the conversion behind the inflated stream.
fn unpack(chunks: Chunks, budget: &Budget, data: &mut File) -> Result<Converted, LayerError> {
    let mut reader = Reader::new(chunks, budget);
    let mut builder = Builder::new(budget);
    let mut blob = Blob::new(data, budget.data_bytes);
    while let Some(entry) = reader.next()? {
        let refused = |source| LayerError::Entry { path: entry.path.display(), at: entry.at, source };
        let place = builder.place(&entry).map_err(refused)?;
        let Place::At(directory, name) = place else { continue };
        let kind = match &entry.kind {
            EntryKind::File { size, map } => {
                if map.is_some() {
                    builder.sparse(*size).map_err(refused)?;
                }
                Kind::File(content(&mut reader, &mut blob, *size, map.as_ref())?)
            }
            EntryKind::HardLink(target) => {
                builder.hard_link(directory, name, target).map_err(refused)?;
                continue;
            }
            EntryKind::Directory => {
                builder.directory(directory, name, &entry).map_err(refused)?;
                continue;
            }
            EntryKind::Symlink(target) => Kind::Symlink(target.as_slice().into()),
            EntryKind::CharDevice(number) => Kind::CharDevice(*number),
            EntryKind::BlockDevice(number) => Kind::BlockDevice(*number),
            EntryKind::Fifo => Kind::Fifo,
        };
        builder.put(directory, name, kind, &entry).map_err(refused)?;
    }
    let diff_id = reader.finish()?.digest();
    Ok(Converted { tree: builder.finish(), data_len: blob.finish()?, diff_id })
}

/// Moves the content of the current entry into the data blob.
fn content(
    reader: &mut Reader<Chunks>,
    blob: &mut Blob<'_>,
    size: u64,
    map: Option<&SparseMap>,
) -> Result<tree::File, LayerError> {
    let content = match map {
        None => {
            let address = if size == 0 { 0 } else { blob.address() };
            blob.reserve(size)?;
            loop {
                let piece = reader.data()?;
                let n = piece.len();
                if n == 0 {
                    break;
                }
                blob.write(piece)?;
                reader.consume(n);
            }
            blob.align()?;
            Content::Whole(address)
        }
        Some(map) => {
            let mut sparse = blob.sparse(size);
            for region in &map.regions {
                let (mut offset, mut left) = (region.offset, region.len);
                while left > 0 {
                    let piece = reader.data()?;
                    let most = usize::try_from(left).unwrap_or(usize::MAX);
                    let piece = piece.get(..most).unwrap_or(piece);
                    let n = piece.len();
                    sparse.write(offset, piece)?;
                    reader.consume(n);
                    offset = offset.saturating_add(n as u64);
                    left = left.saturating_sub(n as u64);
                    if n == 0 {
                        break;
                    }
                }
            }
            Content::Sparse(Box::new(sparse.finish()?))
        }
    };
    Ok(tree::File { size, layer: 0, content })
}
