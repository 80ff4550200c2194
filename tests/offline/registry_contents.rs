//! Scripts of a registry that says bad things well: manifests, indexes, configs and layers that lie, whose digests may even be right.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::hostile_registry::{Script, refused, taken};
use crate::scripted_registry::{
    INDEX, LAYER, MANIFEST, Part, Shelf, Step, config, descriptor, gzip, layer_tar, reply, sha256,
};
use crate::tarball::Tarball;

/// A registry whose tag leads to this document.
fn document(name: &str, words: &[&'static str], kind: &str, bytes: &[u8]) -> Script {
    let mut shelf = Shelf::good();
    shelf.put(kind, bytes);
    Script::serving(&format!("manifest: {name}"), words, shelf)
}

fn manifest(name: &str, words: &[&'static str], change: impl FnOnce(&mut Value)) -> Script {
    Script::serving(&format!("manifest: {name}"), words, Shelf::bad(|_| {}, change))
}

/// The text of the good manifest with one part replaced.
fn replaced(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(Shelf::good().document().to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    text.replacen(from, to, 1).into_bytes()
}

/// Manifests that are no JSON, too much of it, or another thing.
pub(crate) fn documents() -> Vec<Script> {
    let json = "not what the OCI image specification says";
    let schema1 = json!({ "schemaVersion": 1, "name": "x", "tag": "t", "fsLayers": [{ "blobSum": sha256(b"") }] });
    let mut nested = b"{\"schemaVersion\":2,\"config\":".to_vec();
    nested.extend(vec![b'['; 1 << 20]);
    let mut ignored = b"{\"ignored\":".to_vec();
    ignored.extend(vec![b'['; 1 << 20]);
    let swapped = Shelf::bad(|c| c["config"]["Cmd"] = json!(["/other"]), |_| {});
    let other = swapped.document().to_vec();
    let at_tag = |body: Vec<u8>, headers: Vec<(&'static str, String)>| -> crate::scripted_registry::Act {
        Arc::new(move |ask| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            (ask.part == Part::Manifest).then(|| vec![Step::Send(reply("200 OK", &headers, &body))])
        })
    };
    let good = Shelf::good().document().to_vec();
    let digest = |text: &str| vec![("Docker-Content-Digest", text.to_owned())];
    vec![
        document("empty", &[json], MANIFEST, b" "),
        document("a page to log in", &[json], MANIFEST, b"<html><h1>Log in</h1></html>"),
        document("not UTF-8", &[json], MANIFEST, &[&good[..20], b"\xff\xfe\"", &good[20..]].concat()),
        document("behind a byte order mark", &[json], MANIFEST, &[&b"\xef\xbb\xbf"[..], &good].concat()),
        document("two of them", &[json], MANIFEST, &[&good[..], &good].concat()),
        document("nested without end", &[json], MANIFEST, &nested),
        document("nested without end where nobody looks", &[json], MANIFEST, &ignored),
        document("a key twice", &[json, "duplicate field"], MANIFEST, &replaced("{", "{\"schemaVersion\":2,")),
        document("numbers beyond numbers", &[json], MANIFEST, &replaced("Version\":2", "Version\":1e999")),
        document("a negative version", &[json], MANIFEST, &replaced("\"schemaVersion\":2", "\"schemaVersion\":-2")),
        document("Docker's first schema", &["schema version 1"], "", schema1.to_string().as_bytes()),
        document("a later schema", &["schema version 3"], MANIFEST, &replaced("Version\":2", "Version\":3")),
        document("neither image nor index", &["Media type"], "", b"{\"schemaVersion\":2}"),
        manifest("image and index at once", &["neither an image nor an index"], |m| m["manifests"] = json!([])),
        manifest("an image that says index", &["Media type", INDEX], |m| m["mediaType"] = json!(INDEX)),
        document("a type that lies", &["Media type", INDEX], INDEX, &good),
        document("a type that nobody knows", &["Media type 'application/vnd.x'"], "application/vnd.x", &good),
        document("a type that says only JSON", &[], "application/json", &good),
        document("a type that says text", &[], "text/html; charset=utf-7", &good),
        manifest("a type with escapes", &["Media type", "\\u{1b}[31m"], |m| {
            m["mediaType"] = json!("\x1b[31m\u{202e}x\nHint: y")
        }),
        manifest("a type of 3 MiB", &["Media type"], |m| m["mediaType"] = json!("x".repeat(3 << 20))),
        refused(
            "manifest: 100 MiB",
            &["longer than 4194304"],
            Arc::new(|ask| {
                let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
                (ask.part == Part::Manifest).then(|| vec![Step::Send(head), Step::Repeat(vec![b' '; 1 << 20], 100)])
            }),
        ),
        refused(
            "manifest: another than its header says",
            &["Wrong digest of manifest"],
            at_tag(good.clone(), digest(&sha256(b"x"))),
        ),
        taken(
            "manifest: a header of another algorithm",
            at_tag(good.clone(), digest(&format!("sha512:{}", "0".repeat(128)))),
        ),
        taken("manifest: a header of nonsense", at_tag(good, digest("sha256:../../etc/passwd"))),
        refused("manifest: another one at each request", &["404"], at_tag(other, Vec::new())),
    ]
}

/// Lengths that lie, or are none.
fn lengths() -> Vec<Script> {
    let json = "not what the OCI image specification says";
    let mut scripts = Vec::new();
    for (name, size, words) in [
        ("below zero", json!(-1), &[json, "-1"][..]),
        ("a fraction", json!(1.5), &[json, "1.5"]),
        ("a word", json!("12"), &[json, "12"]),
        ("nothing", Value::Null, &[json, "null"]),
    ] {
        scripts.push(manifest(&format!("a length that is {name}"), words, move |m| m["layers"][0]["size"] = size));
    }
    let size =
        |change: fn(u64) -> u64| move |part: &mut Value| part["size"] = json!(change(part["size"].as_u64().unwrap()));
    scripts.push(manifest("a layer said to be longer", &["announces"], move |m| size(|n| n + 1)(&mut m["layers"][0])));
    scripts.push(manifest("a layer said to be shorter", &["announces"], move |m| size(|n| n - 1)(&mut m["layers"][0])));
    scripts
        .push(manifest("a layer said to be endless", &["announces"], move |m| size(|_| u64::MAX)(&mut m["layers"][0])));
    scripts.push(manifest("a layer said to be empty", &["announces"], move |m| size(|_| 0)(&mut m["layers"][0])));
    scripts.push(manifest("a config said to be longer", &["announces"], move |m| size(|n| n + 1)(&mut m["config"])));
    scripts.push(manifest("a config said to be shorter", &["announces"], move |m| size(|n| n - 1)(&mut m["config"])));
    scripts.push(manifest("a config said to be endless", &["at most 8388608"], move |m| {
        size(|_| u64::MAX)(&mut m["config"])
    }));
    scripts
}

/// Descriptors: where content is, how long, of what kind.
pub(crate) fn descriptors() -> Vec<Script> {
    let json = "not what the OCI image specification says";
    let mut scripts = Vec::new();
    let zeros = "0".repeat(64);
    for (name, digest) in [
        ("a path", "sha256:../../../../etc/passwd".to_owned()),
        ("slashes", format!("sha256:/{}", &zeros[1..])),
        ("capitals", format!("sha256:{}", "A".repeat(64))),
        ("too short", "sha256:00".to_owned()),
        ("too long", format!("sha256:{}", "0".repeat(4096))),
        ("no algorithm", zeros.clone()),
        ("SHA-512", format!("sha512:{}", "0".repeat(128))),
        ("MD5", format!("md5:{}", "0".repeat(32))),
        ("a zero byte", format!("sha256:{}\0", &zeros[1..])),
        ("escapes", format!("\x1b]0;owned\x07sha256:{zeros}")),
        ("nothing", String::new()),
    ] {
        for part in ["config", "layer"] {
            let digest = digest.clone();
            scripts.push(manifest(&format!("digest of the {part} with {name}"), &[json, "Digest '"], move |m| {
                let at = if part == "config" { &mut m["config"] } else { &mut m["layers"][0] };
                at["digest"] = json!(digest);
            }));
        }
    }
    scripts.extend(lengths());
    for (name, kind, word) in [
        ("foreign", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign layer"),
        ("not to be passed on", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "foreign layer"),
        ("encrypted", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "unknown type"),
        ("of xz", "application/vnd.oci.image.layer.v1.tar+xz", "unknown type"),
        ("of no type", "", "unknown type ''"),
        ("of a type with escapes", "\x1b[2J\u{9b}x", "\\u{1b}[2J\\u{9b}x"),
    ] {
        scripts.push(manifest(&format!("a layer {name}"), &[word], move |m| m["layers"][0]["mediaType"] = json!(kind)));
    }
    scripts.push(manifest("a config of another kind", &["not a container image"], |m| {
        m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    }));
    scripts.push(manifest("urls of another place", &[], |m| m["layers"][0]["urls"] = json!(["http://127.0.0.2:1/x"])));
    scripts.push(manifest("data in a descriptor that lies", &[], |m| m["config"]["data"] = json!("bGllcw==")));
    scripts.push(manifest("annotations of 1 MiB", &[], |m| m["annotations"] = json!({ "a": "x".repeat(1 << 20) })));
    scripts.push(manifest("a thousand layers", &["has 1000 layers; at most 128"], |m| {
        m["layers"] = json!(vec![m["layers"][0].clone(); 1000]);
    }));
    scripts.push(manifest("a layer twice", &["manifest has 2 layers and the config 1"], |m| {
        m["layers"] = json!(vec![m["layers"][0].clone(); 2]);
    }));
    scripts.push(manifest("no layer", &["manifest has 0 layers and the config 1"], |m| m["layers"] = json!([])));
    scripts.push(manifest("a layer that is not there", &["(404)"], |m| m["layers"][0]["digest"] = json!(sha256(b"x"))));
    scripts.push(manifest("the config as a layer", &["Cannot convert layer", "not valid gzip"], |m| {
        m["layers"][0] = m["config"].clone();
        m["layers"][0]["mediaType"] = json!(LAYER);
    }));
    scripts
}

fn entry(kind: &str, bytes: &[u8], os: &str, architecture: &str) -> Value {
    let mut entry = descriptor(kind, bytes);
    entry["platform"] = json!({ "os": os, "architecture": architecture });
    entry
}

fn index(entries: &[Value]) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string().into_bytes()
}

/// Indexes: which image for which platform.
pub(crate) fn indexes() -> Vec<Script> {
    let good = Shelf::good().document().to_vec();
    let ours = entry(MANIFEST, &good, "linux", "amd64");
    let scripted = |name: &str, words: &[&'static str], entries: &[Value]| {
        let mut shelf = Shelf::good();
        let image = ("".to_owned(), shelf.document().to_vec());
        shelf.put(INDEX, &index(entries)).manifests.insert(sha256(&image.1), (MANIFEST.to_owned(), image.1));
        Script::serving(&format!("index: {name}"), words, shelf)
    };
    let deep = |levels: usize| {
        let mut shelf = Shelf::good();
        for level in 0..levels {
            let kind = if level == 0 { MANIFEST } else { INDEX };
            let inner = index(&[entry(kind, shelf.document(), "linux", "amd64")]);
            shelf.put(INDEX, &inner);
        }
        shelf
    };
    let mut wrong_size = ours.clone();
    wrong_size["size"] = json!(good.len() + 1);
    let mut wrong_type = ours.clone();
    wrong_type["mediaType"] = json!(INDEX);
    let strange = |n: usize| entry(MANIFEST, &good, "plan9", &format!("\x1b[3{n}m{}", "x".repeat(500)));
    let many: Vec<Value> = (0..900).map(strange).collect();
    // A digest of its own cannot be in it; a document of that name can.
    let itself = index(&[json!({ "mediaType": INDEX, "digest": sha256(b"itself"), "size": 7,
        "platform": { "os": "linux", "architecture": "amd64" } })]);
    let mut cyclic = Shelf::good();
    cyclic.put(INDEX, &itself).manifests.insert(sha256(b"itself"), (INDEX.to_owned(), itself.clone()));
    vec![
        scripted(
            "nothing for us",
            &["not available for linux/amd64", "linux/arm64"],
            &[entry(MANIFEST, &good, "linux", "arm64")],
        ),
        scripted("nothing at all", &["not available for linux/amd64"], &[]),
        scripted("900 names with escapes", &["not available", "more"], &many),
        scripted("two thousand entries", &["has 2000 entries; at most 1024"], &vec![ours.clone(); 2000]),
        scripted("an image of another length", &["cut short"], &[wrong_size]),
        scripted("an image said to be an index", &["Media type"], &[wrong_type]),
        scripted("an image that is not there", &["(404)"], &[entry(MANIFEST, b"missing", "linux", "amd64")]),
        scripted(
            "something else for us first",
            &[],
            &[entry("application/vnd.in-toto+json", b"x", "linux", "amd64"), ours],
        ),
        Script::serving("index: of an index", &[], deep(2)),
        Script::serving("index: five deep", &["behind 3 others"], deep(5)),
        Script::serving("index: a circle", &["Wrong digest of manifest"], cyclic),
    ]
}

/// Configs, whose digests are right.
pub(crate) fn configs() -> Vec<Script> {
    let json = "not what the OCI image specification says";
    let raw = |name: &str, words: &[&'static str], config: &[u8]| {
        let shelf = Shelf::raw(config.to_vec(), &[gzip(&layer_tar())], |_| {});
        Script::serving(&format!("config: {name}"), words, shelf)
    };
    let changed = |name: &str, words: &[&'static str], change: fn(&mut Value)| {
        Script::serving(&format!("config: {name}"), words, Shelf::bad(change, |_| {}))
    };
    let good = config(&[sha256(&layer_tar())]).to_string();
    vec![
        raw("no JSON", &[json], b"#!/bin/sh"),
        raw("a list", &[json], b"[]"),
        raw("not UTF-8", &[json], b"{\"rootfs\":{\"type\":\"\xff\"}}"),
        raw("nested without end", &[json], &[&b"{\"config\":"[..], &vec![b'{'; 1 << 20]].concat()),
        raw("a key twice", &[json, "duplicate"], good.replacen('{', "{\"os\":\"linux\",", 1).as_bytes()),
        raw("7 MiB of labels", &[], &{
            let mut value: Value = serde_json::from_str(&good).unwrap();
            value["config"]["Labels"] = json!({ "a": "x".repeat(7 << 20) });
            value.to_string().into_bytes()
        }),
        changed("of another platform", &["made for windows/arm64"], |c| {
            c["os"] = json!("windows");
            c["architecture"] = json!("arm64");
        }),
        changed("of a platform with escapes", &["made for \\u{1b}[5m"], |c| c["os"] = json!("\x1b[5m")),
        changed("of a platform of 1 MiB", &["made for"], |c| c["os"] = json!("o".repeat(1 << 20))),
        changed("no root file system", &[json], |c| c["rootfs"] = Value::Null),
        changed("a root file system of files", &["of type 'files"], |c| c["rootfs"]["type"] = json!("files\x07")),
        changed("more layers than there are", &["has 1 layers and the config 2"], |c| {
            c["rootfs"]["diff_ids"] = json!([sha256(b"a"), sha256(b"b")]);
        }),
        changed("a thousand layers", &["has 1000 layers"], |c| {
            c["rootfs"]["diff_ids"] = json!(vec![sha256(b"a"); 1000]);
        }),
        changed("a layer that unpacks to something else", &["Wrong digest of layer", "unpacked"], |c| {
            c["rootfs"]["diff_ids"] = json!([sha256(b"a")]);
        }),
        changed("a layer with a path for a digest", &[json], |c| c["rootfs"]["diff_ids"] = json!(["sha256:../../x"])),
        changed("a zero byte in its command", &["zero byte"], |c| c["config"]["Cmd"] = json!(["/bin/sh\0x"])),
        changed("a variable without a name", &["is not of the form NAME=value"], |c| {
            c["config"]["Env"] = json!(["=\x1b[31mx"]);
        }),
        changed("a variable of 1 MiB without a value", &["is not of the form"], |c| {
            c["config"]["Env"] = json!(["x".repeat(1 << 20)]);
        }),
        changed("words where lists belong", &[json], |c| c["config"]["Cmd"] = json!("/bin/sh")),
    ]
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An image whose one layer has these packed bytes, and whose tar is said to be that one.
fn layer(name: &str, words: &[&'static str], tar: &[u8], packed: &[u8]) -> Script {
    let shelf = Shelf::of(&[(tar.to_vec(), packed.to_vec())]);
    Script::serving(&format!("layer: {name}"), words, shelf)
}

fn typed(name: &str, words: &[&'static str], kind: &'static str, tar: &[u8], packed: Vec<u8>) -> Script {
    let shelf = Shelf::made(&config(&[sha256(tar)]), &[packed], |m| m["layers"][0]["mediaType"] = json!(kind));
    Script::serving(&format!("layer: {name}"), words, shelf)
}

/// A file of 272 MiB of zeros, packed.
fn bomb(mut pack: impl Write) {
    let mut tar = Tarball::default();
    tar.entry(&crate::tarball::Header::new(b'0', b"zeros", 272 << 20), b"");
    pack.write_all(&tar.0).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..272).for_each(|_| pack.write_all(&zeros).unwrap());
}

/// Layers, whose packed digests are right.
pub(crate) fn layers() -> Vec<Script> {
    let tar = layer_tar();
    let (packed, plain) = (gzip(&tar), "application/vnd.oci.image.layer.v1.tar");
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let mut zeros = Vec::new();
    bomb(zstd::Encoder::new(&mut zeros, 1).unwrap().auto_finish());
    let mut gzeros = Vec::new();
    bomb(flate2::write::GzEncoder::new(&mut gzeros, flate2::Compression::best()));
    let halves = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
    let mut window = zstd::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(30).unwrap();
    window.include_contentsize(false).unwrap();
    window.write_all(&tar).unwrap();
    let window = window.finish().unwrap();
    let refused = "Cannot convert layer";
    let mut corrupt = packed.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle] ^= 0x55;
    let mut crc = packed.clone();
    let end = crc.len() - 6;
    crc[end] ^= 1;
    vec![
        layer("no bytes", &[refused, "gzip"], &tar, b""),
        layer("not gzip", &[refused, "gzip"], &tar, &tar),
        layer("gzip of something else", &[refused, "not a tar header"], b"hello", &gzip(&b"hello ".repeat(1000))),
        layer("gzip in gzip", &[refused, "not a tar header"], &packed, &gzip(&packed)),
        layer("cut gzip", &[refused, "cut short"], &tar, &packed[..packed.len() - 9]),
        layer("damaged gzip", &[refused], &tar, &corrupt),
        layer("gzip with a wrong checksum", &[refused, "gzip"], &tar, &crc),
        layer("gzip in two members", &[], &tar, &halves),
        layer("gzip with rubbish behind", &[refused, "gzip"], &tar, &[&packed[..], b"rubbish"].concat()),
        layer("gzip with zeros behind", &[refused, "gzip"], &tar, &[&packed[..], &[0; 512]].concat()),
        layer(
            "gzip with a second archive behind",
            &["Wrong digest of layer", "unpacked"],
            &tar,
            &[&packed[..], &packed].concat(),
        ),
        layer("zeros by gzip", &[refused, "limit ratio = 1000", "--limit ratio"], b"", &gzeros),
        typed("zeros by zstd", &[refused, "limit ratio = 1000", "--limit ratio"], zstd, b"", zeros),
        typed("zstd said to be gzip", &[refused, "gzip"], LAYER, &tar, zstd_of(&tar)),
        typed("gzip said to be zstd", &[refused, "zstd"], zstd, &tar, packed.clone()),
        typed("gzip said to be plain", &[refused, "not a tar header"], plain, &tar, packed),
        typed("zstd of no frame", &[refused, "zstd"], zstd, &tar, Vec::new()),
        typed("cut zstd", &[refused, "zstd"], zstd, &tar, zstd_of(&tar)[..20_000].to_vec()),
        typed("zstd with a window of 1 GiB", &[refused, "zstd"], zstd, &tar, window),
        typed(
            "zstd with a frame that is skipped",
            &[],
            zstd,
            &tar,
            [&b"\x50\x2a\x4d\x18\x04\0\0\0rest"[..], &zstd_of(&tar)].concat(),
        ),
        typed(
            "zstd with a dictionary",
            &[refused, "zstd"],
            zstd,
            &tar,
            b"\x28\xb5\x2f\xfd\x01\x58\x11\x00\x00".to_vec(),
        ),
        layer("a cut archive", &[refused, "cut short"], &tar[..30_000], &gzip(&tar[..30_000])),
        layer("a way out", &[refused, "'..'"], b"", &gzip(&Tarball::default().file("../../etc/x", b"").end())),
    ]
}

fn limited(limit: &'static str, words: &[&'static str], tar: &Tarball) -> Script {
    let tar = tar.end();
    let packed = gzip(&tar);
    let script = Script::serving(&format!("limit: {limit}"), words, Shelf::of(&[(tar, packed)]));
    script.with(&["--limit", limit])
}

/// Each limit of what an image may cost, made small by its option: named with its value, and with the way to another.
pub(crate) fn limits() -> Vec<Script> {
    let attribute = "SCHILY.xattr.user.a";
    let mut one = Tarball::default();
    one.file("a/b/c", &[1; 9000]);
    let mut link = Tarball::default();
    link.symlink("l", "0123456789");
    let mut attributes = Tarball::default();
    attributes.pax(b'x', &[(attribute, b"0123456789"), ("SCHILY.xattr.user.b", b"")]).file("f", b"");
    let mut holes = Tarball::default();
    holes.pax(b'x', &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,1,2,1")]).file("f", b"xx");
    let slow = |slow: Part| -> crate::scripted_registry::Act {
        Arc::new(move |ask| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", ask.body.len()).into_bytes();
            // Quick enough to count as progress, too slow for the whole.
            let body = Step::Drip(ask.body.clone(), Duration::from_micros(300));
            (ask.part == slow).then(|| vec![Step::Send(head), body])
        })
    };
    let in_time = ["--limit", "time=2"];
    vec![
        limited("entries=2", &["limit entries = 2", "--limit entries=VALUE"], &one),
        limited("path_depth=2", &["limit path_depth = 2", "--limit path_depth=VALUE"], &one),
        limited("path_bytes=4", &["limit path_bytes = 4", "--limit path_bytes=VALUE"], &one),
        limited("file_bytes=8k", &["limit file_bytes = 8192", "--limit file_bytes=VALUE"], &one),
        limited("data_bytes=8k", &["limit data_bytes = 8192", "--limit data_bytes=VALUE"], &one),
        limited("inflated_bytes=4k", &["limit inflated_bytes = 4096", "--limit inflated_bytes=VALUE"], &one),
        limited("link_bytes=9", &["limit link_bytes = 9", "--limit link_bytes=VALUE"], &link),
        limited("metadata_bytes=2", &["limit metadata_bytes = 2", "--limit metadata_bytes=VALUE"], &one),
        limited("xattrs=1", &["limit xattrs = 1", "--limit xattrs=VALUE"], &attributes),
        limited("xattr_bytes=9", &["limit xattr_bytes = 9", "--limit xattr_bytes=VALUE"], &attributes),
        limited("header_bytes=20", &["limit header_bytes = 20", "--limit header_bytes=VALUE"], &attributes),
        limited("sparse_regions=1", &["limit sparse_regions = 1", "--limit sparse_regions=VALUE"], &holes),
        refused("limit: time, the layer", &["limit time = 2", "--limit time=VALUE"], slow(Part::Layer)).with(&in_time),
        refused(
            "limit: time, silence",
            &["limit time = 2", "--limit time=VALUE"],
            Arc::new(|_| Some(vec![Step::Hold])),
        )
        .with(&["--limit", "time=2"]),
        limited("ratio=2", &["limit ratio = 2", "--limit ratio=VALUE"], &one).with(&[
            "--limit",
            "ratio=2",
            "--limit",
            "ratio_from=1k",
        ]),
    ]
}
