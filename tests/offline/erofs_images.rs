//! Metadata images read back by a reader that knows only the format's description.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use duplex::image::erofs::{self, Device, ErofsError};
use duplex::image::layer::Budget;
use duplex::image::merge::merge;
use duplex::image::tree::{Content, InodeId, Kind, Tree};
use proptest::prelude::*;

use crate::archives::convert;
use crate::erofs_reader::{Found, Image};
use crate::tarball::{Header, Tarball};

/// Layers made into a composed disk: the tree, the blobs and the disk.
fn composed(layers: &[Vec<u8>]) -> (Tree, Vec<Vec<u8>>, Vec<u8>) {
    let (mut trees, mut devices, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        let (converted, mut file) = convert(layer, &Budget::default()).unwrap();
        let mut blob = Vec::new();
        file.read_to_end(&mut blob).unwrap();
        devices.push(Device { data_len: converted.data_len, digest: converted.diff_id });
        trees.push(converted.tree);
        blobs.push(blob);
    }
    let tree = merge(trees).unwrap();
    let meta = image(&tree, &devices).unwrap();
    let disk = std::iter::once(&meta).chain(&blobs).flatten().copied().collect();
    (tree, blobs, disk)
}

fn image(tree: &Tree, devices: &[Device]) -> Result<Vec<u8>, ErofsError> {
    let mut out = tempfile::tempfile().unwrap();
    // What was in the file before must not matter.
    out.write_all_at(&[0xaa; 20_000], 0).unwrap();
    let len = erofs::write(tree, devices, &mut out)?;
    let mut meta = Vec::new();
    File::read_to_end(&mut out, &mut meta).unwrap();
    assert_eq!((meta.len() as u64, len % 4096), (len, 0));
    Ok(meta)
}

/// What the tree says should be found, inode numbers aside.
fn expected(tree: &Tree, blobs: &[Vec<u8>]) -> BTreeMap<Vec<u8>, (InodeId, Found)> {
    let mut paths = BTreeMap::new();
    let mut links: BTreeMap<InodeId, u32> = BTreeMap::new();
    let mut open = vec![(Vec::new(), InodeId::ROOT)];
    while let Some((path, id)) = open.pop() {
        let inode = tree.get(id).unwrap();
        match inode.directory() {
            Some(directory) => {
                let below = directory.entries.values().filter(|id| tree.get(**id).unwrap().directory().is_some());
                links.insert(id, 2 + u32::try_from(below.count()).unwrap());
                for (name, id) in &directory.entries {
                    let path = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
                    open.push((path, *id));
                }
            }
            None => *links.entry(id).or_default() += 1,
        }
        paths.insert(path, id);
    }
    let found = paths.into_iter().map(|(path, id)| {
        let inode = tree.get(id).unwrap();
        let attributes = &inode.attributes;
        let (kind, content, rdev) = match &inode.kind {
            Kind::Directory(_) => (0o040_000, Vec::new(), 0),
            Kind::File(file) => (0o100_000, content(file, blobs), 0),
            Kind::Symlink(target) => (0o120_000, target.to_vec(), 0),
            // new_encode_dev of the kernel: minor's low 8 bits, major, minor's high bits.
            Kind::CharDevice(n) => (0o020_000, Vec::new(), encoded(n.major(), n.minor())),
            Kind::BlockDevice(n) => (0o060_000, Vec::new(), encoded(n.major(), n.minor())),
            Kind::Fifo => (0o010_000, Vec::new(), 0),
        };
        let xattrs = attributes.xattrs.iter().flat_map(|x| x.iter());
        let found = Found {
            nid: 0,
            mode: kind | attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: (attributes.mtime.seconds(), attributes.mtime.nanos()),
            links: links[&id],
            size: content.len() as u64,
            rdev,
            xattrs: xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
            content,
        };
        (path, (id, found))
    });
    found.collect()
}

fn encoded(major: u16, minor: u32) -> u32 {
    minor % 256 + u32::from(major) * 256 + minor / 256 * (1 << 20)
}

fn content(file: &duplex::image::tree::File, blobs: &[Vec<u8>]) -> Vec<u8> {
    let blob = &blobs[usize::from(file.layer)];
    let len = usize::try_from(file.size).unwrap();
    match &file.content {
        Content::Whole(address) => blob[usize::try_from(*address).unwrap()..][..len].to_vec(),
        Content::Sparse(sparse) => {
            let mut content = vec![0; len];
            for (number, piece) in (0..).zip(content.chunks_mut(1 << sparse.chunk_bits)) {
                let run = sparse.runs.iter().find(|r| (r.first..r.first + r.chunks).contains(&number));
                if let Some(run) = run {
                    let at = run.address + ((number - run.first) << sparse.chunk_bits);
                    piece.copy_from_slice(&blob[usize::try_from(at).unwrap()..][..piece.len()]);
                }
            }
            content
        }
    }
}

/// The whole way for these layers; the reader must find what the tree says.
fn check(layers: &[Vec<u8>]) {
    let (tree, blobs, disk) = composed(layers);
    let image = Image::open(&disk);
    assert_eq!(image.devices().len(), layers.len());
    let mut next = image.blocks;
    for (slot, blob) in image.devices().iter().zip(&blobs) {
        assert_eq!((slot.mapped, slot.blocks * 4096, slot.tag.len()), (next, blob.len(), 64));
        next += slot.blocks;
    }
    let mut found = image.files();
    let expected = expected(&tree, &blobs);
    let mut nids: BTreeMap<InodeId, u64> = BTreeMap::new();
    assert_eq!(found.len(), expected.len());
    for (path, (id, mut expected)) in expected {
        let found = found.remove(&path).unwrap_or_else(|| panic!("{} is missing", path.escape_ascii()));
        expected.nid = *nids.entry(id).or_insert(found.nid);
        if expected.mode & 0o170_000 == 0o040_000 {
            expected.size = found.size;
        }
        assert_eq!(found, expected, "{}", path.escape_ascii());
    }
    assert_eq!(image.inodes, nids.len() as u64);
}

#[test]
fn an_empty_image_is_an_empty_root() {
    check(&[]);
    check(&[Tarball::default().end()]);
}

#[test]
fn directories_of_every_size() {
    // Around one block: 12 bytes and a name each, `.` and `..` with them.
    for count in [1, 2, 200, 204, 205, 206, 207, 250, 400, 1000] {
        let mut tar = Tarball::default();
        for number in 0..count {
            tar.file(&format!("d/{number:08}"), b"");
        }
        check(&[tar.end()]);
    }
    let mut tar = Tarball::default();
    for number in 0..40 {
        tar.file(&format!("long/{number:03}{}", "n".repeat(90)), b"");
        tar.pax(b'x', &[("path", format!("longest/{number:03}{}", "n".repeat(252)).as_bytes())]).file("x", b"");
    }
    check(&[tar.end()]);
}

#[test]
fn links_and_attributes_around_the_block_size() {
    let mut tar = Tarball::default();
    for len in (1..40).chain(3900..4096).step_by(3) {
        tar.pax(b'x', &[("linkpath", "t".repeat(len).as_bytes())]).symlink(&format!("link-{len}"), "");
        let value = vec![b'v'; len];
        tar.pax(b'x', &[("SCHILY.xattr.user.a", &value)]).file(&format!("attribute-{len}"), b"content");
        tar.pax(b'x', &[("SCHILY.xattr.user.a", &value)]).dir(&format!("directory-{len}/"));
        tar.pax(b'x', &[("SCHILY.xattr.user.a", &value)]).symlink(&format!("both-{len}"), "target");
    }
    tar.pax(b'x', &[("SCHILY.xattr.security.x", &[b'v'; 65_535])]).file("largest", b"x");
    check(&[tar.end()]);
}

#[test]
fn equal_input_gives_equal_bytes_and_its_own_uuid() {
    let layer = |name: &str| vec![Tarball::default().dir("d").file(name, b"x").end()];
    let [a, again, b] = [layer("d/a"), layer("d/a"), layer("d/b")].map(|l| composed(&l).2);
    assert!(a == again);
    assert_ne!(a[1072..1088], b[1072..1088]);
    assert_eq!((a[1078] >> 4, a[1080] >> 6), (8, 2), "RFC 9562 version and variant");
}

#[test]
fn trees_and_devices_that_do_not_fit_are_refused() {
    let (converted, _) = convert(&Tarball::default().file("a", &[0; 5000]).end(), &Budget::default()).unwrap();
    let device = |data_len| Device { data_len, digest: converted.diff_id.clone() };
    assert!(image(&converted.tree, &[device(8192)]).is_ok());
    assert!(matches!(image(&converted.tree, &[]), Err(ErofsError::OutsideDevice { size: 5000, layer: 0 })));
    assert!(matches!(image(&converted.tree, &[device(4096)]), Err(ErofsError::OutsideDevice { .. })));
    assert!(matches!(image(&converted.tree, &[device(8193)]), Err(ErofsError::Unaligned { data_len: 8193, .. })));
    assert!(matches!(image(&converted.tree, &[device(1 << 44)]), Err(ErofsError::TooLarge(_))));
    assert!(matches!(image(&converted.tree, &vec![device(1 << 43); 3]), Err(ErofsError::TooLarge(_))));
    assert!(matches!(image(&converted.tree, &vec![device(8192); 20_000]), Err(ErofsError::TooLarge(_))));
}

/// One entry of a random archive: kind, path, and numbers that everything else comes from.
type Random = (u8, String, u32, u16);

fn random_layer(entries: &[Random]) -> Vec<u8> {
    let mut tar = Tarball::default();
    // A tree of plain directories first, so that random paths do not run into files.
    for directory in ["a", "b", "a/c", "a/c/d"] {
        tar.dir(directory);
    }
    tar.file("anchor", b"anchor");
    for (kind, name, seed, len) in entries {
        let directory = ["", "a/", "b/", "a/c/", "a/c/d/"][*seed as usize % 5];
        let path = format!("{directory}{name}");
        let content: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(usize::from(*len)).collect();
        let value = &content[..content.len().min(300)];
        let time = format!("{}.{:09}", seed % 5000, seed % 999);
        let records: [(&str, &[u8]); 3] =
            [("mtime", time.as_bytes()), ("SCHILY.xattr.user.a", value), ("SCHILY.xattr.trusted.b", b"same")];
        tar.pax(b'x', &records[..*seed as usize % 4]);
        let mut header = Header::new(*kind, path.as_bytes(), if *kind == b'0' { u64::from(*len) } else { 0 });
        header.octal(100, 8, u64::from(seed % 0o10000)).octal(108, 8, u64::from(seed % 70_000));
        match kind {
            b'1' => header.link(b"anchor"),
            b'2' => header.link(path.as_bytes()),
            _ => header.octal(329, 8, u64::from(seed % 4096)).octal(337, 8, u64::from(seed % 0o3_777_777)),
        };
        tar.entry(&header, if *kind == b'0' { &content } else { b"" });
    }
    tar.end()
}

fn random_entry() -> impl Strategy<Value = Random> {
    // Names of upper-case letters, so that no directory of the plain tree is replaced; some of them whiteouts.
    (proptest::sample::select(b"0012345600".to_vec()), "(\\.wh\\.|[!-,])?[A-D]{1,2}", any::<u32>(), 0..9000_u16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn random_layers_read_back(layers in proptest::collection::vec(proptest::collection::vec(random_entry(), 0..40), 1..4)) {
        let layers: Vec<_> = layers.iter().map(|entries| random_layer(entries)).collect();
        check(&layers);
    }
}
