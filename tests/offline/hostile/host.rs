//! The archives that are taken, as layers of images, by `duplex load` itself: what it leaves on the host.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use duplex::image::decompress::Compression;
use serde_json::json;

use crate::scripted_registry::{INDEX, Shelf, sha256};
use crate::tarball::{Header, Tarball};

/// Layers of one image.
const LAYERS: usize = 100;

/// An OCI layout of an image with these layers, as an archive.
fn archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let pairs: Vec<_> = layers.iter().map(|tar| (tar.clone(), tar.clone())).collect();
    let mut shelf = Shelf::of(&pairs);
    let text = String::from_utf8(shelf.document().to_vec()).unwrap().replace(".tar+gzip", ".tar");
    shelf.put("", text.as_bytes());
    let manifest = json!({ "digest": sha256(text.as_bytes()), "size": text.len() });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] }).to_string();
    let mut tar = Tarball::default();
    tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).file("index.json", index.as_bytes());
    let blobs = shelf.blobs.iter().map(|(digest, bytes)| (digest.as_str(), bytes.as_slice()));
    for (digest, bytes) in blobs.chain([(sha256(text.as_bytes()).as_str(), text.as_bytes())]) {
        tar.file(&format!("blobs/{}", digest.replace(':', "/")), bytes);
    }
    tar.end()
}

/// All that is below a folder: path, mode, owner, length.
fn inventory(folder: &Path, found: &mut BTreeMap<String, (u32, u32, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        found.insert(path.display().to_string(), (metadata.permissions().mode(), metadata.uid(), metadata.len()));
        if metadata.is_dir() {
            inventory(&path, found);
        }
    }
}

#[test]
fn what_is_taken_becomes_plain_files_of_the_store_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let [outer, work, store] = ["outer", "outer/work", "outer/work/store"].map(|name| folder.path().join(name));
    fs::create_dir_all(&work).unwrap();
    fs::write(outer.join("f"), "canary").unwrap();
    fs::write(work.join("x"), "canary").unwrap();
    let taken: Vec<Vec<u8>> = super::all()
        .into_iter()
        .filter(|a| !a.verdict.starts_with('!') && a.packed == Compression::None && a.bytes.len() < 1 << 20)
        .map(|a| a.bytes)
        .collect();
    assert!(taken.len() > 200, "{}", taken.len());
    let mut before = BTreeMap::new();
    inventory(folder.path(), &mut before);
    let own = before.values().next().unwrap().1;
    for (number, layers) in taken.chunks(LAYERS).enumerate() {
        let file = folder.path().join("archive.tar");
        fs::write(&file, archive(layers)).unwrap();
        let mut load = Command::new(env!("CARGO_BIN_EXE_duplex"));
        load.current_dir(&work).arg("--root").arg(&store).args(["load", "-q", "-i"]).arg(&file);
        let output = load.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "image {number}: {said}");
        fs::remove_file(&file).unwrap();
    }
    let mut after = BTreeMap::new();
    inventory(folder.path(), &mut after);
    let inside = store.display().to_string();
    let mut kept = BTreeMap::new();
    for (path, (mode, uid, length)) in after {
        if !path.starts_with(&inside) {
            kept.insert(path, (mode, uid, length));
            continue;
        }
        let kind = mode & 0o170_000;
        assert!(matches!(kind, 0o040_000 | 0o100_000) && mode & 0o7077 == 0 && uid == own, "{path}: {mode:o} {uid}");
    }
    // The folder that the store is in has one entry more.
    before.values_mut().chain(kept.values_mut()).filter(|v| v.0 & 0o170_000 == 0o040_000).for_each(|v| v.2 = 0);
    assert_eq!(kept, before);
}

/// An archive on standard input that never ends, though each of its parts comes soon.
#[test]
fn a_stream_that_goes_on_and_on_is_told_when_its_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut load = Command::new(env!("CARGO_BIN_EXE_duplex"));
    load.arg("--root").arg(folder.path()).args(["load", "-q", "--limit", "time=1"]);
    load.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = load.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&Header::new(b'0', b"x", 1 << 33).sealed()).unwrap();
    // It stops to listen when it has had enough.
    while input.write_all(b"x").is_ok() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("limit time = 1") && said.contains("--limit time=VALUE"), "{said}");
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0, "{said}");
}
