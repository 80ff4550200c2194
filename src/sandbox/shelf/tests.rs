use std::process::{Child, Command, Stdio};

use super::*;
use crate::spec::{Digest, ProcessSpec};

fn spec(number: u8, name: Option<&str>) -> SandboxSpec {
    let process = ProcessSpec { args: vec!["true".into()], ..ProcessSpec::default() };
    let (id, image) = (SandboxId::from_bytes([0xd0, 0, 0, 0, 0, number]), Digest::from_sha256([7; 32]));
    SandboxSpec { name: name.map(str::to_owned), ..SandboxSpec::plain(id, Isolation::Container, image, process) }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_slot_is_alive_until_it_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(dir.path()).unwrap();
    let slot = shelf.reserve(&spec(1, Some("web"))).unwrap();
    assert!(slot.path().join("record.json").exists());
    assert_eq!(shelf.alive().unwrap()[0].name.as_deref(), Some("web"));
    assert!(shelf.reconcile().unwrap().cleared.is_empty(), "the living are left alone");
    fs::create_dir_all(slot.path().join("mnt/deep")).unwrap();
    slot.release().unwrap();
    assert_eq!(files(dir.path()), ["names"]);
    assert_eq!(files(&dir.path().join("names")), [".lock"]);
}

#[test]
fn a_taken_name_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(dir.path()).unwrap();
    let first = shelf.reserve(&spec(1, Some("web"))).unwrap();
    let error = shelf.reserve(&spec(2, Some("web"))).unwrap_err();
    assert!(error.to_string().contains(&spec(1, None).id.to_string()), "{error}");
    assert_eq!(shelf.alive().unwrap().len(), 1, "the refused one left nothing");
    drop(first);
    shelf.reserve(&spec(2, Some("web"))).unwrap().release().unwrap();
}

#[test]
fn names_are_one_path_component() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(dir.path()).unwrap();
    for bad in ["", "..", "a/b", ".lock", "-x", "a b", &"x".repeat(NAME_MAX + 1)] {
        assert!(matches!(shelf.reserve(&spec(1, Some(bad))), Err(ShelfError::BadName(_))), "{bad}");
    }
    assert_eq!(files(dir.path()), ["names"]);
}

#[test]
fn an_id_exists_once() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(dir.path()).unwrap();
    let slot = shelf.reserve(&spec(1, None)).unwrap();
    assert!(matches!(shelf.reserve(&spec(1, None)), Err(ShelfError::Exists(_))));
    slot.release().unwrap();
    assert_eq!(files(dir.path()), ["names"]);
}

/// Not a test of its own: the process that `owner` starts. It holds slots until it is killed.
#[test]
#[ignore = "a child process of other tests"]
fn holds_slots() {
    let Some(dir) = std::env::var_os("DUPLEX_TEST_SHELF") else { return };
    let first: u8 = std::env::var("DUPLEX_TEST_FIRST").unwrap().parse().unwrap();
    let shelf = Shelf::open(Path::new(&dir)).unwrap();
    let mut held = Vec::new();
    for number in first..first + 5 {
        let slot = shelf.reserve(&spec(number, Some(&format!("name-{number}")))).unwrap();
        fs::create_dir_all(slot.path().join("mnt/root")).unwrap();
        fs::write(slot.path().join("bundle"), "x").unwrap();
        held.push(slot);
        println!("held {number}");
    }
    std::thread::sleep(Duration::from_secs(60));
}

fn owner(dir: &Path, first: u8) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "sandbox::shelf::tests::holds_slots"])
        .env("DUPLEX_TEST_SHELF", dir)
        .env("DUPLEX_TEST_FIRST", first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_until_held(child: &mut Child, last: u8) {
    use std::io::BufRead;
    let out = child.stdout.take().unwrap();
    let wanted = format!("held {last}");
    assert!(io::BufReader::new(out).lines().any(|l| l.unwrap().ends_with(&wanted)));
}

#[test]
fn a_killed_owner_leaves_nothing_that_the_next_does_not_clear() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = owner(dir.path(), 10);
    wait_until_held(&mut child, 14);
    let shelf = Shelf::open(dir.path()).unwrap();
    assert_eq!(shelf.alive().unwrap().len(), 5);
    assert!(shelf.reconcile().unwrap().cleared.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(shelf.alive().unwrap().is_empty());
    let found = shelf.reconcile().unwrap();
    assert_eq!((found.cleared.len(), found.failed.len()), (5, 0), "{found:?}");
    assert_eq!(files(dir.path()), ["names"]);
    assert_eq!(files(&dir.path().join("names")), [".lock"]);
}

#[test]
fn kills_at_any_moment_and_sweeps_at_once_do_not_disturb_the_living() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(dir.path()).unwrap();
    let living = shelf.reserve(&spec(1, Some("living"))).unwrap();
    for round in 0..6_u8 {
        let mut child = owner(dir.path(), 10);
        std::thread::sleep(Duration::from_millis(u64::from(round) * 7));
        child.kill().unwrap();
        child.wait().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(shelf.reconcile().unwrap().failed.is_empty()));
            }
        });
    }
    assert_eq!(shelf.alive().unwrap().len(), 1);
    let left: Vec<String> = files(dir.path()).into_iter().filter(|n| !n.starts_with("new-")).collect();
    assert_eq!(left, [living.path().file_name().unwrap().to_str().unwrap(), "names"]);
    living.release().unwrap();
}

#[test]
fn an_old_incomplete_folder_goes_and_a_fresh_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(dir.path()).unwrap();
    let (old, fresh) = (dir.path().join("new-old"), dir.path().join("new-fresh"));
    fs::create_dir(&old).unwrap();
    fs::create_dir(&fresh).unwrap();
    let past = SystemTime::now() - STALE * 2;
    File::open(&old).unwrap().set_modified(past).unwrap();
    let [dead, busy] = ["new-dead", "new-busy"].map(|name| dir.path().join(name));
    fs::create_dir(&dead).unwrap();
    fs::create_dir(&busy).unwrap();
    drop(grip::make(&dead.join("lock")).unwrap());
    let _held = grip::make(&busy.join("lock")).unwrap();
    shelf.reconcile().unwrap();
    assert_eq!(files(dir.path()), ["names", "new-busy", "new-fresh"]);
}

#[test]
fn mount_points_are_unescaped() {
    let table = "1 2 0:3 / /run/a\\040b/c rw - tmpfs x rw\n9 2 0:3 / /d rw - tmpfs x rw\n";
    let points: Vec<PathBuf> = mount_points(table).collect();
    assert_eq!(points, [PathBuf::from("/run/a b/c"), PathBuf::from("/d")]);
}

#[test]
fn every_error_names_the_thing() {
    let missing = Shelf::open(Path::new("/proc/no/such")).unwrap_err();
    assert!(missing.to_string().contains("/proc/no/such"), "{missing}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("record.json"), "{").unwrap();
    assert!(Record::read(&dir.path().join("record.json")).unwrap_err().to_string().contains("record.json"));
}
