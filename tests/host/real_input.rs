//! A real Debian image in both isolations, typed as a person types it. On a host without usable KVM every `duplex run` here goes through the lab.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::debian::{duplex, must, pulled};
use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] = &[
    Need::Outside,
    Need::Root,
    Need::Program("mmdebstrap"),
    Need::Program("umoci"),
    Need::Program("skopeo"),
    Need::Program("docker-registry"),
];

const BOTH: [&str; 2] = ["microvm", "container"];

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[Case] =
            &[$(Case { name: concat!("real_input::", stringify!($name)), needs: NEEDS, run: || { $name(); Verdict::Ok(()) } }),*];
    };
}

cases![
    files_are_the_images,
    kernels_differ,
    package_lists_agree,
    users_come_from_the_image,
    exit_code_is_the_commands,
    ten_mebibytes_pass_intact,
    a_terminal_session,
    sigterm_reaches_a_sleeping_process,
    sigterm_reaches_a_handler,
    packages_install_and_go_on_the_overlay,
    missing_commands_are_127_and_126,
];

fn run(isolation: &str, flags: &[&str], command: &[&str]) -> Command {
    let mut run = duplex();
    run.args(["run", "--rm", "--isolation", isolation]).args(flags).arg(pulled()).args(command);
    run
}

fn output(isolation: &str, flags: &[&str], command: &[&str]) -> Output {
    run(isolation, flags, command).stdin(Stdio::null()).output().unwrap()
}

fn files_are_the_images() {
    for isolation in BOTH {
        let version = must(&mut run(isolation, &[], &["cat", "/etc/debian_version"]));
        assert!(version.starts_with("12."), "{isolation}: {version}");
    }
}

fn kernels_differ() {
    let [vm, container] = BOTH.map(|i| must(&mut run(i, &[], &["uname", "-r"])));
    assert_ne!(vm, container);
    assert!(vm.starts_with("6.12."), "{vm}");
}

fn package_lists_agree() {
    let [vm, container] = BOTH.map(|i| must(&mut run(i, &[], &["dpkg", "-l"])));
    assert_eq!(vm, container);
    assert!(vm.lines().filter(|l| l.starts_with("ii ")).count() > 50, "{vm}");
}

fn users_come_from_the_image() {
    for isolation in BOTH {
        let names = must(&mut run(isolation, &["-u", "games"], &["sh", "-c", "id -un; id -u; id -g; pwd; echo $HOME"]));
        assert_eq!(names, "games\n5\n60\n/\n/usr/games\n", "{isolation}");
        let numbers = must(&mut run(
            isolation,
            &["-u", "12345:23456", "-w", "/tmp/made/here"],
            &["sh", "-c", "id -u; id -g; pwd"],
        ));
        assert_eq!(numbers, "12345\n23456\n/tmp/made/here\n", "{isolation}");
    }
}

fn exit_code_is_the_commands() {
    for isolation in BOTH {
        let output = output(isolation, &[], &["sh", "-c", "echo out; echo err >&2; exit 42"]);
        assert_eq!(output.status.code(), Some(42), "{isolation}: {output:?}");
        assert_eq!(output.stdout, b"out\n", "{isolation}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("err\n"), "{isolation}");
    }
}

fn ten_mebibytes_pass_intact() {
    let mut state = 1_u32;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(10 << 20)
    .collect();
    for isolation in BOTH {
        let mut cat = run(isolation, &["-i"], &["cat"]);
        let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let written = stdin.write_all(&bytes);
                drop(stdin);
                written
            });
            let output = child.wait_with_output().unwrap();
            (output, writing.join().unwrap())
        });
        let (Output { status, stdout: got, stderr }, written) = output;
        let told = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{isolation}: {status}, {} bytes came, {written:?}: {told}", got.len());
        written.unwrap();
        assert_eq!(got.len(), bytes.len(), "{isolation}");
        assert_eq!(Sha256::digest(&got), Sha256::digest(&bytes), "{isolation}");
    }
}

/// A terminal of this machine: the side that a person types at, and the side that a program sees.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&near).unwrap();
    unlockpt(&near).unwrap();
    let path = ptsname(&near, Vec::new()).unwrap();
    let far =
        rustix::fs::open(&*path, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY, rustix::fs::Mode::empty())
            .unwrap();
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&near, size).unwrap();
    (near.into(), far)
}

fn a_terminal_session() {
    for isolation in BOTH {
        let (mut near, far) = terminal();
        let inner = run(isolation, &["-it"], &["sh"]);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let stream = || Stdio::from(far.as_fd().try_clone_to_owned().unwrap());
        let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        // No far side stays open here: a session that ends early ends the reading, too.
        drop((command, far));
        let mut seen = String::new();
        wait_for(&mut near, &mut seen, "# ");
        near.write_all(b"stty size; test -t 1 && echo is-a-tty; echo $((6*7))-answer\n").unwrap();
        wait_for(&mut near, &mut seen, "42-answer\r\n");
        assert!(seen.contains("33 101\r\n"), "{isolation}: {seen}");
        assert!(seen.contains("is-a-tty\r\n"), "{isolation}: {seen}");
        near.write_all(b"exit 7\n").unwrap();
        // The terminal must go on being read, or its writer would wait for ever.
        std::thread::spawn(move || std::io::copy(&mut near, &mut std::io::sink()));
        assert_eq!(child.wait().unwrap().code(), Some(7), "{isolation}");
    }
}

fn wait_for(near: &mut File, seen: &mut String, text: &str) {
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        match near.read(&mut buffer) {
            Ok(0) => panic!("the terminal closed before {text:?}: {seen}"),
            Ok(n) => seen.push_str(&String::from_utf8_lossy(&buffer[..n])),
            Err(error) => panic!("{error} before {text:?}: {seen}"),
        }
    }
}

/// Starts it and returns once it has printed a line.
fn started(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    child
}

fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

fn code_within(child: &mut Child, limit: Duration) -> Option<i32> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("still running {limit:?} after the signal");
}

fn sigterm_reaches_a_sleeping_process() {
    for isolation in BOTH {
        let mut child = started(run(isolation, &[], &["sh", "-c", "echo up; exec sleep 1000"]));
        terminate(&child);
        assert_eq!(code_within(&mut child, Duration::from_secs(60)), Some(143), "{isolation}");
    }
}

fn sigterm_reaches_a_handler() {
    for isolation in BOTH {
        let script = "trap 'kill $!; exit 9' TERM; sleep 1000 & echo up; wait";
        let mut child = started(run(isolation, &[], &["sh", "-c", script]));
        terminate(&child);
        assert_eq!(code_within(&mut child, Duration::from_secs(60)), Some(9), "{isolation}");
    }
}

/// What apt does to a file system: unpack, rename over, hard link, divert, remove, purge.
fn packages_install_and_go_on_the_overlay() {
    let script = "set -e
        mkdir -p /tmp/p/DEBIAN /tmp/p/usr/share/doc/probe
        printf 'Package: probe\\nVersion: 1\\nArchitecture: all\\nMaintainer: Nobody <n@localhost>\\nDescription: p\\n' > /tmp/p/DEBIAN/control
        i=0; while [ $i -lt 100 ]; do echo $i > /tmp/p/usr/share/doc/probe/f$i; i=$((i+1)); done
        dpkg-deb --build /tmp/p /tmp/probe.deb >/dev/null
        dpkg -i /tmp/probe.deb >/dev/null 2>&1
        dpkg -s probe | grep -q 'Status: install ok installed'
        cat /usr/share/doc/probe/f99
        rm -r /usr/share/doc/dpkg && mkdir /usr/share/doc/dpkg && ls -A /usr/share/doc/dpkg | wc -l
        mv /etc/debian_version /etc/moved && ln /etc/moved /etc/linked && stat -c %h /etc/linked
        dpkg --purge probe >/dev/null 2>&1
        test ! -e /usr/share/doc/probe && echo purged";
    for isolation in BOTH {
        assert_eq!(must(&mut run(isolation, &[], &["sh", "-c", script])), "99\n0\n2\npurged\n", "{isolation}");
    }
    let again = must(&mut run("microvm", &[], &["sh", "-c", "test -e /etc/debian_version && echo unchanged"]));
    assert_eq!(again, "unchanged\n", "a sandbox writes only for itself");
}

fn missing_commands_are_127_and_126() {
    for isolation in BOTH {
        let missing = output(isolation, &[], &["no-such-program"]);
        assert_eq!(missing.status.code(), Some(127), "{isolation}: {missing:?}");
        let words = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert!(words.contains("no-such-program"), "{isolation}: {words}");
        let unfit = output(isolation, &[], &["/etc/passwd"]);
        assert_eq!(unfit.status.code(), Some(126), "{isolation}: {unfit:?}");
    }
}
