use super::*;
use crate::spec::{Isolation, LogLimits, ProcessSpec, SandboxSpec};

fn definition(number: u8) -> Definition {
    let process = ProcessSpec { args: vec!["true".into()], ..ProcessSpec::default() };
    let (id, image) = (SandboxId::from_bytes([0xa0, 0, 0, 0, 0, number]), Digest::from_sha256([7; 32]));
    Definition {
        spec: SandboxSpec::plain(id, Isolation::Container, image, process),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        remove: false,
        restart: Restart::OnFailure(2),
        stop_signal: 15,
        stop_timeout_s: 10,
        input_once: false,
        log: LogLimits::default(),
        health: None,
        store: None,
        created_at_ns: u64::from(number),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.retain(|n| n != ".lock");
    found.sort();
    found
}

fn place() -> (tempfile::TempDir, Roster) {
    let dir = tempfile::tempdir().unwrap();
    let roster = Roster::open(dir.path()).unwrap();
    (dir, roster)
}

fn nothing_left(dir: &tempfile::TempDir) {
    assert_eq!(names(&dir.path().join("roster")), [""; 0]);
    assert_eq!(names(&dir.path().join("names")), [""; 0]);
}

#[test]
fn what_is_added_is_read_again_until_it_is_removed() {
    let (dir, roster) = place();
    let mut entry = roster.add(definition(1), Some("web"), false).unwrap();
    assert!(is_owned(&roster.path_of(&definition(1).spec.id)));
    entry.standing.status = Status::Exited;
    entry.save().unwrap();
    let seen = roster.see(&definition(1).spec.id).unwrap();
    assert_eq!((&seen.definition, seen.standing.name.as_str()), (&definition(1), "web"));
    assert_eq!(seen.standing.status, Status::Exited);
    drop(entry);
    roster.take(&definition(1).spec.id).unwrap().remove().unwrap();
    assert!(matches!(roster.see(&definition(1).spec.id), Err(RosterError::Unknown(_))));
    nothing_left(&dir);
}

#[test]
fn a_sandbox_is_found_by_id_name_and_prefix() {
    let (_dir, roster) = place();
    for number in 1..=2 {
        roster.add(definition(number), Some(&format!("box{number}")), false).unwrap();
    }
    let id = |n: u8| definition(n).spec.id;
    assert_eq!(roster.find(id(1).as_str()).unwrap(), id(1));
    assert_eq!(roster.find("box2").unwrap(), id(2));
    assert!(matches!(roster.find("a00"), Err(RosterError::Ambiguous { count: 2, .. })));
    for word in ["", "box3", "b", "../names/box1", "a0000000000x"] {
        assert!(matches!(roster.find(word), Err(RosterError::Unknown(_))), "{word}");
    }
    roster.take(&id(1)).unwrap().remove().unwrap();
    assert_eq!(roster.find("a00").unwrap(), id(2));
}

#[test]
fn names_belong_to_one_sandbox_alive_or_not() {
    let (_dir, roster) = place();
    let first = roster.add(definition(1), Some("web"), false).unwrap();
    drop(first);
    let error = roster.add(definition(2), Some("web"), false).unwrap_err();
    assert!(error.to_string().contains(definition(1).spec.id.as_str()), "{error}");
    assert_eq!(roster.list().unwrap().0.len(), 1, "the refused one left nothing");
    let mut second = roster.add(definition(2), Some("db"), false).unwrap();
    assert!(second.rename("web").is_err());
    assert_eq!(roster.find("db").unwrap(), definition(2).spec.id);
    second.rename("cache").unwrap();
    assert!(roster.find("db").is_err());
    assert_eq!(roster.find("cache").unwrap(), definition(2).spec.id);
    second.rename("cache").unwrap();
    assert_eq!(roster.find("cache").unwrap(), definition(2).spec.id);
    second.remove().unwrap();
    roster.take(&definition(1).spec.id).unwrap().rename("cache").unwrap();
}

#[test]
fn names_are_made_up_and_differ() {
    let (_dir, roster) = place();
    let made: BTreeSet<String> =
        (0..40).map(|n| roster.add(definition(n), None, false).unwrap().standing.name.clone()).collect();
    assert_eq!(made.len(), 40);
}

#[test]
fn a_dead_owners_sandbox_has_ended() {
    let (_dir, roster) = place();
    for (number, status) in [(1, Status::Running), (2, Status::Restarting), (3, Status::Created)] {
        let mut entry = roster.add(definition(number), None, true).unwrap();
        entry.standing.status = status;
        entry.standing.keeper = Some(1);
        entry.save().unwrap();
        fs::write(entry.path().join(CONTROL), "").unwrap();
    }
    assert!(roster.repair().unwrap().is_empty());
    let seen = roster.list().unwrap().0;
    let statuses: Vec<Status> = seen.iter().rev().map(|s| s.standing.status).collect();
    assert_eq!(statuses, [Status::Exited, Status::Exited, Status::Created]);
    assert!(seen.iter().all(|s| s.standing.keeper.is_none() && !s.path.join(CONTROL).exists()));
    assert!(seen[2].standing.outcome.as_ref().unwrap().reason.as_ref().unwrap().contains("killed"));
}

#[test]
fn the_living_are_left_alone() {
    let (_dir, roster) = place();
    let mut entry = roster.add(definition(1), None, true).unwrap();
    entry.standing.status = Status::Running;
    entry.save().unwrap();
    assert!(roster.repair().unwrap().is_empty());
    assert_eq!(roster.see(&definition(1).spec.id).unwrap().standing.status, Status::Running);
    assert!(roster.try_take(&definition(1).spec.id).unwrap().is_none());
}

#[test]
fn what_was_to_go_goes() {
    let (dir, roster) = place();
    let mut temporary = definition(1);
    temporary.remove = true;
    drop(roster.add(temporary, None, true).unwrap());
    let mut half = roster.add(definition(2), Some("half"), true).unwrap();
    half.standing.status = Status::Removing;
    half.save().unwrap();
    drop(half);
    let torn = roster.add(definition(3), Some("torn"), false).unwrap();
    fs::remove_file(torn.path().join("definition.json")).unwrap();
    drop(torn);
    let [incomplete, dead] =
        ["new-a00000000009-1", "new-a00000000008-1"].map(|name| dir.path().join("roster").join(name));
    fs::create_dir(&incomplete).unwrap();
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("lock"), "").unwrap();
    roster.repair().unwrap();
    assert!(incomplete.exists() && !dead.exists(), "an owner that lives makes a lock and holds it");
    File::open(&incomplete).unwrap().set_modified(SystemTime::now() - STALE * 2).unwrap();
    assert!(roster.repair().unwrap().is_empty());
    nothing_left(&dir);
}

#[test]
fn what_cannot_be_understood_is_named_and_can_be_removed() {
    let (dir, roster) = place();
    let id = definition(1).spec.id;
    let path = roster.add(definition(1), Some("old"), false).unwrap().path().join("definition.json");
    for (text, words) in [("{\"version\":9,\"content\":{\"x\":1}}", "version 9"), ("junk", "cannot be understood")] {
        fs::write(&path, text).unwrap();
        let (found, failed) = roster.list().unwrap();
        assert!(found.is_empty() && failed[0].to_string().contains(words), "{failed:?}");
    }
    assert_eq!(roster.find("old").unwrap(), id);
    roster.remove_damaged(&id).unwrap();
    nothing_left(&dir);
}

#[test]
fn a_handed_on_lock_holds_until_both_have_let_go() {
    let (_dir, roster) = place();
    let entry = roster.add(definition(1), None, true).unwrap();
    let lock = entry.lock_to_hand_on().unwrap();
    drop(entry);
    assert!(is_owned(&roster.path_of(&definition(1).spec.id)));
    let adopted = roster.adopt(&definition(1).spec.id, lock).unwrap();
    drop(adopted);
    assert!(!is_owned(&roster.path_of(&definition(1).spec.id)));
}
