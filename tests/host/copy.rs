//! `duplex cp` as a person types it, in both isolations.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};
use crate::tarball::Tarball;

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone];
const BOTH: [&str; 2] = ["container", "microvm"];

cases_with!(
    "copy",
    Place::new(),
    [
        files_go_both_ways,
        archives_go_through_streams,
        files_of_the_kernel_are_whole,
        mounted_files_are_written_in_place,
        what_cannot_be_copied_is_told,
        a_killed_copy_leaves_nothing,
    ]
);

/// Runs `sleep` of the embedded image, which has no program that copies.
fn box_of(place: &Place, isolation: &str) {
    place.run(isolation, &["--name", "box", "workloads", "sleep", "1000"]);
}

#[track_caller]
fn fails(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(words), "{text}");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn files_go_both_ways(place: &Place) {
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    fs::create_dir_all(at("tree/sub")).unwrap();
    let megabytes: Vec<u8> = (0..6_000_000_u32).map(|n| n.to_le_bytes()[2] ^ n.to_le_bytes()[0]).collect();
    fs::write(at("tree/large"), &megabytes).unwrap();
    fs::write(at("tree/sub/small"), "small\n").unwrap();
    fs::set_permissions(at("tree/sub/small"), PermissionsExt::from_mode(0o4750)).unwrap();
    std::os::unix::fs::chown(at("tree/sub/small"), Some(1234), Some(1235)).unwrap();
    fs::set_permissions(at("tree/sub/small"), PermissionsExt::from_mode(0o4750)).unwrap();
    symlink("sub/small", at("tree/link")).unwrap();
    for isolation in BOTH {
        box_of(place, isolation);
        let cp = |words: &[&str]| assert_eq!(place.say(&[&["cp"], words].concat()), "", "{isolation} {words:?}");
        cp(&[&text("tree"), "box:/new"]);
        assert_eq!(place.say(&["exec", "box", "/workloads", "cat", "/new/sub/small"]), "small", "{isolation}");
        cp(&["box:/new", &text("back")]);
        assert!(fs::read(at("back/large")).unwrap() == megabytes, "{isolation}");
        assert_eq!(fs::read_link(at("back/link")).unwrap(), Path::new("sub/small"));
        let small = fs::metadata(at("back/sub/small")).unwrap();
        assert_eq!((small.mode() & 0o7777, small.uid()), (0o750, 0), "{isolation}: it is the caller's");
        cp(&["-a", &text("tree"), "box:/kept"]);
        cp(&["-a", "box:/kept/.", &text("back")]);
        let small = fs::metadata(at("back/sub/small")).unwrap();
        assert_eq!((small.mode() & 0o7777, small.uid(), small.gid()), (0o4750, 1234, 1235), "{isolation}");
        cp(&["-L", "box:/new/link", &text("followed")]);
        assert_eq!(read(&at("followed")), "small\n");
        cp(&["box:/new/link", &text("linked")]);
        assert!(at("linked").is_symlink(), "{isolation}");
        fs::create_dir(at("folder")).unwrap();
        cp(&["box:new/sub", &text("folder")]);
        cp(&["box:/new/sub/.", &text("folder/")]);
        assert_eq!((read(&at("folder/sub/small")), read(&at("folder/small"))), ("small\n".into(), "small\n".into()));
        cp(&[&text("tree/sub/small"), "box:/new/sub/other"]);
        assert_eq!(place.say(&["exec", "box", "/workloads", "cat", "/new/sub/other"]), "small", "{isolation}");
        for made in ["back", "folder"] {
            fs::remove_dir_all(at(made)).unwrap();
        }
        fs::remove_file(at("linked")).unwrap();
        place.say(&["rm", "-f", "box"]);
    }
}

/// Files that say that they are empty, or larger than they are.
fn files_of_the_kernel_are_whole(place: &Place) {
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    for isolation in BOTH {
        box_of(place, isolation);
        let cat = |path: &str| place.say(&["exec", "box", "/workloads", "cat", path]);
        for (path, name) in [
            ("/proc/1/cmdline", "cmdline"),
            ("/proc/version", "version"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "enabled"),
        ] {
            place.say(&["cp", &format!("box:{path}"), &at(name).display().to_string()]);
            let got = read(&at(name));
            assert!(!got.is_empty() && got.trim_end() == cat(path), "{isolation} {path}: {got:?}");
        }
        fs::write(at("empty"), "").unwrap();
        place.say(&["cp", &at("empty").display().to_string(), "box:/empty"]);
        place.say(&["cp", "box:/empty", &at("back").display().to_string()]);
        assert_eq!(fs::metadata(at("back")).unwrap().len(), 0);
        // From this host's kernel too.
        place.say(&["cp", "/proc/version", "box:/version"]);
        assert_eq!(cat("/version"), read(Path::new("/proc/version")).trim_end(), "{isolation}");
        place.say(&["rm", "-f", "box"]);
    }
}

fn mounted_files_are_written_in_place(place: &Place) {
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    fs::write(at("new"), "new content\n").unwrap();
    for isolation in BOTH {
        box_of(place, isolation);
        let cat = |path: &str| place.say(&["exec", "box", "/workloads", "cat", path]);
        for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"] {
            place.say(&["cp", &text("new"), &format!("box:{file}")]);
            assert_eq!(cat(file), "new content", "{isolation} {file}");
        }
        place.say(&["rm", "-f", "box"]);
    }
    fs::write(at("mounted"), "a longer old content\n").unwrap();
    fs::set_permissions(at("mounted"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::write(at("closed"), "closed\n").unwrap();
    let (inode, mounts) =
        (fs::metadata(at("mounted")).unwrap().ino(), [text("mounted") + ":/mounted", text("closed") + ":/closed:ro"]);
    place.run("container", &["--name", "box", "-v", &mounts[0], "-v", &mounts[1], "workloads", "sleep", "1000"]);
    place.say(&["cp", &text("new"), "box:/mounted"]);
    let mounted = fs::metadata(at("mounted")).unwrap();
    assert_eq!((read(&at("mounted")).as_str(), mounted.ino(), mounted.mode() & 0o777), ("new content\n", inode, 0o640));
    fails(&place.output(&["cp", &text("new"), "box:/closed"]), "Read-only file system");
    symlink("new", at("link")).unwrap();
    fails(&place.output(&["cp", &text("link"), "box:/mounted"]), "'mounted' is a mount of its own");
    assert_eq!((read(&at("closed")), read(&at("mounted"))), ("closed\n".into(), "new content\n".into()));
    place.say(&["rm", "-f", "box"]);
}

fn archives_go_through_streams(place: &Place) {
    for isolation in BOTH {
        box_of(place, isolation);
        let mut tar = Tarball::default();
        tar.dir("d").file("d/f", b"through\n");
        let mut child =
            place.duplex(&["cp", "-", "box:/srv-new"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&tar.end()).unwrap();
        fails(&child.wait_with_output().unwrap(), "The directory '/srv-new' does not exist");
        let mut child = place.duplex(&["cp", "-", "box:/"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&tar.end()).unwrap();
        assert!(child.wait().unwrap().success(), "{isolation}");
        assert_eq!(place.say(&["exec", "box", "/workloads", "cat", "/d/f"]), "through", "{isolation}");
        let got = place.output(&["cp", "box:/d", "-"]);
        assert!(got.status.success() && got.stderr.is_empty(), "{isolation}: {got:?}");
        let mut archive = tar::Archive::new(got.stdout.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["d/", "d/f"], "{isolation}");
        place.say(&["rm", "-f", "box"]);
    }
}

fn what_cannot_be_copied_is_told(place: &Place) {
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("file");
    fs::write(&file, "x").unwrap();
    let (file, folder) = (file.display().to_string(), here.path().display().to_string());
    for isolation in BOTH {
        box_of(place, isolation);
        for (words, told) in [
            (vec![file.as_str(), "none:/x"], "No such sandbox: none"),
            (vec!["box:/none", &file], "Cannot find '/none': No such file or directory"),
            (vec![&file, "box:/none/x"], "The directory '/none/' does not exist: make it first"),
            (vec![&file, "box:/etc/none/"], "The directory '/etc/none/' does not exist"),
            (vec![&folder, "box:/etc/hosts"], "Cannot copy a directory onto '/etc/hosts'"),
            (vec!["box:/etc", &file], "Cannot copy a directory onto"),
            (vec!["/none", "box:/x"], "Cannot find '/none'"),
            (vec!["box:/etc/hosts", "/none/x"], "The directory '/none/' does not exist"),
            (vec!["box:/etc/hosts", "box:/x"], "from one sandbox to another"),
            (vec![&file, "/tmp/x"], "is SANDBOX:PATH"),
            (vec!["box:", "/tmp/x"], "must be UTF-8 and not empty: 'box:'"),
            (vec!["/dev/null", "box:/x"], "'/dev/null' is a socket or a device"),
        ] {
            fails(&place.output(&[&["cp"], &words[..]].concat()), told);
        }
        place.say(&["pause", "box"]);
        fails(&place.output(&["cp", "box:/etc/hosts", "-"]), "It is paused: unpause it first");
        place.say(&["unpause", "box"]);
        place.say(&["kill", "box"]);
        place.say(&["wait", "box"]);
        fails(&place.output(&["cp", "box:/etc/hosts", "-"]), "'duplex start box' starts it again");
        place.say(&["rm", "box"]);
    }
}

/// The command that copies is killed in the middle, both ways; what it began ends, and the sandbox goes on.
fn a_killed_copy_leaves_nothing(place: &Place) {
    for isolation in BOTH {
        box_of(place, isolation);
        let mut child = place.duplex(&["cp", "-", "box:/"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut tar = Tarball::default();
        tar.file("half", &[7; 1 << 20]);
        child.stdin.as_mut().unwrap().write_all(&tar.end()[..500_000]).unwrap();
        let mut reader = place.duplex(&["cp", "box:/proc", "-"]).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        for child in [&mut child, &mut reader] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        place.until("the end of the half copy", || !place.output(&["cp", "box:/half", "-"]).status.success());
        assert_eq!(place.say(&["exec", "box", "/workloads", "echo", "alive"]), "alive", "{isolation}");
        place.say(&["rm", "-f", "box"]);
        place.must_be_clean(isolation);
    }
}
