use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::super::fixture::{self, TestImage, archive, image, layer, layout, pack, small, tar_of, write};
use super::*;
use crate::image::{LoadError, Store};

type Files = std::collections::BTreeMap<String, Vec<u8>>;

struct Bench {
    folder: tempfile::TempDir,
    store: Store,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    Bench { folder, store }
}

impl Bench {
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Loads and returns the names.
    fn load(&self, path: &Path) -> Vec<String> {
        let added = self.store.load(path, &()).unwrap_or_else(|e| panic!("{}", words(&e)));
        added.iter().flat_map(|a| &a.names).map(Reference::to_string).collect()
    }

    /// The image resolves, has its files and their contents.
    fn check(&self, name: &str, image: &TestImage) {
        let found = self.store.resolve(&name.parse().unwrap()).unwrap();
        assert_eq!(found.config.cmd, ["/hello"]);
        assert_eq!(found.config.labels.len(), 1);
        let pieces: Vec<Vec<u8>> = found.disk.pieces.iter().map(|p| fs::read(&p.path).unwrap()).collect();
        assert_eq!(pieces[0][1024..1028], 0xE0F5_E1E2_u32.to_le_bytes(), "EROFS magic");
        assert_eq!(pieces.len(), image.layers.len() + 1);
        assert!(pieces[1].windows(13).any(|w| w == b"from the base"));
    }

    fn refuses(&self, path: &Path, expected: &str) {
        let error = self.store.load(path, &()).map(|_| ()).unwrap_err();
        let words = words(&error);
        assert!(words.contains(expected), "wanted '{expected}' in: {words}");
        assert!(words.contains(&path.display().to_string()), "the archive is not named: {words}");
        self.is_empty();
    }

    fn is_empty(&self) {
        for folder in ["tmp", "layers", "images", "references"] {
            let left: Vec<_> = fs::read_dir(self.store.root().join(folder)).unwrap().collect();
            assert!(left.is_empty(), "{folder}: {left:?}");
        }
    }
}

fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn tag(tag: &str) -> serde_json::Value {
    json!({ "org.opencontainers.image.ref.name": tag })
}

#[test]
fn an_oci_layout_loads_as_folder_tar_gzip_zstd_and_stream_alike() {
    let image = small("a");
    let files = layout(&[(&image, tag("12"))]);
    let plain = archive(&files);
    for form in ["folder", "tar", "tar.gz", "tar.zst", "stream"] {
        let bench = bench();
        let names = match form {
            "folder" => {
                let path = bench.folder.path().join("debian");
                write(&files, &path);
                bench.load(&path)
            }
            "tar" => bench.load(&bench.file("debian.tar", &plain)),
            "tar.gz" => bench.load(&bench.file("debian.tar.gz", &pack(&plain, Compression::Gzip))),
            "tar.zst" => bench.load(&bench.file("debian.tar.zst", &pack(&plain, Compression::Zstd))),
            _ => {
                let added = bench.store.load_stream("standard input", &mut plain.as_slice(), &()).unwrap();
                assert_eq!((added.len(), &added[0].manifest, added[0].new), (1, &image.digest(), true));
                bench.check(&image.digest().to_string(), &image);
                continue;
            }
        };
        assert_eq!(names, ["debian:12"], "{form}");
        bench.check("debian:12", &image);
        assert_eq!(bench.store.resolve(&"debian:12".parse().unwrap()).unwrap().manifest, image.digest(), "{form}");
        assert!(fs::read_dir(bench.store.root().join("tmp")).unwrap().next().is_none());
    }
}

#[test]
fn annotations_name_images_as_their_writers_mean_them() {
    let (a, b, c) = (small("a"), small("b"), small("c"));
    let bench = bench();
    let containerd =
        json!({ "io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1" });
    let files = layout(&[(&a, containerd), (&b, tag("localhost:5000/y:2")), (&a, tag("3")), (&c, json!({}))]);
    let mut names = bench.load(&bench.file("z.tar", &archive(&files)));
    names.sort();
    assert_eq!(names, ["localhost:5000/y:2", "x:1", "z:3"]);
    assert_eq!(bench.store.images().unwrap().len(), 4, "and one without a name");
    bench.check(&c.digest().to_string(), &c);
    assert_eq!(fs::read_dir(bench.store.root().join("layers")).unwrap().count(), 4, "the base is there once");
}

#[test]
fn one_name_for_several_platforms_is_one_image() {
    let (ours, other) = (small("ours"), small("other"));
    let mut files = layout(&[(&ours, json!({})), (&other, json!({}))]);
    let mut entries = [ours.descriptor(&tag("t")), other.descriptor(&tag("t"))];
    entries[0]["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    entries[1]["platform"] = json!({ "os": "linux", "architecture": "arm64" });
    let inner = json!({ "schemaVersion": 2, "manifests": entries }).to_string().into_bytes();
    files.insert("index.json".to_owned(), inner.clone());
    let direct = bench();
    assert_eq!(direct.load(&direct.file("x.tar", &archive(&files))), ["x:t"]);
    direct.check("x:t", &ours);
    let digest = fixture::sha256(&inner);
    let outer = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": inner.len(), "annotations": tag("t")
    }]});
    files.insert("index.json".to_owned(), outer.to_string().into_bytes());
    files.insert(format!("blobs/sha256/{}", digest.hex()), inner);
    let nested = bench();
    assert_eq!(nested.load(&nested.file("x.tar", &archive(&files))), ["x:t"]);
    nested.check("x:t", &ours);
}

#[test]
fn a_docker_archive_loads_with_its_tags_and_always_as_the_same_image() {
    let base = layer(&[("etc/base", b"from the base")], Compression::None);
    let top = layer(&[("hello", b"x")], Compression::Gzip);
    let image = image("d", &[base, top]);
    let bench = bench();
    let path = bench.file("d.tar", &image.docker_archive(&["d:1", "example.org/d:latest"]));
    assert_eq!(bench.load(&path), ["d:1", "example.org/d:latest"]);
    bench.check("d:1", &image);
    let again = bench.store.load(&path, &()).unwrap();
    assert!(!again[0].new && again[0].names.len() == 2);
}

#[test]
fn a_link_to_a_saved_layer_is_followed_inside_the_archive_only() {
    let base = layer(&[("etc/base", b"from the base")], Compression::None);
    let image = image("l", &[base.clone(), base.clone()]);
    let config = format!("{}.json", fixture::sha256(&image.config).hex());
    for (target, good) in
        [("../a/layer.tar", true), ("../../etc/passwd", false), ("/etc/passwd", false), ("layer.tar", false)]
    {
        let manifest = json!([{ "Config": config, "RepoTags": ["l:1"], "Layers": ["a/layer.tar", "b/layer.tar"] }]);
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in [
            ("a/layer.tar", base.tar.as_slice()),
            (&config, &image.config),
            ("manifest.json", manifest.to_string().as_bytes()),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, bytes).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "b/layer.tar", target).unwrap();
        let bench = bench();
        let path = bench.file("l.tar", &builder.into_inner().unwrap());
        if good {
            bench.load(&path);
            bench.check("l:1", &image);
        } else {
            bench.refuses(&path, "b/layer.tar");
        }
    }
}

#[test]
fn archives_that_are_wrong_are_refused_with_words_and_leave_nothing() {
    let good = small("w");
    let files = layout(&[(&good, tag("1"))]);
    let layer_path = format!("blobs/sha256/{}", fixture::sha256(&good.layers[0].packed).hex());
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = files.clone();
        change(&mut files);
        archive(&files)
    };
    let twice = [("index.json", b"{}".as_slice()), ("index.json", b"{}")];
    let flipped = |bytes: &[u8]| {
        let mut b = bytes.to_vec();
        b[20] ^= 1;
        b
    };
    let plain = archive(&files);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", Vec::new(), "is not an image archive"),
        ("text", b"not an archive at all, just words".repeat(40), "is not an image archive"),
        ("cut tar", plain[..plain.len() / 2].to_vec(), "cut short"),
        ("cut gzip", pack(&plain, Compression::Gzip)[..200].to_vec(), "cut short"),
        ("other tar", tar_of(&[("etc/passwd", b"x")]), "neither index.json"),
        ("two of a name", tar_of(&twice), "two entries index.json"),
        ("missing layer", with(&|f| drop(f.remove(&layer_path))), "is missing"),
        (
            "flipped layer",
            with(&|f| {
                let b = flipped(&f[&layer_path]);
                f.insert(layer_path.clone(), b);
            }),
            "Wrong digest of layer",
        ),
        ("cut layer", with(&|f| f.get_mut(&layer_path).unwrap().truncate(30)), "cut short: 30 of"),
        ("longer layer", with(&|f| f.get_mut(&layer_path).unwrap().push(0)), "longer than"),
        (
            "version 2",
            with(&|f| {
                f.insert("oci-layout".into(), br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec());
            }),
            "version that is not known",
        ),
        (
            "no images",
            with(&|f| {
                f.insert("index.json".into(), br#"{"schemaVersion":2,"manifests":[]}"#.to_vec());
            }),
            "holds no image",
        ),
        ("bad name", archive(&layout(&[(&good, tag("a/B:1"))])), "lower case"),
        ("our name", archive(&layout(&[(&good, tag("library/workloads:latest"))])), "part of Duplex"),
        ("docker, bad json", tar_of(&[("manifest.json", b"{}")]), "docker save"),
        (
            "docker, missing config",
            tar_of(&[("manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#)]),
            "is missing",
        ),
    ];
    for (name, bytes, expected) in cases {
        let bench = bench();
        let path = bench.file("case", &bytes);
        eprintln!("{name}");
        bench.refuses(&path, expected);
    }
    let bench = bench();
    bench.refuses(&bench.folder.path().join("nothing"), "Cannot open");
}

#[test]
fn a_layer_of_other_contents_than_the_config_says_is_refused() {
    let mut bad = small("i");
    let other = layer(&[("etc/other", b"other")], Compression::None);
    bad.config = image("i", &[other.clone(), other]).config;
    let manifest = String::from_utf8(bad.manifest.clone()).unwrap();
    let old = small("i");
    let manifest = manifest
        .replace(fixture::sha256(&old.config).hex(), fixture::sha256(&bad.config).hex())
        .replace(&format!("\"size\":{}", old.config.len()), &format!("\"size\":{}", bad.config.len()));
    bad.manifest = manifest.into_bytes();
    let bench = bench();
    let path = bench.file("i.tar", &archive(&layout(&[(&bad, tag("1"))])));
    bench.refuses(&path, "the config says");
}

#[test]
fn a_layout_folder_is_read_without_following_links_or_waiting_for_pipes() {
    let good = small("f");
    let files = layout(&[(&good, tag("1"))]);
    let layer_path = format!("blobs/sha256/{}", fixture::sha256(&good.layers[0].packed).hex());
    for pipe in [true, false] {
        let bench = bench();
        let folder = bench.folder.path().join("f");
        write(&files, &folder);
        let path = folder.join(&layer_path);
        fs::rename(&path, bench.folder.path().join("real")).unwrap();
        if pipe {
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        } else {
            std::os::unix::fs::symlink("../../../real", &path).unwrap();
        }
        bench.refuses(&folder, "is not a file");
    }
}

#[test]
fn the_embedded_image_is_there_on_first_use_and_follows_its_archive() {
    let bench = bench();
    let name: Reference = "workloads".parse().unwrap();
    let (one, two) = (small("one"), small("two"));
    let path = bench.file("workloads.tar", &archive(&layout(&[(&one, json!({}))])));
    assert!(bench.store.resolve(&name).is_err(), "a store that does not know of it has none");
    let store = bench.store.clone().with_embedded(&path);
    assert_eq!(store.resolve(&name).unwrap().manifest, one.digest());
    assert_eq!(store.resolve(&"docker.io/library/workloads:latest".parse().unwrap()).unwrap().manifest, one.digest());
    bench.file("workloads.tar", &archive(&layout(&[(&two, tag("latest"))])));
    assert_eq!(store.resolve(&name).unwrap().manifest, two.digest());
    store.remove(&name, &BTreeSet::new()).unwrap();
    assert_eq!(store.resolve(&name).unwrap().manifest, two.digest());
    fs::remove_file(&path).unwrap();
    let error = words(&store.resolve(&name).unwrap_err());
    assert!(error.contains("workloads.tar") && error.contains("make build"), "{error}");
}

#[test]
fn no_piece_of_a_disk_is_empty() {
    let base = layer(&[("etc/base", b"from the base")], Compression::None);
    let whiteout = layer(&[("etc/.wh.other", b""), ("etc/empty", b"")], Compression::None);
    let nothing = layer(&[], Compression::Gzip);
    let image = image("e", &[base, whiteout, nothing]);
    let bench = bench();
    bench.load(&bench.file("e.tar", &archive(&layout(&[(&image, tag("1"))]))));
    bench.check("e:1", &image);
    let disk = bench.store.resolve(&"e:1".parse().unwrap()).unwrap().disk;
    assert_eq!(disk.pieces[1..].iter().map(|p| p.len).collect::<Vec<_>>(), [4096, 4096, 4096]);
}

#[test]
fn a_load_that_fails_halfway_keeps_what_was_there() {
    let (good, mut bad) = (small("g"), small("b"));
    let bench = bench();
    bench.load(&bench.file("g.tar", &archive(&layout(&[(&good, tag("1"))]))));
    bad.layers[1].packed[8] ^= 0xff;
    let digest = fixture::sha256(&small("b").layers[1].packed);
    let mut files = layout(&[(&bad, tag("1"))]);
    files.insert(format!("blobs/sha256/{}", digest.hex()), bad.layers[1].packed.clone());
    let error = bench.store.load(&bench.file("b.tar", &archive(&files)), &()).unwrap_err();
    assert!(matches!(&error, LoadError::Failed { source, .. } if matches!(**source, IngestError::WrongDigest { .. })));
    bench.check("g:1", &good);
    assert_eq!(fs::read_dir(bench.store.root().join("layers")).unwrap().count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_archives_never_panic_and_never_load_damaged_content(at in 0usize..12_000, bit in 0u8..8, cut in any::<bool>()) {
        let image = small("p");
        let mut bytes = archive(&layout(&[(&image, tag("1"))]));
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        let bench = bench();
        match bench.store.load(&bench.file("p.tar", &bytes), &()) {
            Ok(added) => prop_assert!(added.iter().all(|a| a.manifest == image.digest())),
            Err(_) => bench.is_empty(),
        }
    }
}
