use super::*;
use crate::spec::{
    Cpus, Digest, Isolation, LogLimits, MemorySize, MountSource, MountSpec, NetworkMode, ProcessSpec, Publish, Restart,
    SandboxId,
};

const SIZE: MachineSize = MachineSize { memory: MemorySize(512 << 20), vcpus: 1 };

fn definition() -> Definition {
    let process = ProcessSpec { args: vec!["true".into()], ..ProcessSpec::default() };
    let (id, image) = (SandboxId::from_bytes([0xa0, 0, 0, 0, 0, 1]), Digest::from_sha256([7; 32]));
    Definition {
        spec: SandboxSpec { name: Some("web".into()), ..SandboxSpec::plain(id, Isolation::MicroVm, image, process) },
        labels: [("a".to_owned(), "b".to_owned())].into(),
        remove: true,
        restart: Restart::Always,
        stop_signal: 15,
        stop_timeout_s: 10,
        input_once: true,
        log: LogLimits::default(),
        health: None,
        store: None,
        created_at_ns: 5,
    }
}

fn host() -> Host {
    Host { kernel: "6.12".into(), processor: "one".into(), monitor: "00".into() }
}

fn made(store: &Path, name: &str) -> Record {
    let snapshots = Snapshots::of(store);
    let spec = SandboxSpec { mounts: vec![volume(false), volume(true)], ..definition().spec };
    let draft = snapshots.draft(name, &spec).unwrap();
    let origin = draft.origin();
    fs::write(&origin.machine, b"memory and state").unwrap();
    assert_eq!(origin.disks.len(), 1, "what is only read is not copied");
    fs::write(&origin.disks[0], b"a disk").unwrap();
    snapshots.keep(&draft, name, (&Definition { spec, ..definition() }, SIZE), host()).unwrap()
}

fn volume(read_only: bool) -> MountSpec {
    let source = MountSource::Volume { name: "data".into(), anonymous: false, copy: true };
    MountSpec { target: "/data".into(), read_only, source }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_saved_is_found_as_it_was() {
    let store = tempfile::tempdir().unwrap();
    let record = made(store.path(), "warm");
    let snapshots = Snapshots::of(store.path());
    assert_eq!(snapshots.see("warm").unwrap(), record);
    assert_eq!(snapshots.list().unwrap().0, std::slice::from_ref(&record));
    let origin = snapshots.origin(&record, &host()).unwrap();
    assert_eq!(fs::read(&origin.machine).unwrap(), b"memory and state");
    assert_eq!(origin.disks.iter().map(|d| fs::read(d).unwrap()).collect::<Vec<_>>(), [b"a disk"]);
    assert!(snapshots.used(&record) > 0);
    assert!(matches!(snapshots.draft("warm", &definition().spec), Err(SnapshotError::Taken(_))));
    assert_eq!(entries(&store.path().join("snapshots")), ["key", "warm"], "a draft leaves nothing");
    snapshots.remove("warm").unwrap();
    assert!(matches!(snapshots.see("warm"), Err(SnapshotError::Unknown(_))));
    assert!(matches!(snapshots.remove("warm"), Err(SnapshotError::Unknown(_))));
    assert_eq!(entries(&store.path().join("snapshots")), ["key"]);
}

#[test]
fn what_dead_makers_left_is_cleared() {
    let store = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::of(store.path());
    let spec = definition().spec;
    let living = snapshots.draft("aa", &spec).unwrap();
    let dead = store.path().join("snapshots/.new-1234");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("machine"), b"half").unwrap();
    drop(snapshots.draft("bb", &spec).unwrap());
    assert!(!dead.exists() && living.origin().machine.exists());
    let fork = Draft::to_fork(store.path(), &spec).unwrap();
    let machine = fork.origin().machine;
    assert!(machine.exists());
    sweep_forks(store.path()).unwrap();
    assert!(machine.exists());
    drop(fork);
    assert!(!machine.exists());
    let dead = store.path().join("forks/.new-1234");
    fs::create_dir(&dead).unwrap();
    sweep_forks(store.path()).unwrap();
    assert!(dead.exists(), "its maker may come to it yet");
    fs::write(dead.join("machine"), b"half").unwrap();
    sweep_forks(store.path()).unwrap();
    assert!(!dead.exists());
}

#[test]
fn every_bit_counts() {
    let store = tempfile::tempdir().unwrap();
    let record = made(store.path(), "warm");
    let snapshots = Snapshots::of(store.path());
    let path = store.path().join("snapshots/warm/record");
    let bytes = fs::read(&path).unwrap();
    for bit in (0..bytes.len() * 8).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // A digit of the code in capitals is the same digit.
        if bit / 8 < CODE && damaged[bit / 8].to_ascii_lowercase() == bytes[bit / 8] {
            continue;
        }
        fs::write(&path, damaged).unwrap();
        assert!(
            matches!(snapshots.see("warm"), Err(SnapshotError::Damaged { ref part, .. }) if part == "record"),
            "bit {bit}"
        );
    }
    for len in [0, 1, 63, 64, 65, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(snapshots.see("warm").is_err(), "{len} bytes");
    }
    fs::write(&path, &bytes).unwrap();
    for (file, good) in [("machine", &b"memory and state"[..]), ("disk-0", b"a disk")] {
        let path = store.path().join("snapshots/warm").join(file);
        let longer = [good, b"\0"].concat();
        for bad in [&good[1..], &longer, b"memory And state", b""] {
            fs::write(&path, bad).unwrap();
            let refused = snapshots.origin(&record, &host()).unwrap_err();
            assert!(matches!(refused, SnapshotError::Damaged { ref part, .. } if part == file), "{refused}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(snapshots.origin(&record, &host()), Err(SnapshotError::File { .. })));
        fs::write(&path, good).unwrap();
        snapshots.origin(&record, &host()).unwrap();
    }
}

#[test]
fn who_has_another_key_makes_no_snapshot_of_this_store() {
    let (store, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    made(store.path(), "warm");
    made(other.path(), "warm");
    let place = |store: &Path| store.join("snapshots/warm/record");
    fs::copy(place(other.path()), place(store.path())).unwrap();
    assert!(matches!(Snapshots::of(store.path()).see("warm"), Err(SnapshotError::Damaged { .. })));
    // Nor does one of this store under another name.
    made(store.path(), "cold");
    fs::copy(store.path().join("snapshots/cold/record"), place(store.path())).unwrap();
    assert!(matches!(Snapshots::of(store.path()).see("warm"), Err(SnapshotError::Damaged { .. })));
}

#[test]
fn other_hosts_are_refused_with_the_reason() {
    let store = tempfile::tempdir().unwrap();
    let record = made(store.path(), "warm");
    let refused = |here: Host| Snapshots::of(store.path()).origin(&record, &here).unwrap_err().to_string();
    assert!(refused(Host { kernel: "7.0".into(), ..host() }).contains("kernel of the host: 6.12, not 7.0"));
    assert!(refused(Host { processor: "two".into(), ..host() }).contains("processor: one, not two"));
    assert!(refused(Host { monitor: "01".into(), ..host() }).contains("monitor: 00, not 01"));
    let info = "processor : 0\nmodel name\t: X\ncpu family\t: 6\nmodel\t\t: 85\nstepping : 4\nflags : a b\n";
    assert!(host::processor(info).starts_with("X (family 6, model 85, stepping 4, features "));
    assert_ne!(host::processor(info), host::processor(&info.replace("a b", "a c")));
}

#[test]
fn names_are_names() {
    let store = tempfile::tempdir().unwrap();
    for bad in ["", "a", "key", ".aa", "-aa", "a/b", "a b", "../aa", &"a".repeat(129)] {
        assert!(
            matches!(Snapshots::of(store.path()).draft(bad, &definition().spec), Err(SnapshotError::BadName(_))),
            "{bad}"
        );
        assert!(matches!(Snapshots::of(store.path()).see(bad), Err(SnapshotError::Unknown(_))), "{bad}");
    }
}

#[test]
fn a_fork_has_what_is_its_own() {
    let mut original = definition();
    original.spec.network.mode = NetworkMode::User;
    original.spec.network.publish = Publish::parse("8080:80").unwrap();
    original.spec.limits.cpus = Some(Cpus(500));
    let id = SandboxId::from_bytes([9; 6]);
    original.spec.mounts = vec![volume(true), volume(false)];
    let origin = Origin { machine: PathBuf::from("/machine"), disks: vec![PathBuf::from("/disk-0")] };
    let (fork, volumes) = forked((&original, SIZE), &origin, id.clone()).unwrap();
    assert_eq!(volumes.len(), 1);
    assert_eq!((volumes[0].1.as_path(), volumes[0].0.len()), (Path::new("/disk-0"), 64));
    assert_eq!(fork.spec.mounts[0], volume(true), "what is only read is the same one");
    let own = MountSource::Volume { name: volumes[0].0.clone(), anonymous: true, copy: false };
    assert_eq!(fork.spec.mounts[1], MountSpec { source: own, ..volume(false) });
    assert!(goes_on_once(&fork.spec) && !goes_on_once(&original.spec));
    assert_eq!((fork.spec.id.clone(), fork.spec.hostname.as_str(), fork.spec.name), (id.clone(), id.as_str(), None));
    assert_eq!(fork.spec.from.as_deref(), Some(Path::new("/machine")));
    assert!(fork.spec.network.publish.is_empty() && fork.restart == Restart::No && !fork.remove);
    assert_eq!((fork.spec.limits.memory, fork.spec.limits.cpus), (Some(SIZE.memory), Some(Cpus(500))));
    // The limits that hold now may be others than those of the machine.
    original.spec.limits.cpus = Some(Cpus(500));
    let larger = MachineSize { memory: MemorySize(1 << 30), vcpus: 3 };
    let (fork, _) = forked((&original, larger), &origin, id).unwrap();
    assert_eq!((fork.spec.limits.memory, fork.spec.limits.cpus), (Some(larger.memory), Some(Cpus(3000))));
}

#[test]
fn what_cannot_be_had_twice_is_not_saved() {
    let spec = || definition().spec;
    check_savable(&spec()).unwrap();
    check_savable(&SandboxSpec { mounts: vec![volume(true), volume(false)], ..spec() }).unwrap();
    let source = MountSource::Bind { path: "/srv".into(), create: false };
    let bound = SandboxSpec { mounts: vec![MountSpec { target: "/srv".into(), read_only: true, source }], ..spec() };
    let mut bridged = spec();
    bridged.network.bridge = Some("lan".to_owned().try_into().unwrap());
    for (spec, word) in [
        (bound, "folder"),
        (bridged, "shared network"),
        (SandboxSpec { isolation: Isolation::Container, ..spec() }, "container"),
        (SandboxSpec { kernel_log: Some("/log".into()), ..spec() }, "--kernel-log"),
    ] {
        assert!(check_savable(&spec).unwrap_err().to_string().contains(word));
    }
}

#[test]
fn what_may_start_again_is_looked_at_again() {
    let store = tempfile::tempdir().unwrap();
    let record = made(store.path(), "warm");
    let snapshots = Snapshots::of(store.path());
    let origin = snapshots.origin(&record, &host()).unwrap();
    let here = || Ok(host());
    let mut spec = definition().spec;
    snapshots.check_again(&spec, here).unwrap();
    spec.from = Some(origin.machine.clone());
    snapshots.check_again(&spec, here).unwrap();
    let written = SandboxSpec { mounts: vec![volume(false)], ..spec.clone() };
    assert!(matches!(snapshots.check_again(&written, here), Err(SnapshotError::Once)));
    fs::write(&origin.machine, b"other").unwrap();
    assert!(matches!(snapshots.check_again(&spec, here), Err(SnapshotError::Damaged { .. })));
    snapshots.remove("warm").unwrap();
    assert!(matches!(snapshots.check_again(&spec, here), Err(SnapshotError::Gone(_))));
}
