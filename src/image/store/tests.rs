use std::sync::Arc;

use proptest::prelude::*;

use super::power::Cut;
use super::*;
use crate::image::ImageConfig;

fn digest(byte: u8) -> Digest {
    Digest::from_sha256([byte; 32])
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn add_layer(writer: &Writer<'_>, byte: u8) -> Result<LayerRecord, StoreError> {
    use std::io::Write;
    let mut draft = writer.draft_layer(usize::from(byte))?;
    let record = LayerRecord { diff_id: digest(byte), data_len: 8192, tree_len: 5 };
    draft.data.write_all(&[byte; 8192]).unwrap();
    draft.tree.write_all(b"tree!").unwrap();
    writer.publish_layer(&draft, &record)?;
    Ok(record)
}

/// An image of layers filled with these bytes, under this name.
fn add(store: &Store, name: &str, manifest: u8, layers: &[u8]) -> Result<(), StoreError> {
    use std::io::Write;
    let writer = store.writer()?;
    let layers: Vec<LayerRecord> = layers.iter().map(|l| add_layer(&writer, *l)).collect::<Result<_, _>>()?;
    loop {
        if !writer.has_image(&digest(manifest))? {
            let (folder, mut meta) = writer.draft_image(&digest(manifest))?;
            meta.write_all(&[manifest; 4096]).unwrap();
            let record = ImageRecord {
                manifest: digest(manifest),
                config_digest: digest(manifest ^ 0xff),
                config: ImageConfig::default(),
                meta_len: 4096,
                layers: layers.clone(),
            };
            writer.publish_image(&folder, &meta, &record, [("manifest.json", b"{}"), ("config.json", b"{}")])?;
        }
        // Another thread of a test may remove the image in between.
        if writer.name(&reference(name), &digest(manifest))? {
            return Ok(());
        }
    }
}

/// Every path in the store but for locks, with the length of files.
fn inventory(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for folder in ["tmp", "layers", "images", "references"] {
        let mut todo = entries(&root.join(folder)).unwrap();
        while let Some(path) = todo.pop() {
            let is_dir = path.is_dir();
            found.push((path.clone(), if is_dir { 0 } else { path.metadata().unwrap().len() }));
            if is_dir {
                todo.extend(entries(&path).unwrap());
            }
        }
    }
    found.sort();
    found
}

fn names_of(store: &Store) -> Vec<String> {
    store.images().unwrap().iter().map(|i| i.reference.as_ref().map_or("-".to_owned(), Reference::to_string)).collect()
}

#[test]
fn an_image_is_found_by_name_id_and_beginning_of_id() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    add(&store, "a:1", 0xa1, &[1, 2]).unwrap();
    add(&store, "b", 0xb2, &[1]).unwrap();
    for text in
        ["a:1", "docker.io/library/a:1", "a1a1a1a1a1a1", &"a1".repeat(32), "5e5e5e5e5e", &digest(0x5e).to_string()]
    {
        assert_eq!(store.resolve(&reference(text)).unwrap().manifest, digest(0xa1), "{text}");
    }
    let pinned = format!("other.org/x@{}", digest(0xa1));
    assert_eq!(store.resolve(&reference(&pinned)).unwrap().manifest, digest(0xa1));
    let disk = store.resolve(&reference("a:1")).unwrap().disk;
    assert_eq!(disk.pieces.iter().map(|p| p.len).collect::<Vec<_>>(), [4096, 8192, 8192]);
    assert!(disk.pieces.iter().all(|p| p.path.metadata().unwrap().len() == p.len));
}

#[test]
fn an_unknown_image_is_told_with_its_mend_and_its_likes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    add(&store, "debian:12", 0xa1, &[1]).unwrap();
    let words = store.resolve(&reference("debain:12")).unwrap_err().to_string();
    for part in ["'debain:12'", "duplex pull debain:12", "duplex load", "similar: debian:12"] {
        assert!(words.contains(part), "{words}");
    }
}

#[test]
fn layers_are_stored_once_and_counted_as_shared() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    add(&store, "a", 0xa1, &[1, 2, 1]).unwrap();
    add(&store, "b", 0xb2, &[1, 3]).unwrap();
    assert_eq!(entries(&folder.path().join("layers")).unwrap().len(), 3);
    let images = store.images().unwrap();
    assert_eq!(names_of(&store), ["a:latest", "b:latest"]);
    assert!(images.iter().all(|i| i.shared == used(&store.layer_folder(&digest(1))) && i.size > i.shared));
    let image = store.resolve(&reference("a")).unwrap();
    assert_eq!(store.bytes_on_disk(&image), images[0].size);
}

#[test]
fn removal_unties_names_first_and_keeps_shared_layers() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let none = BTreeSet::new();
    add(&store, "a:1", 0xa1, &[1, 2]).unwrap();
    add(&store, "a:2", 0xa1, &[1, 2]).unwrap();
    add(&store, "b", 0xb2, &[1]).unwrap();
    assert!(matches!(store.remove(&reference(&"a1".repeat(32)), &none), Err(RemoveError::SeveralNames { .. })));
    assert_eq!(store.remove(&reference("a:1"), &none).unwrap(), [Removed::Untagged(reference("a:1"))]);
    let expected = [Removed::Untagged(reference("a:2")), Removed::Image(digest(0xa1)), Removed::Layer(digest(2))];
    assert_eq!(store.remove(&reference("a1a1a1a1"), &none).unwrap(), expected);
    assert!(store.resolve(&reference("b")).is_ok());
    store.remove(&reference("b"), &none).unwrap();
    assert!(inventory(folder.path()).is_empty(), "{:?}", inventory(folder.path()));
    assert!(matches!(store.remove(&reference("b"), &none), Err(RemoveError::Resolve(ResolveError::Unknown { .. }))));
}

#[test]
fn an_image_in_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    add(&store, "a", 0xa1, &[1]).unwrap();
    let in_use = BTreeSet::from([digest(0xa1)]);
    assert!(matches!(store.remove(&reference("a"), &in_use), Err(RemoveError::InUse { .. })));
    let image = store.resolve(&reference("a")).unwrap();
    let lease = store.hold(&image).unwrap();
    assert!(matches!(store.remove(&reference("a"), &BTreeSet::new()), Err(RemoveError::InUse { .. })));
    assert!(store.resolve(&reference("a")).is_ok());
    drop(lease);
    store.remove(&reference("a"), &BTreeSet::new()).unwrap();
    assert!(matches!(store.hold(&image), Err(ResolveError::Unknown { .. })));
}

#[test]
fn a_moved_name_leaves_a_nameless_image() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    add(&store, "a", 0xa1, &[1]).unwrap();
    add(&store, "a", 0xb2, &[2]).unwrap();
    assert_eq!(names_of(&store), ["a:latest", "-"]);
    store.remove(&reference("a1a1a1a1"), &BTreeSet::new()).unwrap();
    assert_eq!(names_of(&store), ["a:latest"]);
}

#[test]
fn a_truncated_or_missing_file_is_told_and_mended_by_adding_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    add(&store, "a", 0xa1, &[1]).unwrap();
    let image = store.resolve(&reference("a")).unwrap();
    for piece in &image.disk.pieces {
        for cut in [true, false] {
            if cut {
                fs::OpenOptions::new().write(true).open(&piece.path).unwrap().set_len(100).unwrap();
            } else {
                fs::remove_file(&piece.path).unwrap();
            }
            let error = store.resolve(&reference("a")).unwrap_err();
            assert!(matches!(&error, ResolveError::Damaged { path, .. } if *path == piece.path), "{error}");
            add(&store, "a", 0xa1, &[1]).unwrap();
            assert_eq!(store.resolve(&reference("a")).unwrap(), image);
        }
    }
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("version"), "duplex image store 9\n").unwrap();
    let error = Store::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("'duplex image store 9'") && error.contains("'duplex image store 1'"), "{error}");
    assert_eq!(entries(folder.path()).unwrap().len(), 1);
}

/// Every image that resolves has whole files with the right contents, and nothing is left in `tmp`.
fn check_whole(store: &Store) {
    for line in store.images().unwrap() {
        let Some(name) = line.reference else { continue };
        let image = store.resolve(&name).unwrap();
        for piece in &image.disk.pieces {
            let bytes = fs::read(&piece.path).unwrap();
            assert!(bytes.len() as u64 == piece.len && bytes.iter().all(|b| *b == bytes[0] && *b != 0), "{piece:?}");
        }
    }
    assert!(entries(&store.root.join("tmp")).unwrap().is_empty());
}

/// Runs `change` with the power failing before each of its steps in turn; after each the store is opened anew and must be whole.
fn cut_everywhere(before: impl Fn(&Store), change: impl Fn(&Store) -> bool, after: impl Fn(&Store, bool)) -> u32 {
    for steps in 0.. {
        let folder = tempfile::tempdir().unwrap();
        before(&Store::open(folder.path()).unwrap());
        let cut = Arc::new(Cut::after(steps));
        let mut store = Store::open(folder.path()).unwrap();
        store.disk.cut = Some(cut.clone());
        let done = change(&store);
        assert_eq!(done, !cut.happened() || done, "an error without a cut at step {steps}");
        let again = Store::open(folder.path()).unwrap();
        check_whole(&again);
        after(&again, done);
        if !cut.happened() {
            return steps;
        }
    }
    unreachable!()
}

#[test]
fn a_power_cut_while_adding_leaves_nothing_or_a_whole() {
    let steps = cut_everywhere(
        |store| add(store, "old", 0xa1, &[1]).unwrap(),
        |store| add(store, "new", 0xb2, &[1, 2, 3]).is_ok(),
        |store, done| {
            assert!(store.resolve(&reference("old")).is_ok());
            assert!(!done || store.resolve(&reference("new")).is_ok());
            add(store, "new", 0xb2, &[1, 2, 3]).unwrap();
            check_whole(store);
            for name in ["old", "new"] {
                store.remove(&reference(name), &BTreeSet::new()).unwrap();
            }
            assert!(inventory(&store.root).is_empty());
        },
    );
    assert!(steps > 30, "only {steps} steps were cut");
}

#[test]
fn a_power_cut_while_removing_leaves_nothing_or_a_whole() {
    let steps = cut_everywhere(
        |store| {
            add(store, "keep", 0xa1, &[1]).unwrap();
            add(store, "gone", 0xb2, &[1, 2]).unwrap();
        },
        |store| store.remove(&reference("gone"), &BTreeSet::new()).is_ok(),
        |store, _| {
            assert!(store.resolve(&reference("keep")).is_ok());
            match store.remove(&reference("gone"), &BTreeSet::new()) {
                Ok(_) | Err(RemoveError::Resolve(ResolveError::Unknown { .. })) => {}
                Err(e) => panic!("{e}"),
            }
            store.remove(&reference("keep"), &BTreeSet::new()).unwrap();
            assert!(inventory(&store.root).is_empty(), "{:?}", inventory(&store.root));
        },
    );
    assert!(steps >= 8, "only {steps} steps were cut");
}

#[test]
fn writers_removers_and_readers_at_once_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let work = |n: u8| {
        for round in 0..12u8 {
            let store = Store::open(folder.path()).unwrap();
            let name = format!("i{}", (n ^ round) % 3);
            add(&store, &name, 0xa0 + (n ^ round) % 3, &[1, 2, 3 + (n ^ round) % 3]).unwrap_or_else(|e| panic!("{e}"));
            let held =
                store.resolve(&reference(&name)).and_then(|image| store.hold(&image).map(|lease| (image, lease)));
            if let Ok((image, _lease)) = held {
                assert!(image.disk.pieces.iter().all(|p| fs::read(&p.path).unwrap().len() as u64 == p.len));
            }
            match store.remove(&reference(&format!("i{}", n % 3)), &BTreeSet::new()) {
                Ok(_) | Err(RemoveError::Resolve(_) | RemoveError::InUse { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|n| drop(scope.spawn(move || work(n)))));
    let store = Store::open(folder.path()).unwrap();
    check_whole(&store);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_sequence_keeps_exactly_what_names_need(steps in proptest::collection::vec((0u8..2, 0u8..4, 0u8..4), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut model = std::collections::BTreeMap::new();
        for (verb, name, image) in steps {
            let text = format!("n{name}:latest");
            if verb == 0 {
                add(&store, &text, 0xa0 + image, &[1 + image, 2 + image]).unwrap();
                model.insert(text, image);
            } else {
                prop_assert_eq!(store.remove(&reference(&text), &BTreeSet::new()).is_ok(), model.remove(&text).is_some());
            }
        }
        let named: Vec<String> = names_of(&store).into_iter().filter(|n| n != "-").collect();
        prop_assert_eq!(named, model.keys().cloned().collect::<Vec<_>>());
        for (name, image) in &model {
            prop_assert_eq!(store.resolve(&reference(name)).unwrap().manifest, digest(0xa0 + image));
        }
    }
}
