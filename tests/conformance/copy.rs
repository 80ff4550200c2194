//! Files copied out of a running sandbox and into it, by no program of the image.

use std::io::{Read, Write};

use duplex::sandbox::{Refusal, SandboxError};
use duplex::spec::{Exit, Transfer, Wanted};
use duplex_copy::{Entries, Entry, Kind, Reader, Writer};

use super::limits::inventory;
use super::stage::{Ran, Running, Stage};
use crate::runner::Verdict;

fn out(path: &str) -> Transfer {
    Transfer::Out { path: path.into(), follow: false }
}

fn named(path: &str, name: &str) -> Transfer {
    Transfer::In { path: path.into(), wanted: Wanted::Named(name.into()), keep_owner: false }
}

fn refusal(result: Result<impl Sized, SandboxError>) -> Option<Refusal> {
    result.err().and_then(|e| e.refusal())
}

fn entry(path: &str, kind: Kind, mode: u32) -> Entry {
    Entry { path: path.into(), kind, mode, owner: (1000, 1001), modified_s: 1_234_567_890 }
}

/// A folder with a file of many bytes, a link, and the file under another name.
fn tree() -> Vec<(Entry, Vec<u8>)> {
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let long = "n".repeat(120);
    vec![
        (entry("tree", Kind::Folder, 0o750), vec![]),
        (entry("tree/a", Kind::File(300_000), 0o640), bytes),
        (entry("tree/again", Kind::Again(b"tree/a".to_vec()), 0o640), vec![]),
        (entry("tree/link", Kind::Link(b"../a/b".to_vec()), 0o777), vec![]),
        (entry(&format!("tree/{long}"), Kind::File(3), 0o4755), b"abc".to_vec()),
        (entry("tree/sub", Kind::Folder, 0o1777), vec![]),
    ]
}

fn stream(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.entry(entry).unwrap();
        writer.content(&mut content.as_slice(), content.len() as u64).unwrap();
    }
    writer.finish().unwrap()
}

/// The entries in order, without owners and modes of links.
fn read(stream: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = Reader::new(stream);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        all.push((entry, content));
    }
    all
}

#[track_caller]
fn fails(ran: &Ran, words: &str) {
    let text = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.outcome.exit, Exit::Code(1), "{text}");
    assert!(text.contains(words), "{text}");
}

fn started(stage: &Stage) -> Running {
    stage.start(&stage.spec(&["sleep", "600"]))
}

fn end(running: Running) {
    running.sandbox.remote().signal(9).unwrap();
    running.finish();
}

pub(crate) fn files_go_in_and_come_out(stage: &Stage) -> Verdict {
    let created = stage.create(&stage.spec(&["sleep", "600"]));
    assert_eq!(refusal(created.try_copy(&out("/"))), Some(Refusal::NotRunning));
    created.sandbox.remove().unwrap();
    let running = started(stage);
    let sent = tree();
    running.copy(&named("/new", "tree"), &stream(&sent)).good();
    let got = running.copy(&out("/new"), &[]);
    assert_eq!(got.outcome.exit, Exit::Code(0));
    let got = read(&got.stdout);
    assert_eq!(got.len(), sent.len());
    for ((sent, bytes), (got, content)) in sent.iter().zip(&got) {
        let path = String::from_utf8(sent.path.clone()).unwrap().replacen("tree", "new", 1);
        let kind = match &sent.kind {
            Kind::Again(_) => Kind::Again(b"new/a".to_vec()),
            other => other.clone(),
        };
        let owner = got.owner;
        assert_eq!(*got, Entry { path: path.into_bytes(), kind, mode: sent.mode & 0o1777, owner, ..sent.clone() });
        assert!(bytes == content, "content of {}", String::from_utf8_lossy(&sent.path));
    }
    let small = [(entry("a", Kind::File(3), 0o4755), b"abc".to_vec())];
    let large = [(entry("a", Kind::File(300_000), 0o600), sent[1].1.clone())];
    // Into a folder that is there, under the name that was asked for.
    running.copy(&named("/new/sub/", "other"), &stream(&small)).good();
    assert_eq!(read(&running.copy(&out("new/sub/other"), &[]).stdout)[0].1, b"abc");
    fails(&running.copy(&out("/none"), &[]), "Cannot find '/none'");
    fails(&running.copy(&named("/none/x", "a"), &stream(&small)), "The directory '/none/' does not exist");
    fails(&running.copy(&named("/new/a", "tree"), &stream(&sent)), "Cannot copy a directory onto '/new/a'");
    fails(&running.copy(&named("/cut", "a"), &stream(&large)[..5000]), "Cannot");
    fails(&running.copy(&out("/cut"), &[]), "Cannot find '/cut'");
    running.sandbox.inside().pause().unwrap();
    assert_eq!(refusal(running.try_copy(&out("/new"))), Some(Refusal::Paused));
    running.sandbox.inside().unpause().unwrap();
    end(running);
    Ok(())
}

/// The owner, the mode and the bytes as programs inside have them, both ways.
pub(crate) fn copies_are_what_the_inside_sees(stage: &Stage) -> Verdict {
    let running = started(stage);
    let sent = tree();
    running.copy(&named("/tmp/plain", "tree"), &stream(&sent)).good();
    let kept = Transfer::In { path: "/tmp/kept".into(), wanted: Wanted::Named(b"tree".to_vec()), keep_owner: true };
    running.copy(&kept, &stream(&sent)).good();
    let look = "cd /tmp; for d in plain kept; do stat -c '%n %u %g %a %Y' $d $d/a $d/n*; done; readlink kept/link; md5sum < plain/a; cmp kept/a kept/again && stat -c %h kept/a";
    let seen = running.exec_shell(look).good();
    let long = "n".repeat(120);
    let time = 1_234_567_890;
    let owners = |place: &str, owner: &str, special: &str| {
        format!(
            "{place} {owner} 750 {time}\n{place}/a {owner} 640 {time}\n{place}/{long} {owner} {special}755 {time}\n"
        )
    };
    let sum = running.exec_shell("tr -d '\\n' < /dev/null | md5sum").good();
    assert_ne!(sum, "");
    let expected = [owners("plain", "0 0", ""), owners("kept", "1000 1001", "4"), "../a/b\n".into()].concat();
    assert!(seen.starts_with(&expected), "{seen}\n{expected}");
    assert!(seen.ends_with("2\n"), "one file with two names: {seen}");

    running
        .exec_shell("mkdir -p /srv/d; echo one > /srv/d/f; ln -s d /srv/l; chown 7:8 /srv/d/f; mkfifo /srv/d/p")
        .good();
    let got = read(&running.copy(&out("/srv/d/."), &[]).stdout);
    let paths: Vec<String> = got.iter().map(|(e, _)| String::from_utf8(e.path.clone()).unwrap()).collect();
    assert_eq!(paths, ["", "f", "p"]);
    assert_eq!((got[1].0.owner, got[1].1.as_slice()), ((7, 8), &b"one\n"[..]));
    let link = read(&running.copy(&out("/srv/l"), &[]).stdout);
    assert_eq!((link[0].0.kind.clone(), link.len()), (Kind::Link(b"d".to_vec()), 1));
    let followed = Transfer::Out { path: "/srv/l".into(), follow: true };
    assert_eq!(read(&running.copy(&followed, &[]).stdout)[1].0.path, b"l/f");
    assert_eq!(read(&running.copy(&out("/srv/l/f"), &[]).stdout)[0].1, b"one\n");
    // From above, the kernel's windows are empty, and devices are told of.
    let all = running.copy(&out("/dev"), &[]);
    assert!(String::from_utf8_lossy(&all.stderr).contains("left out"), "{all:?}");
    end(running);
    Ok(())
}

/// Links, a helper that programs inside might reach, a read-only root.
pub(crate) fn copies_stay_inside(stage: &Stage) -> Verdict {
    let running = started(stage);
    running
        .exec_shell("echo inside > /etc/marker; ln -s ../../../../../../etc/marker /tmp/up; ln -s /etc /tmp/etc")
        .good();
    let followed = Transfer::Out { path: "/tmp/up".into(), follow: true };
    assert_eq!(read(&running.copy(&followed, &[]).stdout)[0].1, b"inside\n");
    assert_eq!(read(&running.copy(&out("/../../tmp/etc/marker"), &[]).stdout)[0].1, b"inside\n");
    fails(&running.copy(&out("/proc/1/root/etc/marker"), &[]), "Cannot find");
    let file = stream(&[(entry("x", Kind::File(1), 0o644), b"x".to_vec())]);
    running.copy(&named("/tmp/etc", "x"), &file).good();
    assert_eq!(running.exec_shell("cat /etc/x").good(), "x");
    fails(&running.copy(&named("/proc/1/root/tmp", "x"), &file), "symbolic links");

    // One that waits for its input is no process of the sandbox's.
    let count = || running.exec_shell("set -- /proc/[0-9]*; echo $#").good();
    let before = count();
    let mut waiting = running.try_copy(&named("/tmp/slow", "x")).unwrap();
    waiting.stdin.as_mut().unwrap().write_all(&file[..100]).unwrap();
    assert_eq!(count(), before);
    let listed = running.sandbox.inside().processes().unwrap();
    assert!(listed.iter().all(|process| process.command.starts_with("sleep")), "{listed:?}");
    waiting.stdin.as_mut().unwrap().write_all(&file[100..]).unwrap();
    assert_eq!(waiting.finish().outcome.exit, Exit::Code(0));
    assert_eq!(running.exec_shell("cat /tmp/slow").good(), "x");
    end(running);

    let mut spec = stage.spec(&["sleep", "600"]);
    spec.read_only = true;
    let running = stage.start(&spec);
    fails(&running.copy(&named("/x", "x"), &file), "Read-only file system");
    // One in the middle ends with its sandbox, and leaves nothing.
    let waiting = running.try_copy(&named("/dev/shm/x", "x")).unwrap();
    running.sandbox.remote().signal(9).unwrap();
    running.finish();
    assert_eq!(waiting.finish().outcome.exit, Exit::Signal(9));
    let left = inventory(stage.state.path(), &[spec.id.to_string()]);
    assert!(left.is_empty(), "{left:#?}");
    Ok(())
}
