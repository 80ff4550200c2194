//! Tar archives of every kind, made by the test byte by byte: what the reader takes is not made by its own code.
#![allow(dead_code, reason = "each test program uses its part")]

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// An archive in the making.
#[derive(Clone, Default)]
pub(crate) struct Tarball(pub(crate) Vec<u8>);

/// A header to be changed at will before it is sealed with its checksum.
#[derive(Clone)]
pub(crate) struct Header(pub(crate) [u8; BLOCK]);

impl Header {
    /// A ustar header: mode 0644 (directories 0755), owner 0:0, time 1,000,000,000.
    pub(crate) fn new(kind: u8, path: &[u8], size: u64) -> Self {
        let mut header = Self([0; BLOCK]);
        header.put(0, &path[..path.len().min(100)]);
        header.octal(100, 8, if kind == b'5' { 0o755 } else { 0o644 });
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(124, 12, size);
        header.octal(136, 12, 1_000_000_000);
        header.put(156, &[kind]);
        header.put(257, b"ustar\x0000");
        header
    }

    pub(crate) fn put(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn octal(&mut self, offset: usize, len: usize, value: u64) -> &mut Self {
        let text = format!("{value:0width$o}\0", width = len - 1);
        self.put(offset, text.as_bytes())
    }

    /// A number as GNU tar writes it when octal does not reach: big-endian two's complement with the first bit set.
    pub(crate) fn base256(&mut self, offset: usize, len: usize, value: i64) -> &mut Self {
        let fill = if value < 0 { 0xff } else { 0 };
        let mut field = vec![fill; len];
        field[len - 8..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
        self.put(offset, &field)
    }

    pub(crate) fn link(&mut self, target: &[u8]) -> &mut Self {
        self.put(157, &target[..target.len().min(100)])
    }

    /// GNU's magic in place of ustar's.
    pub(crate) fn gnu(&mut self) -> &mut Self {
        self.put(257, b"ustar  \0")
    }

    pub(crate) fn sealed(&self) -> [u8; BLOCK] {
        let mut bytes = self.0;
        bytes[148..156].copy_from_slice(b"        ");
        let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    }
}

/// One PAX record with its own length in front.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

impl Tarball {
    /// A header and its content, filled up to a block.
    pub(crate) fn entry(&mut self, header: &Header, content: &[u8]) -> &mut Self {
        self.0.extend(header.sealed());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.entry(&Header::new(b'0', path.as_bytes(), content.len() as u64), content)
    }

    pub(crate) fn dir(&mut self, path: &str) -> &mut Self {
        self.entry(&Header::new(b'5', path.as_bytes(), 0), b"")
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(Header::new(b'2', path.as_bytes(), 0).link(target.as_bytes()), b"")
    }

    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(Header::new(b'1', path.as_bytes(), 0).link(target.as_bytes()), b"")
    }

    pub(crate) fn device(&mut self, kind: u8, path: &str, numbers: (u64, u64)) -> &mut Self {
        let mut header = Header::new(kind, path.as_bytes(), 0);
        header.octal(329, 8, numbers.0).octal(337, 8, numbers.1);
        self.entry(&header, b"")
    }

    /// An extended header of this kind (`x` or `g`) with these records.
    pub(crate) fn pax(&mut self, kind: u8, records: &[(&str, &[u8])]) -> &mut Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.raw_pax(kind, &body)
    }

    pub(crate) fn raw_pax(&mut self, kind: u8, body: &[u8]) -> &mut Self {
        self.entry(&Header::new(kind, b"PaxHeaders/x", body.len() as u64), body)
    }

    /// GNU's long name (`L`) or long link target (`K`).
    pub(crate) fn gnu_long(&mut self, kind: u8, name: &[u8]) -> &mut Self {
        let body = [name, b"\0"].concat();
        self.entry(Header::new(kind, b"././@LongLink", body.len() as u64).gnu(), &body)
    }

    /// The archive with its end marker.
    pub(crate) fn end(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }
}
