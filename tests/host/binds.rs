//! Folders and files of the host in a sandbox: the same in both isolations where that is possible, and nothing else of the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::debian::must;
use crate::life::{Place, words};
use crate::runner::{Case, Verdict, cases_with};
use crate::volumes::{BOTH, IMAGE, NEEDS, kill, monitor, place, refused, run, sh};

cases_with!(
    "binds",
    place(),
    [
        folders_and_files_are_shared,
        owners_and_modes_are_the_hosts,
        what_is_read_only_stays_as_it_is,
        links_lead_nowhere_on_the_host,
        mounts_nest,
        missing_sources_are_made_or_told,
        changes_of_the_host_are_seen,
        what_cannot_be_shared_is_told,
        a_machine_has_places_for_all,
        a_sandbox_with_shares_is_one_like_others,
        the_end_of_a_file_server_ends_its_sandbox,
        kills_leave_nothing,
    ]
);

/// A folder of the host with a file, a folder below, and a secret beside it.
fn shared(place: &Place) -> PathBuf {
    let folder = place.folder().join("host/shared");
    fs::create_dir_all(folder.join("below")).unwrap();
    fs::write(folder.join("file"), "host\n").unwrap();
    fs::write(folder.join("other"), "not shared\n").unwrap();
    fs::write(place.folder().join("host/secret"), "secret of the host\n").unwrap();
    folder
}

/// The case is over: nothing is left but what it found.
fn clean(place: &Place, what: &str) {
    fs::remove_dir_all(place.folder().join("host")).unwrap();
    place.must_be_clean(what);
}

fn bind(source: &Path, target: &str) -> String {
    format!("{}:{target}", source.display())
}

fn folders_and_files_are_shared(place: &Place) {
    for isolation in BOTH {
        let folder = shared(place);
        let both = bind(&folder, "/in");
        assert_eq!(sh(place, isolation, &["-v", &both], "cat /in/file; echo inside > /in/below/new"), "host");
        assert_eq!(fs::read_to_string(folder.join("below/new")).unwrap(), "inside\n");
        let script =
            "cd /in; mv below/new moved; mkdir -p a/b; ln file hard; ln -s file soft; cat hard soft; rm -r below; sync";
        assert_eq!(sh(place, isolation, &["-v", &both], script), "host\nhost");
        assert!(folder.join("a/b").is_dir() && folder.join("moved").is_file() && !folder.join("below").exists());
        assert_eq!(fs::metadata(folder.join("file")).unwrap().nlink(), 2);
        assert_eq!(fs::read_link(folder.join("soft")).unwrap(), Path::new("file"));
        // Only the file is there, under another name and where the image has no folder.
        let one = bind(&folder.join("file"), "/new/place");
        let script =
            "cat /new/place; echo more >> /new/place; ls -a /new | wc -l; rm /new/place 2>/dev/null || echo stays";
        assert_eq!(sh(place, isolation, &["-v", &one], script), "host\n3\nstays");
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "host\nmore\n");
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        fs::write(folder.join("big"), &bytes).unwrap();
        sh(place, isolation, &["-v", &both], "cp /in/big /tmp/big; cp /tmp/big /in/copy; cmp /in/big /in/copy");
        assert!(fs::read(folder.join("copy")).unwrap() == bytes);
        // Relative to the caller's folder, and what a link of the image names is in the image.
        let mut here = place.duplex(&["run", "--rm", "--net", "none", "--isolation", isolation]);
        assert_eq!(must(here.args(["-v", "./a:/in", IMAGE, "ls", "/in"]).current_dir(&folder)), "b\n");
        sh(place, isolation, &["-v", &bind(&folder, "/away/deep")], "cat /tmp/deep/file");
        clean(place, isolation);
    }
}

fn owners_and_modes_are_the_hosts(place: &Place) {
    for isolation in BOTH {
        let folder = shared(place);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(folder.join("theirs"), "x").unwrap();
        fs::set_permissions(folder.join("theirs"), fs::Permissions::from_mode(0o600)).unwrap();
        chown(folder.join("theirs"), Some(4711), Some(4712)).unwrap();
        let both = bind(&folder, "/in");
        let script = "umask 027; stat -c %u:%g:%a /in/theirs; cat /in/theirs 2>/dev/null || echo denied
            echo mine > /in/mine; mkdir /in/folder; rm -f /in/theirs 2>/dev/null || echo sticky";
        let told = sh(place, isolation, &["-u", "1000:1001", "-v", &both], script);
        assert_eq!(told, "4711:4712:600\ndenied\nsticky", "{isolation}");
        let of = |name: &str| {
            let found = fs::metadata(folder.join(name)).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        assert_eq!((of("mine"), of("folder")), ((1000, 1001, 0o640), (1000, 1001, 0o750)), "{isolation}");
        let script =
            "cat /in/theirs; chown 5:6 /in/mine; chmod 4711 /in/mine; touch -d @1000 /in/mine; echo r > /in/root";
        assert_eq!(sh(place, isolation, &["-v", &both], script), "x");
        assert_eq!((of("mine"), of("root").0), ((5, 6, 0o4711), 0), "{isolation}");
        assert_eq!(fs::metadata(folder.join("mine")).unwrap().mtime(), 1000);
        clean(place, isolation);
    }
}

fn what_is_read_only_stays_as_it_is(place: &Place) {
    for isolation in BOTH {
        let folder = shared(place);
        let path = folder.display();
        let script =
            "touch /in/x || mount -o remount,rw /in || touch /in/x || rm /in/file || chmod 0 /in/file || echo refused";
        for options in [["--mount", &format!("type=bind,src={path},dst=/in,ro")], ["-v", &format!("{path}:/in:ro")]] {
            assert_eq!(sh(place, isolation, &options, script), "refused", "{isolation}");
        }
        let one = format!("{path}/file:/one:ro");
        assert_eq!(sh(place, isolation, &["-v", &one], "echo x > /one || cat /one"), "host", "{isolation}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        // Guest's root that mounts the device anew has the host's refusal left.
        if isolation == "microvm" {
            let script = "mkdir /again; mount -t virtiofs share0 /again || echo no; touch /again/x || echo refused";
            let options = ["--cap-add", "SYS_ADMIN", "-v", &format!("{path}:/in:ro")];
            let told = sh(place, isolation, &options, script);
            assert!(told.ends_with("refused") || told.ends_with("no"), "{told}");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "{told}");
        }
        clean(place, isolation);
    }
}

fn links_lead_nowhere_on_the_host(place: &Place) {
    for isolation in BOTH {
        let folder = shared(place);
        let secret = place.folder().join("host/secret");
        symlink(&secret, folder.join("absolute")).unwrap();
        symlink("../secret", folder.join("up")).unwrap();
        symlink("/etc/hostname", folder.join("inside")).unwrap();
        let script =
            "cd /in; for l in absolute up ../secret ../host/secret; do cat $l 2>/dev/null; echo $?; done; cat inside";
        let options = ["--hostname", "box", "-v", &bind(&folder, "/in")];
        assert_eq!(sh(place, isolation, &options, script), "1\n1\n1\n1\nbox", "{isolation}");
        // What the sandbox links is followed by nobody outside.
        sh(place, isolation, &["-v", &bind(&folder, "/in")], "ln -s /etc/shadow /in/bait; rm -r /in/up /in/absolute");
        assert!(secret.is_file());
        clean(place, isolation);
    }
}

fn mounts_nest(place: &Place) {
    for isolation in BOTH {
        place.say(&["volume", "create", "--size", "16m", "data"]);
        let folder = shared(place);
        let other = place.folder().join("host/second");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("deep"), "deep\n").unwrap();
        // The deeper ones are given first; their places are made in what is above them.
        let (inner, outer) = (bind(&other, "/in/made/here"), bind(&folder, "/in"));
        let single = bind(&folder.join("file"), "/in/below/one");
        let options = ["-v", &inner, "-v", "data:/in/volume", "-v", &single, "-v", &outer, "--tmpfs", "/in/memory"];
        let script = "cat /in/made/here/deep /in/below/one; echo v > /in/volume/v; echo m > /in/memory/m; ls /in";
        let expected = "deep\nhost\nbelow\nfile\nmade\nmemory\nother\nvolume";
        assert_eq!(sh(place, isolation, &options, script), expected, "{isolation}");
        assert!(folder.join("made/here").is_dir() && folder.join("below/one").is_file());
        assert_eq!(fs::read_dir(folder.join("volume")).unwrap().count(), 0, "the volume is over it");
        assert_eq!(sh(place, isolation, &["-v", "data:/v"], "cat /v/v"), "v");
        place.say(&["volume", "rm", "data"]);
        clean(place, isolation);
    }
}

fn missing_sources_are_made_or_told(place: &Place) {
    for isolation in BOTH {
        let folder = shared(place);
        let missing = folder.join("to/be/made");
        let mount = format!("type=bind,src={},dst=/in", missing.display());
        refused(place, isolation, &["--mount", &mount], "bind source path does not exist");
        assert!(!folder.join("to").exists(), "{isolation}");
        sh(place, isolation, &["-v", &bind(&missing, "/in")], "echo x > /in/x");
        assert_eq!(fs::read_to_string(missing.join("x")).unwrap(), "x\n");
        clean(place, isolation);
    }
}

fn changes_of_the_host_are_seen(place: &Place) {
    for isolation in BOTH {
        let folder = shared(place);
        let script = "cat /in/file; until grep -q changed /in/file; do sleep 0.1; done; until test -e /in/new; do sleep 0.1; done
            cat /in/new; while test -e /in/other; do sleep 0.1; done; cat /in/file; echo done > /in/answer; sleep 1000";
        let options = ["-v", &bind(&folder, "/in"), "--net", "none", "--name", "box", IMAGE, "sh", "-c", script];
        place.run(isolation, &options);
        place.until("the first word", || place.say(&["logs", "box"]) == "host");
        // In place, anew, by a rename, and gone.
        fs::write(folder.join("file"), "changed and longer\n").unwrap();
        fs::write(folder.join("new"), "new\n").unwrap();
        fs::remove_file(folder.join("other")).unwrap();
        place.until("the answer", || folder.join("answer").exists());
        assert_eq!(place.say(&["logs", "box"]), "host\nnew\nchanged and longer", "{isolation}");
        let seen = |path: &str| place.say(&["exec", "box", "cat", path]);
        fs::write(folder.join("draft"), "renamed\n").unwrap();
        fs::rename(folder.join("draft"), folder.join("file")).unwrap();
        assert_eq!(seen("/in/file"), "renamed", "{isolation}: at once");
        fs::write(folder.join("file"), "RENAMED\n").unwrap();
        assert_eq!(seen("/in/file"), "RENAMED", "{isolation}: at once, and of the same length");
        place.say(&["rm", "-fv", "box"]);
        clean(place, isolation);
    }
}

fn what_cannot_be_shared_is_told(place: &Place) {
    let folder = shared(place);
    let _socket = UnixListener::bind(folder.join("socket")).unwrap();
    refused(place, "microvm", &["-v", &bind(&folder.join("socket"), "/s")], "is a socket");
    refused(place, "microvm", &["-v", "/dev/null:/n"], "is a device");
    let eight: Vec<String> = (0..8).map(|n| bind(&folder, &format!("/in{n}"))).collect();
    let eight: Vec<&str> = eight.iter().flat_map(|v| ["-v", v.as_str()]).collect();
    refused(place, "microvm", &eight, "at most 7 folders and files");
    refused(place, "microvm", &["-v", &bind(&folder.join("file"), "/bin")], "make the file /bin");
    // A folder with such things in it is shared; they do nothing inside.
    let script = "test -S /in/socket && echo there; nc local:/in/socket 2>/dev/null || echo refused";
    assert_eq!(sh(place, "microvm", &["-v", &bind(&folder, "/in")], script), "there\nrefused");
    // The guest's root makes no device of the host's.
    let script = "mknod /in/disk b 8 0 2>/dev/null || echo refused; mkfifo /in/pipe && echo made";
    assert_eq!(sh(place, "microvm", &["-v", &bind(&folder, "/in")], script), "refused\nmade");
    clean(place, "refusals");
}

/// Every place of the bus: eight disks, seven shares, and the rest.
fn a_machine_has_places_for_all(place: &Place) {
    let folder = shared(place);
    for n in 0..7 {
        fs::create_dir(folder.join(n.to_string())).unwrap();
    }
    let log = place.folder().join("host/kernel.log");
    let mut options =
        vec!["--net".to_owned(), "bridge:full".to_owned(), "--kernel-log".to_owned(), log.display().to_string()];
    for n in 0..7 {
        place.say(&["volume", "create", "--size", "16m", &format!("vol{n}")]);
        // The image wants one of them.
        let target = if n == 0 { "/wanted".to_owned() } else { format!("/vol{n}") };
        options.extend(["-v".to_owned(), format!("vol{n}:{target}")]);
    }
    for n in 0..7 {
        options.extend(["-v".to_owned(), bind(&folder.join(n.to_string()), &format!("/in{n}"))]);
    }
    let script = "for n in 0 1 2 3 4 5 6; do echo $n > /in$n/n || exit 1; done; for n in /vol1 /vol2 /vol3 /vol4 /vol5 /vol6 /wanted; do touch $n/x || exit 2; done; ls -d /sys/bus/virtio/devices/* | wc -l";
    let front = ["run", "--rm", "--isolation", "microvm"].map(str::to_owned);
    let words: Vec<String> = front.into_iter().chain(options).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).chain([IMAGE, "sh", "-c", script]).collect();
    assert_eq!(place.say(&words), "21");
    for n in 0..7 {
        assert_eq!(fs::read_to_string(folder.join(format!("{n}/n"))).unwrap(), format!("{n}\n"));
    }
    place.say(&["volume", "prune", "-af"]);
    clean(place, "all places");
}

fn a_sandbox_with_shares_is_one_like_others(place: &Place) {
    for isolation in BOTH {
        let folder = shared(place);
        let script = "echo begin >> /in/log; trap 'echo end >> /in/log; exit 0' TERM; while :; do sleep 0.1; done";
        let options = ["-v", &bind(&folder, "/in"), "--net", "none", "--name", "box", IMAGE, "sh", "-c", script];
        place.run(isolation, &options);
        let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
        place.until("the first line", || log() == "begin\n");
        let mounts = place.look("box", "{{json .Mounts}}");
        assert!(mounts.contains("\"bind\"") && mounts.contains(folder.to_str().unwrap()), "{mounts}");
        place.say(&["pause", "box"]);
        place.say(&["unpause", "box"]);
        assert!(place.say(&["stats", "--no-stream", "box"]).contains("box"));
        place.say(&["exec", "box", "sh", "-c", "echo exec >> /in/log"]);
        place.say(&["restart", "box"]);
        place.until("the second life", || log() == "begin\nexec\nend\nbegin\n");
        place.say(&["cp", &format!("{}/file", folder.display()), "box:/in/copied"]);
        assert_eq!(fs::read_to_string(folder.join("copied")).unwrap(), "host\n");
        place.say(&["stop", "box"]);
        place.say(&["start", "box"]);
        place.until("the third life", || log().ends_with("end\nbegin\n"));
        place.say(&["rm", "-fv", "box"]);
        clean(place, isolation);
    }
}

/// The file servers' processes on this host, the outer ones first.
fn file_servers() -> BTreeSet<i32> {
    let server = |path: PathBuf| {
        let words = fs::read_to_string(path.join("cmdline")).ok()?;
        words.contains("source=/share").then(|| path.file_name()?.to_str()?.parse().ok())?
    };
    fs::read_dir("/proc").unwrap().filter_map(|e| server(e.unwrap().path())).collect()
}

fn the_end_of_a_file_server_ends_its_sandbox(place: &Place) {
    let folder = shared(place);
    let script = "echo begin; while :; do echo x > /in/x; done";
    let options = ["-v", &bind(&folder, "/in"), "--net", "none", "--name", "box", IMAGE, "sh", "-c", script];
    place.run("microvm", &options);
    place.until("the first word", || place.say(&["logs", "box"]) == "begin");
    let servers = file_servers();
    assert_eq!(servers.len(), 1);
    kill(*servers.first().unwrap());
    assert_eq!(place.say(&["wait", "box"]), "125");
    let why = place.look("box", "{{.State.Error}}");
    assert!(why.contains("file server"), "{why}");
    place.say(&["start", "box"]);
    place.until("a second life", || file_servers().len() == 1);
    place.say(&["rm", "-fv", "box"]);
    clean(place, "killed file servers");
}

fn kills_leave_nothing(place: &Place) {
    for of_keeper in [false, true] {
        let folder = shared(place);
        let share = bind(&folder, "/in");
        let script = "echo begin; sleep 1000";
        place.run("microvm", &["-v", &share, "--net", "none", "--name", "box", IMAGE, "sh", "-c", script]);
        place.until("the first word", || place.say(&["logs", "box"]) == "begin");
        let keeper = place.look("box", "{{.State.Pid}}").parse().unwrap();
        kill(if of_keeper { keeper } else { monitor(place, "box") });
        place.until("the end", || place.look("box", "{{.State.Status}}") == "exited" && file_servers().is_empty());
        let why = place.look("box", "{{.State.Error}}");
        assert!(of_keeper || (why.contains("monitor") && !why.contains("file server")), "{why}");
        place.say(&["rm", "-fv", "box"]);
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "host\n");
        clean(place, "kills");
    }
    // One that is refused after its file server was to be started.
    let folder = shared(place);
    let output = run(place, "microvm", &["-v", &bind(&folder, "/in"), "--kernel", "/etc/hostname"], "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(words(&output).contains("not an ELF file"), "{}", words(&output));
    clean(place, "a refused machine");
}
