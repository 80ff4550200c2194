//! Targets of fuzzing: what registries and archives give.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Write};

use super::archive::fuzz as archives;
use super::config::Config;
use super::decompress::{Compression, Decompressor};
use super::erofs::{self, Device};
use super::layer::{self, Budget, Converted};
use super::manifest::{Document, MAX_CONFIG};
use super::merge::merge;
use super::tar::{Entry, EntryKind, Reader};
use super::tree::{Content, Inode, InodeId, Kind, Tree};
use super::{Reference, registry};
use crate::fuzz::erofs_reader::Image;
use crate::fuzz::tarball::{BLOCK, Tarball};
use crate::fuzz::{Input, sealed};
use crate::spec::Digest;

/// Most bytes that a stream may inflate to here.
const MOST: u64 = 1 << 20;

/// Small enough that each limit is met.
fn budget() -> Budget {
    Budget {
        inflated_bytes: MOST,
        ratio_from: 64 << 10,
        entries: 200,
        path_bytes: 300,
        path_depth: 20,
        link_bytes: 200,
        xattrs: 4,
        xattr_bytes: 400,
        header_bytes: 4096,
        metadata_bytes: 8192,
        file_bytes: 1 << 20,
        data_bytes: 2 << 20,
        sparse_regions: 20,
        ..Budget::default()
    }
}

fn file() -> File {
    rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
}

/// A reference or a digest: what is written is read again as the same.
pub(crate) fn reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        assert_eq!(written.parse::<Reference>().as_ref(), Ok(&reference), "{written}");
        assert_eq!(reference.canonical().parse::<Reference>().as_ref(), Ok(&reference));
        assert!(reference.id().is_some() != reference.repository().is_some());
        assert!(reference.id().is_some() || reference.tag().is_some() || reference.digest().is_some());
        let parts = [reference.registry(), reference.repository(), reference.tag()];
        assert!(parts.iter().flatten().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic())));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest.clone()));
        assert!(
            digest.hex().len() == 64 && digest.hex().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        );
    }
}

/// A manifest or an index, by itself or with a stated type.
pub(crate) fn manifest(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let stated = [None, Some(super::manifest::OCI_MANIFEST), Some(super::manifest::DOCKER_LIST)];
    match Document::parse(rest, stated[usize::from(*first) % 3]) {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.config.size <= MAX_CONFIG && manifest.layers.len() <= 128);
        }
        Ok(Document::Index(index)) => {
            if let Ok(found) = index.for_this_platform() {
                assert!(found.is_document() && index.manifests.contains(found));
            }
        }
        Err(error) => drop(error.to_string()),
    }
}

/// An image's config.
pub(crate) fn config(data: &[u8]) {
    if let Ok(config) = Config::parse(data) {
        let image = &config.image;
        let names: BTreeSet<&str> = image.env.iter().map(|v| v.split_once('=').unwrap().0).collect();
        assert!(names.len() == image.env.len() && !names.contains(""));
        let texts = image.env.iter().chain(&image.cmd).chain(&image.entrypoint).chain([&image.user, &image.workdir]);
        assert!(texts.into_iter().all(|text| !text.contains('\0')));
        let _ = image.created_at();
        let again = serde_json::to_vec(image).unwrap();
        assert_eq!(&serde_json::from_slice::<super::ImageConfig>(&again).unwrap(), image);
    }
}

/// What a registry says of whom to ask for a token.
pub(crate) fn challenge(data: &[u8]) {
    registry::fuzz_challenge(&String::from_utf8_lossy(data));
}

/// A whole archive: an OCI layout, or what `docker save` writes.
pub(crate) fn archive(data: &[u8]) {
    archives::archive(&sealed(data));
}

/// Entries and contents as they come through a buffer of this size, and whether the archive was good.
fn entries(bytes: &[u8], buffer: usize) -> (Vec<(Entry, Vec<u8>)>, bool) {
    let mut reader = Reader::new(BufReader::with_capacity(buffer, bytes), &budget());
    let mut found = Vec::new();
    loop {
        match reader.next() {
            Ok(None) => return (found, true),
            Err(_) => return (found, false),
            Ok(Some(entry)) => {
                let mut content = Vec::new();
                if reader.by_ref().take(MOST).read_to_end(&mut content).is_err() {
                    return (found, false);
                }
                found.push((entry, content));
            }
        }
    }
}

/// A tar archive: whatever the buffer, the same; no path leads out; a file has the size that it says.
pub(crate) fn tar(data: &[u8]) {
    let bytes = sealed(data);
    let (found, good) = entries(&bytes, 700);
    assert!((&found, good) == (&entries(&bytes, 1).0, entries(&bytes, 4096).1), "the buffer makes a difference");
    let inside = |path: &[u8]| !path.starts_with(b"/") && path.split(|b| *b == b'/').all(|name| name != b"..");
    for (entry, content) in found {
        assert!(inside(entry.path.as_bytes()), "{entry:?}");
        match &entry.kind {
            EntryKind::File { size, .. } => assert_eq!(*size, content.len() as u64),
            EntryKind::HardLink(target) => assert!(inside(target.as_bytes()), "{entry:?}"),
            _ => assert!(content.is_empty()),
        }
    }
    for compression in [Compression::None, Compression::Gzip] {
        let mut out = file();
        if let Ok(converted) = layer::convert(&mut &bytes[..], compression, &budget(), &mut out) {
            assert!(good && converted.data_len == out.metadata().unwrap().len());
        }
    }
}

/// A packed stream: never more than the limit, and plain bytes are what they were.
pub(crate) fn decompress(data: &[u8]) {
    let (first, mut rest) = data.split_first().unwrap_or((&0, &[]));
    let format = [Compression::Gzip, Compression::Zstd, Compression::None][usize::from(*first) % 3];
    let input = rest;
    let budget = Budget { inflated_bytes: 256 << 10, ratio: 50, ratio_from: 4096, ..Budget::default() };
    let Ok(mut source) = Decompressor::new(&mut rest, format, &budget) else { return };
    let (mut out, mut buffer): (Vec<u8>, _) = (Vec::new(), [0; 1000]);
    let end = loop {
        match source.fill(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => out.extend(&buffer[..count]),
            Err(error) => break Err(error),
        }
        assert!(out.len() as u64 <= budget.inflated_bytes);
    };
    if end.is_ok() && format == Compression::None {
        assert!(out == input);
    }
}

/// A stored tree: what is read is written again as it was. Another that points anywhere becomes an image or is refused.
pub(crate) fn tree(data: &[u8]) {
    let mut bytes = [&b"DUPLXTRE\x01\0\0\0"[..], data].concat();
    let mut sum = flate2::Crc::new();
    sum.update(&bytes);
    bytes.extend(sum.sum().to_le_bytes());
    let Ok(tree) = Tree::read_from(&mut &bytes[..]) else { return };
    let write = |tree: &Tree| {
        let mut written = Vec::new();
        tree.write_to(&mut written).unwrap();
        written
    };
    let written = write(&tree);
    assert!(write(&Tree::read_from(&mut &written[..]).unwrap()) == written);
    let devices = [Device { data_len: 1 << 20, digest: Digest::from_sha256([1; 32]) }];
    let _ = erofs::write(&tree, &devices, &mut file());
    if let Ok(merged) = merge(vec![tree.clone(), tree]) {
        let _ = erofs::write(&merged, &[devices[0].clone(), devices[0].clone()], &mut file());
    }
}

/// Names that meet each other, and what hides them.
const NAMES: [&str; 16] =
    ["a", "b", "dir", ".wh.a", ".wh..wh..opq", "..", ".", "", "x", ".wh.dir", ".wh.", "é", "a b", "dir", "c", "b"];

fn path(input: &mut Input<'_>) -> String {
    let depth = input.u8() % 4 + 1;
    let parts: Vec<String> = (0..depth)
        .map(|_| match input.u8() {
            255 => "n".repeat(usize::from(input.u8())),
            n => NAMES[usize::from(n % 16)].to_owned(),
        })
        .collect();
    parts.join("/")
}

/// One layer by the input's orders.
fn tarball(input: &mut Input<'_>) -> Vec<u8> {
    let mut tar = Tarball::default();
    for _ in 0..input.u8() % 32 {
        let kind = input.u8();
        let path = path(input);
        match kind % 12 {
            0..=2 => drop(tar.file(&path, input.piece())),
            3 => drop(tar.file(&path, &vec![input.u8(); usize::from(input.u16())])),
            4 | 5 => drop(tar.dir(&path)),
            6 => drop(tar.symlink(&path, &self::path(input))),
            7 => drop(tar.hard_link(&path, &self::path(input))),
            8 => drop(tar.device(b'3' + kind / 12 % 2, &path, (input.u8().into(), input.u16().into()))),
            9 => drop(tar.pax(b'x', &[("SCHILY.xattr.user.k", input.piece()), ("path", path.as_bytes())])),
            10 => drop(tar.pax(b'x', &[("mtime", input.bytes(12)), ("uid", input.bytes(4))])),
            _ => sparse(&mut tar, &path, input),
        }
    }
    tar.end()
}

/// A sparse file as PAX 1.0 has it: its map is in front of its contents.
fn sparse(tar: &mut Tarball, path: &str, input: &mut Input<'_>) {
    let regions: Vec<(u32, u32)> =
        (0..input.u8() % 5).map(|_| (input.u32() >> 12, u32::from(input.u16()) % 5000)).collect();
    let mut map = format!("{}\n", regions.len());
    regions.iter().for_each(|(offset, len)| map += &format!("{offset}\n{len}\n"));
    let mut body = map.into_bytes();
    body.resize(body.len().next_multiple_of(BLOCK), 0);
    body.extend(vec![7; usize::try_from(regions.iter().map(|(_, len)| len).sum::<u32>()).unwrap()]);
    let size = (u64::from(input.u32()) >> 12).to_string();
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", path.as_bytes()),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    tar.pax(b'x', &records).file(path, &body);
}

/// Layers all the way: converted, stored, laid over each other and written as an image, which another reader takes apart again.
pub(crate) fn layers(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut trees, mut devices, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..input.u8() % 3 + 1 {
        let bytes = tarball(&mut input);
        let mut out = file();
        let Ok(Converted { tree, data_len, diff_id }) =
            layer::convert(&mut &bytes[..], Compression::None, &budget(), &mut out)
        else {
            return;
        };
        let mut blob = Vec::new();
        std::io::Seek::rewind(&mut out).unwrap();
        out.read_to_end(&mut blob).unwrap();
        assert_eq!(blob.len() as u64, data_len);
        let mut stored = Vec::new();
        tree.write_to(&mut stored).unwrap();
        trees.push(Tree::read_from(&mut &stored[..]).unwrap());
        devices.push(Device { data_len, digest: diff_id });
        blobs.push(blob);
    }
    let tree = merge(trees).unwrap();
    let mut out = file();
    out.write_all(&[0xaa; 5000]).unwrap();
    let len = erofs::write(&tree, &devices, &mut out).unwrap();
    let mut disk = Vec::new();
    std::io::Seek::rewind(&mut out).unwrap();
    out.take(len).read_to_end(&mut disk).unwrap();
    blobs.iter().for_each(|blob| disk.extend(blob));
    read_back(&tree, &blobs, &disk);
}

/// The image has the tree's paths with their kinds, modes, owners, attributes and contents, and no others.
fn read_back(tree: &Tree, blobs: &[Vec<u8>], disk: &[u8]) {
    let mut found = Image::open(disk).files();
    let mut open = vec![(Vec::new(), InodeId::ROOT)];
    while let Some((path, id)) = open.pop() {
        let inode = tree.get(id).unwrap();
        let shown = path.escape_ascii().to_string();
        let there = found.remove(&path).unwrap_or_else(|| panic!("'{shown}' is missing"));
        let attributes = &inode.attributes;
        assert_eq!(there.mode, kind(inode) | attributes.mode, "{shown}");
        assert_eq!((there.uid, there.gid), (attributes.uid, attributes.gid), "{shown}");
        assert_eq!(there.mtime, (attributes.mtime.seconds(), attributes.mtime.nanos()), "{shown}");
        let xattrs = attributes.xattrs.iter().flat_map(|x| x.iter());
        assert_eq!(there.xattrs, xattrs.map(|(n, v)| (n.to_vec(), v.to_vec())).collect(), "{shown}");
        match &inode.kind {
            Kind::File(file) => assert!(there.content == content(file, blobs), "content of {shown}"),
            Kind::Symlink(target) => assert_eq!(there.content, target.to_vec(), "{shown}"),
            _ => {}
        }
        for (name, id) in inode.directory().into_iter().flat_map(|d| &d.entries) {
            let below = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
            open.push((below, *id));
        }
    }
    assert!(found.is_empty(), "nobody wrote {:?}", found.keys().next());
}

fn kind(inode: &Inode) -> u16 {
    match &inode.kind {
        Kind::Directory(_) => 0o040_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::CharDevice(_) => 0o020_000,
        Kind::BlockDevice(_) => 0o060_000,
        Kind::Fifo => 0o010_000,
    }
}

fn content(file: &super::tree::File, blobs: &[Vec<u8>]) -> Vec<u8> {
    let blob = &blobs[usize::from(file.layer)];
    let (len, at) = (usize::try_from(file.size).unwrap(), |n: u64| usize::try_from(n).unwrap());
    match &file.content {
        Content::Whole(address) => blob[at(*address)..][..len].to_vec(),
        Content::Sparse(sparse) => {
            let mut content = vec![0; len];
            for run in &sparse.runs {
                for number in 0..run.chunks {
                    let to = at((run.first + number) << sparse.chunk_bits);
                    let from = at(run.address + (number << sparse.chunk_bits));
                    let count = (1 << sparse.chunk_bits).min(len - to);
                    content[to..to + count].copy_from_slice(&blob[from..from + count]);
                }
            }
            content
        }
    }
}
