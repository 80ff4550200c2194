//! Extended headers of POSIX.1-2001: records `<length> <key>=<value>\n` (POSIX.1-2017 `pax`, "pax Extended Header").

use crate::image::layer::Budget;

use super::{Refusal, Time};

/// What an extended header says about the entry behind it, or a global one about all that follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link_target: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: PaxSparse,
}

/// Keys `GNU.sparse.*` of the three sparse formats (GNU tar manual, "Storing Sparse Files").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PaxSparse {
    pub(crate) version: (Option<u64>, Option<u64>),
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// `GNU.sparse.map` of format 0.1, or the pairs `offset` and `numbytes` of format 0.0.
    pub(crate) map: Option<Vec<(u64, u64)>>,
    pub(crate) regions: Option<u64>,
    /// An `offset` of format 0.0 that waits for its `numbytes`.
    open_offset: Option<u64>,
}

impl Pax {
    /// Reads the records of one extended header. A key that matters must not come twice: readers disagree which one wins.
    pub(crate) fn parse(mut records: &[u8], budget: &Budget) -> Result<Self, Refusal> {
        let mut pax = Self::default();
        while !records.is_empty() {
            let (key, value, rest) = split_record(records).ok_or(Refusal::PaxRecord)?;
            pax.record(key, value, budget)?;
            records = rest;
        }
        if pax.sparse.open_offset.is_some() {
            return Err(Refusal::Sparse("GNU.sparse.offset without GNU.sparse.numbytes"));
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8], budget: &Budget) -> Result<(), Refusal> {
        let bad = || Refusal::PaxValue(super::path::shown(key));
        match key {
            b"path" => once(&mut self.path, Some(name(value).ok_or_else(bad)?), bad),
            b"linkpath" => once(&mut self.link_target, Some(name(value).ok_or_else(bad)?), bad),
            b"size" => once(&mut self.size, decimal(value), bad),
            b"uid" => once(&mut self.uid, decimal(value), bad),
            b"gid" => once(&mut self.gid, decimal(value), bad),
            b"mtime" => once(&mut self.mtime, time(value), bad),
            // The real size of a sparse file in a form of star that hides the map elsewhere: reading it as plain data would be wrong.
            b"SCHILY.realsize" => Err(Refusal::Sparse("SCHILY.realsize is not supported")),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.record(key, value, budget);
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    return self.xattr(name.to_vec(), value.to_vec(), budget);
                }
                if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent_decoded(name).ok_or_else(bad)?;
                    return self.xattr(name, base64_decoded(value).ok_or_else(bad)?, budget);
                }
                // Names of owners, other times, comments, character sets: nothing of them reaches the file system.
                Ok(())
            }
        }
    }

    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>, budget: &Budget) -> Result<(), Refusal> {
        if name.is_empty() || name.contains(&0) || name.len() > super::path::NAME_MAX {
            return Err(Refusal::XattrName(super::path::shown(&name)));
        }
        if let Some((_, earlier)) = self.xattrs.iter().find(|(n, _)| *n == name) {
            // bsdtar writes each attribute in both spellings; they must agree.
            return if *earlier == value { Ok(()) } else { Err(Refusal::PaxValue(super::path::shown(&name))) };
        }
        self.xattrs.push((name, value));
        let bytes = self
            .xattrs
            .iter()
            .fold(0_u64, |sum, (n, v)| sum.saturating_add(n.len() as u64).saturating_add(v.len() as u64));
        if self.xattrs.len() as u64 > budget.xattrs {
            return Err(Refusal::Exceeds("xattrs", budget.xattrs));
        }
        if bytes > budget.xattr_bytes {
            return Err(Refusal::Exceeds("xattr_bytes", budget.xattr_bytes));
        }
        Ok(())
    }

    /// What a global header may set. Names, sizes and content of the entries that follow are not among it.
    pub(crate) fn allowed_globally(&self) -> bool {
        let plain = self.path.is_none() && self.link_target.is_none() && self.size.is_none();
        plain && self.xattrs.is_empty() && self.sparse == PaxSparse::default()
    }

    /// Takes over what `global` says where this header says nothing.
    pub(crate) fn inherit(&mut self, global: &Self) {
        self.uid = self.uid.or(global.uid);
        self.gid = self.gid.or(global.gid);
        self.mtime = self.mtime.or(global.mtime);
    }
}

impl PaxSparse {
    fn record(&mut self, key: &[u8], value: &[u8], budget: &Budget) -> Result<(), Refusal> {
        let bad = || Refusal::PaxValue(format!("GNU.sparse.{}", super::path::shown(key)));
        let number = || decimal(value).ok_or_else(bad);
        match key {
            b"major" => once(&mut self.version.0, Some(number()?), bad),
            b"minor" => once(&mut self.version.1, Some(number()?), bad),
            b"name" => once(&mut self.name, Some(name(value).ok_or_else(bad)?), bad),
            b"realsize" | b"size" => once(&mut self.real_size, Some(number()?), bad),
            b"numblocks" => once(&mut self.regions, Some(number()?), bad),
            b"map" => {
                let map = decimal_pairs(value, budget)?.ok_or_else(bad)?;
                once(&mut self.map, Some(map), bad)
            }
            b"offset" => once(&mut self.open_offset, Some(number()?), bad),
            b"numbytes" => {
                let offset = self.open_offset.take().ok_or_else(bad)?;
                let map = self.map.get_or_insert_default();
                map.push((offset, number()?));
                within_regions(map.len(), budget)
            }
            _ => Err(bad()),
        }
    }

    /// Whether any key was there.
    pub(crate) fn is_present(&self) -> bool {
        *self != Self::default()
    }
}

/// Sets a value that must not be set yet and must have been readable.
fn once<T>(slot: &mut Option<T>, value: Option<T>, bad: impl Fn() -> Refusal) -> Result<(), Refusal> {
    if slot.is_some() || value.is_none() {
        return Err(bad());
    }
    *slot = value;
    Ok(())
}

/// Splits the first record off: key, value, rest.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(records.get(..space)?)?).ok()?;
    let rest = records.get(len..)?;
    let record = records.get(space.checked_add(1)?..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = record.split_at(equals);
    let plain = !key.is_empty() && !key.contains(&0);
    plain.then_some((key, value.get(1..)?, rest))
}

/// A name must be there and without NUL.
fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty() && !value.contains(&0)).then(|| value.to_vec())
}

/// A number of plain decimal digits.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit.saturating_sub(b'0'))),
        _ => None,
    })
}

/// `offset,length,offset,length...`; the outer error is the limit, the inner `None` bad syntax.
fn decimal_pairs(text: &[u8], budget: &Budget) -> Result<Option<Vec<(u64, u64)>>, Refusal> {
    let mut pairs = Vec::new();
    let mut numbers = text.split(|b| *b == b',').map(decimal);
    while let Some(offset) = numbers.next() {
        let (Some(offset), Some(Some(len))) = (offset, numbers.next()) else { return Ok(None) };
        pairs.push((offset, len));
        within_regions(pairs.len(), budget)?;
    }
    Ok(Some(pairs))
}

/// Checks the number of regions of a sparse file.
pub(crate) fn within_regions(regions: usize, budget: &Budget) -> Result<(), Refusal> {
    if regions as u64 > budget.sparse_regions {
        return Err(Refusal::Exceeds("sparse_regions", budget.sparse_regions));
    }
    Ok(())
}

/// Seconds since the epoch with an optional fraction: `-1.25` is 1.25 s before it. Digits beyond nanoseconds are dropped.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0_u32, |n, d| n.saturating_mul(10).saturating_add(u32::from(d.saturating_sub(b'0'))));
    match (negative, nanos) {
        (false, _) => Time::new(seconds, nanos),
        (true, 0) => Time::new(seconds.checked_neg()?, 0),
        (true, _) => Time::new(seconds.checked_neg()?.checked_sub(1)?, 1_000_000_000_u32.checked_sub(nanos)?),
    }
}

/// `%41` spelling of a name (libarchive, "tar(5)", "LIBARCHIVE.xattr").
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte == b'%' {
            let high = char::from(*rest.next()?).to_digit(16)?;
            let low = char::from(*rest.next()?).to_digit(16)?;
            out.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            out.push(*byte);
        }
    }
    Some(out)
}

/// RFC 4648 base64, padded or not.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let body = match text {
        [body @ .., b'=', b'='] | [body @ .., b'='] => body,
        body => body,
    };
    let mut out = Vec::with_capacity(body.len());
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in body {
        let value = match byte {
            b'A'..=b'Z' => byte.checked_sub(b'A')?,
            b'a'..=b'z' => byte.checked_sub(b'a')?.checked_add(26)?,
            b'0'..=b'9' => byte.checked_sub(b'0')?.checked_add(52)?,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xfff;
        count = count.checked_add(6)?;
        if count >= 8 {
            count = count.checked_sub(8)?;
            out.push(u8::try_from(bits.checked_shr(count)? & 0xff).ok()?);
        }
    }
    // A lone sixth of a group carries less than a byte.
    (count != 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(records: &[u8]) -> Result<Pax, Refusal> {
        Pax::parse(records, &Budget::default())
    }

    /// A record with its length in front, of at most 99 bytes.
    fn record(text: &str) -> String {
        let len = text.len() + 4;
        if len > 10 { format!("{len} {text}\n") } else { format!("{} {text}\n", len - 1) }
    }

    fn parse_all(records: &[&str]) -> Result<Pax, Refusal> {
        parse(records.iter().map(|r| record(r)).collect::<String>().as_bytes())
    }

    #[test]
    fn records_are_read() {
        let pax = parse_all(&["path=a/b", "size=1234", "mtime=-1.25000000", "SCHILY.xattr.user.k=v\nw\0"]).unwrap();
        assert_eq!((pax.path.as_deref(), pax.size), (Some(&b"a/b"[..]), Some(1234)));
        assert_eq!(pax.mtime, Time::new(-2, 750_000_000));
        assert_eq!(pax.xattrs, [(b"user.k".to_vec(), b"v\nw\0".to_vec())]);
    }

    #[test]
    fn both_spellings_of_an_xattr_are_one() {
        // The key of the second ends at its first '=': another attribute.
        let pax = parse_all(&["LIBARCHIVE.xattr.user.a%3db=eA==", "SCHILY.xattr.user.a=b=x"]);
        assert_eq!(pax.unwrap().xattrs.len(), 2);
        let pax = parse_all(&["LIBARCHIVE.xattr.user.a=eA", "SCHILY.xattr.user.a=x"]);
        assert_eq!(pax.unwrap().xattrs.len(), 1);
        assert!(parse_all(&["LIBARCHIVE.xattr.user.a=eQ", "SCHILY.xattr.user.a=x"]).is_err());
    }

    #[test]
    fn damaged_records_are_refused() {
        let cases: [&[u8]; 14] = [
            b"11 path=a/b",
            b"99 path=a/b\n",
            b"0 path=a\n",
            b" 9 path=a\n",
            b"-9 path=a\n",
            b"7 path\n",
            b"6 =a=\n",
            b"9 path=a\n9 path=b\n",
            b"9 path=\0\n",
            b"8 path=\n",
            b"10 size=-1\n",
            b"29 size=9999999999999999999999\n",
            b"18446744073709551615 path=a\n",
            b"23 GNU.sparse.offset=1\n",
        ];
        for case in cases {
            assert!(parse(case).is_err(), "{}", case.escape_ascii());
        }
    }

    #[test]
    fn base64_is_decoded() {
        for (text, bytes) in [("", &b""[..]), ("eA==", b"x"), ("eHk=", b"xy"), ("eHl6", b"xyz"), ("/+8", b"\xff\xef")] {
            assert_eq!(base64_decoded(text.as_bytes()).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(base64_decoded(b"e"), None);
        assert_eq!(base64_decoded(b"e!=="), None);
    }
}
