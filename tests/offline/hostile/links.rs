//! Links: where they lead, nobody here follows; second names are of what stands in front of them in the same layer.

use super::{Archive, made};
use crate::tarball::{Header, Tarball};

pub(super) fn symbolic() -> Vec<Archive> {
    let mut archives = Vec::new();
    let longest = "t".repeat(4095);
    for (name, target, shown) in [
        ("to a file of the host", &b"/etc/passwd"[..], "/etc/passwd"),
        ("up and out", b"../../../../../../etc/passwd", "../../../../../../etc/passwd"),
        ("to itself", b"l", "l"),
        ("to the root", b"/", "/"),
        ("to here", b".", "."),
        ("to above", b"..", ".."),
        ("to the process", b"/proc/self/root/etc", "/proc/self/root/etc"),
        ("to a descriptor", b"/dev/fd/3", "/dev/fd/3"),
        ("with escapes", b"\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("of no UTF-8", b"\xff\xfe", "\\xff\\xfe"),
        ("with a new line", b"a\nb", "a\\nb"),
        ("as long as can be", longest.as_bytes(), &longest),
    ] {
        let verdict = format!("l>{shown}");
        archives.push(made(
            format!("link: {name}, PAX"),
            |t| t.pax(b'x', &[("linkpath", target)]).symlink("l", "x"),
            verdict.clone(),
        ));
        archives.push(made(
            format!("link: {name}, GNU"),
            |t| t.gnu_long(b'K', target).symlink("l", "x"),
            verdict.clone(),
        ));
        if target.len() <= 100 {
            archives.push(made(
                format!("link: {name}, header"),
                |t| t.entry(Header::new(b'2', b"l", 0).link(target), b""),
                verdict,
            ));
        }
    }
    let mut add = |name: &str, build: &dyn Fn(&mut Tarball) -> &mut Tarball, verdict: &str| {
        archives.push(made(format!("link: {name}"), |t| build(t), verdict));
    };
    add("too long", &|t| t.pax(b'x', &[("linkpath", &[b't'; 4096])]).symlink("l", "x"), "!limit link_bytes = 4095");
    add("to nothing", &|t| t.symlink("l", ""), "!needs a target");
    add("to nothing, GNU", &|t| t.gnu_long(b'K', b"").symlink("l", "x"), "!needs a target");
    add("with a NUL", &|t| t.pax(b'x', &[("linkpath", b"a\0/etc")]).symlink("l", "x"), "!PAX key 'linkpath'");
    add(
        "to two places",
        &|t| t.pax(b'x', &[("linkpath", b"a")]).gnu_long(b'K', b"b").symlink("l", "x"),
        "!different paths",
    );
    add("in a circle", &|t| t.symlink("a", "b").symlink("b", "a"), "a>b b>a");
    add("with content", &|t| t.entry(Header::new(b'2', b"l", 512).link(b"x"), &[0; 512]), "!cannot have 512 bytes");
    add("then a file below", &|t| t.symlink("l", "/tmp").file("l/x", b""), "!links are never followed");
    add("then a directory below", &|t| t.symlink("l", ".").dir("l/d"), "!links are never followed");
    add("then a link below", &|t| t.symlink("l", ".").symlink("l/x", "/etc"), "!links are never followed");
    add("then a directory in its place", &|t| t.symlink("l", "/tmp").dir("l").file("l/x", b""), "l/ l/x(0)");
    add("in place of a directory", &|t| t.dir("l").file("l/x", b"").symlink("l", "/tmp"), "l>/tmp");
    add(
        "of a chain, then a file below",
        &|t| t.symlink("a", "b").symlink("b", "/").file("a/x", b""),
        "!links are never followed",
    );
    archives
}

pub(super) fn hard() -> Vec<Archive> {
    let mut archives = Vec::new();
    for (name, target, verdict) in [
        ("a file of the host", "/etc/passwd", "!is not in front of it"),
        ("up and out", "../../etc/passwd", "!'..'"),
        ("out and back", "../root/f", "!'..'"),
        ("a file with another spelling", ".//f", "h=f"),
        ("a file from the root", "/f", "h=f"),
        ("a missing file", "missing", "!is not in front of it"),
        ("itself", "h", "!is not in front of it"),
        ("a directory", "d", "!is a directory"),
        ("the root", "/", "!is a directory"),
        ("here", ".", "!is a directory"),
        ("nothing", "", "!needs a target"),
        ("a link", "l", "h=l"),
        ("what a link leads to", "l/x", "!is not in front of it"),
        ("a device", "c", "h=c"),
        ("a pipe", "p", "h=p"),
        ("a file below a file", "f/x", "!is not in front of it"),
        ("a file that comes later", "later", "!is not in front of it"),
        ("a directory with a slash", "d/", "!is a directory"),
        ("a file with a slash", "f/", "h=f"),
    ] {
        let before = |t: &mut Tarball| {
            t.dir("d").file("f", b"x").symlink("l", "d").device(b'3', "c", (1, 3)).device(b'6', "p", (0, 0));
        };
        // The path that comes first in the alphabet is the name, the others are second names.
        let tree = match verdict {
            "h=f" => "c:c1,3 d/ f(1) h=f l>d later(0) p|",
            "h=l" => "c:c1,3 d/ f(1) h>d l=h later(0) p|",
            "h=c" => "c:c1,3 d/ f(1) h=c l>d later(0) p|",
            "h=p" => "c:c1,3 d/ f(1) h| l>d later(0) p=h",
            refused => refused,
        };
        let build = |t: &mut Tarball| {
            before(t);
            t.hard_link("h", target).file("later", b"").end()
        };
        archives.push(Archive::plain(format!("second name: of {name}"), build(&mut Tarball::default()), tree));
    }
    archives.extend(again());
    archives
}

/// Second names beside what else is in the layer.
fn again() -> Vec<Archive> {
    let mut archives = Vec::new();
    let mut add = |name: &str, build: &dyn Fn(&mut Tarball) -> &mut Tarball, verdict: &str| {
        archives.push(made(format!("second name: {name}"), |t| build(t), verdict));
    };
    add("of a second name", &|t| t.file("a", b"").hard_link("b", "a").hard_link("c", "b"), "a(0) b=a c=a");
    add("of a file that is replaced", &|t| t.file("a", b"1").hard_link("b", "a").file("a", b"22"), "a(2) b(1)");
    add("of a file that was a directory", &|t| t.dir("a").file("a", b"").hard_link("b", "a"), "a(0) b=a");
    add("of what was a file and is a directory", &|t| t.file("a", b"").dir("a").hard_link("b", "a"), "!is a directory");
    add("of itself once it is there", &|t| t.file("a", b"").hard_link("a", "a"), "a(0)");
    add("in place of a directory", &|t| t.file("a", b"").dir("d").file("d/x", b"").hard_link("d", "a"), "a(0) d=a");
    add("below a link", &|t| t.file("a", b"").symlink("l", "/tmp").hard_link("l/b", "a"), "!links are never followed");
    add(
        "with content",
        &|t| t.file("a", b"").entry(Header::new(b'1', b"b", 512).link(b"a"), &[1; 512]),
        "!cannot have 512 bytes",
    );
    add(
        "with attributes of its own",
        &|t| t.file("a", b"").pax(b'x', &[("SCHILY.xattr.user.x", b"1"), ("uid", b"7")]).hard_link("b", "a"),
        "a(0) b=a",
    );
    add(
        "by a PAX target",
        &|t| t.file("a", b"").pax(b'x', &[("linkpath", b"a")]).hard_link("b", "/etc/shadow"),
        "a(0) b=a",
    );
    add("by a PAX target out", &|t| t.file("a", b"").pax(b'x', &[("linkpath", b"../a")]).hard_link("b", "a"), "!'..'");
    add("of a whiteout", &|t| t.file(".wh.a", b"").hard_link("b", ".wh.a"), "!is not in front of it");
    add("as the root", &|t| t.file("a", b"").hard_link("/", "a"), "!stand for the root");
    add(
        "of an empty directory's file through two spellings",
        &|t| t.file("./d//a", b"").hard_link("/b", "d/./a"),
        "b(0) d/ d/a=b",
    );
    archives
}
