//! A process that loads and removes images for ever is killed, again and again, wherever it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::image::fixture::{archive, layout, small};
use crate::image::{Reference, Store};

/// The folder that the killed process works in; without it the child's test has nothing to do.
const FOLDER: &str = "DUPLEX_KILL_TEST";
const KILLS: u64 = 60;

fn archives(folder: &Path) -> Vec<PathBuf> {
    let make = |name: &&str| {
        let path = folder.join(format!("{name}.tar"));
        let tag = json!({ "org.opencontainers.image.ref.name": "1" });
        fs::write(&path, archive(&layout(&[(&small(name), tag)]))).unwrap();
        path
    };
    ["a", "b", "c"].iter().map(make).collect()
}

fn name(number: usize) -> Reference {
    format!("{}:1", ["a", "b", "c"][number % 3]).parse().unwrap()
}

#[test]
fn the_process_that_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    for round in 0.. {
        let store = Store::open(&folder.join("store")).unwrap();
        store.load(&folder.join(format!("{}.tar", ["a", "b", "c"][round % 3])), &()).unwrap();
        let _ = store.remove(&name(round + 1), &BTreeSet::new());
    }
}

#[test]
fn killing_leaves_whole_images_or_none() {
    let folder = tempfile::tempdir().unwrap();
    archives(folder.path());
    let root = folder.path().join("store");
    Store::open(&root).unwrap();
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "image::pull::tests::the_process_that_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_micros(20_000 + (kill * 7919) % 60_000));
        assert!(child.try_wait().unwrap().is_none(), "the process ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&root).unwrap();
        assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0, "leftovers after kill {kill}");
        for line in store.images().unwrap() {
            let Some(reference) = line.reference else { continue };
            let image = store.resolve(&reference).unwrap_or_else(|e| panic!("kill {kill}: {e}"));
            let pieces: Vec<Vec<u8>> = image.disk.pieces.iter().map(|p| fs::read(&p.path).unwrap()).collect();
            assert!(pieces[1].windows(13).any(|w| w == b"from the base"), "kill {kill}");
        }
    }
    let store = Store::open(&root).unwrap();
    for number in 0..3 {
        store.load(&folder.path().join(format!("{}.tar", ["a", "b", "c"][number])), &()).unwrap();
    }
    for line in store.images().unwrap() {
        let reference = line.reference.unwrap_or_else(|| line.manifest.to_string().parse().unwrap());
        store.remove(&reference, &BTreeSet::new()).unwrap();
    }
    for part in ["tmp", "layers", "images", "references", "locks"] {
        assert_eq!(fs::read_dir(root.join(part)).unwrap().count(), 0, "{part}");
    }
}

#[test]
fn an_image_that_others_keep_removing_is_still_loaded() {
    let folder = tempfile::tempdir().unwrap();
    archives(folder.path());
    let (root, file) = (folder.path().join("store"), folder.path().join("a.tar"));
    let done = std::sync::atomic::AtomicBool::new(false);
    let end = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = Store::open(&root).unwrap();
            while !end() {
                let _ = store.remove(&name(0), &BTreeSet::new());
            }
        });
        for round in 0..40 {
            let store = Store::open(&root).unwrap();
            store.load(&file, &()).unwrap_or_else(|e| panic!("round {round}: {e:?}"));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
