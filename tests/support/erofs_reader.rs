//! A reader of EROFS written from the format's description only ("Documentation/filesystems/erofs.rst" and `erofs_fs.h` of Linux 6.12), for
//! uncompressed images with a device table. It trusts nothing: what is not as described is a panic, which fails the test.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;

const BLOCK: usize = 4096;

/// An image composed of its devices end to end, as a guest has it.
pub(crate) struct Image<'d> {
    disk: &'d [u8],
    xattr_at: usize,
    build_time: (i64, u32),
    root: u64,
    devices: Vec<Slot>,
    pub(crate) inodes: u64,
    pub(crate) blocks: usize,
}

/// A device slot.
pub(crate) struct Slot {
    pub(crate) tag: String,
    pub(crate) blocks: usize,
    pub(crate) mapped: usize,
}

/// What the image says of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) nid: u64,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    pub(crate) size: u64,
    pub(crate) rdev: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Content of a file, target of a link.
    pub(crate) content: Vec<u8>,
}

struct Inode {
    layout: u16,
    union: u32,
    /// Where the part behind inode and attributes starts.
    tail: usize,
    found: Found,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

fn size(n: impl TryInto<usize>) -> usize {
    n.try_into().ok().unwrap()
}

impl<'d> Image<'d> {
    pub(crate) fn open(disk: &'d [u8]) -> Self {
        let sb = &disk[1024..1152];
        assert_eq!(le32(sb, 0), 0xe0f5_e1e2, "magic");
        let mut block = disk[1024..BLOCK].to_vec();
        block[4..8].fill(0);
        assert_eq!(le32(sb, 4), checksum(&block), "checksum");
        assert_eq!(le32(sb, 8), 3, "compatible features");
        assert_eq!((sb[12], sb[13], sb[90]), (12, 0, 0), "block size, slots, directory block size");
        assert_eq!(le32(sb, 40), 0, "metadata block");
        let features = le32(sb, 80);
        assert_eq!(features & !0xc, 0, "incompatible features");
        let count = usize::from(le16(sb, 86));
        assert_eq!(count > 0, features & 8 != 0, "device table");
        let table = usize::from(le16(sb, 88)) * 128;
        let devices = (0..count).map(|n| &disk[table + n * 128..table + n * 128 + 128]).map(|slot| Slot {
            tag: String::from_utf8(slot[..64].to_vec()).unwrap(),
            blocks: size(le32(slot, 64)),
            mapped: size(le32(slot, 68)),
        });
        Self {
            disk,
            xattr_at: size(le32(sb, 44)) * BLOCK,
            build_time: (le64(sb, 24).cast_signed(), le32(sb, 32)),
            root: u64::from(le16(sb, 14)),
            devices: devices.collect(),
            inodes: le64(sb, 16),
            blocks: size(le32(sb, 36)),
        }
    }

    pub(crate) fn devices(&self) -> &[Slot] {
        &self.devices
    }

    /// Every path, with the root as the empty one.
    pub(crate) fn files(&self) -> BTreeMap<Vec<u8>, Found> {
        let mut found = BTreeMap::new();
        let mut open = vec![(Vec::new(), self.root, self.root)];
        while let Some((path, nid, parent)) = open.pop() {
            let inode = self.inode(nid);
            if inode.found.mode & 0o170_000 == 0o040_000 {
                for (name, child, kind) in self.directory(&inode) {
                    match &name[..] {
                        b"." => assert_eq!((child, kind), (nid, 2)),
                        b".." => assert_eq!((child, kind), (parent, 2)),
                        _ => {
                            let path = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
                            assert_eq!(kind, self.file_type(child), "{}", path.escape_ascii());
                            open.push((path, child, nid));
                        }
                    }
                }
            }
            found.insert(path, inode.found);
        }
        found
    }

    fn file_type(&self, nid: u64) -> u8 {
        match self.inode(nid).found.mode >> 12 {
            8 => 1,
            4 => 2,
            2 => 3,
            6 => 4,
            1 => 5,
            10 => 7,
            other => panic!("type {other}"),
        }
    }

    fn inode(&self, nid: u64) -> Inode {
        let at = size(nid) * 32;
        let bytes = &self.disk[at..at + 64];
        let format = le16(bytes, 0);
        let extended = format & 1 == 1;
        let xattr_len = match usize::from(le16(bytes, 2)) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let head = if extended { 64 } else { 32 };
        let mut found = Found {
            nid,
            mode: le16(bytes, 4),
            uid: if extended { le32(bytes, 24) } else { u32::from(le16(bytes, 24)) },
            gid: if extended { le32(bytes, 28) } else { u32::from(le16(bytes, 26)) },
            mtime: if extended { (le64(bytes, 32).cast_signed(), le32(bytes, 40)) } else { self.build_time },
            links: if extended { le32(bytes, 44) } else { u32::from(le16(bytes, 6)) },
            size: if extended { le64(bytes, 8) } else { u64::from(le32(bytes, 8)) },
            rdev: 0,
            xattrs: self.xattrs(at + head, xattr_len),
            content: Vec::new(),
        };
        let union = le32(bytes, 16);
        let mut inode = Inode { layout: format >> 1, union, tail: at + head + xattr_len, found };
        match inode.found.mode >> 12 {
            8 | 10 => {
                let content = self.content(&inode);
                inode.found.content = content;
            }
            2 | 6 => {
                found = inode.found;
                found.rdev = union;
                inode.found = found;
            }
            _ => {}
        }
        inode
    }

    fn content(&self, inode: &Inode) -> Vec<u8> {
        let len = size(inode.found.size);
        if len == 0 {
            return Vec::new();
        }
        match inode.layout {
            0 => self.disk[size(inode.union) * BLOCK..][..len].to_vec(),
            2 => {
                let whole = (len - 1) / BLOCK * BLOCK;
                let tail = &self.disk[inode.tail..inode.tail + len - whole];
                assert!(inode.tail % BLOCK + tail.len() <= BLOCK, "inline data crosses a block");
                let front = if whole > 0 { &self.disk[size(inode.union) * BLOCK..][..whole] } else { &[][..] };
                [front, tail].concat()
            }
            4 => self.chunks(inode, len),
            other => panic!("layout {other}"),
        }
    }

    fn chunks(&self, inode: &Inode, len: usize) -> Vec<u8> {
        assert_eq!(inode.union & !0x3f, 0);
        assert_eq!(inode.union & 0x20, 0x20, "indexes");
        let chunk = BLOCK << (inode.union & 0x1f);
        let table = inode.tail.next_multiple_of(8);
        let mut content = vec![0; len];
        for (number, piece) in content.chunks_mut(chunk).enumerate() {
            let index = &self.disk[table + 8 * number..][..8];
            let (device, block) = (usize::from(le16(index, 2)), le32(index, 4));
            if block == u32::MAX {
                continue;
            }
            let slot = &self.devices[device - 1];
            let end = size(block) + piece.len().div_ceil(BLOCK);
            assert!(end <= slot.blocks, "a chunk behind its device");
            piece.copy_from_slice(&self.disk[(slot.mapped + size(block)) * BLOCK..][..piece.len()]);
        }
        content
    }

    /// Names in the order of the image, which must be that of their bytes.
    fn directory(&self, inode: &Inode) -> Vec<(Vec<u8>, u64, u8)> {
        let bytes = self.content(inode);
        let mut all: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in bytes.chunks(BLOCK) {
            let count = usize::from(le16(block, 8)) / 12;
            for entry in 0..count {
                let start = usize::from(le16(block, 12 * entry + 8));
                let end = if entry + 1 < count { usize::from(le16(block, 12 * entry + 20)) } else { block.len() };
                let name = block[start..end].split(|b| *b == 0).next().unwrap().to_vec();
                assert!((1..=255).contains(&name.len()) && all.last().is_none_or(|(last, ..)| *last < name));
                all.push((name, le64(block, 12 * entry), block[12 * entry + 10]));
            }
        }
        all
    }

    fn xattrs(&self, at: usize, len: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        if len == 0 {
            return found;
        }
        let shared = usize::from(self.disk[at + 4]);
        for number in 0..shared {
            let id = size(le32(self.disk, at + 12 + 4 * number));
            self.xattr(self.xattr_at + 4 * id, &mut found);
        }
        let mut next = at + 12 + 4 * shared;
        while next < at + len {
            next += self.xattr(next, &mut found);
        }
        assert_eq!(next, at + len, "attributes fill their place");
        found
    }

    fn xattr(&self, at: usize, found: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> usize {
        let (name_len, value_len) = (usize::from(self.disk[at]), usize::from(le16(self.disk, at + 2)));
        let prefix: &[u8] = match self.disk[at + 1] {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            other => panic!("prefix {other}"),
        };
        let name = [prefix, &self.disk[at + 4..][..name_len]].concat();
        let value = self.disk[at + 4 + name_len..][..value_len].to_vec();
        assert!(found.insert(name, value).is_none(), "an attribute comes twice");
        (4 + name_len + value_len).next_multiple_of(4)
    }
}

/// CRC-32C without final inversion, bit by bit from the top: another way than the writer's.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX.reverse_bits();
    for byte in bytes {
        crc ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            crc = if crc >> 31 == 1 { crc << 1 ^ 0x1edc_6f41 } else { crc << 1 };
        }
    }
    crc.reverse_bits()
}
