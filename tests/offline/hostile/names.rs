//! Names in every carrier, long names, and names that hide others.

use super::{Archive, made};
use crate::tarball::{Header, Tarball};

/// An entry of this kind whose name is carried in one of three ways.
fn carried(carrier: &str, kind: u8, name: &[u8]) -> Option<Vec<u8>> {
    let mut tar = Tarball::default();
    let entry = |path: &[u8]| Header::new(kind, path, 0).link(b"target").clone();
    match carrier {
        "header" if name.len() <= 100 => tar.entry(&entry(name), b""),
        "PAX" => tar.pax(b'x', &[("path", name)]).entry(&entry(b"shown"), b""),
        "GNU" => tar.gnu_long(b'L', name).entry(&entry(b"shown"), b""),
        _ => return None,
    };
    Some(tar.end())
}

pub(super) fn names() -> Vec<Archive> {
    let long = "n".repeat(255);
    let deep = "d/".repeat(256);
    let cases: Vec<(&str, Vec<u8>, String)> = vec![
        ("a leading slash", b"/f".to_vec(), "f".to_owned()),
        ("leading slashes", b"///f".to_vec(), "f".to_owned()),
        ("a leading dot", b"./f".to_vec(), "f".to_owned()),
        ("dots and slashes", b".//./f".to_vec(), "f".to_owned()),
        ("three dots", b"...".to_vec(), "...".to_owned()),
        ("dots in front", b"..f".to_vec(), "..f".to_owned()),
        ("dots behind", b"f..".to_vec(), "f..".to_owned()),
        ("a space", b" ".to_vec(), " ".to_owned()),
        ("a backslash path", b"..\\..\\f".to_vec(), "..\\\\..\\\\f".to_owned()),
        ("a drive", b"C:\\f".to_vec(), "C:\\\\f".to_owned()),
        ("an option", b"-rf".to_vec(), "-rf".to_owned()),
        ("a home", b"~root".to_vec(), "~root".to_owned()),
        ("a variable", b"$(id)`id`;id|id&".to_vec(), "$(id)`id`;id|id&".to_owned()),
        ("a new line", b"a\nb".to_vec(), "a\\nb".to_owned()),
        ("escapes", b"\x1b[2J\x07".to_vec(), "\\x1b[2J\\x07".to_owned()),
        ("turned text", "\u{202e}txt.exe".as_bytes().to_vec(), "\\xe2\\x80\\xaetxt.exe".to_owned()),
        ("no UTF-8", b"\xff\xfe\xc0\xaf".to_vec(), "\\xff\\xfe\\xc0\\xaf".to_owned()),
        ("an overlong dot", b"\xc0\xae\xc0\xae".to_vec(), "\\xc0\\xae\\xc0\\xae".to_owned()),
        ("fullwidth dots", "\u{ff0e}\u{ff0e}".as_bytes().to_vec(), "\\xef\\xbc\\x8e\\xef\\xbc\\x8e".to_owned()),
        ("percent dots", b"%2e%2e%2ff".to_vec(), "%2e%2e%2ff".to_owned()),
        ("the longest component", long.as_bytes().to_vec(), long.clone()),
        ("a component too long", "n".repeat(256).into_bytes(), "!NAME_MAX".to_owned()),
        ("a path too long", "n/".repeat(2048).into_bytes(), "!limit path_bytes = 4095".to_owned()),
        ("a path too deep", format!("{deep}f").into_bytes(), "!limit path_depth = 256".to_owned()),
        ("dot-dot", b"..".to_vec(), "!'..'".to_owned()),
        ("dot-dot and slashes", b"..///".to_vec(), "!'..'".to_owned()),
        ("dot-dot behind a file", b"f/..".to_vec(), "!'..'".to_owned()),
        ("dot-dot that comes back", b"../root/f".to_vec(), "!'..'".to_owned()),
        ("the root", b"/".to_vec(), "!root".to_owned()),
        ("dots of the root", b"./.".to_vec(), "!root".to_owned()),
    ];
    let mut archives = Vec::new();
    for (name, path, plain) in &cases {
        for (kind, suffix) in [(b'0', "(0)"), (b'5', "/"), (b'2', ">target"), (b'6', "|")] {
            for carrier in ["header", "PAX", "GNU"] {
                let Some(bytes) = carried(carrier, kind, path) else { continue };
                let verdict = match (plain.as_str(), kind) {
                    // A directory may stand for the root.
                    ("!root", b'5') => String::new(),
                    ("!root", _) => "!stand for the root".to_owned(),
                    (refused, _) if refused.starts_with('!') => refused.to_owned(),
                    (plain, _) => format!("{plain}{suffix}"),
                };
                archives.push(Archive::plain(format!("name: {name}, {carrier}, {}", char::from(kind)), bytes, verdict));
            }
        }
    }
    archives
}

/// GNU's long names and PAX names beside each other.
pub(super) fn long_names() -> Vec<Archive> {
    let file = |t: &mut Tarball| t.file("short", b"").end();
    let raw = |name: &str, kind: u8, body: &[u8], verdict: &str| {
        let mut tar = Tarball::default();
        tar.entry(Header::new(kind, b"././@LongLink", body.len() as u64).gnu(), body);
        Archive::plain(format!("long name: {name}"), file(&mut tar), verdict)
    };
    let mut lying = Tarball::default();
    lying.entry(Header::new(b'L', b"././@LongLink", 1 << 40).gnu(), b"x\0");
    let mut negative = Tarball::default();
    negative.entry(Header::new(b'L', b"././@LongLink", 0).gnu().base256(124, 12, -5), b"x\0");
    let both = |name: &str, path: &'static [u8], verdict: &str| {
        made(
            format!("long name: {name}"),
            |t| t.pax(b'x', &[("path", path)]).gnu_long(b'L', b"gnu").file("short", b""),
            verdict,
        )
    };
    vec![
        raw("empty", b'L', b"", "!stand for the root"),
        raw("only NULs", b'L', &[0; 300], "!stand for the root"),
        raw("without a NUL", b'L', b"long", "long(0)"),
        raw("with NULs behind", b'L', b"long\0\0\0\0", "long(0)"),
        raw("with a second name behind the NUL", b'L', b"long\0/etc/passwd\0", "!NUL"),
        raw("a way out", b'L', b"../../etc/passwd\0", "!'..'"),
        raw("a link target for a file", b'K', b"/etc/passwd\0", "short(0)"),
        raw("of 1 MiB and more", b'L', &vec![b'n'; (1 << 20) + 1], "!limit header_bytes = 1048576"),
        raw("longer than a path", b'L', &[b'n'; 4096], "!limit path_bytes = 4095"),
        Archive::plain("long name: a size that lies", file(&mut lying), "!limit header_bytes"),
        Archive::plain("long name: a size below zero", file(&mut negative), "!'size' is not a valid number"),
        both("beside the same PAX path", b"gnu", "gnu(0)"),
        both("beside another PAX path", b"pax", "!different paths"),
        made(
            "long name: in front of a PAX header",
            |t| t.gnu_long(b'L', b"a").pax(b'x', &[("uid", b"7")]).file("b", b""),
            "a(0)+7:0",
        ),
        made(
            "long name: in front of a global header",
            |t| t.gnu_long(b'L', b"a").pax(b'g', &[("uid", b"7")]).file("b", b""),
            "a(0)+7:0",
        ),
        made(
            "long name: twice",
            |t| t.gnu_long(b'L', b"a").gnu_long(b'L', b"a").file("b", b""),
            "!Two extended headers",
        ),
        made("long name: of a directory", |t| t.gnu_long(b'L', b"a/b/").dir("b"), "a/ a/b/"),
        made("long name: of a link", |t| t.gnu_long(b'K', b"/etc/shadow").symlink("b", "x"), "b>/etc/shadow"),
        made(
            "long name: not for the next entry",
            |t| t.gnu_long(b'L', b"a").file("b", b"").file("c", b""),
            "a(0) c(0)",
        ),
    ]
}

/// Whiteouts of every kind at every place (OCI image spec, "layer.md").
pub(super) fn whiteouts() -> Vec<Archive> {
    let mut archives = Vec::new();
    let kinds: [(&str, u8); 6] =
        [("file", b'0'), ("directory", b'5'), ("link", b'2'), ("second name", b'1'), ("device", b'3'), ("pipe", b'6')];
    for (what, kind) in kinds {
        let entry = |path: &[u8]| Header::new(kind, path, 0).link(b"f").clone();
        for (name, path, verdict) in [
            ("in the root", &b".wh.x"[..], "-x f(0)"),
            ("below", b"d/.wh.x", "d/ d/-x f(0)"),
            ("opaque", b"d/.wh..wh..opq", "d/ d/-* f(0)"),
            ("opaque root", b".wh..wh..opq", "-* f(0)"),
            ("of aufs", b".wh..wh.plnk/1.2", "f(0)"),
            ("bare", b".wh.", "!not a whiteout"),
            ("of dot-dot", b".wh...", "!not a whiteout"),
        ] {
            let build = |t: &mut Tarball| t.file("f", b"").entry(&entry(path), b"").end();
            archives.push(Archive::plain(format!("whiteout: {name}, {what}"), build(&mut Tarball::default()), verdict));
        }
    }
    let mut add = |name: &str, build: &dyn Fn(&mut Tarball) -> &mut Tarball, verdict: &str| {
        archives.push(made(format!("whiteout: {name}"), |t| build(t), verdict));
    };
    add("of what is in front of it", &|t| t.file("x", b"").file(".wh.x", b""), "-x x(0)");
    add("of what is behind it", &|t| t.file(".wh.x", b"").file("x", b""), "-x x(0)");
    add("twice", &|t| t.file(".wh.x", b"").file(".wh.x", b""), "-x");
    add("of a whiteout", &|t| t.file(".wh..wh.x", b""), "");
    add("with content", &|t| t.file(".wh.x", b"content"), "-x");
    add("with a way out", &|t| t.file("../.wh.x", b""), "!'..'");
    add("of a path", &|t| t.file(".wh.a/b", b""), "!not a whiteout");
    add("below a whiteout", &|t| t.file("d/.wh.a/.wh.b", b""), "!not a whiteout");
    add("below a link", &|t| t.symlink("l", "/etc").file("l/.wh.passwd", b""), "l>/etc");
    add("below a file", &|t| t.file("f", b"").file("f/.wh.x", b""), "f(0)");
    add("opaque below a link", &|t| t.symlink("l", "/").file("l/.wh..wh..opq", b""), "l>/");
    add("in capitals", &|t| t.file(".WH.x", b""), ".WH.x(0)");
    add("with one dot less", &|t| t.file("wh.x", b""), "wh.x(0)");
    add(
        "of a name of 251 letters",
        &|t| t.pax(b'x', &[("path", format!(".wh.{}", "n".repeat(251)).as_bytes())]).file("s", b""),
        &format!("-{}", "n".repeat(251)),
    );
    add("that is the target of a name", &|t| t.file(".wh.x", b"").hard_link("h", ".wh.x"), "!is not in front of it");
    archives
}
