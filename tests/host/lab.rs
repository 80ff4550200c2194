//! The lab's life and its channel, on the real thing: each case boots a lab of its own, one at a time, beside whatever lab this machine has.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] = &[Need::Outside, Need::Root, Need::Program("qemu-system-x86_64"), Need::Program("setsid")];

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[Case] =
            &[$(Case { name: concat!("lab::", stringify!($name)), needs: NEEDS, run: || { $name(); Verdict::Ok(()) } }),*];
    };
}

cases![
    a_second_start_finds_the_first,
    a_crash_leaves_nothing,
    it_stops_when_idle,
    commands_behave_as_here,
    no_qemu_is_told,
    others_than_root_are_told
];

/// A lab's folders; the lab itself is stopped with it.
struct Lab {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Lab {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: tempfile::tempdir().unwrap(), _alone: alone }
    }

    fn duplex(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duplex"));
        command.args(words).env("DUPLEX_STATE", self.dir.path()).stdin(Stdio::null());
        command
    }

    /// A command in the lab, by a shell.
    fn shell(&self, script: &str) -> Command {
        let mut command = self.duplex(&["lab", "run", "--", "sh", "-c", script]);
        command.current_dir(self.dir.path());
        command
    }

    fn start(&self, idle: &str) -> Output {
        ok(self.duplex(&["lab", "start", "--memory", "1g", "--idle", idle]))
    }

    /// Keeper, file servers and QEMU, as they were noted.
    fn processes(&self) -> Vec<i32> {
        let text = fs::read(self.dir.path().join("lab/pids")).unwrap_or_default();
        let noted: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap_or_default();
        noted.iter().map(|p| i32::try_from(p["pid"].as_i64().unwrap()).unwrap()).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.duplex(&["lab", "stop"]).output();
    }
}

fn ok(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < until, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(100));
    }
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// No process of the lab lives and its folder is gone.
fn nothing_is_left(lab: &Lab, processes: &[i32]) {
    assert_eq!(processes.len(), 4, "{processes:?}");
    wait_until("the lab's processes end", || !processes.iter().any(|p| alive(*p)));
    wait_until("the lab's folder goes", || !lab.dir.path().join("lab").exists());
}

fn a_second_start_finds_the_first() {
    let lab = Lab::new();
    assert!(!lab.duplex(&["lab", "status"]).output().unwrap().status.success());
    // Two at once: one starts it, the other waits and finds it.
    let other = lab.duplex(&["lab", "start", "--memory", "1g"]).stdout(Stdio::piped()).spawn().unwrap();
    let mine = text(&lab.start("300"));
    let other = other.wait_with_output().unwrap();
    assert!(other.status.success(), "{other:?}");
    assert_eq!([mine, text(&other)].iter().filter(|t| t.starts_with("Lab started")).count(), 1);
    assert!(text(&lab.start("300")).starts_with("Lab runs already"));
    let status: serde_json::Value =
        serde_json::from_slice(&ok(lab.duplex(&["lab", "status", "--format", "json"])).stdout).unwrap();
    assert_eq!((&status["memory_mib"], &status["commands"]), (&1024.into(), &serde_json::json!([])));
    let processes = lab.processes();
    ok(lab.duplex(&["lab", "stop"]));
    nothing_is_left(&lab, &processes);
    assert!(text(&ok(lab.duplex(&["lab", "stop"]))).starts_with("No lab runs"));
}

fn a_crash_leaves_nothing() {
    let lab = Lab::new();
    lab.start("300");
    let mut command = lab.shell("sleep 1000").stderr(Stdio::piped()).spawn().unwrap();
    let status = || text(&ok(lab.duplex(&["lab", "status", "--format", "json"])));
    wait_until("the command runs", || status().contains("sleep 1000"));
    let processes = lab.processes();
    kill_process(Pid::from_raw(processes[0]).unwrap(), Signal::KILL).unwrap();
    assert_eq!(command.wait().unwrap().code(), Some(125));
    wait_until("all end with the keeper", || !processes.iter().any(|p| alive(*p)));
    // Its files are still there; the next one clears them.
    lab.start("300");
    assert_eq!(text(&ok(lab.shell("echo again"))), "again\n");
    let processes = lab.processes();
    kill_process(Pid::from_raw(processes[3]).unwrap(), Signal::KILL).unwrap();
    nothing_is_left(&lab, &processes);
}

fn it_stops_when_idle() {
    let lab = Lab::new();
    lab.start("3");
    let processes = lab.processes();
    // A command that runs longer than that keeps it.
    ok(lab.shell("sleep 6"));
    nothing_is_left(&lab, &processes);
}

fn commands_behave_as_here() {
    let lab = Lab::new();
    lab.start("300");
    exit_codes(&lab);
    ten_mebibytes_pass(&lab);
    signals_arrive(&lab);
    a_killed_client_ends_its_command(&lab);
    a_slow_reader_holds_up_nobody(&lab);
    files_are_live(&lab);
    a_terminal(&lab);
    what_the_emulator_gets_wrong_is_not_offered(&lab);
}

/// With these a guest's kernel died once in some hundred boots: see the lab's choice of a processor.
fn what_the_emulator_gets_wrong_is_not_offered(lab: &Lab) {
    let said = ok(lab.shell("grep -m 1 ^flags /proc/cpuinfo"));
    let flags = String::from_utf8_lossy(&said.stdout).into_owned();
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    assert!(has("svm") && has("npt"), "{flags}");
    for flag in ["cx16", "xsave", "la57"] {
        assert!(!has(flag), "{flag} is offered");
    }
}

fn exit_codes(lab: &Lab) {
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(lab.shell(script).status().unwrap().code(), Some(code), "{script}");
    }
    let run = |words: &[&str]| lab.duplex(&[&["lab", "run", "--"], words].concat()).output().unwrap();
    let missing = run(&["no-such-program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-program"), "{missing:?}");
    assert_eq!(run(&["/etc/passwd"]).status.code(), Some(126));
    let both = lab.shell("echo out; echo err >&2; echo $MARK $DUPLEX_IN_LAB").env("MARK", "m").output().unwrap();
    assert_eq!((text(&both).as_str(), both.stderr.as_slice()), ("out\nm 1\n", b"err\n".as_slice()));
    // The last bytes before an exit are not lost, and who leaves something in the background does not wait for it.
    let last = ok(lab.shell("sleep 1000 & head -c 300000 /dev/zero; exit 0"));
    assert_eq!(last.stdout.len(), 300_000);
}

fn ten_mebibytes_pass(lab: &Lab) {
    let mut sent = vec![0; 10 << 20];
    File::open("/dev/urandom").unwrap().read_exact(&mut sent).unwrap();
    let mut child =
        lab.duplex(&["lab", "run", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let copy = sent.clone();
    let writer = thread::spawn(move || input.write_all(&copy).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == sent, "{} bytes came back", output.stdout.len());
}

fn signals_arrive(lab: &Lab) {
    for (signal, code) in [(Signal::TERM, 7), (Signal::INT, 8)] {
        let script = "trap 'exit 7' TERM; trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done";
        let mut child = lab.shell(script).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    // A reader that goes away is felt inside: yes(1) ends by SIGPIPE.
    let mut child = lab.duplex(&["lab", "run", "--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 1000];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

fn a_killed_client_ends_its_command(lab: &Lab) {
    // Deaf to hints, with a child in a session of its own: all of it goes.
    let script = "trap '' HUP TERM; setsid sleep 54321 & echo ready; sleep 54321; sleep 54321";
    let mut child = lab.shell(script).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    send(&child, Signal::KILL);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait_until("the command ends", || {
        !lab.shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q 'sleep 5432[1]'")
            .status()
            .unwrap()
            .success()
    });
}

fn a_slow_reader_holds_up_nobody(lab: &Lab) {
    let mut slow = lab.shell("yes | head -c 8000000").stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(text(&ok(lab.shell("echo quick"))), "quick\n");
    let mut all = Vec::new();
    slow.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 8_000_000);
    assert!(slow.wait().unwrap().success());
}

fn files_are_live(lab: &Lab) {
    let file = |name: &str| -> PathBuf { lab.dir.path().join(name) };
    ok(lab.shell("echo inside > a; mkdir b; echo x > b/c"));
    assert_eq!(fs::read_to_string(file("a")).unwrap(), "inside\n");
    for content in ["one\n", "two, longer\n", "3\n"] {
        fs::write(file("a"), content).unwrap();
        assert_eq!(text(&ok(lab.shell("cat a; ls b"))), format!("{content}c\n"));
    }
    fs::write(file("new"), "renamed\n").unwrap();
    fs::rename(file("new"), file("a")).unwrap();
    fs::remove_file(file("b/c")).unwrap();
    assert_eq!(text(&ok(lab.shell("cat a; ls b"))), "renamed\n");
    let locked = File::create(file("lock")).unwrap();
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(!lab.shell("flock -n lock true").status().unwrap().success(), "a lock of this side holds inside");
    drop(locked);
    ok(lab.shell("flock -n lock true"));
    // What is not live is the lab's own.
    ok(lab.shell("echo x > /usr/duplex-lab-test; echo x > /tmp/duplex-lab-test"));
    assert!(!Path::new("/usr/duplex-lab-test").exists() && !Path::new("/tmp/duplex-lab-test").exists());
}

fn a_terminal(lab: &Lab) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    unlockpt(&master).unwrap();
    let resize =
        |rows| tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    resize(31);
    let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_duplex"), "lab", "run", "--", "bash", "--norc", "-i"]);
    command.env("DUPLEX_STATE", lab.dir.path()).env("PS1", "> ").current_dir(lab.dir.path());
    let terminal = || terminal.try_clone().unwrap();
    let mut child = command.stdin(terminal()).stdout(terminal()).stderr(terminal()).spawn().unwrap();
    let mut user = File::from(master.try_clone().unwrap());
    let mut shows = File::from(master.try_clone().unwrap());
    let seen = Arc::new(Mutex::new(String::new()));
    let screen = Arc::clone(&seen);
    thread::spawn(move || {
        let mut bytes = [0; 1000];
        while let Ok(n @ 1..) = shows.read(&mut bytes) {
            screen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    });
    let see = |what: &str| {
        wait_until(&format!("the terminal shows '{what}'"), || seen.lock().unwrap().contains(what));
        seen.lock().unwrap().clear();
    };
    see("> ");
    user.write_all(b"tty; stty size\n").unwrap();
    see("/dev/pts/");
    user.write_all(b"stty size\n").unwrap();
    see("31 97");
    resize(40);
    user.write_all(b"sleep 1; stty size\n").unwrap();
    see("40 97");
    // What is typed as an interrupt ends the command of the shell, not the shell.
    user.write_all(b"sleep 1000\n").unwrap();
    thread::sleep(Duration::from_secs(2));
    user.write_all(b"\x03").unwrap();
    see("> ");
    user.write_all(b"exit 9\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let modes = tcgetattr(terminal()).unwrap().local_modes;
    assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "the caller's terminal is as it was");
}

fn no_qemu_is_told() {
    let lab = Lab::new();
    let output = lab.duplex(&["lab", "start"]).env("PATH", "/nonexistent").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("No QEMU for the lab") && said.contains("apt-get install"), "{said}");
    assert!(!lab.dir.path().join("lab").exists());
}

fn others_than_root_are_told() {
    // A copy where anybody may run it.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("duplex");
    fs::copy(env!("CARGO_BIN_EXE_duplex"), &program).unwrap();
    fs::create_dir(dir.path().join("guest")).unwrap();
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/duplex/guest/workloads.tar");
    fs::copy(image, dir.path().join("guest/workloads.tar")).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(words);
        command.env("DUPLEX_STATE", "/nonexistent").env("DUPLEX_ROOT", dir.path().join("store"));
        let output = command.current_dir("/").output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = run(&["lab", "start"]);
    assert!(said.contains("The lab needs root"), "{said}");
    let said = run(&["run", "--isolation", "microvm", "workloads", "hello"]);
    let closed = fs::metadata("/dev/kvm").is_ok_and(|m| m.permissions().mode() & 0o006 == 0);
    assert!(!closed || said.contains("No permission on /dev/kvm"), "{said}");
}
