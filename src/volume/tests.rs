use std::os::unix::fs::FileExt;

use super::*;

fn small() -> Wanted {
    Wanted { size: Some(32 << 20), ..Wanted::default() }
}

fn id(number: u8) -> SandboxId {
    SandboxId::from_bytes([number; 6])
}

#[test]
fn a_volume_is_made_whole_and_small() {
    let store = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(store.path());
    assert!(volumes.list().unwrap().0.is_empty());
    let made = volumes.create("data", &Wanted::default()).unwrap();
    assert_eq!((made.size, made.anonymous), (DEFAULT_SIZE, false));
    assert!(volumes.used("data").unwrap() < 16 << 20, "{}", volumes.used("data").unwrap());
    assert_eq!(volumes.create("data", &small()).unwrap(), made, "one that is there stays");
    volumes.create("other", &small()).unwrap();
    let names: Vec<String> = volumes.list().unwrap().0.into_iter().map(|v| v.name).collect();
    assert_eq!(names, ["data", "other"]);
    volumes.remove("data").unwrap();
    assert!(matches!(volumes.remove("data"), Err(VolumeError::Unknown(_))));
    assert_eq!(fs::read_dir(store.path().join("volumes")).unwrap().count(), 1, "nothing of it is left");
}

#[test]
fn names_and_sizes_have_limits() {
    let store = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(store.path());
    for name in ["", "a", ".new-1", "../x", "a/b", "-x", "a b", &"x".repeat(129)] {
        assert!(matches!(volumes.create(name, &small()), Err(VolumeError::BadName(_))), "{name}");
        assert!(matches!(volumes.see(name), Err(VolumeError::Unknown(_))), "{name}");
        assert!(matches!(volumes.remove(name), Err(VolumeError::Unknown(_))), "{name}");
    }
    for size in [0, 1 << 20, 17 << 40, u64::MAX] {
        assert!(matches!(volumes.create("data", &Wanted { size: Some(size), ..small() }), Err(VolumeError::Size(_))));
    }
    assert!(!store.path().join("volumes").exists());
}

#[test]
fn one_writes_or_several_read() {
    let store = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(store.path());
    volumes.create("data", &small()).unwrap();
    let writer = volumes.attach("data", false, &id(1)).unwrap();
    let copy = writer.disk.try_clone().unwrap();
    drop(writer);
    let refused = volumes.attach("data", false, &id(2)).unwrap_err();
    assert!(refused.to_string().contains(id(1).as_str()), "a copy of the descriptor holds it: {refused}");
    assert!(matches!(volumes.attach("data", true, &id(2)), Err(VolumeError::Written { .. })));
    assert!(matches!(volumes.remove("data"), Err(VolumeError::Written { .. })));
    drop(copy);
    let readers = [1, 2].map(|n| volumes.attach("data", true, &id(n)).unwrap());
    assert!(readers[0].disk.write_at(b"x", 0).is_err(), "it is open for reading only");
    assert!(matches!(volumes.attach("data", false, &id(3)), Err(VolumeError::Read(_))));
    drop(readers);
    volumes.attach("data", false, &id(3)).unwrap();
}

#[test]
fn bytes_that_are_no_volume_are_not_used() {
    let store = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(store.path());
    volumes.create("data", &small()).unwrap();
    let disk = File::options().write(true).open(volumes.disk("data")).unwrap();
    disk.write_at(&[0xff; 64], 1024 + 0x200).unwrap();
    assert!(matches!(volumes.attach("data", false, &id(1)), Err(VolumeError::Damaged { .. })));
    fs::write(store.path().join("volumes/data/volume.json"), "{}").unwrap();
    assert!(matches!(volumes.see("data"), Err(VolumeError::Record { .. })));
    assert_eq!(volumes.list().unwrap().1.len(), 1);
    volumes.remove("data").unwrap();
}

#[test]
fn what_dead_makers_left_is_cleared() {
    let store = tempfile::tempdir().unwrap();
    let volumes = Volumes::of(store.path());
    volumes.create("data", &small()).unwrap();
    let folder = store.path().join("volumes");
    for name in [".new-1-1", ".new-2-2", ".new-3-3", ".new-4-4", ".gone-1-1"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    for name in [".new-3-3", ".new-4-4", ".gone-1-1"] {
        fs::write(folder.join(name).join(DISK), "").unwrap();
    }
    let maker = File::open(folder.join(".new-4-4").join(DISK)).unwrap();
    flock(&maker, FlockOperation::NonBlockingLockExclusive).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(120);
    File::open(folder.join(".new-1-1")).unwrap().set_modified(long_ago).unwrap();
    volumes.create("other", &small()).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [".new-2-2", ".new-4-4", "data", "other"], "a young one may have a maker, a held one has");
}
