//! Files with holes: maps that lie, in each of the four formats, and maps that cost more than they say.

use super::{Archive, made};
use crate::tarball::{Header, Tarball};

fn pax(name: &str, records: &[(&str, &[u8])], data: &[u8], verdict: &str) -> Archive {
    made(format!("sparse: {name}"), |t| t.pax(b'x', records).file("s", data), verdict)
}

/// Format 0.1: a map in a record.
fn map(name: &str, size: &str, map: &str, data: &[u8], verdict: &str) -> Archive {
    pax(name, &[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())], data, verdict)
}

/// Format 1.0: a map in front of the data.
fn body(name: &str, size: &str, text: &str, data: &[u8], verdict: &str) -> Archive {
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())];
    let mut content = text.as_bytes().to_vec();
    content.resize(content.len().next_multiple_of(512), 0);
    content.extend(data);
    pax(name, &records, &content, verdict)
}

/// The old format: a map in the header.
fn old(name: &str, size: u64, pairs: &[(u64, u64)], data: &[u8], verdict: &str) -> Archive {
    let mut header = Header::new(b'S', b"s", data.len() as u64);
    header.gnu().octal(483, 12, size);
    for (number, (offset, len)) in pairs.iter().enumerate() {
        header.octal(386 + 24 * number, 12, *offset).octal(398 + 24 * number, 12, *len);
    }
    made(format!("sparse: old, {name}"), |t| t.entry(&header, data), verdict)
}

pub(super) fn maps() -> Vec<Archive> {
    let bad = "!Sparse map is not valid";
    vec![
        map("as it should be", "100", "0,3,50,2", b"abcde", "s(100)"),
        map("all hole", "100", "0,0", b"", "s(100)"),
        map("regions of no length", "9", "0,0,0,0,9,0", b"", "s(9)"),
        map("overlapping", "100", "0,10,5,10", &[1; 20], bad),
        map("the same region twice", "100", "0,10,0,10", &[1; 20], bad),
        map("backwards", "100", "50,10,0,10", &[1; 20], bad),
        map("behind the end", "100", "95,10", &[1; 10], bad),
        map("beyond 2^64", "100", "18446744073709551615,10", &[1; 10], bad),
        map("more data than map", "100", "0,10", &[1; 11], bad),
        map("more map than data", "100", "0,10", &[1; 9], bad),
        map("half a pair", "100", "0,10,20", &[1; 10], "!GNU.sparse.map"),
        map("a letter", "100", "0,x", &[1; 10], "!GNU.sparse.map"),
        map("below zero", "100", "-5,10", &[1; 10], "!GNU.sparse.map"),
        map("a space", "100", "0, 10", &[1; 10], "!GNU.sparse.map"),
        map("empty", "100", "", b"", "!GNU.sparse.map"),
        map("a size below zero", "-1", "0,1", b"x", "!GNU.sparse.size"),
        map("a size beyond the limit", "68719476737", "0,1", b"x", "!limit file_bytes"),
        map("a size near 2^64", "18446744073709551615", "0,1", b"x", "!limit file_bytes"),
        map(
            "a number of regions beyond the limit",
            "100",
            &"1,0,".repeat(65_537)[..4 * 65_537 - 1],
            b"",
            "!limit sparse_regions",
        ),
    ]
}

/// Records that do not make a map.
pub(super) fn records() -> Vec<Archive> {
    let bad = "!Sparse map is not valid";
    vec![
        pax("no size", &[("GNU.sparse.map", b"0,1")], b"x", bad),
        pax("no map", &[("GNU.sparse.size", b"5")], b"x", bad),
        pax(
            "a size in two keys",
            &[("GNU.sparse.size", b"5"), ("GNU.sparse.realsize", b"5"), ("GNU.sparse.map", b"0,1")],
            b"x",
            "!comes twice",
        ),
        pax(
            "another version",
            &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.size", b"5")],
            b"x",
            bad,
        ),
        pax("an unknown key", &[("GNU.sparse.evil", b"1")], b"", "!GNU.sparse.evil"),
        pax("an offset without length", &[("GNU.sparse.size", b"5"), ("GNU.sparse.offset", b"0")], b"", bad),
        pax(
            "a length without offset",
            &[("GNU.sparse.size", b"5"), ("GNU.sparse.numbytes", b"1")],
            b"x",
            "!GNU.sparse.numbytes",
        ),
        pax(
            "a number that lies",
            &[("GNU.sparse.size", b"5"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"0,1")],
            b"x",
            bad,
        ),
        pax(
            "a name that leads out",
            &[("GNU.sparse.name", b"../x"), ("GNU.sparse.size", b"5"), ("GNU.sparse.map", b"0,1")],
            b"x",
            "!'..'",
        ),
        pax(
            "a name beside a path",
            &[("path", b"p"), ("GNU.sparse.name", b"n"), ("GNU.sparse.size", b"5"), ("GNU.sparse.map", b"0,1")],
            b"x",
            "n(5)",
        ),
        pax("of star", &[("SCHILY.realsize", b"9")], b"x", bad),
        made("sparse: a directory", |t| t.pax(b'x', &[("GNU.sparse.size", b"9")]).dir("d"), bad),
    ]
}

/// Maps in front of the data, and in headers.
pub(super) fn elsewhere() -> Vec<Archive> {
    let bad = "!Sparse map is not valid";
    vec![
        body("in the data", "600", "1\n0\n3\n", b"abc", "s(600)"),
        body("in the data, empty", "600", "", b"", bad),
        body("in the data, a letter", "600", "x\n", b"", bad),
        body("in the data, a count too high", "600", "2\n0\n3\n", b"abc", bad),
        body("in the data, a count beyond the limit", "600", "4000000000\n", b"", "!limit sparse_regions"),
        body("in the data, a count beyond 2^64", "600", "99999999999999999999999\n", b"", bad),
        body("in the data, a line without end", "600", &"1".repeat(512), b"", bad),
        body("in the data, overlapping", "600", "2\n0\n3\n1\n2\n", b"abcde", bad),
        old("as it should be", 9000, &[(0, 3), (8000, 2)], b"abcde", "s(9000)"),
        old("overlapping", 9000, &[(0, 3), (1, 2)], b"abcde", bad),
        old("behind the end", 10, &[(8, 3)], b"abc", bad),
        old("another sum", 9000, &[(0, 3)], b"abcde", bad),
        old("beyond the limit", 1 << 32, &[(0, 3), (1 << 31, 2)], b"abcde", "s(4294967296)"),
    ]
}

/// Small entries that ask for large maps in the image: 512 KiB each, for 1.5 KiB in the archive.
pub(super) fn growth() -> Vec<Archive> {
    let holes = |count: usize| {
        let mut tar = Tarball::default();
        for number in 0..count {
            let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"268435456"), ("GNU.sparse.map", b"0,0")];
            tar.pax(b'x', &records).file(&format!("{number:03}"), b"");
        }
        tar
    };
    let files: Vec<String> = (0..40).map(|n| format!("{n:03}(268435456)")).collect();
    vec![
        Archive::plain("growth: forty files of nothing but holes", holes(40).end(), files.join(" ")),
        Archive::plain(
            "growth: so many of them that their maps fill the disk",
            holes(300).end(),
            "!limit metadata_bytes = 134217728",
        ),
    ]
}
