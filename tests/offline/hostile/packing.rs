//! Archives that are cut, that go on behind their end, and streams that are not packed as they say.

use std::io::Write;

use duplex::image::decompress::Compression;

use super::Archive;
use crate::tarball::{BLOCK, Header, Tarball};

fn sample() -> Vec<u8> {
    let mut tar = Tarball::default();
    tar.dir("d")
        .file("d/f", &[1; 700])
        .pax(b'x', &[("path", b"long")])
        .file("s", b"x")
        .gnu_long(b'L', b"gnu")
        .file("s", b"");
    tar.pax(b'x', &[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"0,3,8000,2")]).file("h", b"12345").end()
}

/// Cut at the beginning, in the middle and at the end of every block.
pub(super) fn cuts() -> Vec<Archive> {
    let whole = sample();
    let end = whole.len() - 2 * BLOCK;
    let mut archives = Vec::new();
    for block in (0..end).step_by(BLOCK) {
        for (name, at) in [("at", block), ("behind", block + 1), ("in", block + 300)] {
            archives.push(Archive::plain(
                format!("cut: {name} block {}", block / BLOCK),
                whole[..at].to_vec(),
                "!cut short",
            ));
        }
    }
    archives.push(Archive::plain("cut: in front of the end marker", whole[..end].to_vec(), "!cut short"));
    archives.push(Archive::plain("cut: in the end marker", whole[..end + 100].to_vec(), "!cut short"));
    archives.push(Archive::plain("cut: behind half the end marker", whole[..end + BLOCK].to_vec(), TREE));
    archives
}

const TREE: &str = "d/ d/f(700) gnu(0) h(9000) long(1)";

pub(super) fn ends() -> Vec<Archive> {
    let whole = sample();
    let end = whole.len() - 2 * BLOCK;
    let plus = |bytes: &[u8]| [&whole[..], bytes].concat();
    let half = |bytes: &[u8]| [&whole[..end + BLOCK], bytes].concat();
    let mut second = Tarball::default();
    second.file("evil", b"x");
    let mut inner = Tarball::default();
    inner.file("inner.tar", &second.end());
    let lying = |size: u64| {
        let mut tar = Tarball::default();
        tar.entry(&Header::new(b'0', b"f", size), &second.0).file("g", b"").end()
    };
    vec![
        Archive::plain("end: zeros behind it", plus(&[0; 10_000]), TREE),
        Archive::plain("end: rubbish behind it", plus(b"rubbish"), TREE),
        Archive::plain("end: an archive behind it", plus(&second.end()), TREE),
        Archive::plain("end: a file behind half of it", half(&second.end()), "!half an end marker"),
        Archive::plain("end: rubbish behind half of it", half(&[7; BLOCK]), "!half an end marker"),
        Archive::plain("end: half of it, then zeros that are cut", half(&[0; 100]), TREE),
        Archive::plain("end: nothing but it", vec![0; 2 * BLOCK], ""),
        Archive::plain("end: half of it alone", vec![0; BLOCK], ""),
        Archive::plain("end: nothing at all", Vec::new(), "!cut short"),
        Archive::plain("end: one zero", vec![0], "!cut short"),
        Archive::plain("end: an archive in an archive", inner.end(), "inner.tar(2048)"),
        Archive::plain("end: a file that swallows the next header", lying(1024), "f(1024) g(0)"),
        Archive::plain("end: a file that ends in front of its content", lying(0), "evil(1) f(0) g(0)"),
        Archive::plain("end: a file that ends in the middle of a header", lying(700), "f(700) g(0)"),
        Archive::plain("end: no archive but a program", b"\x7fELF".repeat(1000), "!not a tar header"),
        Archive::plain("end: no archive but a zip", b"PK\x03\x04".repeat(1000), "!not a tar header"),
        Archive::plain("end: no archive but cpio", b"070701".repeat(1000), "!not a tar header"),
        Archive::plain("end: spaces", vec![b' '; 4096], "!not a tar header"),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A packed file of zeros, of which 64 MiB come.
fn zeros(mut packer: impl Write) {
    packer.write_all(&Header::new(b'0', b"zeros", 63 << 20).sealed()).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..64).for_each(|_| packer.write_all(&zeros).unwrap());
}

pub(super) fn streams() -> Vec<Archive> {
    let whole = sample();
    let (gz, zst) = (gzip(&whole), zstd_of(&whole));
    let (mut gzeros, mut zzeros) = (Vec::new(), Vec::new());
    zeros(flate2::write::GzEncoder::new(&mut gzeros, flate2::Compression::best()));
    zeros(zstd::Encoder::new(&mut zzeros, 1).unwrap().auto_finish());
    let stream = |name: &str, packed: Compression, bytes: Vec<u8>, verdict: &str| Archive {
        packed,
        ..Archive::plain(format!("stream: {packed}, {name}"), bytes, verdict)
    };
    let (g, z) = (Compression::Gzip, Compression::Zstd);
    let mut archives = vec![
        stream("well", g, gz.clone(), TREE),
        stream("well", z, zst.clone(), TREE),
        stream("of nothing", g, gzip(b""), "!cut short"),
        stream("of nothing", z, zstd_of(b""), "!cut short"),
        stream("no byte", g, Vec::new(), "!not valid gzip"),
        stream("no byte", z, Vec::new(), "!not valid zstd"),
        stream("not packed", g, whole.clone(), "!not valid gzip"),
        stream("not packed", z, whole.clone(), "!not valid zstd"),
        stream("the other one", g, zst.clone(), "!not valid gzip"),
        stream("the other one", z, gz.clone(), "!not valid zstd"),
        stream("packed twice", g, gzip(&gz), "!cut short"),
        stream("packed twice", z, zstd_of(&zst), "!cut short"),
        stream("in two members", g, [gzip(&whole[..900]), gzip(&whole[900..])].concat(), TREE),
        stream("in two frames", z, [zstd_of(&whole[..900]), zstd_of(&whole[900..])].concat(), TREE),
        stream("in a thousand members", g, whole.chunks(5).flat_map(gzip).collect(), TREE),
        stream("in a thousand frames", z, whole.chunks(5).flat_map(zstd_of).collect(), TREE),
        stream("a second archive in a second member", g, [gz.clone(), gz.clone()].concat(), TREE),
        stream("rubbish behind it", g, [&gz[..], b"rubbish"].concat(), "!not valid gzip"),
        stream("rubbish behind it", z, [&zst[..], b"rubbish"].concat(), "!not valid zstd"),
        stream("zeros behind it", g, [&gz[..], &[0; 99]].concat(), "!not valid gzip"),
        stream("zeros behind it", z, [&zst[..], &[0; 99]].concat(), "!not valid zstd"),
        stream("a frame that is skipped", z, [b"\x50\x2a\x4d\x18\x02\0\0\0xy", &zst[..]].concat(), TREE),
        stream(
            "a frame that is skipped for ever",
            z,
            b"\x50\x2a\x4d\x18\xff\xff\xff\xffxy".to_vec(),
            "!not valid zstd",
        ),
        stream("a file of zeros without end", g, gzeros, "!limit ratio = 1000"),
        stream("a file of zeros without end", z, zzeros, "!limit ratio = 1000"),
        stream("a window of 2 GiB", z, b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00".to_vec(), "!not valid zstd"),
        stream("a reserved bit", z, b"\x28\xb5\x2f\xfd\x08\x48\x01\x00\x00".to_vec(), "!not valid zstd"),
        stream("a reserved method", g, [b"\x1f\x8b\x07", &gz[3..]].concat(), "!not valid gzip"),
        stream("reserved flags", g, [b"\x1f\x8b\x08\xe0", &gz[4..]].concat(), "!not valid gzip"),
    ];
    for cut in [1, 4, 9, gz.len() / 2, gz.len() - 9, gz.len() - 8, gz.len() - 1] {
        archives.push(stream(&format!("cut at {cut}"), g, gz[..cut].to_vec(), "!not valid gzip"));
    }
    for cut in [1, 4, 6, zst.len() / 2, zst.len() - 3, zst.len() - 1] {
        archives.push(stream(&format!("cut at {cut}"), z, zst[..cut].to_vec(), "!not valid zstd"));
    }
    for (name, at) in [("its length", gz.len() - 2), ("its checksum", gz.len() - 7)] {
        let mut wrong = gz.clone();
        wrong[at] ^= 0x10;
        archives.push(stream(&format!("wrong in {name}"), g, wrong, "!not valid gzip"));
    }
    archives
}
