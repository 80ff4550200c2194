//! The first stage of a layer: bytes come out of gzip, zstd or a plain stream, counted against a [`Budget`] before anything looks at them.
//!
//! Formats are stated by the media type, never guessed.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use crate::image::layer::Budget;

#[cfg(test)]
mod tests;

/// How a blob is packed (OCI image spec, "layer.md", media types `+gzip` and `+zstd`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not packed.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

/// Largest zstd window that is accepted, as a power of two: 128 MiB, what `zstd -d` accepts without a flag.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Size of reads from the compressed stream, in bytes.
const INPUT_BUFFER: usize = 128 << 10;

/// Why a stream could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// More bytes than allowed.
    #[error("Stream inflates to more than {limit} bytes (limit inflated_bytes = {limit})")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// So much more comes out than goes in that only an attack explains it.
    #[error(
        "Stream inflates {compressed} bytes to {inflated}, more than {limit} times as much (limit ratio = {limit})"
    )]
    Ratio {
        /// Bytes read so far.
        compressed: u64,
        /// Bytes written so far.
        inflated: u64,
        /// The limit, as a factor.
        limit: u64,
    },
    /// The packed bytes are damaged or cut short.
    #[error("Stream is not valid {format}, or is cut short, after {inflated} inflated bytes")]
    Format {
        /// Name of the format.
        format: Compression,
        /// Bytes that came out before.
        inflated: u64,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// The stream itself failed.
    #[error("Cannot read the stream after {inflated} inflated bytes")]
    Read {
        /// Bytes that came out before.
        inflated: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain data",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// What the input has given so far, shared with the decoder that owns the input.
#[derive(Clone, Debug, Default)]
struct Gauge {
    compressed: Rc<Cell<u64>>,
    failed: Rc<Cell<bool>>,
}

/// The compressed stream, counted.
struct Gauged<'a> {
    input: &'a mut dyn Read,
    gauge: Gauge,
}

impl Read for Gauged<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.input.read(buf);
        match &result {
            Ok(n) => self.gauge.compressed.set(self.gauge.compressed.get().saturating_add(*n as u64)),
            Err(e) if e.kind() != io::ErrorKind::Interrupted => self.gauge.failed.set(true),
            Err(_) => {}
        }
        result
    }
}

enum Decoder<'a> {
    None(BufReader<Gauged<'a>>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Gauged<'a>>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Gauged<'a>>>>),
}

/// A stream of inflated bytes within a budget.
pub struct Decompressor<'a> {
    decoder: Decoder<'a>,
    format: Compression,
    gauge: Gauge,
    inflated: u64,
    limit: u64,
    ratio: u64,
    ratio_from: u64,
}

impl fmt::Debug for Decompressor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").field("format", &self.format).field("inflated", &self.inflated).finish()
    }
}

impl<'a> Decompressor<'a> {
    /// A decoder of `input`, which is read to its end.
    ///
    /// # Errors
    /// When the decoder cannot be set up (no memory).
    pub fn new(input: &'a mut dyn Read, format: Compression, budget: &Budget) -> Result<Self, DecompressError> {
        let gauge = Gauge::default();
        let mut input = BufReader::with_capacity(INPUT_BUFFER, Gauged { input, gauge: gauge.clone() });
        let setup = |source| DecompressError::Format { format, inflated: 0, source };
        let decoder = match format {
            Compression::None => Decoder::None(input),
            Compression::Gzip => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
            Compression::Zstd => {
                // The decoder takes an empty stream for an empty archive of no frames; it is a cut one.
                let empty =
                    input.fill_buf().map_err(|source| DecompressError::Read { inflated: 0, source })?.is_empty();
                if empty {
                    return Err(setup(io::ErrorKind::UnexpectedEof.into()));
                }
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(setup)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(setup)?;
                Decoder::Zstd(Box::new(decoder))
            }
        };
        Ok(Self {
            decoder,
            format,
            gauge,
            inflated: 0,
            limit: budget.inflated_bytes,
            ratio: budget.ratio,
            ratio_from: budget.ratio_from,
        })
    }

    /// Fills `buf` as far as the stream reaches. Returns the number of bytes, less than `buf` has only at the end.
    ///
    /// # Errors
    /// When the stream fails, is damaged or passes the budget.
    pub fn fill(&mut self, buf: &mut [u8]) -> Result<usize, DecompressError> {
        let mut filled = 0_usize;
        while let Some(rest) = buf.get_mut(filled..).filter(|r| !r.is_empty()) {
            let read = match &mut self.decoder {
                Decoder::None(d) => d.read(rest),
                Decoder::Gzip(d) => d.read(rest),
                Decoder::Zstd(d) => d.read(rest),
            };
            let read = match read {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) if self.gauge.failed.get() => {
                    return Err(DecompressError::Read { inflated: self.inflated, source });
                }
                Err(source) => {
                    return Err(DecompressError::Format { format: self.format, inflated: self.inflated, source });
                }
            };
            filled = filled.saturating_add(read);
            self.inflated = self.inflated.saturating_add(read as u64);
            self.check()?;
        }
        Ok(filled)
    }

    fn check(&self) -> Result<(), DecompressError> {
        if self.inflated > self.limit {
            return Err(DecompressError::TooLarge { limit: self.limit });
        }
        let compressed = self.gauge.compressed.get();
        if self.inflated > self.ratio_from && self.inflated > compressed.saturating_mul(self.ratio) {
            return Err(DecompressError::Ratio { compressed, inflated: self.inflated, limit: self.ratio });
        }
        Ok(())
    }
}
