//! Volumes: the same bytes in both isolations, one writer at a time, nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict, cases_with};

pub(crate) const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Program("mke2fs"),
    Need::File("/usr/bin/busybox"),
];
pub(crate) const BOTH: [&str; 2] = ["container", "microvm"];

/// The image of these cases.
pub(crate) const IMAGE: &str = "box:1";

cases_with!(
    "volumes",
    place(),
    [
        the_same_bytes_in_both_isolations,
        one_sandbox_writes_and_who_reads_cannot,
        volumes_without_a_name_go_with_their_sandbox,
        a_volume_that_was_not_made_is_made_at_the_start,
        what_was_synced_survives_the_monitor,
        a_killed_container_lets_go,
        freed_blocks_are_given_back,
        verbs_and_their_refusals,
    ]
);

/// A busybox with a folder that has content, and one that wants a volume.
pub(crate) fn place() -> Place {
    let mut place = Place::new();
    let archive = archive(&place);
    place.say(&["load", "-q", "-i", archive.to_str().unwrap()]);
    place.say(&["volume", "create", "--size", "16m", "first"]);
    place.say(&["volume", "rm", "first"]);
    place.count();
    place
}

/// The image's archive, in the place's folder.
pub(crate) fn archive(place: &Place) -> PathBuf {
    let archive = place.folder().join("image.tar");
    fs::write(&archive, archive_of_image()).unwrap();
    archive
}

/// A docker-archive.
fn archive_of_image() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, path: &str, mode: u32, owner: u64, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_000_000_000);
        if kind.is_symlink() {
            header.set_size(0);
            layer.append_link(&mut header, path, Path::new(std::str::from_utf8(content).unwrap())).unwrap();
        } else {
            header.set_size(content.len() as u64);
            layer.append_data(&mut header, path, content).unwrap();
        }
    };
    for folder in ["bin/", "etc/", "tmp/"] {
        add(tar::EntryType::Directory, folder, 0o755, 0, b"");
    }
    add(tar::EntryType::Regular, "bin/busybox", 0o755, 0, &fs::read("/usr/bin/busybox").unwrap());
    for applet in [
        "sh", "cat", "echo", "sleep", "stat", "sync", "ls", "touch", "dd", "rm", "tail", "readlink", "mount", "nc",
        "chmod", "printf",
    ] {
        add(tar::EntryType::Symlink, &format!("bin/{applet}"), 0o777, 0, b"busybox");
    }
    add(tar::EntryType::Directory, "seeded/", 0o2750, 1000, b"");
    add(tar::EntryType::Regular, "seeded/file", 0o4755, 1001, b"from the image\n");
    add(tar::EntryType::Directory, "seeded/deep/", 0o1777, 0, b"");
    add(tar::EntryType::Symlink, "seeded/deep/link", 0o777, 1002, b"/etc/passwd");
    add(tar::EntryType::Symlink, "away", 0o777, 0, b"/../../../../tmp");
    let layer = layer.into_inner().unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": { "/wanted": {} } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in [("layer.tar", &layer), ("config.json", &config), ("manifest.json", &manifest)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, &content[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `run --rm` of a script with these options.
pub(crate) fn run(place: &Place, isolation: &str, options: &[&str], script: &str) -> Output {
    let front = ["run", "--rm", "--net", "none", "--isolation", isolation];
    place.output(&[&front, options, &[IMAGE, "sh", "-c", script]].concat())
}

/// The same where it must succeed: its output.
#[track_caller]
pub(crate) fn sh(place: &Place, isolation: &str, options: &[&str], script: &str) -> String {
    let output = run(place, isolation, options, script);
    assert!(output.status.success(), "{isolation}: {script}: {} {}", output.status, words(&output));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// The same where Duplex must refuse, in words with this in them.
#[track_caller]
pub(crate) fn refused(place: &Place, isolation: &str, options: &[&str], word: &str) {
    let output = run(place, isolation, options, "true");
    assert_eq!(output.status.code(), Some(125), "{isolation}: {}", words(&output));
    assert!(words(&output).contains(word), "{isolation}: {}", words(&output));
}

fn the_same_bytes_in_both_isolations(place: &Place) {
    let look = "cd /seeded; stat -c '%n %u:%g %a' . file deep; stat -c '%u' deep/link; readlink deep/link; cat file";
    let expected = ". 1000:1000 2750\nfile 1001:1001 4755\ndeep 0:0 1777\n1002\n/etc/passwd\nfrom the image";
    for first in BOTH {
        place.say(&["volume", "create", "--size", "64m", "data"]);
        let mount = ["-v", "data:/seeded"];
        assert_eq!(sh(place, first, &mount, look), expected, "{first} fills it from the image");
        sh(place, first, &mount, "echo changed > /seeded/file; echo new > /seeded/first");
        for second in BOTH {
            let script = format!("cat /seeded/file /seeded/first; ls /seeded; echo {second} > /seeded/{second}");
            let told = sh(place, second, &mount, &script);
            assert!(told.starts_with("changed\nnew\n") && !told.contains("lost+found"), "{first}, {second}: {told}");
        }
        for third in BOTH {
            let script = "cat /elsewhere/container /elsewhere/microvm";
            assert_eq!(sh(place, third, &["-v", "data:/elsewhere"], script), "container\nmicrovm", "{first}, {third}");
        }
        place.say(&["volume", "rm", "data"]);
        place.must_be_clean(first);
    }
    for isolation in BOTH {
        // Through a link that leads out of the image, below another mount, and without the image's content.
        let options =
            ["--mount", "src=data,dst=/seeded,volume-nocopy", "-v", "other:/away/x", "-v", "third:/seeded/deep"];
        let script = "ls /seeded; stat -c %u:%g:%a /seeded; echo x > /seeded/deep/y; ls /tmp";
        assert_eq!(sh(place, isolation, &options, script), "deep\n0:0:755\nx", "{isolation}");
        assert_eq!(sh(place, isolation, &["-v", "third:/t"], "ls /t"), "y", "{isolation}");
        place.say(&["volume", "rm", "data", "other", "third"]);
        place.must_be_clean(isolation);
    }
}

fn one_sandbox_writes_and_who_reads_cannot(place: &Place) {
    for (writer, other) in [("container", "microvm"), ("microvm", "container")] {
        let new = sh(place, writer, &["-v", "data:/seeded:ro"], "ls /seeded; touch /seeded/x || echo refused");
        assert_eq!(new, "refused", "{writer}: nobody has written to it");
        let script = "echo ready; sleep 100";
        let run =
            ["run", "-d", "--name", "writer", "--isolation", writer, "-v", "data:/data", IMAGE, "sh", "-c", script];
        let id = place.say(&run);
        for isolation in BOTH {
            refused(place, isolation, &["-v", "data:/x"], &format!("being written by sandbox {id}"));
        }
        refused(place, other, &["-v", "data:/x:ro"], "being written");
        let rm = place.output(&["volume", "rm", "data"]);
        assert!(rm.status.code() == Some(1) && words(&rm).contains("in use by sandbox writer"), "{}", words(&rm));
        place.say(&["stop", "-t", "0", "writer"]);
        let rm = place.output(&["volume", "rm", "data"]);
        assert!(words(&rm).contains("in use"), "one that does not run has it too: {}", words(&rm));
        place.say(&["rm", "-v", "writer"]);
        sh(place, writer, &["-v", "data:/data"], "echo there > /data/file");
        let reader =
            ["run", "-d", "--name", "reader", "--isolation", other, "-v", "data:/data:ro", IMAGE, "sleep", "100"];
        place.say(&reader);
        for isolation in BOTH {
            let script = "cat /data/file; echo x > /data/file || mount -o remount,rw /data || echo refused";
            let told = sh(place, isolation, &["-v", "data:/data:ro"], script);
            assert_eq!(told, "there\nrefused", "{isolation}: several may read");
            refused(place, isolation, &["-v", "data:/data"], "read-only by other sandboxes");
        }
        place.say(&["rm", "-fv", "reader"]);
        assert_eq!(sh(place, other, &["-v", "data:/data"], "cat /data/file"), "there");
        place.say(&["volume", "rm", "data"]);
        place.must_be_clean(writer);
    }
}

fn volumes_without_a_name_go_with_their_sandbox(place: &Place) {
    for isolation in BOTH {
        sh(place, isolation, &["-v", "/mine"], "echo x > /wanted/x; echo y > /mine/y");
        assert_eq!(place.say(&["volume", "ls", "-q"]), "", "{isolation}: --rm removes them");
        let start =
            ["run", "--isolation", isolation, "--name", "box", IMAGE, "sh", "-c", "cat /wanted/x; echo x > /wanted/x"];
        place.output(&start);
        assert_eq!(place.say(&["volume", "ls", "-q"]).lines().count(), 1);
        let name = place.say(&["volume", "ls", "-q", "-f", "dangling=false"]);
        assert!(place.look("box", "{{json .Mounts}}").contains(&name));
        place.say(&["start", "-a", "box"]);
        assert_eq!(place.say(&["logs", "box"]), "x", "{isolation}: it outlives the command");
        place.say(&["rm", "box"]);
        assert_eq!(place.say(&["volume", "ls", "-q", "-f", "dangling=true"]), name, "{isolation}: rm leaves it");
        assert!(place.say(&["volume", "prune", "-f"]).contains(&name));
        place.output(&start);
        place.say(&["rm", "-v", "box"]);
        assert_eq!(place.say(&["volume", "ls", "-q"]), "", "{isolation}: rm -v removes it");
        place.must_be_clean(isolation);
    }
}

/// As a `create` leaves them that was killed before it made them: nobody else can remove a volume that is in use.
fn a_volume_that_was_not_made_is_made_at_the_start(place: &Place) {
    for isolation in BOTH {
        let create = ["create", "--isolation", isolation, "--name", "half", "-v", "named:/named", IMAGE];
        place.say(&[&create[..], &["sh", "-c", "echo x >> /wanted/x; cat /wanted/x; echo y > /named/y"]].concat());
        let names = place.say(&["volume", "ls", "-q"]);
        assert_eq!(names.lines().count(), 2, "{names}");
        for name in names.lines() {
            fs::remove_dir_all(place.folder().join("store/volumes").join(name)).unwrap();
        }
        assert_eq!(place.say(&["start", "-a", "half"]), "x", "{isolation}");
        assert_eq!(place.say(&["volume", "ls", "-q"]), names, "{isolation}");
        assert_eq!(place.say(&["volume", "ls", "-q", "-f", "name=named"]), "named");
        place.say(&["start", "half"]);
        place.say(&["wait", "half"]);
        assert_eq!(place.say(&["logs", "half"]), "x\nx\nx", "{isolation}");
        place.say(&["rm", "-v", "half"]);
        place.say(&["volume", "rm", "named"]);
        place.must_be_clean(isolation);
    }
}

/// The monitor of a sandbox: a child of its keeper.
pub(crate) fn monitor(place: &Place, name: &str) -> i32 {
    monitor_of(&place.look(name, "{{.State.Pid}}"))
}

/// The monitor that is a child of this keeper.
pub(crate) fn monitor_of(keeper: &str) -> i32 {
    let child = |path: PathBuf| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let (program, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let parent = rest.split_whitespace().nth(1)?;
        (program.starts_with("duplex-vmm") && parent == keeper).then(|| path.file_name()?.to_str()?.parse().ok())?
    };
    fs::read_dir("/proc").unwrap().find_map(|e| child(e.unwrap().path())).expect("a monitor")
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn what_was_synced_survives_the_monitor(place: &Place) {
    for reads in BOTH {
        let script = "i=0; while :; do i=$((i+1)); echo $i >> /data/log; sync; echo $i; done";
        let run =
            ["run", "-d", "--name", "db", "--isolation", "microvm", "-v", "data:/data", IMAGE, "sh", "-c", script];
        place.say(&run);
        let last = || place.say(&["logs", "db"]).lines().last().and_then(|l| l.parse::<u64>().ok()).unwrap_or(0);
        place.until("the tenth line", || last() >= 10);
        kill(monitor(place, "db"));
        place.say(&["wait", "db"]);
        let told = last();
        // Who only reads cannot replay the journal; it is done before.
        let lines = sh(place, reads, &["-v", "data:/data:ro"], "tail -n 1 /data/log").parse::<u64>().unwrap();
        assert!(lines >= told, "{reads}: {told} lines were synced, {lines} are there");
        let more = sh(place, reads, &["-v", "data:/data"], "echo more >> /data/log; tail -n 1 /data/log");
        assert_eq!(more, "more");
        place.say(&["rm", "-v", "db"]);
        place.say(&["volume", "rm", "data"]);
        place.must_be_clean(reads);
    }
}

fn a_killed_container_lets_go(place: &Place) {
    for isolation in BOTH {
        let script = "echo x > /data/x; sync; echo ready; sleep 100";
        let options = ["-v", "data:/data", "-v", "/nameless", IMAGE, "sh", "-c", script];
        place.say(&[&["run", "-d", "--rm", "--name", "box", "--isolation", isolation], &options[..]].concat());
        place.until("the write", || place.say(&["logs", "box"]) == "ready");
        kill(place.look("box", "{{.State.Pid}}").parse().unwrap());
        let began = Instant::now();
        assert_eq!(sh(place, isolation, &["-v", "data:/data"], "cat /data/x"), "x");
        assert!(began.elapsed() < Duration::from_secs(60));
        assert_eq!(place.say(&["volume", "ls", "-q"]), "data", "{isolation}: what was made for it went with it");
        place.say(&["volume", "rm", "data"]);
        place.must_be_clean(isolation);
    }
}

fn freed_blocks_are_given_back(place: &Place) {
    place.say(&["volume", "create", "data"]);
    let disk = PathBuf::from(place.say(&["volume", "inspect", "-f", "{{.Mountpoint}}", "data"]));
    let used = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk).unwrap()) * 512;
    let new = used();
    assert!(new < 2 << 20, "a new volume of 10 GiB takes {new} bytes");
    for isolation in BOTH {
        sh(place, isolation, &["-v", "data:/data"], "dd if=/dev/zero of=/data/big bs=1M count=24 2>/dev/null");
        let full = used();
        assert!(full > 24 << 20, "{isolation}: {full}");
        sh(place, isolation, &["-v", "data:/data"], "rm /data/big; sync");
        let freed = full - used();
        assert!(freed > 20 << 20, "{isolation}: only {freed} bytes were given back");
    }
    place.say(&["volume", "rm", "data"]);
    place.must_be_clean("discard");
}

fn verbs_and_their_refusals(place: &Place) {
    assert_eq!(place.say(&["volume", "create", "--label", "a=b", "--size", "32m", "data"]), "data");
    assert_eq!(place.say(&["volume", "create", "data"]), "data", "as in Docker");
    let nameless = place.say(&["volume", "create"]);
    assert_eq!(nameless.len(), 64);
    assert_eq!(place.say(&["volume", "ls", "-q", "-f", "label=a=b"]), "data");
    assert_eq!(place.say(&["volume", "ls", "-f", "name=dat", "--format", "{{.Name}} {{.Size}}"]), "data 33.6MB");
    assert!(place.say(&["volume", "ls"]).starts_with("DRIVER"));
    assert_eq!(place.say(&["volume", "inspect", "-f", "{{.Name}} {{.Options.size}}", "data"]), "data 33554432");
    assert!(place.say(&["volume", "prune", "-f"]).contains(&nameless));
    assert_eq!(place.say(&["volume", "ls", "-q"]), "data");
    for (line, word) in [
        (&["volume", "rm", "none"][..], "No such volume: none"),
        (&["volume", "inspect", "none"], "No such volume: none"),
        (&["volume", "create", "a/b"], "invalid characters"),
        (&["volume", "create", "--size", "1m", "tiny"], "16 MiB"),
        (&["volume", "ls", "-f", "colour=red"], "colour=red"),
    ] {
        let output = place.output(line);
        assert_eq!(output.status.code(), Some(1), "{line:?}");
        assert!(words(&output).contains(word), "{line:?}: {}", words(&output));
    }
    place.say(&["volume", "rm", "-f", "none"]);
    let eight: Vec<String> = (0..8).map(|n| format!("vol{n}:/v{n}")).collect();
    let eight: Vec<&str> = eight.iter().flat_map(|v| ["-v", v.as_str()]).collect();
    refused(place, "microvm", &eight, "at most 7 volumes");
    fs::write(place.say(&["volume", "inspect", "-f", "{{.Mountpoint}}", "data"]), "no file system").unwrap();
    for isolation in BOTH {
        refused(place, isolation, &["-v", "data:/x"], "no ext4");
    }
    assert!(place.say(&["volume", "prune", "-af"]).contains("data"));
    assert_eq!(place.say(&["volume", "ls", "-q"]), "");
    place.must_be_clean("verbs");
}
