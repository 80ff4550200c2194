//! The bytes of a tree: there and back, frozen, and bounded whatever they claim.

use proptest::prelude::*;

use super::*;

fn sample() -> Tree {
    let mut tree = Tree::default();
    let time = Time::new(1_700_000_000, 5).unwrap();
    let xattrs: Xattrs = [(b"user.k".to_vec().into(), b"v".to_vec().into())].into_iter().collect();
    let attributes = Attributes { mode: 0o640, uid: 1, gid: 70_000, mtime: time, xattrs: Some(Box::new(xattrs)) };
    let plain = |kind| Inode { attributes: Attributes::default(), kind };
    let mut add = |directory: InodeId, name: &[u8], inode: Inode| {
        let id = tree.add(inode).unwrap();
        tree.get_mut(directory).unwrap().directory_mut().unwrap().entries.insert(name.into(), id);
        id
    };
    let file = Kind::File(File { size: 5000, layer: 2, content: Content::Whole(8192) });
    let file = add(InodeId::ROOT, b"file", Inode { attributes, kind: file });
    let names = [b"gone".to_vec().into()].into_iter().collect();
    let whiteouts = Some(Box::new(Whiteouts { opaque: true, names }));
    let directory = add(InodeId::ROOT, b"dir", plain(Kind::Directory(Directory { whiteouts, ..Directory::default() })));
    add(directory, b"link", plain(Kind::Symlink(b"../x".to_vec().into())));
    add(directory, b"null", plain(Kind::CharDevice(DeviceNumber::new(1, 3).unwrap())));
    add(directory, b"disk", plain(Kind::BlockDevice(DeviceNumber::new(4095, 1_048_575).unwrap())));
    add(directory, b"pipe", plain(Kind::Fifo));
    let runs = vec![Run { first: 1, chunks: 2, address: 0 }, Run { first: 5, chunks: 1, address: 1 << 20 }];
    let sparse = Content::Sparse(Box::new(Sparse { chunk_bits: 14, runs }));
    add(directory, b"sparse", plain(Kind::File(File { size: 100_000, layer: 0, content: sparse })));
    tree.get_mut(directory).unwrap().directory_mut().unwrap().entries.insert(b"same".to_vec().into(), file);
    tree
}

fn bytes(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    tree.write_to(&mut out).unwrap();
    out
}

fn read(bytes: &[u8]) -> Result<Tree, TreeError> {
    Tree::read_from(&mut &bytes[..])
}

#[test]
fn there_and_back() {
    let tree = sample();
    let back = read(&bytes(&tree)).unwrap();
    assert_eq!(back, tree.compacted());
    assert_eq!(bytes(&back), bytes(&sample()));
    assert_eq!(back.find(b"file"), back.find(b"dir/same"));
}

/// Trees in stores out there have these bytes: a change needs a new version, which sends people to pull again.
#[test]
fn version_1_is_frozen() {
    let golden = include_bytes!("../../../tests/golden/tree-v1.bin");
    assert_eq!(bytes(&sample()), golden);
    assert_eq!(read(golden).unwrap(), sample().compacted());
}

#[test]
fn other_versions_and_strangers_are_told_apart() {
    let mut other = bytes(&sample());
    other[8] = 2;
    assert!(matches!(read(&other), Err(TreeError::Version(2))));
    assert!(matches!(read(b"not a tree at all"), Err(TreeError::Magic)));
    assert!(matches!(read(b""), Err(TreeError::Read(_))));
}

#[test]
fn every_cut_and_every_flipped_byte_is_noticed() {
    let good = bytes(&sample());
    for len in 0..good.len() {
        assert!(read(&good[..len]).is_err(), "cut to {len}");
        let mut flipped = good.clone();
        flipped[len] ^= 0x11;
        assert!(read(&flipped).is_err(), "byte {len}");
    }
}

/// Bytes with a right checksum, so that the checks behind it are reached.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(&bytes);
    bytes.extend(crc.sum().to_le_bytes());
    bytes
}

/// A tree of directories that name each other by these numbers.
fn directories(entries: &[&[(&str, u32)]]) -> Vec<u8> {
    let mut bytes = b"DUPLXTRE\x01\0\0\0".to_vec();
    bytes.extend(u32::try_from(entries.len()).unwrap().to_le_bytes());
    for names in entries {
        bytes.extend([1, 0xed, 1]);
        bytes.extend([0; 4 + 4 + 8 + 4 + 2 + 1 + 4]);
        bytes.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        for (name, number) in *names {
            bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(number.to_le_bytes());
        }
    }
    sealed(bytes)
}

#[test]
fn what_is_read_is_a_tree() {
    assert!(read(&directories(&[&[("a", 1)], &[]])).is_ok());
    let wrong: [&[&[(&str, u32)]]; 9] = [
        &[&[("a", 0)]],
        &[&[("a", 1)], &[("b", 1)]],
        &[&[("a", 1)], &[("b", 0)]],
        &[&[("a", 1), ("b", 1)], &[]],
        &[&[("a", 2)], &[]],
        &[&[], &[]],
        &[&[("..", 1)], &[]],
        &[&[("a/b", 1)], &[]],
        &[&[("a", 1), ("a", 2)], &[], &[]],
    ];
    for entries in wrong {
        assert!(matches!(read(&directories(entries)), Err(TreeError::Damaged(_))), "{entries:?}");
    }
    let claims = sealed([&b"DUPLXTRE\x01\0\0\0"[..], &16_000_000_u32.to_le_bytes()].concat());
    assert!(matches!(read(&claims), Err(TreeError::Damaged(_) | TreeError::Read(_))));
}

#[test]
fn a_chain_of_directories_has_an_end() {
    let deep: Vec<Vec<(&str, u32)>> = (1..=1100).map(|n| vec![("d", n)]).chain([vec![]]).collect();
    let deep: Vec<&[(&str, u32)]> = deep.iter().map(Vec::as_slice).collect();
    assert!(matches!(read(&directories(&deep)), Err(TreeError::Damaged("depth"))));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(noise in proptest::collection::vec(any::<u8>(), 0..400), at in 12_usize..300) {
        let mut bytes = self::bytes(&sample());
        bytes.truncate(bytes.len() - 4);
        for (to, from) in bytes.iter_mut().skip(at).zip(&noise) {
            *to = *from;
        }
        if let Ok(tree) = read(&sealed(bytes)) {
            let again = self::bytes(&tree);
            prop_assert_eq!(read(&again).unwrap(), tree.compacted());
        }
    }
}
