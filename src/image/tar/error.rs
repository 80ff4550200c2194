//! Why an archive, or an entry of it, is refused.

use std::io;

/// An archive that cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The input failed.
    #[error("Cannot read the archive at byte {at}")]
    Read {
        /// Offset in the archive.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive ends too early.
    #[error("Archive is cut short: no {what} at byte {at}")]
    Truncated {
        /// Offset in the archive.
        at: u64,
        /// What should stand there.
        what: String,
    },
    /// A block that is no header.
    #[error("Block at byte {at} is not a tar header: it has no checksum")]
    NoHeader {
        /// Offset in the archive.
        at: u64,
    },
    /// A header whose checksum does not fit its bytes.
    #[error("Block at byte {at} is not a tar header, or is damaged: checksum {stored} in it, {sum} over it")]
    Checksum {
        /// Offset in the archive.
        at: u64,
        /// The number in the header.
        stored: i64,
        /// The sum over the block.
        sum: u64,
    },
    /// A numeric field that is not a number, negative or too large.
    #[error("Header at byte {at}: field '{field}' is not a valid number")]
    Number {
        /// Offset in the archive.
        at: u64,
        /// The field.
        field: &'static str,
    },
    /// One block of zeros with something behind it: a cut or doctored end marker.
    #[error("Archive goes on at byte {at} behind half an end marker")]
    LoneZeroBlock {
        /// Offset in the archive.
        at: u64,
    },
    /// An extended header without an entry behind it.
    #[error("Archive ends at byte {at} behind an extended header without its entry")]
    Dangling {
        /// Offset in the archive.
        at: u64,
    },
    /// An extended header that is refused.
    #[error("Extended header at byte {at} is refused")]
    Header {
        /// Offset in the archive.
        at: u64,
        /// Why.
        #[source]
        refusal: Refusal,
    },
    /// An entry that is refused.
    #[error("Entry '{path}' (header at byte {at}) is refused")]
    Entry {
        /// Path as the archive spells it, escaped.
        path: String,
        /// Offset in the archive.
        at: u64,
        /// Why.
        #[source]
        refusal: Refusal,
    },
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The path climbs.
    #[error("A path with a '..' component may leave the image")]
    DotDot,
    /// The path or target has a NUL byte.
    #[error("A path must not contain a NUL byte")]
    Nul,
    /// Something other than a directory without a name.
    #[error("Only a directory can stand for the root")]
    Root,
    /// A file's path ends with a slash.
    #[error("A path that ends with '/' cannot be a file")]
    TrailingSlash,
    /// A limit of the budget.
    #[error("More than the limit {0} = {1} allows")]
    Exceeds(&'static str, u64),
    /// PAX records that do not parse.
    #[error("PAX records are damaged")]
    PaxRecord,
    /// A PAX value that does not parse, or a key that comes twice.
    #[error("PAX key '{0}' has no valid value, or comes twice with different meaning")]
    PaxValue(String),
    /// The name of an extended attribute.
    #[error("'{0}' is not a name of an extended attribute")]
    XattrName(String),
    /// A global header that names or sizes entries.
    #[error("A global PAX header must not set paths, sizes or attributes of all entries")]
    GlobalHeader,
    /// Two extended headers of one kind before one entry.
    #[error("Two extended headers of one kind in front of one entry")]
    DoubledHeader,
    /// A path or target both as PAX record and as GNU long name, and different.
    #[error("PAX and GNU headers name different paths")]
    TwoNames,
    /// A sparse map.
    #[error("Sparse map is not valid: {0}")]
    Sparse(&'static str),
    /// A link, directory or device with content.
    #[error("An entry of type '{kind}' cannot have {1} bytes of content", kind = .0.escape_default())]
    Content(char, u64),
    /// Owner that does not fit 32 bits, or is the reserved value -1.
    #[error("Owner {0} is not a valid user or group number")]
    Owner(u64),
    /// Time out of range.
    #[error("Modification time is out of range")]
    Time,
    /// Device number that Linux cannot express.
    #[error("Device number {0}:{1} is out of range")]
    Device(u64, u64),
    /// A link without a target.
    #[error("A link needs a target")]
    NoTarget,
    /// A type of entry that has no place in an image.
    #[error("Entries of type '{}' are not supported", .0.escape_default())]
    Type(char),
}

impl Refusal {
    /// The refusal of an extended header.
    pub(crate) fn at_header(self, at: u64) -> TarError {
        TarError::Header { at, refusal: self }
    }

    /// The refusal of an entry.
    pub(crate) fn of(self, path: &[u8], at: u64) -> TarError {
        TarError::Entry { path: super::shown(path), at, refusal: self }
    }
}
