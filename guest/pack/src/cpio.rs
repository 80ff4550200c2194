//! The kernel's initial RAM file system format: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io;

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Content of files begins at a multiple of this, so that it can be mapped as it is.
pub(crate) const ALIGNMENT: usize = 4096;

/// Longest name with its zero bytes that the kernel takes: PATH_MAX (init/initramfs.c, `do_header`).
const LONGEST_NAME: usize = 4096;

/// The root itself.
const FILLER: &str = ".";

/// Writes an archive. All times are 0, all owners root.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    entries: u32,
}

impl Writer {
    /// A folder.
    pub(crate) fn folder(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(name, FOLDER | permissions, (0, 0), &[])
    }

    /// A character device.
    pub(crate) fn device(&mut self, name: &str, permissions: u32, number: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | permissions, number, &[])
    }

    /// A file whose content is aligned: its name is followed by more zero bytes than it needs, which the kernel counts to the name's
    /// length and otherwise ignores.
    pub(crate) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | permissions, (0, 0), content)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        const HEADER: usize = 110;
        let alignment = if content.is_empty() { 4 } else { ALIGNMENT };
        let mut begin = self.bytes.len() + HEADER;
        let mut end = (begin + name.len() + 1).next_multiple_of(alignment);
        if end - begin > LONGEST_NAME && alignment == ALIGNMENT {
            // The padding would be too long by a few bytes: a folder that is there anyway moves the entry over the page's end.
            self.entry(FILLER, FOLDER | 0o755, (0, 0), &[])?;
            begin = self.bytes.len() + HEADER;
            end = (begin + name.len() + 1).next_multiple_of(alignment);
        }
        let name_length = if content.is_empty() { name.len() + 1 } else { end - begin };
        if name_length > LONGEST_NAME {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the name {name} is too long for cpio")));
        }
        self.entries += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too long for cpio"));
        let sizes = [u32::try_from(content.len()).map_err(too_long)?, u32::try_from(name_length).map_err(too_long)?];
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, time, size, device of the file (2), device of the node (2), length of the name, check
        let fields = [self.entries, mode, 0, 0, links, 0, sizes[0], 0, 0, device.0, device.1, sizes[1], 0];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.resize(end, 0);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        Ok(())
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Name, mode, content and where it begins, of every entry, read by the format's words.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>, usize)> {
        let (mut at, mut found) = (0, Vec::new());
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                usize::try_from(u32::from_str_radix(text, 16).unwrap()).unwrap()
            };
            let (mode, size, name_length) = (field(1), field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_length];
            let name = name.split(|b| *b == 0).next().unwrap();
            let data = (at + 110 + name_length).next_multiple_of(4);
            if name == b"TRAILER!!!" {
                assert!(bytes[data..].iter().all(|b| *b == 0));
                return found;
            }
            let name = String::from_utf8(name.to_vec()).unwrap();
            found.push((name, u32::try_from(mode).unwrap(), bytes[data..data + size].to_vec(), data));
            at = (data + size).next_multiple_of(4);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(("[a-z/]{1,60}", 0_u32..0o1000, proptest::collection::vec(any::<u8>(), 0..9000)), 0..8)) {
            let mut writer = Writer::default();
            for (name, permissions, content) in &entries {
                writer.file(name, *permissions, content).unwrap();
            }
            let bytes = writer.finish().unwrap();
            prop_assert_eq!(bytes.len() % ALIGNMENT, 0);
            let found: Vec<_> = read(&bytes).into_iter().filter(|(name, ..)| name != FILLER).collect();
            prop_assert_eq!(found.len(), entries.len());
            for ((name, mode, content, at), (n, p, c)) in found.iter().zip(&entries) {
                prop_assert_eq!((name, *mode, content), (n, FILE | p, c));
                prop_assert!(c.is_empty() || at % ALIGNMENT == 0);
            }
        }
    }

    #[test]
    fn other_tools_read_it() {
        let mut writer = Writer::default();
        writer.folder("dev", 0o755).unwrap();
        writer.device("dev/console", 0o600, (5, 1)).unwrap();
        writer.file("init", 0o755, b"program").unwrap();
        let bytes = writer.finish().unwrap();
        let modes: Vec<(String, u32)> = read(&bytes).into_iter().map(|(n, m, _, _)| (n, m)).collect();
        assert_eq!(modes, [("dev".into(), 0o040_755), ("dev/console".into(), 0o020_600), ("init".into(), 0o100_755)]);
    }
}
