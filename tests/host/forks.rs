//! Sandboxes that go on from others: what they have in common, and what each has of its own.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::busybox::BUSYBOX;
use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone, Need::Program("mkfs.erofs"), Need::File(BUSYBOX)];

const IMAGE: &str = "box:1";

/// Furthest that a machine's clock may be from the host's when its command goes on, in seconds, on a host where messages take no time. On a slow one
/// the time of a message comes to it: a quarter of what an `exec` takes.
const CLOCK: f64 = 0.05;

/// Counts, with what it can see of itself: number, host name, seconds since the boot, randomness.
const COUNT: &str = "n=0; while :; do n=$((n+1)); read up rest < /proc/uptime;
    echo $n $(busybox hostname) $up $(busybox od -An -N8 -tx8 /dev/urandom); busybox usleep 50000; done";

cases_with!(
    "forks",
    place(),
    [
        copies_go_on_where_the_original_was,
        copies_have_memory_of_their_own,
        streams_are_new_and_sessions_are_over,
        volumes_are_copied_as_they_were,
        a_copy_of_a_copy_under_load,
        a_snapshot_outlives_its_sandbox,
        a_damaged_snapshot_is_refused,
        what_cannot_be_forked_is_told,
    ]
);

fn place() -> Place {
    let mut place = Place::with_busybox(IMAGE);
    for folder in ["state/forks", "store/volumes"] {
        fs::create_dir_all(place.folder().join(folder)).unwrap();
    }
    place.count();
    place
}

/// A sandbox in the background that has written something.
fn original(place: &Place, name: &str, options: &[&str], script: &str) {
    let how = ["run", "-d", "--isolation", "microvm", "--name", name];
    place.say(&[&how, options, &[IMAGE, "sh", "-c", script]].concat());
    place.until("output", || !place.say(&["logs", name]).is_empty());
}

fn fork(place: &Place, words: &[&str]) -> Vec<String> {
    place.say(&[&["fork"], words].concat()).lines().map(str::to_owned).collect()
}

/// The words of each whole line of a sandbox's output.
fn lines(place: &Place, name: &str) -> Vec<Vec<String>> {
    let text = place.say(&["logs", name]);
    let lines = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect());
    lines.filter(|line: &Vec<String>| line.len() == 4).collect()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Seconds since 1970 by a sandbox's clock.
fn clock(place: &Place, name: &str) -> f64 {
    let text = place.say(&["exec", name, "busybox", "adjtimex"]);
    let number = |key: &str| -> f64 {
        text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap().trim().parse().unwrap()
    };
    number("time.tv_sec:") + number("time.tv_usec:") / 1e6
}

fn copies_go_on_where_the_original_was(place: &Place) {
    original(place, "one", &["--net", "none"], COUNT);
    let ids = fork(place, &["-n", "3", "--name", "copy", "one"]);
    assert_eq!(ids.len(), 3);
    let names = ["copy-1", "copy-2", "copy-3"];
    for name in names {
        place.until("three lines", || lines(place, name).len() >= 3);
        let (before, inside, after) = (now(), clock(place, name), now());
        let off = CLOCK.max((after - before) / 4.0);
        assert!(before - off < inside && inside < after + off, "{name}: {before} {inside} {after}");
    }
    let first = lines(place, "one");
    let number = |line: &[String]| line[0].parse::<u64>().unwrap();
    let uptime = |line: &[String]| line[2].parse::<f64>().unwrap();
    let mut random = BTreeSet::new();
    for (id, name) in ids.iter().zip(names) {
        let copied = lines(place, name);
        let at = number(&copied[0]);
        assert!((2..=number(first.last().unwrap())).contains(&at), "{name} goes on at {at}");
        let shared = first.iter().take_while(|line| number(line) < at);
        let all: Vec<_> = shared.chain(&copied).collect();
        for pair in all.windows(2) {
            assert_eq!(number(pair[0]) + 1, number(pair[1]), "{name}: nothing is lost or done twice");
            assert!(uptime(pair[0]) <= uptime(pair[1]), "{name}: its clock goes on");
        }
        // The line that was on its way may have the name of before.
        assert!(copied[1..].iter().all(|line| line[1] == *id), "{name} has a host name of its own");
        assert_eq!(place.say(&["exec", name, "cat", "/etc/hostname"]), *id);
        for line in &copied[1..] {
            assert!(random.insert(line[3].clone()), "{name}: {} was seen before", line[3]);
        }
    }
    for line in first.iter().filter(|line| number(line) > 3) {
        assert!(random.insert(line[3].clone()), "the original: {} was seen before", line[3]);
    }
    place.say(&["rm", "-f", "one", "copy-1", "copy-2", "copy-3"]);
    place.must_be_clean("three copies");
}

fn copies_have_memory_of_their_own(place: &Place) {
    original(place, "one", &["--cpus", "2", "--read-only", "--tmpfs", "/srv"], "echo up; while :; do sleep 1; done");
    place.say(&["exec", "one", "sh", "-c", "echo before > /srv/file"]);
    fork(place, &["--name", "two", "--rm", "one"]);
    assert_eq!(place.say(&["exec", "two", "cat", "/srv/file"]), "before");
    place.say(&["exec", "two", "sh", "-c", "echo two > /srv/file"]);
    place.say(&["exec", "one", "sh", "-c", "echo one > /srv/file"]);
    let of = |name: &str| place.say(&["exec", name, "sh", "-c", "cat /srv/file; busybox nproc"]);
    assert_eq!((of("one").as_str(), of("two").as_str()), ("one\n2", "two\n2"));
    assert_eq!(place.output(&["exec", "two", "touch", "/file"]).status.code(), Some(1), "the root is still closed");
    place.say(&["stop", "-t", "1", "two"]);
    assert_eq!(place.say(&["ps", "-aq"]).lines().count(), 1, "it was to be removed");
    place.say(&["rm", "-f", "one"]);
    place.must_be_clean("a copy");
}

fn streams_are_new_and_sessions_are_over(place: &Place) {
    original(place, "one", &["-i"], "echo up; while read word; do echo \"$(busybox hostname) $word\"; done; echo end");
    let mut session = place.duplex(&["exec", "one", "busybox", "sleep", "1234"]).spawn().unwrap();
    let has = |name: &str| place.say(&["top", name]).contains("sleep 1234");
    place.until("the session", || has("one"));
    let id = fork(place, &["--name", "two", "one"]).remove(0);
    place.until("its end", || !has("two"));
    assert!(has("one"), "the original's goes on");
    let told = |name: &str, word: &str| {
        let mut client = place.duplex(&["attach", name]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        writeln!(client.stdin.as_ref().unwrap(), "{word}").unwrap();
        place.until("the answer", || place.say(&["logs", name]).ends_with(word));
        client.kill().unwrap();
        client.wait().unwrap();
        place.say(&["logs", name])
    };
    assert_eq!(told("two", "hello"), format!("{id} hello"), "what came before is the original's");
    assert!(told("one", "there").starts_with("up\n") && !place.say(&["logs", "one"]).contains("hello"));
    place.say(&["exec", "two", "true"]);
    session.kill().unwrap();
    session.wait().unwrap();
    place.say(&["rm", "-f", "one", "two"]);
    place.must_be_clean("a copy's streams");
}

fn volume_of(place: &Place, name: &str) -> String {
    let mounts: Value = serde_json::from_str(&place.look(name, "{{json .Mounts}}")).unwrap();
    mounts[0]["Name"].as_str().unwrap().to_owned()
}

fn volumes_are_copied_as_they_were(place: &Place) {
    let script = "n=0; while :; do n=$((n+1)); echo $n >> /data/log; echo $n; busybox usleep 20000; done";
    original(place, "one", &["-v", "data:/data"], script);
    fork(place, &["-n", "2", "--name", "copy", "one"]);
    let count = |name: &str| -> Vec<u64> {
        place.say(&["exec", name, "cat", "/data/log"]).lines().map(|line| line.parse().unwrap()).collect()
    };
    for name in ["copy-1", "copy-2", "one"] {
        place.until("output", || !place.say(&["logs", name]).is_empty());
        let numbers = count(name);
        assert!(numbers.len() > 1 && numbers.iter().zip(1..).all(|(a, b)| *a == b), "{name}: {numbers:?}");
    }
    place.say(&["exec", "copy-1", "sh", "-c", "echo mine > /data/mine; sync"]);
    assert_eq!(place.output(&["exec", "one", "cat", "/data/mine"]).status.code(), Some(1));
    assert_eq!(volume_of(place, "one"), "data");
    for name in ["copy-1", "copy-2"] {
        let volume = volume_of(place, name);
        assert_eq!(volume.len(), 64, "{volume}");
        place.say(&["stop", "-t", "1", name]);
        let disk = place.folder().join("store/volumes").join(&volume).join("disk");
        // It replays the journal and counts what is free, as after any machine that was killed. More would need a person.
        for (options, good) in [("-fp", 0..=1), ("-fn", 0..=0)] {
            let checked = Command::new("/usr/sbin/e2fsck").arg(options).arg(&disk).output().unwrap();
            let told = String::from_utf8_lossy(&checked.stdout);
            assert!(checked.status.code().is_some_and(|code| good.contains(&code)), "{name} {options}: {told}");
        }
        let refused = place.output(&["start", name]);
        assert!(words(&refused).contains("have changed since"), "{}", words(&refused));
    }
    place.say(&["rm", "-f", "-v", "one", "copy-1", "copy-2"]);
    assert_eq!(place.say(&["volume", "ls", "-q"]), "data", "those of the copies went with them");
    place.say(&["volume", "rm", "data"]);
    place.must_be_clean("copied volumes");
}

/// Each goes on from the one before while it writes and reads its disk and its memory.
fn a_copy_of_a_copy_under_load(place: &Place) {
    let script = "busybox dd if=/dev/urandom of=/data/a bs=64k count=32 2>/dev/null; busybox md5sum < /data/a > /srv/sum; n=0
        while :; do n=$((n+1)); cat /data/a > /data/b; cat /data/b > /srv/c
        for f in /data/b /srv/c; do busybox md5sum < $f | busybox cmp -s - /srv/sum || echo bad $f; done; echo $n; done";
    original(place, "gen-0", &["-v", "/data", "--tmpfs", "/srv", "--cpus", "2"], script);
    for generation in 1..=4 {
        let (parent, name) = (format!("gen-{}", generation - 1), format!("gen-{generation}"));
        fork(place, &["--name", &name, &parent]);
        place.say(&["rm", "-f", "-v", &parent]);
        place.until("a round", || place.say(&["logs", &name]).lines().count() >= 2);
        let told = place.say(&["logs", &name]);
        assert!(!told.contains("bad"), "generation {generation}: {told}");
    }
    place.say(&["rm", "-f", "-v", "gen-4"]);
    place.must_be_clean("copies of copies");
}

fn a_snapshot_outlives_its_sandbox(place: &Place) {
    original(place, "one", &["--net", "none"], COUNT);
    assert_eq!(place.say(&["snapshot", "create", "one", "warm"]), "warm");
    let before = lines(place, "one").len();
    place.until("that it goes on", || lines(place, "one").len() > before + 2);
    place.say(&["rm", "-f", "one"]);
    assert_eq!(place.say(&["snapshot", "ls", "-q"]), "warm");
    let listed = place.say(&["snapshot", "ls", "--format", "{{.Name}} {{.Image}} {{.Sandbox}} {{.Memory}}"]);
    assert_eq!(listed, format!("warm {IMAGE} one 536.9MB"));
    assert!(place.say(&["snapshot", "inspect", "warm"]).contains("\"Processors\": 1"));
    fork(place, &["--name", "two", "warm"]);
    place.until("lines", || lines(place, "two").len() >= 2);
    let began = lines(place, "two")[0][0].clone();
    place.say(&["restart", "-t", "1", "two"]);
    place.until("lines", || lines(place, "two").iter().filter(|line| line[0] == began).count() == 2);
    assert_eq!(place.say(&["snapshot", "rm", "warm"]), "warm");
    let more = lines(place, "two").len();
    place.until("that it goes on", || lines(place, "two").len() > more);
    place.say(&["stop", "-t", "1", "two"]);
    let refused = place.output(&["start", "two"]);
    assert!(words(&refused).contains("is gone"), "{}", words(&refused));
    place.say(&["rm", "two"]);
    fs::remove_dir_all(place.folder().join("store/snapshots")).unwrap();
    place.must_be_clean("a snapshot");
}

fn a_damaged_snapshot_is_refused(place: &Place) {
    place.say(&["volume", "create", "--size", "16m", "data"]);
    original(place, "one", &["-v", "data:/data", "--net", "none"], "echo up; while :; do sleep 1; done");
    for name in ["good", "other"] {
        place.say(&["snapshot", "create", "one", name]);
    }
    place.say(&["rm", "-f", "-v", "one"]);
    let file = |name: &str, file: &str| -> PathBuf { place.folder().join("store/snapshots").join(name).join(file) };
    let refused = |what: &str| {
        let output = place.output(&["fork", "good"]);
        let told = words(&output);
        assert!(output.status.code() == Some(1) && told.contains("snapshot"), "{what}: {told}");
        assert_eq!(place.say(&["ps", "-aq"]), "", "{what}");
    };
    for part in ["machine", "record", "disk-0"] {
        let path = file("good", part);
        let len = fs::metadata(&path).unwrap().len();
        let open = fs::File::options().read(true).write(true).open(&path).unwrap();
        for at in [0, 100, len / 2, len - 1] {
            let mut byte = [0];
            open.read_exact_at(&mut byte, at).unwrap();
            open.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
            refused(&format!("{part}, bit of byte {at}"));
            open.write_all_at(&byte, at).unwrap();
        }
        let kept = path.with_extension("kept");
        fs::rename(&path, &kept).unwrap();
        refused(&format!("{part} is missing"));
        for short in [0, len / 2, len - 1] {
            fs::copy(&kept, &path).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_len(short).unwrap();
            refused(&format!("{part} has {short} bytes"));
        }
        fs::remove_file(&path).unwrap();
        // Another's, which is whole: only the record is the same up to its name.
        fs::copy(file("other", part), &path).unwrap();
        if part != "disk-0" {
            refused(&format!("{part} of another snapshot"));
        }
        fs::remove_file(&path).unwrap();
        fs::rename(&kept, &path).unwrap();
    }
    assert_eq!(fork(place, &["--rm", "good"]).len(), 1, "as it was it is good");
    let ids = place.say(&["ps", "-q"]);
    place.say(&["rm", "-f", "-v", &ids]);
    place.say(&["volume", "rm", "data"]);
    place.say(&["snapshot", "rm", "good", "other"]);
    fs::remove_dir_all(place.folder().join("store/snapshots")).unwrap();
    place.must_be_clean("damaged snapshots");
}

fn what_cannot_be_forked_is_told(place: &Place) {
    let endless = "echo up; while :; do sleep 1; done";
    let told = |words_of: &[&str], expected: &str| {
        let output = place.output(words_of);
        let told = words(&output);
        assert!(output.status.code() == Some(1) && told.contains(expected), "{words_of:?}: {told}");
    };
    told(&["fork", "nobody"], "neither a sandbox nor a snapshot");
    told(&["snapshot", "create", "nobody", "x1"], "No such sandbox");
    told(&["snapshot", "rm", "nobody"], "No such snapshot");
    place.say(&["run", "-d", "--isolation", "container", "--name", "box", IMAGE, "sh", "-c", endless]);
    told(&["fork", "box"], "is a container");
    original(place, "shared", &["-v", "/usr:/host:ro"], endless);
    told(&["fork", "shared"], "folder or file of the host");
    original(place, "one", &["--net", "none"], endless);
    told(&["fork", "-p", "80", "one"], "--net user");
    told(&["snapshot", "create", "one", "no name"], "no name for a snapshot");
    place.say(&["snapshot", "create", "one", "taken"]);
    told(&["snapshot", "create", "one", "taken"], "already");
    told(&["fork", "--name", "box", "one"], "box");
    place.say(&["pause", "one"]);
    told(&["fork", "one"], "unpause");
    place.say(&["unpause", "one"]);
    place.say(&["stop", "-t", "1", "one"]);
    told(&["fork", "one"], "not running");
    place.say(&["snapshot", "rm", "taken"]);
    place.say(&["rm", "-f", "box", "shared", "one"]);
    fs::remove_dir_all(place.folder().join("store/snapshots")).unwrap();
    place.must_be_clean("what could not be forked");
}
