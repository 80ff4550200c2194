//! Archives made to escape, confuse, exhaust or crash: each is refused with an error that names the entry or limit, and no host path is touched.

use std::error::Error;
use std::io::Write;

use duplex::image::decompress::Compression;
use duplex::image::erofs::{self, Device};
use duplex::image::layer::{self, Budget};
use duplex::image::merge::merge;
use proptest::prelude::*;

use crate::archives::convert;
use crate::tarball::{BLOCK, Header, Tarball};

/// The error with its causes, or "taken".
fn outcome(bytes: &[u8], budget: &Budget) -> String {
    match convert(bytes, budget) {
        Ok(_) => "taken".to_owned(),
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        }
    }
}

fn refused(name: &str, bytes: &[u8], budget: &Budget, words: &str) {
    let outcome = outcome(bytes, budget);
    assert!(outcome.contains(words), "{name}: '{words}' expected, found: {outcome}");
}

fn tar(build: impl FnOnce(&mut Tarball) -> &mut Tarball) -> Vec<u8> {
    let mut tar = Tarball::default();
    build(&mut tar);
    tar.end()
}

/// Ways to spell a path in an archive.
const CARRIERS: [&str; 4] = ["header", "prefix", "PAX", "GNU"];

/// An entry of a kind whose path is carried in one of four ways.
fn carried<'t>(tar: &'t mut Tarball, carrier: &str, kind: u8, path: &[u8], target: &[u8]) -> &'t mut Tarball {
    let mut header = Header::new(kind, if carrier == "header" { path } else { b"shown" }, 0);
    let tar = match carrier {
        "prefix" => {
            let (front, back) = path.split_at(path.iter().rposition(|b| *b == b'/').unwrap_or(0));
            header = Header::new(kind, back.strip_prefix(b"/").unwrap_or(back), 0);
            header.put(345, front);
            tar
        }
        "PAX" => tar.pax(b'x', &[("path", path)]),
        "GNU" => tar.gnu_long(b'L', path),
        _ => tar,
    };
    tar.entry(header.link(target), b"")
}

/// 7 tricks x 4 carriers x 7 kinds, in whiteouts as well.
#[test]
fn climbing_paths_are_refused_however_they_are_spelt() {
    let canary = std::env::temp_dir().join(format!("duplex-canary-{}", std::process::id()));
    let up = format!("{}{}", "../".repeat(12), canary.to_str().unwrap().trim_start_matches('/'));
    let tricks = ["../x", "a/../../x", "/../x", "./../x", "a/b/../../../x", "x/..", up.as_str()];
    let mut cases = 0;
    for trick in tricks {
        for carrier in CARRIERS {
            for kind in [b'0', b'1', b'2', b'3', b'4', b'5', b'6'] {
                let bytes = tar(|t| carried(t.file("ok", b""), carrier, kind, trick.as_bytes(), b"ok"));
                refused(&format!("{trick} {carrier} {}", char::from(kind)), &bytes, &Budget::default(), "'..'");
                cases += 1;
            }
            let hidden = trick.replace('x', ".wh.x").replace("duplex", ".wh.duplex");
            let bytes = tar(|t| carried(t, carrier, b'0', hidden.as_bytes(), b""));
            refused(&hidden, &bytes, &Budget::default(), "'..'");
            cases += 1;
        }
        let bytes = tar(|t| t.hard_link("h", trick));
        refused(&format!("hard link to {trick}"), &bytes, &Budget::default(), "'..'");
        cases += 1;
    }
    assert!(cases > 200 && !canary.exists());
}

#[test]
fn links_are_never_followed() {
    let below = "links are never followed";
    for target in ["/etc", "..", "real", "/proc/self/root", "."] {
        let expect = |name: &str, build: &dyn Fn(&mut Tarball) -> &mut Tarball, words: &str| {
            refused(name, &tar(|t| build(t.dir("real").symlink("a", target))), &Budget::default(), words);
        };
        for path in ["a/x", "a/b/c", "./a//x"] {
            expect(path, &|t| t.file(path, b"x"), below);
            expect(path, &|t| t.dir(path), below);
            expect(path, &|t| t.symlink(path, "x"), below);
            expect(path, &|t| t.hard_link(path, "real"), below);
        }
        expect("hard link through", &|t| t.hard_link("h", "a/passwd"), "'a/passwd'");
    }
    for kind in [b'0', b'3', b'4', b'6'] {
        let bytes = tar(|t| t.entry(&Header::new(kind, b"a", 0), b"").file("a/x", b""));
        refused("below a file", &bytes, &Budget::default(), below);
    }
    let bytes = tar(|t| t.file("f", b"").hard_link("a", "f").file("a/x", b""));
    refused("below a hard link", &bytes, &Budget::default(), below);
}

#[test]
fn hard_links_need_a_file_before_them() {
    for target in ["missing", "/etc/passwd", "d/missing", "f/x", "later"] {
        let bytes = tar(|t| t.dir("d").file("f", b"").hard_link("h", target).file("later", b""));
        refused(target, &bytes, &Budget::default(), "is not in front of it");
    }
    for target in ["d", "./", "/", "d/"] {
        refused(target, &tar(|t| t.dir("d").hard_link("h", target)), &Budget::default(), "is a directory");
    }
    refused("itself", &tar(|t| t.hard_link("h", "h")), &Budget::default(), "is not in front of it");
    refused("no target", &tar(|t| t.hard_link("h", "")), &Budget::default(), "needs a target");
}

#[test]
fn names_that_mean_two_things_are_refused() {
    let bad = |name: &str, build: &dyn Fn(&mut Tarball) -> &mut Tarball, words: &str| {
        refused(name, &tar(|t| build(t)), &Budget::default(), words);
    };
    bad("NUL in PAX path", &|t| t.pax(b'x', &[("path", b"a\0b")]).file("x", b""), "PAX key 'path'");
    bad("NUL in PAX link", &|t| t.pax(b'x', &[("linkpath", b"a\0b")]).symlink("x", "y"), "PAX key 'linkpath'");
    bad("NUL in GNU name", &|t| t.gnu_long(b'L', b"a\0b").file("x", b""), "NUL");
    bad("NUL in GNU link", &|t| t.gnu_long(b'K', b"a\0b").symlink("x", "y"), "NUL");
    bad("two names", &|t| t.pax(b'x', &[("path", b"a")]).gnu_long(b'L', b"b").file("c", b""), "different paths");
    bad("two links", &|t| t.pax(b'x', &[("linkpath", b"a")]).gnu_long(b'K', b"b").symlink("c", "d"), "different paths");
    bad(
        "two PAX headers",
        &|t| t.pax(b'x', &[("uid", b"1")]).pax(b'x', &[("uid", b"2")]).file("c", b""),
        "Two extended",
    );
    bad("two GNU names", &|t| t.gnu_long(b'L', b"a").gnu_long(b'L', b"b").file("c", b""), "Two extended");
    bad("key twice", &|t| t.pax(b'x', &[("path", b"a"), ("path", b"b")]).file("c", b""), "comes twice");
    bad("size twice", &|t| t.pax(b'x', &[("size", b"0"), ("size", b"1")]).file("c", b""), "comes twice");
    bad("empty path", &|t| t.pax(b'x', &[("path", b"")]).file("c", b""), "PAX key 'path'");
    bad("file as root", &|t| t.file("./", b""), "stand for the root");
    bad("link as root", &|t| t.symlink("/", "/etc"), "stand for the root");
    bad("nameless file", &|t| t.file("", b""), "stand for the root");
    bad("file with a slash", &|t| t.file("a/", b""), "ends with '/'");
    bad("bare whiteout", &|t| t.file(".wh.", b""), "not a whiteout");
    bad("whiteout of dot", &|t| t.file(".wh..", b""), "not a whiteout");
    bad("whiteout of dot-dot", &|t| t.file("a/.wh...", b""), "not a whiteout");
    bad("below a whiteout", &|t| t.file(".wh.a/b", b""), "not a whiteout");
    bad("link without target", &|t| t.symlink("a", ""), "needs a target");
    for key in ["path", "linkpath", "size", "SCHILY.xattr.user.a", "GNU.sparse.major"] {
        bad(key, &|t| t.pax(b'g', &[(key, b"1")]).file("c", b""), "global PAX header");
    }
}

#[test]
fn sizes_that_mean_two_things_are_refused() {
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let mut header = Header::new(kind, b"a", 512);
        header.link(b"x");
        let content = Tarball::default().file("hidden", b"").0.clone();
        let bytes = tar(|t| t.file("x", b"").entry(&header, &content));
        refused("content of a non-file", &bytes, &Budget::default(), "cannot have 512 bytes");
        let bytes = tar(|t| {
            let header = header.clone().octal(124, 12, 0).clone();
            t.file("x", b"").pax(b'x', &[("size", b"512")]).entry(&header, &content)
        });
        refused("PAX content of a non-file", &bytes, &Budget::default(), "cannot have 512 bytes");
    }
    for (name, value) in [("negative", &b"-1"[..]), ("hex", b"0x10"), ("huge", b"99999999999999999999"), ("empty", b"")]
    {
        let bytes = tar(|t| t.pax(b'x', &[("size", value)]).file("a", b""));
        refused(name, &bytes, &Budget::default(), "PAX key 'size'");
    }
    let mut header = Header::new(b'0', b"a", 0);
    for (field, name, len) in
        [(100, "mode", 8), (108, "uid", 8), (116, "gid", 8), (124, "size", 12), (136, "mtime", 12)]
    {
        let mut wrong = header.clone();
        wrong.put(field, &b"not octal!!!"[..len]);
        refused(name, &tar(|t| t.entry(&wrong, b"")), &Budget::default(), &format!("'{name}' is not a valid number"));
    }
    for (field, name) in [(100, "mode"), (108, "uid"), (116, "gid"), (124, "size")] {
        let mut wrong = header.clone();
        wrong.base256(field, if field == 124 { 12 } else { 8 }, -1);
        refused(name, &tar(|t| t.entry(&wrong, b"")), &Budget::default(), "is not a valid number");
    }
    header.base256(124, 12, i64::MAX);
    refused("2^63 bytes", &tar(|t| t.entry(&header, b"")), &Budget::default(), "limit file_bytes");
    for owner in [&b"4294967295"[..], b"4294967296", b"18446744073709551615"] {
        let bytes = tar(|t| t.pax(b'x', &[("uid", owner)]).file("a", b""));
        refused("owner", &bytes, &Budget::default(), "not a valid user or group");
    }
    for numbers in [(4096, 0), (0, 1_048_576)] {
        let bytes = tar(|t| t.device(b'3', "a", numbers));
        refused("device", &bytes, &Budget::default(), "Device number");
    }
    refused(
        "year 100,000,000",
        &tar(|t| t.pax(b'x', &[("mtime", b"9999999999999999")]).file("a", b"")),
        &Budget::default(),
        "mtime",
    );
}

#[test]
fn types_without_a_place_in_an_image_are_refused() {
    for kind in *b"DMNVAI8zZ\xff" {
        let bytes = tar(|t| t.entry(&Header::new(kind, b"a", 0), b""));
        refused("type", &bytes, &Budget::default(), "are not supported");
    }
}

#[test]
fn broken_pax_records_are_refused() {
    let records: [&[u8]; 10] = [
        b"x",
        b"5 a=b",
        b"6 a=b\nx",
        b"99 a=b\n",
        b"0 a=b\n",
        b"3 \n",
        b"6 a b\n",
        b"+6 a=b\n",
        b"6  a=b\n",
        b"999999999999999999999 a=b\n",
    ];
    for body in records {
        let bytes = tar(|t| t.raw_pax(b'x', body).file("a", b""));
        refused(&body.escape_ascii().to_string(), &bytes, &Budget::default(), "PAX records are damaged");
    }
    let bytes = tar(|t| t.pax(b'x', &[("SCHILY.xattr.", b"x")]).file("a", b""));
    refused("nameless attribute", &bytes, &Budget::default(), "extended attribute");
    let bytes = tar(|t| t.pax(b'x', &[("LIBARCHIVE.xattr.user.a", b"!")]).file("a", b""));
    refused("base64", &bytes, &Budget::default(), "PAX key");
    refused("nothing behind", &tar(|t| t.pax(b'x', &[("path", b"a")])), &Budget::default(), "without its entry");
    refused("nothing behind", &tar(|t| t.gnu_long(b'L', b"a")), &Budget::default(), "without its entry");
}

#[test]
fn sparse_maps_must_fit_the_file() {
    let map = |map: &str, size: &str, data: &[u8]| {
        let keys: [(&str, &[u8]); 2] = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        tar(|t| t.pax(b'x', &keys).file("s", data))
    };
    for (name, bytes) in [
        ("overlap", map("0,10,5,10", "100", &[0; 20])),
        ("backwards", map("50,10,0,10", "100", &[0; 20])),
        ("behind the end", map("95,10", "100", &[0; 10])),
        ("overflow", map("18446744073709551615,10", "100", &[0; 10])),
        ("more data than map", map("0,10", "100", &[0; 11])),
        ("more map than data", map("0,10", "100", &[0; 9])),
        ("odd", map("0,10,20", "100", &[0; 10])),
        ("no number", map("0,x", "100", &[0; 10])),
        ("no size", tar(|t| t.pax(b'x', &[("GNU.sparse.map", b"0,1")]).file("s", b"x"))),
        ("no map", tar(|t| t.pax(b'x', &[("GNU.sparse.size", b"5")]).file("s", b"x"))),
        ("version", tar(|t| t.pax(b'x', &[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"5")]).file("s", b"x"))),
        ("half a pair", tar(|t| t.pax(b'x', &[("GNU.sparse.offset", b"0")]).file("s", b"x"))),
        ("star", tar(|t| t.pax(b'x', &[("SCHILY.realsize", b"9")]).file("s", b"x"))),
        ("sparse directory", tar(|t| t.pax(b'x', &[("GNU.sparse.size", b"9")]).dir("s"))),
        ("old type in ustar", tar(|t| t.entry(&Header::new(b'S', b"s", 0), b""))),
    ] {
        let outcome = outcome(&bytes, &Budget::default());
        assert!(outcome.contains("parse"), "{name}: {outcome}");
    }
    for body in [&b"1\n0\n"[..], b"x\n", b"99999999999999999999999\n", b"1\n0\n600\n", b"4000000000\n", b""] {
        let keys: [(&str, &[u8]); 3] =
            [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"500")];
        let mut block = body.to_vec();
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        let outcome = outcome(&tar(|t| t.pax(b'x', &keys).file("s", &block)), &Budget::default());
        assert!(outcome.contains("parse"), "{}: {outcome}", body.escape_ascii());
    }
}

#[test]
fn every_limit_is_named() {
    let small = Budget {
        entries: 5,
        path_bytes: 40,
        path_depth: 4,
        link_bytes: 30,
        xattrs: 2,
        xattr_bytes: 100,
        header_bytes: 300,
        metadata_bytes: 90,
        file_bytes: 5000,
        data_bytes: 9000,
        sparse_regions: 3,
        ..Budget::default()
    };
    let x = |n: usize| "x".repeat(n);
    let attribute = |n: usize| format!("SCHILY.xattr.user.{n}");
    let limit = |limit: &str, build: &dyn Fn(&mut Tarball) -> &mut Tarball| {
        refused(limit, &tar(|t| build(t)), &small, &format!("limit {limit} = "))
    };
    limit("entries", &|t| (0..6).fold(t, |t, n| t.file(&n.to_string(), b"")));
    limit("entries", &|t| t.file("a/b/c/d", b"").file("e/f/g/h", b""));
    limit("path_bytes", &|t| t.file(&x(41), b""));
    limit("path_bytes", &|t| t.file("f", b"").hard_link("h", &x(41)));
    limit("path_depth", &|t| t.file("a/b/c/d/e", b""));
    limit("link_bytes", &|t| t.symlink("l", &x(31)));
    limit("xattrs", &|t| {
        t.pax(b'x', &[(&attribute(1), b""), (&attribute(2), b""), (&attribute(3), b"")]).file("f", b"")
    });
    limit("xattr_bytes", &|t| t.pax(b'x', &[(&attribute(1), &[b'v'; 99])]).file("f", b""));
    limit("header_bytes", &|t| t.pax(b'x', &[("comment", &[b'c'; 300])]).file("f", b""));
    limit("header_bytes", &|t| t.gnu_long(b'L', x(300).as_bytes()).file("f", b""));
    limit("metadata_bytes", &|t| (0..4).fold(t, |t, n| t.file(&format!("{}{n}", x(30)), b"")));
    limit("file_bytes", &|t| t.file("f", &[0; 5001]));
    limit("file_bytes", &|t| t.pax(b'x', &[("GNU.sparse.size", b"5001"), ("GNU.sparse.map", b"0,1")]).file("f", b"x"));
    limit("data_bytes", &|t| (0..3).fold(t, |t, n| t.file(&n.to_string(), &[1; 4000])));
    limit("sparse_regions", &|t| {
        t.pax(b'x', &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,1,2,1,4,1,6,1")]).file("f", b"xxxx")
    });
    let long = x(256);
    refused(
        "NAME_MAX",
        &tar(|t| t.pax(b'x', &[("path", long.as_bytes())]).file("f", b"")),
        &Budget::default(),
        "NAME_MAX",
    );
    let bytes = tar(|t| t.pax(b'x', &[("SCHILY.xattr.user.a", &[b'v'; 65_536])]).file("f", b""));
    refused("attribute", &bytes, &Budget::default(), "one extended attribute = 65535");
}

#[test]
fn ten_mebibytes_that_inflate_to_terabytes_end_early() {
    // A file of a terabyte of zeros, a few kilobytes packed: the ratio ends it long before the disk is full.
    let header = Header::new(b'0', b"zeros", 0).base256(124, 12, 1 << 35).clone();
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    packed.write_all(&header.sealed()).unwrap();
    for _ in 0..64 {
        packed.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 20_000);
    let mut data = tempfile::tempfile().unwrap();
    let budget = Budget { ratio_from: 8 << 20, ..Budget::default() };
    let error = layer::convert(&mut packed.as_slice(), Compression::Zstd, &budget, &mut data).unwrap_err();
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("more than 1000 times as much (limit ratio = 1000)"), "{error}: {cause}");
    assert!(data.metadata().unwrap().len() <= 10 << 20);
    let bytes = tar(|t| {
        let keys: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"10995116277760"), ("GNU.sparse.map", b"0,1")];
        t.pax(b'x', &keys).file("holes", b"x")
    });
    refused("holes", &bytes, &Budget::default(), "limit file_bytes = 68719476736");
}

fn good() -> Vec<u8> {
    tar(|t| {
        t.dir("d").file("d/f", b"content").hard_link("d/g", "d/f").symlink("s", "d").device(b'3', "n", (1, 3));
        t.pax(b'x', &[("path", b"long"), ("SCHILY.xattr.user.a", b"b"), ("mtime", b"1.5")]).file("cut", &[7; 600]);
        t.gnu_long(b'L', b"gnu").file("cut", b"").file("d/.wh.x", b"").pax(b'g', &[("comment", b"c")]);
        t.pax(b'x', &[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"0,3,8000,2")]).file("sparse", b"12345")
    })
}

#[test]
fn a_cut_archive_is_refused_at_every_length() {
    let whole = good();
    // The second block of the end marker may be missing.
    let end = whole.len() - BLOCK;
    for len in (0..end).step_by(37).chain((0..end).step_by(BLOCK)) {
        refused(&format!("cut to {len}"), &whole[..len], &Budget::default(), "cut short");
    }
    for len in [end, end + 100, whole.len()] {
        assert_eq!(outcome(&whole[..len], &Budget::default()), "taken");
    }
    let behind = [&whole[..end], &Tarball::default().file("x", b"").0[..]].concat();
    refused("half an end marker", &behind, &Budget::default(), "half an end marker");
}

#[test]
fn strangers_are_refused() {
    for bytes in [b"\x7fELF".repeat(1000), b"PK\x03\x04".repeat(1000), vec![0xff; 4096], vec![b' '; 4096]] {
        refused("not tar", &bytes, &Budget::default(), "not a tar header");
    }
}

/// Whatever is taken must also merge, and make an image of a whole number of blocks.
fn goes_all_the_way(bytes: &[u8]) {
    if let Ok((converted, _)) = convert(bytes, &Budget::default()) {
        let device = Device { data_len: converted.data_len, digest: converted.diff_id };
        let tree = merge(vec![converted.tree]).unwrap();
        let mut out = tempfile::tempfile().unwrap();
        assert_eq!(erofs::write(&tree, &[device], &mut out).unwrap() % 4096, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes changed at will; checksums are mended, so that the change is looked at.
    #[test]
    fn changed_archives_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), mend in any::<bool>()) {
        let mut bytes = good();
        for (at, value) in &changes {
            let len = bytes.len();
            bytes[at.index(len)] = *value;
        }
        if mend {
            for block in bytes.chunks_exact_mut(BLOCK).filter(|b| b[257..262] == *b"ustar") {
                let header = Header(block[..].try_into().unwrap());
                block.copy_from_slice(&header.sealed());
            }
        }
        goes_all_the_way(&bytes);
    }

    /// PAX records of the keys that matter, with any values.
    #[test]
    fn any_pax_values_never_panic(records in proptest::collection::vec((0..14_usize, "[0-9,.\\-]{0,22}|.{0,20}"), 0..6), content in 0..1500_usize) {
        const KEYS: [&str; 14] = ["path", "linkpath", "size", "uid", "mtime", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name",
            "GNU.sparse.realsize", "GNU.sparse.map", "GNU.sparse.offset", "GNU.sparse.numbytes", "SCHILY.xattr.user.x", "LIBARCHIVE.xattr.user.y"];
        let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (KEYS[*key], value.as_bytes())).collect();
        goes_all_the_way(&tar(|t| t.pax(b'x', &records).file("f", &vec![b'1'; content])));
    }
}
