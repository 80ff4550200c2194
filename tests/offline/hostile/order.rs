//! Entries that come again as something else, entries below others, and very many of them.

use super::Archive;
use crate::tarball::{Header, Tarball};

/// Kinds of entries at `x`; `f` is a file in front of all.
const KINDS: [(&str, &str); 8] = [
    ("file", "x(1)"),
    ("directory", "x/"),
    ("full directory", "x/ x/in(0)"),
    ("link", "x>/etc"),
    ("second name", "x=f"),
    ("device", "x:c1,3"),
    ("pipe", "x|"),
    ("whiteout", "-x"),
];

fn put(tar: &mut Tarball, kind: &str) {
    match kind {
        "file" => tar.file("x", b"1"),
        "directory" => tar.dir("x"),
        "full directory" => tar.dir("x").file("x/in", b""),
        "link" => tar.symlink("x", "/etc"),
        "second name" => tar.hard_link("x", "f"),
        "device" => tar.device(b'3', "x", (1, 3)),
        "pipe" => tar.device(b'6', "x", (0, 0)),
        _ => tar.file(".wh.x", b""),
    };
}

/// Each kind of entry in place of each other: the later one is there, directories keep what is in them.
pub(super) fn pairs() -> Vec<Archive> {
    let mut archives = Vec::new();
    for (first, one) in KINDS {
        for (second, other) in KINDS {
            let mut tar = Tarball::default();
            tar.file("f", b"");
            put(&mut tar, first);
            put(&mut tar, second);
            let mut parts = vec!["f(0)"];
            match (first, second) {
                ("whiteout", "whiteout") => parts.push("-x"),
                ("whiteout", _) => parts.extend(std::iter::once("-x").chain(other.split(' '))),
                (_, "whiteout") => parts.extend(std::iter::once("-x").chain(one.split(' '))),
                ("full directory", "directory") => parts.extend(one.split(' ')),
                _ => parts.extend(other.split(' ')),
            }
            parts.sort_unstable();
            archives.push(Archive::plain(format!("again: {first}, then {second}"), tar.end(), parts.join(" ")));
        }
    }
    archives
}

/// Each kind of entry with each kind below it.
pub(super) fn below() -> Vec<Archive> {
    let mut archives = Vec::new();
    for (above, one) in KINDS {
        for (name, kind, shown) in [
            ("file", b'0', "x/y(0)"),
            ("directory", b'5', "x/y/"),
            ("link", b'2', "x/y>f"),
            ("second name", b'1', "x/y=f"),
            ("pipe", b'6', "x/y|"),
        ] {
            let mut tar = Tarball::default();
            tar.file("f", b"");
            put(&mut tar, above);
            tar.entry(Header::new(kind, b"x/y", 0).link(b"f"), b"");
            let verdict = if above.ends_with("directory") || above == "whiteout" {
                let mut parts: Vec<&str> = ["f(0)", shown].into_iter().chain(one.split(' ')).collect();
                parts.extend((above == "whiteout").then_some("x/"));
                parts.sort_unstable();
                parts.join(" ")
            } else {
                "!links are never followed".to_owned()
            };
            archives.push(Archive::plain(format!("below: {name} below a {above}"), tar.end(), verdict));
        }
    }
    archives
}

/// Very many of something: bounded, or as good as one.
pub(super) fn many() -> Vec<Archive> {
    let mut deep = Tarball::default();
    deep.pax(b'x', &[("path", format!("{}f", "d/".repeat(255)).as_bytes())]).file("s", b"");
    let mut tree: Vec<String> = (1..256).map(|n| format!("{}/", "d/".repeat(n).trim_end_matches('/'))).collect();
    tree.push(format!("{}f(0)", "d/".repeat(255)));
    tree.sort();
    let same = (0..70_000).fold(Tarball::default(), |mut tar, _| {
        tar.file("f", b"");
        tar
    });
    let mut linked = Tarball::default();
    linked.file("f", b"");
    let second: Vec<String> = (0..66_000).map(|n| format!("n{n:05}")).collect();
    second.iter().for_each(|name| {
        linked.hard_link(name, "f");
    });
    let all: Vec<String> = second.iter().map(|name| format!("{name}=f")).collect();
    let mut replaced = Tarball::default();
    for n in 0..2000 {
        replaced.file("f", format!("{n:04}").as_bytes()).dir("f").file(&format!("f/{n}"), b"").symlink("f", "x");
    }
    vec![
        Archive::plain("many: folders in each other", deep.end(), tree.join(" ")),
        Archive::plain("many: the same file 70,000 times", same.end(), "f(0)"),
        Archive::plain("many: 66,000 second names of a file", linked.end(), format!("f(0) {}", all.join(" "))),
        Archive::plain("many: a name that changes its kind 8,000 times", replaced.end(), "f>x"),
    ]
}
