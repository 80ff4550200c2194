//! Numbers, checksums, types, modes and device numbers of headers.

use super::{Archive, made};
use crate::tarball::{BLOCK, Header, Tarball};

/// Offset, length and name of a numeric field.
const FIELDS: [(usize, usize, &str); 7] = [
    (100, 8, "mode"),
    (108, 8, "uid"),
    (116, 8, "gid"),
    (124, 12, "size"),
    (136, 12, "mtime"),
    (329, 8, "devmajor"),
    (337, 8, "devminor"),
];

/// Every field with every spelling of a number: those of no number are refused by the field's name, in all fields alike.
pub(super) fn numbers() -> Vec<Archive> {
    let good: [(&str, &[u8]); 6] = [
        ("all NUL", &[0; 12]),
        ("all spaces", b"            "),
        ("spaces in front", b"     0\0     "),
        ("a space behind", b"0000000 \0\0\0\0"),
        ("rubbish behind a NUL", b"0\0junk\0junkj"),
        ("base 256 of zero", b"\x80\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    let bad: [(&str, &[u8]); 11] = [
        ("letters", b"letters and "),
        ("a digit beyond octal", b"0000008\0\0\0\0\0"),
        ("a sign", b"-0000001\0\0\0\0"),
        ("a plus", b"+0000001\0\0\0\0"),
        ("hexadecimal", b"0x10\0\0\0\0\0\0\0\0"),
        ("a space between digits", b"12 34\0\0\0\0\0\0\0"),
        ("a point", b"1.5\0\0\0\0\0\0\0\0\0"),
        ("digits of another script", b"\x31\xd9\xa3\0\0\0\0\0\0\0\0\0"),
        ("base 256 below zero", &[0xff; 12]),
        ("base 256 near 2^64", b"\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("a new line", b"\n0\n\0\0\0\0\0\0\0\0\0\x01"),
    ];
    let mut archives = Vec::new();
    for (offset, length, field) in FIELDS {
        let with = |value: &[u8]| {
            let mut header = Header::new(if field.starts_with("dev") { b'3' } else { b'0' }, b"f", 0);
            header.octal(329, 8, 0).octal(337, 8, 0).put(offset, &value[..length.min(value.len())]);
            Tarball::default().entry(&header, b"").end()
        };
        let tree = if field.starts_with("dev") {
            "f:c0,0"
        } else if field == "mode" {
            "f(0)@0"
        } else {
            "f(0)"
        };
        archives.extend(good.iter().map(|(name, value)| Archive::plain(format!("{field}: {name}"), with(value), tree)));
        for (name, value) in bad {
            let verdict = match (field, name) {
                // Spaces and new lines around a number are no part of it.
                (_, "a new line") => tree.to_owned(),
                // A time may lie before 1970.
                ("mtime", "base 256 below zero") => tree.to_owned(),
                // In eight bytes this is a number, and too high for what it says.
                ("uid" | "gid", "base 256 near 2^64") => "!not a valid user or group".to_owned(),
                ("devmajor" | "devminor", "base 256 near 2^64") => "!out of range".to_owned(),
                _ => format!("!'{field}' is not a valid number"),
            };
            archives.push(Archive::plain(format!("{field}: {name}"), with(value), verdict));
        }
    }
    archives
}

/// A header whose checksum field is this.
fn summed(name: &str, field: impl FnOnce(u32) -> Vec<u8>, verdict: &str) -> Archive {
    let header = Header::new(b'0', b"f\xff", 0);
    let mut bytes = header.sealed();
    let sum = u32::from_str_radix(std::str::from_utf8(&bytes[148..154]).unwrap(), 8).unwrap();
    let field = field(sum);
    bytes[148..148 + field.len()].copy_from_slice(&field);
    let mut archive = bytes.to_vec();
    archive.resize(3 * BLOCK, 0);
    Archive::plain(format!("checksum: {name}"), archive, verdict)
}

pub(super) fn checksums() -> Vec<Archive> {
    let taken = "f\\xff(0)";
    let damaged = "!not a tar header";
    vec![
        summed("right", |sum| format!("{sum:06o}\0 ").into_bytes(), taken),
        summed("right, with a space first", |sum| format!(" {sum:06o}\0").into_bytes(), taken),
        summed("right, in eight digits", |sum| format!("{sum:08o}").into_bytes(), taken),
        summed("right, in base 256", |sum| [&[0x80, 0, 0, 0][..], &sum.to_be_bytes()].concat(), taken),
        // What some old writers did: bytes above 127 counted as negative. One sum is one meaning.
        summed("of signed bytes", |sum| format!("{:06o}\0 ", sum - 256).into_bytes(), damaged),
        summed("one too high", |sum| format!("{:06o}\0 ", sum + 1).into_bytes(), damaged),
        summed("in decimal", |sum| format!("{sum:06}\0 ").into_bytes(), damaged),
        summed("missing", |_| vec![0; 8], damaged),
        summed("spaces", |_| vec![b' '; 8], damaged),
        summed("a word", |_| b"checksum".to_vec(), damaged),
        summed("below zero", |_| vec![0xff; 8], damaged),
    ]
}

/// Types of entries: each letter and digit, and some others.
pub(super) fn types() -> Vec<Archive> {
    let mut archives = Vec::new();
    for kind in (b'0'..=b'9').chain(b'A'..=b'Z').chain(b'a'..=b'z').chain([0, 1, b' ', b'-', 0x7f, 0x80, 0xff]) {
        let verdict = match kind {
            b'0' | b'7' | 0 => "f(0) t(0)",
            // Extended headers of no records change nothing, but a name of no letters is one.
            b'1' => "f(0) t=f",
            b'2' => "f(0) t>f",
            b'3' => "f(0) t:c0,0",
            b'4' => "f(0) t:b0,0",
            b'5' => "f(0) t/@644",
            b'6' => "f(0) t|",
            b'x' | b'X' | b'L' | b'K' => "!without its entry",
            b'g' => "f(0)",
            b'S' => "!old GNU type in another format",
            _ => "!are not supported",
        };
        let build = |t: &mut Tarball| {
            t.file("f", b"").entry(Header::new(kind, b"t", 0).octal(100, 8, 0o644).link(b"f"), b"").end()
        };
        let name = format!("type: {}", char::from(kind).escape_default());
        archives.push(Archive::plain(name, build(&mut Tarball::default()), verdict));
    }
    archives
}

/// Permissions: what is kept is what programs see, and nothing grows from bits of another kind.
pub(super) fn modes() -> Vec<Archive> {
    let mut archives = Vec::new();
    for (name, mode, shown) in [
        ("set-user-ID", 0o4755, "@4755"),
        ("set-group-ID", 0o2755, "@2755"),
        ("sticky", 0o1777, "@1777"),
        ("all bits", 0o7777, "@7777"),
        ("no bits", 0, "@0"),
        ("a kind of file in it", 0o100_644, ""),
        ("a kind of device in it", 0o060_644, ""),
    ] {
        let header = |kind| Header::new(kind, b"m", 0).octal(100, 8, mode).clone();
        archives.push(made(format!("mode: {name}, file"), |t| t.entry(&header(b'0'), b""), format!("m(0){shown}")));
        let shown = if shown.is_empty() { "@644" } else { shown };
        archives.push(made(format!("mode: {name}, directory"), |t| t.entry(&header(b'5'), b""), format!("m/{shown}")));
        let link = header(b'2').link(b"x").clone();
        archives.push(made(format!("mode: {name}, link"), |t| t.entry(&link, b""), "m>x"));
        // A second name must not give the file other permissions.
        let second = header(b'1').link(b"f").clone();
        archives.push(made(format!("mode: {name}, second name"), |t| t.file("f", b"").entry(&second, b""), "f(0) m=f"));
    }
    let beyond = Header::new(b'0', b"m", 0).octal(100, 8, 0o7_770_644).clone();
    archives.push(made("mode: bits beyond", |t| t.entry(&beyond, b""), "!'mode' is not a valid number"));
    let owned = Header::new(b'0', b"m", 0).octal(100, 8, 0o4755).octal(108, 8, 1000).octal(116, 8, 1000).clone();
    archives.push(made("mode: set-user-ID of a user", |t| t.entry(&owned, b""), "m(0)@4755+1000:1000"));
    let over = |t: &mut Tarball| t.entry(&owned, b"").file("m", b"x").end();
    archives.push(Archive::plain("mode: set-user-ID, then not", over(&mut Tarball::default()), "m(1)"));
    let kept = |t: &mut Tarball| t.entry(&owned, b"").hard_link("n", "m").file("m", b"x").end();
    archives.push(Archive::plain(
        "mode: set-user-ID under its second name",
        kept(&mut Tarball::default()),
        "m(1) n(0)@4755+1000:1000",
    ));
    archives
}

pub(super) fn devices() -> Vec<Archive> {
    let mut archives = Vec::new();
    for (kind, letter) in [(b'3', 'c'), (b'4', 'b')] {
        for (major, minor) in [(0, 0), (1, 1), (8, 0), (4095, 0), (0, 1_048_575), (4095, 1_048_575)] {
            let verdict = format!("dev/ dev/x:{letter}{major},{minor}");
            archives.push(made(
                format!("device {letter} {major}:{minor}"),
                |t| t.device(kind, "dev/x", (major, minor)),
                verdict,
            ));
        }
        for (major, minor) in [(4096, 0), (0, 1_048_576), (2_097_151, 2_097_151)] {
            archives.push(made(
                format!("device {letter} {major}:{minor}"),
                |t| t.device(kind, "x", (major, minor)),
                "!out of range",
            ));
        }
    }
    archives
}
