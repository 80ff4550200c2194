//! The 512-byte header block: POSIX.1-1988 "ustar", its GNU variant, and the V7 form before both.
//!
//! Field offsets: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" (base-256 numbers, old GNU sparse map).

use super::TarError;

/// Bytes of a block, the unit of the format.
pub(crate) const BLOCK: usize = 512;

/// A header block whose checksum is right.
#[derive(Clone)]
pub(crate) struct Header {
    bytes: [u8; BLOCK],
    /// Offset of the block in the archive, for error messages.
    pub(crate) at: u64,
}

/// Which fields behind the first 257 bytes mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Before POSIX: neither prefix nor device numbers.
    V7,
    /// POSIX: the prefix field holds the front of the path.
    Ustar,
    /// GNU: no prefix; old sparse map in its place.
    Gnu,
}

/// A numeric field: offset, length and name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field(usize, usize, &'static str);

pub(crate) const MODE: Field = Field(100, 8, "mode");
pub(crate) const UID: Field = Field(108, 8, "uid");
pub(crate) const GID: Field = Field(116, 8, "gid");
pub(crate) const SIZE: Field = Field(124, 12, "size");
pub(crate) const MTIME: Field = Field(136, 12, "mtime");
const CHECKSUM: Field = Field(148, 8, "checksum");
pub(crate) const DEV_MAJOR: Field = Field(329, 8, "devmajor");
pub(crate) const DEV_MINOR: Field = Field(337, 8, "devminor");
/// Size of an old GNU sparse file with its holes.
pub(crate) const GNU_REAL_SIZE: Field = Field(483, 12, "realsize");

/// Offset of the four regions of the old GNU sparse map in the header, and of the 21 in a following block.
const GNU_SPARSE_IN_HEADER: (usize, usize) = (386, 4);
const GNU_SPARSE_IN_BLOCK: (usize, usize) = (0, 21);
/// Offset of the flag "another block of the map follows" in the header and in a following block.
const GNU_EXTENDED_IN_HEADER: usize = 482;
const GNU_EXTENDED_IN_BLOCK: usize = 504;

impl Header {
    /// Checks a block. `None` when it is all zeros (half of an end marker).
    pub(crate) fn parse(bytes: [u8; BLOCK], at: u64) -> Result<Option<Self>, TarError> {
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Self { bytes, at };
        let stored = header.number(CHECKSUM).map_err(|_| TarError::NoHeader { at })?;
        // The sum counts the checksum field itself as eight spaces.
        let sum = bytes.iter().enumerate().fold(0_u64, |sum, (i, b)| {
            let counted = if (148..156).contains(&i) { b' ' } else { *b };
            sum.saturating_add(u64::from(counted))
        });
        if u64::try_from(stored) == Ok(sum) { Ok(Some(header)) } else { Err(TarError::Checksum { at, stored, sum }) }
    }

    fn slice(&self, offset: usize, len: usize) -> &[u8] {
        self.bytes.get(offset..offset.saturating_add(len)).unwrap_or_default()
    }

    /// A text field: up to its first NUL.
    fn text(&self, offset: usize, len: usize) -> &[u8] {
        let field = self.slice(offset, len);
        field.split(|b| *b == 0).next().unwrap_or_default()
    }

    pub(crate) fn typeflag(&self) -> u8 {
        self.bytes[156]
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self.slice(257, 8) {
            b"ustar  \0" => Dialect::Gnu,
            [b'u', b's', b't', b'a', b'r', ..] => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    /// The path as the header alone gives it.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = match self.dialect() {
            // The "xstar" form keeps times in the last 24 bytes of the prefix and signs the block with "tar".
            Dialect::Ustar if self.slice(508, 4) == b"tar\0" => self.text(345, 131),
            Dialect::Ustar => self.text(345, 155),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link_target(&self) -> &[u8] {
        self.text(157, 100)
    }

    /// A number, octal or base-256.
    pub(crate) fn number(&self, field: Field) -> Result<i64, TarError> {
        let Field(offset, len, name) = field;
        parse_number(self.slice(offset, len)).ok_or(TarError::Number { at: self.at, field: name })
    }

    /// A number that must not be negative.
    pub(crate) fn unsigned(&self, field: Field) -> Result<u64, TarError> {
        u64::try_from(self.number(field)?).map_err(|_| TarError::Number { at: self.at, field: field.2 })
    }

    /// Permissions. Some writers put the kind of file above them; what lies above both means nothing, and would leave all bits set by chance.
    pub(crate) fn mode(&self) -> Result<u16, TarError> {
        let mode = u16::try_from(self.unsigned(MODE)?);
        mode.map(|mode| mode & 0o7777).map_err(|_| TarError::Number { at: self.at, field: MODE.2 })
    }

    /// Regions of an old GNU sparse map in the header, and whether more blocks follow.
    pub(crate) fn gnu_sparse(&self) -> Result<(Vec<(u64, u64)>, bool), TarError> {
        let regions = gnu_regions(&self.bytes, GNU_SPARSE_IN_HEADER, self.at)?;
        Ok((regions, self.bytes[GNU_EXTENDED_IN_HEADER] != 0))
    }
}

/// Regions of an old GNU sparse map in a block that follows the header, and whether more follow.
pub(crate) fn gnu_sparse_block(bytes: &[u8; BLOCK], at: u64) -> Result<(Vec<(u64, u64)>, bool), TarError> {
    Ok((gnu_regions(bytes, GNU_SPARSE_IN_BLOCK, at)?, bytes[GNU_EXTENDED_IN_BLOCK] != 0))
}

/// Pairs of offset and length; the first pair whose length field is empty ends the list.
fn gnu_regions(bytes: &[u8; BLOCK], place: (usize, usize), at: u64) -> Result<Vec<(u64, u64)>, TarError> {
    let table = bytes.get(place.0..).unwrap_or_default();
    let mut regions = Vec::new();
    for pair in table.chunks_exact(24).take(place.1) {
        let (offset, len) = pair.split_at(12);
        if len[0] == 0 {
            break;
        }
        let number = |field| {
            parse_number(field).and_then(|n| u64::try_from(n).ok()).ok_or(TarError::Number { at, field: "sparse map" })
        };
        regions.push((number(offset)?, number(len)?));
    }
    Ok(regions)
}

/// A numeric field: base-256 (first bit set, two's complement) or octal digits between spaces and a NUL or space. `None` if it is neither.
fn parse_number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The highest bit is the marker; the bit below it is the sign, extended over the marker.
        let head = if first & 0x40 != 0 { first } else { first & 0x7f };
        let mut value = i128::from(i8::from_ne_bytes([head]));
        for byte in field.iter().skip(1) {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let text = field.split(|b| *b == 0).next().unwrap_or_default();
    let digits = text.trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit.saturating_sub(b'0'))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"0000008\0", None),
            (b"-000001\0", None),
            (b"12 34\0\0\0", None),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\x80\0\0\0\x01\0\0\0", Some(1 << 24)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(parse_number(field), value, "{field:x?}");
        }
    }
}
