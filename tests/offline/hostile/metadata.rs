//! PAX records: their framing, keys and values, extended attributes, global headers.

use super::{Archive, made};
use crate::tarball::{Tarball, record};

fn raw(name: &str, body: &[u8], verdict: &str) -> Archive {
    let mut tar = Tarball::default();
    tar.raw_pax(b'x', body).file("f", b"");
    Archive::plain(format!("records: {name}"), tar.end(), verdict)
}

pub(super) fn records() -> Vec<Archive> {
    let damaged = "!PAX records are damaged";
    vec![
        raw("none", b"", "f(0)"),
        raw("one", b"9 path=a\n", "a(0)"),
        raw("a length one too short", b"8 path=a\n", damaged),
        raw("a length one too long", b"11 path=a\n", damaged),
        raw("a length of zero", b"0 path=a\n", damaged),
        raw("a length below zero", b"-9 path=a\n", damaged),
        raw("a length with a sign", b"+9 path=a\n", damaged),
        raw("a length with zeros in front", b"0000000011 path=a\n", damaged),
        raw("a length in octal", b"011 path=a\n", "a(0)"),
        raw("a length in hexadecimal", b"0xb path=a\n", damaged),
        raw("a length beyond 2^64", b"18446744073709551625 path=a\n", damaged),
        raw("a length near 2^64", b"18446744073709551615 path=a\n", damaged),
        raw("no length", b" path=a\n", damaged),
        raw("no space", b"8path=a\n", damaged),
        raw("a tab for the space", b"9\tpath=a\n", damaged),
        raw("no equals sign", b"7 path\n", damaged),
        raw("no key", b"5 =a\n", damaged),
        raw("no new line", b"9 path=a ", damaged),
        raw("a NUL for the new line", b"9 path=a\0", damaged),
        raw("a NUL in the key", b"10 pa\0th=a\n", damaged),
        raw("NULs behind", b"9 path=a\n\0\0\0\0", damaged),
        raw("a record in a value", &record("comment", b"9 path=evil\n"), "f(0)"),
        raw("a new line in a path", &record("path", b"a\nb"), "a\\nb(0)"),
        raw("an equals sign in a path", &record("path", b"a=b"), "a=b(0)"),
        raw("a key in other letters", b"9 PATH=a\n", "f(0)"),
        raw("a key with a space", &record(" path", b"a"), "f(0)"),
        raw("an unknown key", b"19 VENDOR.thing=xy\n", "f(0)"),
        raw("a path twice", b"9 path=a\n9 path=b\n", "!comes twice"),
        raw("the same path twice", b"9 path=a\n9 path=a\n", "!comes twice"),
        raw("a comment twice", b"12 comment=a12 comment=b", damaged),
    ]
}

/// Each key that matters with each value that might be taken in two ways.
pub(super) fn values() -> Vec<Archive> {
    let values: [(&str, &[u8]); 16] = [
        ("nothing", b""),
        ("zero", b"0"),
        ("below zero", b"-1"),
        ("a sign", b"+1"),
        ("a fraction", b"1.5"),
        ("a point", b"."),
        ("an exponent", b"1e3"),
        ("hexadecimal", b"0x1f"),
        ("a space in front", b" 1"),
        ("a space behind", b"1 "),
        ("zeros in front", b"0007"),
        ("2^32 - 1", b"4294967295"),
        ("2^63", b"9223372036854775808"),
        ("2^64", b"18446744073709551616"),
        ("a NUL", b"1\x002"),
        ("other digits", "\u{661}".as_bytes()),
    ];
    let mut archives = Vec::new();
    for key in ["size", "uid", "gid", "mtime", "atime", "uname", "path", "linkpath"] {
        for (name, value) in values {
            let whole = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let text = value.escape_ascii().to_string();
            let plain = || text.trim_start_matches('0').parse::<u128>().unwrap_or(0);
            let bad = format!("!PAX key '{key}'");
            let verdict = match key {
                "atime" | "uname" => "f(0)".to_owned(),
                "path" if value.is_empty() || name == "a NUL" => bad,
                "path" if name == "a point" => "!stand for the root".to_owned(),
                "path" => format!("{text}(0)"),
                // A file has no target.
                "linkpath" if value.is_empty() || name == "a NUL" => bad,
                "linkpath" => "f(0)".to_owned(),
                "mtime" if matches!(name, "below zero" | "a fraction") => "f(0)".to_owned(),
                "mtime" if whole && plain() < 1 << 40 => "f(0)".to_owned(),
                _ if !whole || plain() > u128::from(u64::MAX) => bad,
                "mtime" => bad,
                "size" => match plain() {
                    0 => "f(0)".to_owned(),
                    7 => "f(7)".to_owned(),
                    4_294_967_295 => "!limit data_bytes".to_owned(),
                    _ => "!limit file_bytes".to_owned(),
                },
                _ if plain() >= 4_294_967_295 => "!not a valid user or group".to_owned(),
                "uid" if plain() > 0 => format!("f(0)+{}:0", plain()),
                "gid" if plain() > 0 => format!("f(0)+0:{}", plain()),
                _ => "f(0)".to_owned(),
            };
            archives.push(made(
                format!("value: {key}, {name}"),
                |t| t.pax(b'x', &[(key, value)]).file("f", b""),
                verdict,
            ));
        }
    }
    archives
}

pub(super) fn attributes() -> Vec<Archive> {
    let mut archives = Vec::new();
    let longest = format!("user.{}", "n".repeat(250));
    let too_long = format!("user.{}", "n".repeat(251));
    for (name, attribute, value, shown) in [
        ("of a user", "user.a", &b"v"[..], "{user.a}"),
        (
            "that gives capabilities",
            "security.capability",
            b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0",
            "{security.capability}",
        ),
        ("of a label", "security.selinux", b"system_u:object_r:etc_t:s0\0", "{security.selinux}"),
        ("of an access list", "system.posix_acl_access", b"\x02\0\0\0", "{system.posix_acl_access}"),
        ("of another of the system", "system.nfs4_acl", b"x", ""),
        ("that steers overlayfs", "trusted.overlay.redirect", b"/etc", ""),
        ("that hides a folder", "trusted.overlay.opaque", b"y", ""),
        ("that turns a file into another's", "trusted.overlay.metacopy", b"", ""),
        ("that steers overlayfs of a user", "user.overlay.whiteout", b"y", ""),
        ("that almost steers it", "trusted.overlayfs", b"x", "{trusted.overlayfs}"),
        ("of root", "trusted.a", b"x", "{trusted.a}"),
        ("of no namespace", "plain", b"x", ""),
        ("of a namespace alone", "user.", b"x", ""),
        ("of a namespace in capitals", "USER.a", b"x", ""),
        ("of an unknown namespace", "os2.a", b"x", ""),
        ("without a value", "user.empty", b"", "{user.empty}"),
        ("with a NUL in its value", "user.nul", b"a\0b\n=", "{user.nul}"),
        ("with a name as long as can be", &longest, b"x", &format!("{{{longest}}}")),
        ("with a name too long", &too_long, b"x", "!is not a name of an extended attribute"),
        ("without a name", "", b"x", "!is not a name of an extended attribute"),
        ("with escapes in its name", "user.\x1b[m", b"x", "{user.\\x1b[m}"),
        ("as long as can be", "user.l", &[b'v'; 65_535], "{user.l}"),
        ("too long", "user.l", &[b'v'; 65_536], "!size of one extended attribute = 65535"),
        ("beyond the limit of all", "user.l", &vec![b'v'; 131_072], "!limit xattr_bytes = 131072"),
    ] {
        let key = format!("SCHILY.xattr.{attribute}");
        for (what, kind) in [("file", b'0'), ("directory", b'5')] {
            let verdict = match (shown.starts_with('!'), kind) {
                (true, _) => shown.to_owned(),
                (_, b'0') => format!("x(0){shown}"),
                _ => format!("x/{shown}"),
            };
            let build = |t: &mut Tarball| {
                t.pax(b'x', &[(&key, value)]);
                if kind == b'0' { t.file("x", b"").end() } else { t.dir("x").end() }
            };
            archives.push(Archive::plain(
                format!("attribute: {name}, {what}"),
                build(&mut Tarball::default()),
                verdict,
            ));
        }
    }
    archives.extend(spellings());
    archives
}

/// Attributes in the spelling of libarchive, and many of them.
fn spellings() -> Vec<Archive> {
    let libarchive = |name: &str, key: &str, value: &'static [u8], verdict: &str| {
        let key = format!("LIBARCHIVE.xattr.{key}");
        made(format!("attribute: {name}"), |t| t.pax(b'x', &[(&key, value)]).file("x", b""), verdict)
    };
    let mut archives = vec![
        libarchive("in base 64", "user.a", b"eA==", "x(0){user.a}"),
        libarchive("with a name in percents", "user.%61%3d", b"eA", "x(0){user.a=}"),
        libarchive("with a name cut in a percent", "user.%6", b"eA", "!PAX key"),
        libarchive("with a NUL by percents", "user.%00", b"eA", "!is not a name"),
        libarchive("that is hidden by percents", "trusted%2eoverlay.opaque", b"eQ==", "x(0)"),
        libarchive("in no base 64", "user.a", b"!!", "!PAX key"),
        libarchive("of a lone sixth", "user.a", b"e", "!PAX key"),
        made(
            "attribute: in two spellings that differ",
            |t| t.pax(b'x', &[("SCHILY.xattr.user.a", b"x"), ("LIBARCHIVE.xattr.user.a", b"eQ==")]).file("x", b""),
            "!comes twice",
        ),
    ];
    let many: Vec<String> = (0..129).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = many.iter().map(|key| (key.as_str(), &b""[..])).collect();
    archives.push(made("attribute: 129 of them", |t| t.pax(b'x', &records).file("x", b""), "!limit xattrs = 128"));
    archives
}

/// Global headers: what they may say of all that follow is little.
pub(super) fn global() -> Vec<Archive> {
    let mut archives = Vec::new();
    for (key, value, verdict) in [
        ("path", &b"evil"[..], "!global PAX header"),
        ("linkpath", b"/etc/passwd", "!global PAX header"),
        ("size", b"0", "!global PAX header"),
        ("SCHILY.xattr.security.capability", b"x", "!global PAX header"),
        ("GNU.sparse.size", b"5", "!global PAX header"),
        ("GNU.sparse.map", b"0,5", "!global PAX header"),
        ("comment", b"0123456789012345678901234567890123456789", "a(0) b(0)"),
        ("uid", b"7", "a(0)+7:0 b(0)+7:0"),
        ("gid", b"7", "a(0)+0:7 b(0)+0:7"),
        ("uid", b"-1", "!PAX key 'uid'"),
        ("mtime", b"1", "a(0) b(0)"),
    ] {
        let name = format!("global: {key}={}", value.escape_ascii());
        archives.push(made(name, |t| t.pax(b'g', &[(key, value)]).file("a", b"").file("b", b""), verdict));
    }
    archives.push(made("global: at the end", |t| t.file("a", b"").pax(b'g', &[("uid", b"7")]), "a(0)"));
    archives.push(made(
        "global: a thousand",
        |t| (0..1000).fold(t, |t, _| t.pax(b'g', &[("uid", b"7")])).file("a", b""),
        "a(0)+7:0",
    ));
    archives.push(made(
        "global: between a header and its entry",
        |t| t.pax(b'x', &[("path", b"a")]).pax(b'g', &[("uid", b"7")]).file("b", b""),
        "a(0)+7:0",
    ));
    archives.push(made(
        "global: of 1 MiB and more",
        |t| t.pax(b'g', &[("comment", &vec![b'c'; 1 << 20])]).file("a", b""),
        "!limit header_bytes = 1048576",
    ));
    archives
}
