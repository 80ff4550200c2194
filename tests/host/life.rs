//! Sandboxes that outlive the command that made them: every verb about their life, in both isolations.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::debian::{must, root};
use crate::inventory::{inventory, must_equal};
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone];
const BOTH: [&str; 2] = ["container", "microvm"];

/// How long anything may take in an emulated host.
const PATIENCE: Duration = Duration::from_secs(60);

cases_with!(
    "life",
    Place::new(),
    [
        a_life_in_verbs,
        names_ids_and_filters,
        logs_keep_the_streams_apart,
        a_flood_is_bounded,
        what_does_not_exist_is_told,
        a_command_that_cannot_run_is_told,
        a_terminal_can_be_left_and_joined,
        input_reaches_an_attached_command,
        one_in_the_foreground_is_there_for_others,
        restarts_follow_the_policy,
        killed_keepers_leave_nothing,
        an_image_in_use_stays,
    ]
);

/// A state folder of the case's own, and what of Duplex was on this host before.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    before: std::collections::BTreeSet<String>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder, before: std::collections::BTreeSet::new() };
        // The embedded image is converted once and the folders are made, before anything is counted.
        must(&mut place.duplex(&["run", "--rm", "--isolation", "container", "workloads", "true"]));
        let before = inventory(&[place.folder.path()]);
        Self { before, ..place }
    }

    /// The same with this image, a busybox whose command is `true`.
    pub(crate) fn with_busybox(image: &str) -> Self {
        let mut place = Self::new();
        let process = serde_json::json!({ "Cmd": ["true"], "Env": ["PATH=/bin"] });
        let archive = place.folder().join("image.tar");
        fs::write(&archive, crate::busybox::archive(image, &process)).unwrap();
        place.say(&["load", "-q", "-i", archive.to_str().unwrap()]);
        place.count();
        place
    }

    /// Counts anew what is there before anything is tried.
    pub(crate) fn count(&mut self) {
        self.before = inventory(&[self.folder.path()]);
    }

    /// What was there when it was counted last.
    pub(crate) fn before(&self) -> &std::collections::BTreeSet<String> {
        &self.before
    }

    /// The case's own folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn duplex(&self, words: &[&str]) -> Command {
        let mut command = Command::new(root().join("target/duplex/duplex"));
        command
            .env("DUPLEX_ROOT", self.folder.path().join("store"))
            .env("DUPLEX_STATE", self.folder.path().join("state"))
            .args(words)
            .stdin(Stdio::null());
        command
    }

    /// Standard output of a verb that must succeed, trimmed.
    #[track_caller]
    pub(crate) fn say(&self, words: &[&str]) -> String {
        must(&mut self.duplex(words)).trim_end().to_owned()
    }

    pub(crate) fn output(&self, words: &[&str]) -> Output {
        self.duplex(words).output().unwrap()
    }

    /// Starts in the background; the id.
    #[track_caller]
    pub(crate) fn run(&self, isolation: &str, words: &[&str]) -> String {
        self.say(&[&["run", "-d", "--isolation", isolation], words].concat())
    }

    /// What is known of a sandbox, by a template.
    #[track_caller]
    pub(crate) fn look(&self, name: &str, template: &str) -> String {
        self.say(&["inspect", "-f", template, name])
    }

    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "{what} does not come; {}", self.say(&["ps", "-a"]));
            sleep(Duration::from_millis(20));
        }
    }

    /// Kills all keepers of this place, without a word to them.
    pub(crate) fn kill_keepers(&self) {
        kill_keepers(self.folder.path());
    }

    /// Waits until other commands have cleared what is left.
    pub(crate) fn until_clean(&self) {
        self.until("order", || {
            self.say(&["ps", "-a"]);
            inventory(&[self.folder.path()]) == self.before
        });
    }

    fn roster(&self) -> PathBuf {
        self.folder.path().join("state/roster")
    }

    #[track_caller]
    pub(crate) fn must_be_clean(&self, what: &str) {
        must_equal(&self.before, &[self.folder.path()], what);
    }
}

pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn a_life_in_verbs(place: &Place) {
    for isolation in BOTH {
        let id = place.say(&["create", "--isolation", isolation, "--name", "box", "-l", "a=b", "workloads", "spin"]);
        assert_eq!(id.len(), 12, "{id}");
        assert_eq!(place.look("box", "{{.Id}} {{.State.Status}} {{.Name}}"), format!("{id} created /box"));
        assert_eq!(place.say(&["ps", "-q"]), "", "what does not run is not listed");
        assert_eq!(place.say(&["start", "box"]), "box");
        assert_eq!(place.say(&["ps", "-q"]), id);
        assert_eq!(place.look("box", "{{.State.Status}} {{.State.Running}} {{.RestartCount}}"), "running true 0");
        let refused = place.output(&["rm", "box"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(words(&refused).contains("--force"), "{}", words(&refused));
        let waiting = place.duplex(&["wait", &id]).stdout(Stdio::piped()).spawn().unwrap();
        place.say(&["rename", "box", "bin"]);
        assert_eq!(place.say(&["stop", "bin"]), "bin");
        assert_eq!(said(waiting), "143\n", "{isolation}: spin does not handle SIGTERM");
        assert_eq!(place.look("bin", "{{.State.Status}} {{.State.ExitCode}}"), "exited 143");
        assert_eq!(place.say(&["wait", "bin"]), "143");
        assert_eq!(place.say(&["start", &id[..5]]), &id[..5]);
        assert_eq!(place.say(&["kill", "-s", "KILL", "bin"]), "bin");
        assert_eq!(place.say(&["wait", "bin"]), "137");
        place.say(&["start", "bin"]);
        assert_eq!(place.say(&["rm", "-f", "bin"]), "bin");
        assert_eq!(place.say(&["ps", "-aq"]), "");
        place.must_be_clean(isolation);
    }
}

fn said(mut child: Child) -> String {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

fn names_ids_and_filters(place: &Place) {
    let create = |name: &str, isolation: &str, label: &str| {
        place.say(&["create", "--name", name, "--isolation", isolation, "-l", label, "workloads", "hello"])
    };
    let (one, two) = (create("one", "container", "tier=web"), create("two", "microvm", "tier=db"));
    let listed = |filters: &[&str]| {
        let filters: Vec<&str> = filters.iter().flat_map(|f| ["-f", f]).collect();
        place.say(&[&["ps", "-a", "--format", "{{.Names}}"], &filters[..]].concat()).replace('\n', " ")
    };
    for (filters, names) in [
        (&[][..], "two one"),
        (&["name=on"], "one"),
        (&["label=tier=db"], "two"),
        (&["label=tier"], "two one"),
        (&["label=tier=web", "label=tier=db"], ""),
        (&["isolation=microvm"], "two"),
        (&["status=created"], "two one"),
        (&["status=running"], ""),
        (&["status=running", "status=created", "isolation=container"], "one"),
        (&["ancestor=workloads"], "two one"),
    ] {
        assert_eq!(listed(filters), names, "{filters:?}");
    }
    assert_eq!(listed(&[&format!("id={}", &one[..6])]), "one");
    let json: serde_json::Value = serde_json::from_str(&place.say(&["ps", "-a", "--format", "json"])).unwrap();
    assert_eq!((json[0]["ID"].as_str(), json[1]["State"].as_str()), (Some(two.as_str()), Some("created")));
    let taken = place.output(&["create", "--name", "one", "workloads", "hello"]);
    assert_eq!(taken.status.code(), Some(125));
    assert!(words(&taken).contains(&one), "{}", words(&taken));
    let made_up = place.say(&["create", "--isolation", "container", "workloads", "hello"]);
    assert!(place.look(&made_up, "{{.Name}}").contains('_'));
    assert_eq!(place.output(&["ps", "--format", "{{range .}}"]).status.code(), Some(1));
    assert_eq!(place.output(&["ps", "--filter", "colour=red"]).status.code(), Some(1));
    assert_eq!(place.say(&["prune", "-f", "--filter", "label=tier=db"]), format!("Deleted Sandboxes:\n{two}"));
    place.say(&["prune", "-f"]);
    place.must_be_clean("prune");
}

fn logs_keep_the_streams_apart(place: &Place) {
    for isolation in BOTH {
        // It prints its result on stdout and its measure on stderr.
        place.run(isolation, &["--name", "two", "workloads", "getpid", "10"]);
        assert_eq!(place.say(&["wait", "two"]), "0");
        let logs = place.output(&["logs", "two"]);
        let out = String::from_utf8(logs.stdout).unwrap();
        let err = String::from_utf8(logs.stderr).unwrap();
        assert!(!out.is_empty() && err.starts_with("calls: 10 in") && !out.contains("calls:"), "{out}|{err}");
        let stamped = place.output(&["logs", "-t", "two"]);
        let line = String::from_utf8(stamped.stderr).unwrap();
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z') && rest == err, "{line}");
        assert_eq!(place.say(&["logs", "--since", "2100-01-01", "two"]), "");
        assert_eq!(place.say(&["logs", "--since", "1h", "two"]), out.trim_end());
        assert_eq!(place.say(&["logs", "--until", "1h", "two"]), "");
        place.say(&["rm", "two"]);
        place.must_be_clean(isolation);
    }
    // Follows to the end, and through a start.
    place.run("container", &["--name", "slow", "workloads", "spin", "1"]);
    let followed = place.say(&["logs", "-f", "slow"]);
    assert_eq!(followed.lines().next(), Some("Spinning"), "{followed}");
    assert_eq!(place.look("slow", "{{.State.Status}}"), "exited", "it follows until the end");
    place.say(&["start", "slow"]);
    place.say(&["wait", "slow"]);
    assert_eq!(place.say(&["logs", "slow"]).matches("Spinning").count(), 2);
    let last = place.output(&["logs", "-n", "1", "slow"]);
    let last = [last.stdout, last.stderr].concat();
    assert_eq!(String::from_utf8(last).unwrap().lines().count(), 1, "of both streams together");
    assert_eq!(place.output(&["logs", "--tail", "x", "slow"]).status.code(), Some(1));
    place.say(&["rm", "slow"]);
    place.must_be_clean("follow");
}

/// More output than is kept: the last of it is there, the disk is not full, and the command has not noticed.
fn a_flood_is_bounded(place: &Place) {
    let flood = place.folder.path().join("flood");
    fs::write(&flood, (0..200_000).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
    let options = ["--log-opt", "max-size=64k", "--log-opt", "max-file=2", "--name", "flood", "-i"];
    let mut command = place.duplex(&["run", "--isolation", "container"]);
    command.args(options).args(["workloads", "cat"]).stdin(File::open(&flood).unwrap());
    let whole = command.output().unwrap();
    assert!(whole.status.success() && whole.stdout == fs::read(&flood).unwrap(), "the foreground gets all of it");
    let kept: u64 = fs::read_dir(place.roster().join(place.look("flood", "{{.Id}}")))
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_name().to_string_lossy().starts_with("log."))
        .map(|e| e.metadata().unwrap().len())
        .sum();
    assert!((64 << 10..(128 << 10) + (256 << 10)).contains(&kept), "{kept}");
    let logs = place.output(&["logs", "flood"]);
    let text = String::from_utf8(logs.stdout).unwrap();
    assert_eq!(text.lines().last(), Some("line 199999"));
    assert!(words(&Output { stdout: Vec::new(), ..logs }).contains("removed"), "what is missing is said");
    fs::remove_file(flood).unwrap();
    place.say(&["rm", "flood"]);
    place.must_be_clean("flood");
}

fn what_does_not_exist_is_told(place: &Place) {
    for words_of in [
        &["start", "nobody"][..],
        &["stop", "nobody"],
        &["kill", "nobody"],
        &["wait", "nobody"],
        &["rm", "nobody"],
        &["logs", "nobody"],
        &["attach", "nobody"],
        &["inspect", "nobody"],
        &["rename", "nobody", "somebody"],
    ] {
        let output = place.output(words_of);
        assert_eq!(output.status.code(), Some(1), "{words_of:?}");
        assert!(words(&output).contains("No such sandbox: nobody"), "{}", words(&output));
    }
    assert!(place.output(&["rm", "-f", "nobody"]).status.success(), "as in Docker");
    place.say(&["create", "--isolation", "container", "--name", "still", "workloads", "hello"]);
    for verb in ["attach", "kill"] {
        let output = place.output(&[verb, "still"]);
        assert_eq!(output.status.code(), Some(1), "{verb}");
        assert!(words(&output).contains("not running"), "{verb}: {}", words(&output));
    }
    assert!(place.output(&["stop", "still"]).status.success(), "as in Docker");
    let mixed = place.output(&["rm", "nobody", "still"]);
    assert_eq!(
        (mixed.status.code(), &*mixed.stdout),
        (Some(1), &b"still\n"[..]),
        "one that fails does not keep the others"
    );
    place.must_be_clean("errors");
}

fn a_command_that_cannot_run_is_told(place: &Place) {
    for isolation in BOTH {
        let output = place.output(&[
            "run",
            "-d",
            "--isolation",
            isolation,
            "--name",
            "none",
            "--entrypoint",
            "",
            "workloads",
            "/no/such",
        ]);
        assert_eq!(output.status.code(), Some(127), "{}", words(&output));
        assert!(words(&output).contains("/no/such"), "{}", words(&output));
        assert_eq!(place.look("none", "{{.State.Status}} {{.State.ExitCode}}"), "exited 127");
        let again = place.output(&["start", "none"]);
        assert_eq!(again.status.code(), Some(1));
        assert!(words(&again).contains("/no/such"), "{}", words(&again));
        place.say(&["rm", "none"]);
        let gone = place.output(&[
            "run",
            "-d",
            "--rm",
            "--isolation",
            isolation,
            "--kernel",
            "/no/kernel",
            "workloads",
            "hello",
        ]);
        assert_eq!(gone.status.code(), Some(125), "{}", words(&gone));
        place.must_be_clean(isolation);
    }
    let cid = place.folder.path().join("cid");
    let cid_word = cid.to_str().unwrap();
    let create = ["create", "--isolation", "container", "--cidfile", cid_word, "workloads", "hello"];
    let id = place.say(&create);
    assert_eq!(fs::read_to_string(&cid).unwrap(), id);
    let twice = place.output(&create);
    assert!(twice.status.code() == Some(125) && words(&twice).contains(cid_word), "{}", words(&twice));
    fs::remove_file(cid).unwrap();
    place.say(&["rm", &id]);
    place.must_be_clean("cidfile");
}

/// A person at a terminal.
struct Person {
    keys: File,
    terminal: OwnedFd,
    screen: std::sync::Arc<std::sync::Mutex<String>>,
    child: Child,
}

impl Person {
    fn at(place: &Place, words: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let duplex = place.duplex(words);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(duplex.get_program()).args(duplex.get_args());
        command.envs(duplex.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let stream = || Stdio::from(terminal.try_clone().unwrap());
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let screen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (shown, mut shows) = (std::sync::Arc::clone(&screen), File::from(OwnedFd::try_clone(&master).unwrap()));
        std::thread::spawn(move || {
            let mut bytes = [0; 1000];
            while let Ok(count @ 1..) = shows.read(&mut bytes) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { keys: master.into(), terminal, screen, child }
    }

    /// Waits until keys go to the sandbox as they are: before, this side's terminal would make of them what it thinks right.
    fn is_connected(&self, place: &Place) {
        let raw = || {
            let modes = rustix::termios::tcgetattr(&self.terminal).unwrap().local_modes;
            !modes.contains(rustix::termios::LocalModes::ICANON)
        };
        place.until("a raw terminal", raw);
    }

    fn types(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    #[track_caller]
    fn sees(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.screen.lock().unwrap().contains(text) {
            assert!(Instant::now() < deadline, "'{text}' is not on the screen: {}", self.screen.lock().unwrap());
            sleep(Duration::from_millis(10));
        }
        self.screen.lock().unwrap().clear();
    }

    #[track_caller]
    fn ends(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.screen.lock().unwrap());
            sleep(Duration::from_millis(10));
        }
    }
}

fn a_terminal_can_be_left_and_joined(place: &Place) {
    for isolation in BOTH {
        let mut first =
            Person::at(place, &["run", "-it", "--isolation", isolation, "--name", "tty", "workloads", "cat"]);
        first.is_connected(place);
        first.types(b"once\r");
        first.sees("once\r\nonce\r\n");
        first.types(b"\x10\x11");
        assert_eq!(first.ends(), Some(0), "{isolation}: ctrl-p ctrl-q");
        assert_eq!(place.look("tty", "{{.State.Status}}"), "running");
        let mut second = Person::at(place, &["attach", "--detach-keys", "ctrl-a,x", "tty"]);
        second.is_connected(place);
        second.types(b"again\r");
        second.sees("again\r\nagain\r\n");
        second.types(b"\x01x");
        assert_eq!(second.ends(), Some(0), "{isolation}: other keys");
        let mut third = Person::at(place, &["attach", "tty"]);
        third.is_connected(place);
        third.types(b"\x04");
        assert_eq!(third.ends(), Some(0), "{isolation}: end of input ends cat");
        assert_eq!(place.look("tty", "{{.State.Status}}"), "exited");
        assert!(place.say(&["logs", "tty"]).contains("again"));
        place.say(&["rm", "tty"]);
        place.must_be_clean(isolation);
    }
}

fn input_reaches_an_attached_command(place: &Place) {
    for isolation in BOTH {
        place.say(&["create", "-i", "--isolation", isolation, "--name", "in", "workloads", "cat"]);
        let mut start = place.duplex(&["start", "-ai", "in"]);
        let mut child = start.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let sent: Vec<u8> = (0..300_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        let bytes = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let mut got = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(child.wait().unwrap().success(), "{isolation}");
        assert!(got == sent, "{isolation}: {} of {} bytes", got.len(), sent.len());
        place.say(&["rm", "in"]);
        place.must_be_clean(isolation);
    }
}

fn one_in_the_foreground_is_there_for_others(place: &Place) {
    for isolation in BOTH {
        let mut run = place.duplex(&["run", "--rm", "--isolation", isolation, "--name", "front", "workloads", "spin"]);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
        assert_eq!(place.look("front", "{{.State.Status}} {{.State.Pid}}"), format!("running {}", child.id()));
        assert_eq!(place.say(&["logs", "front"]), "Spinning");
        assert_eq!(place.say(&["stop", "-t", "5", "front"]), "front");
        assert_eq!(child.wait().unwrap().code(), Some(143), "{isolation}");
        place.must_be_clean(isolation);
        // Without --rm it stays, and starts again in the background.
        let run = place.output(&["run", "--isolation", isolation, "--name", "front", "workloads", "exit", "7"]);
        assert_eq!(run.status.code(), Some(7));
        assert_eq!(place.look("front", "{{.State.Status}} {{.State.ExitCode}}"), "exited 7");
        place.say(&["start", "front"]);
        assert_eq!(place.say(&["wait", "front"]), "7");
        place.say(&["rm", "front"]);
        place.must_be_clean(isolation);
    }
}

fn restarts_follow_the_policy(place: &Place) {
    let run = |policy: &str, code: &str| {
        place.run("container", &["--restart", policy, "--name", "again", "workloads", "exit", code]);
    };
    run("on-failure:2", "3");
    place.until("the last end", || place.look("again", "{{.State.Status}} {{.RestartCount}}") == "exited 2");
    assert_eq!(place.look("again", "{{.State.ExitCode}} {{.HostConfig.RestartPolicy.Name}}"), "3 on-failure");
    place.say(&["rm", "again"]);
    run("on-failure", "0");
    place.until("the only end", || place.look("again", "{{.State.Status}} {{.RestartCount}}") == "exited 0");
    place.say(&["rm", "again"]);
    run("always", "0");
    place.until("a third start", || place.look("again", "{{.RestartCount}}").parse::<u32>().unwrap() >= 2);
    place.say(&["stop", "again"]);
    assert_eq!(place.look("again", "{{.State.Status}}"), "exited", "what is stopped stays so");
    place.say(&["rm", "again"]);
    let both = place.output(&["run", "--rm", "--restart", "always", "workloads", "hello"]);
    assert_eq!(both.status.code(), Some(125));
    place.must_be_clean("restarts");
}

/// Ends keepers at moments from before their first step to well after the command runs; what they leave, the next command clears.
fn killed_keepers_leave_nothing(place: &Place) {
    for isolation in BOTH {
        let whole = {
            let began = Instant::now();
            place.run(isolation, &["--name", "whole", "workloads", "spin"]);
            began.elapsed()
        };
        place.say(&["rm", "-f", "whole"]);
        for (round, remove) in (0..6).zip([true, false].into_iter().cycle()) {
            let mut words = vec!["run", "-d", "--isolation", isolation, "--name", "doomed"];
            if remove {
                words.push("--rm");
            }
            words.extend(["workloads", "spin"]);
            let mut client = place.duplex(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            sleep(whole * round / 4);
            // The client first: it may be about to make the keeper.
            if round % 3 == 0 {
                client.kill().unwrap();
            }
            kill_keepers(place.folder.path());
            client.wait().unwrap();
            kill_keepers(place.folder.path());
            let left = place.say(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
            assert!(["", "doomed exited", "doomed created"].contains(&left.as_str()), "{isolation} {round}: {left}");
            if !remove || !left.is_empty() {
                place.say(&["rm", "-f", "doomed"]);
            }
            place.until("order", || {
                place.say(&["ps", "-a"]);
                inventory(&[place.folder.path()]) == place.before
            });
        }
        // One that ran is told to have ended, and starts again.
        place.run(isolation, &["--name", "phoenix", "workloads", "spin"]);
        kill_keepers(place.folder.path());
        assert_eq!(place.say(&["wait", "phoenix"]), "125");
        assert!(
            place.look("phoenix", "{{.State.Status}} {{.State.Error}}").starts_with("exited its keeper was killed")
        );
        place.until("a free start", || place.output(&["start", "phoenix"]).status.success());
        assert_eq!(place.look("phoenix", "{{.State.Status}}"), "running");
        place.say(&["rm", "-f", "phoenix"]);
        place.must_be_clean(isolation);
    }
}

/// SIGKILL to every keeper whose sandbox is in this folder.
fn kill_keepers(folder: &Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        let is_keeper = words.split(|b| *b == 0).nth(1) == Some(b"keeper");
        if is_keeper && String::from_utf8_lossy(&environment).contains(&folder.display().to_string()) {
            let pid = entry.file_name().to_string_lossy().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn an_image_in_use_stays(place: &Place) {
    let id = place.say(&["create", "--isolation", "container", "workloads", "hello"]);
    let refused = place.output(&["rmi", "workloads"]);
    assert_eq!(refused.status.code(), Some(1), "{}", words(&refused));
    place.say(&["rm", &id]);
    place.say(&["rmi", "workloads"]);
}
