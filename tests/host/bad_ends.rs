//! Sandboxes that end badly: the right code, a reason in words, and nothing left behind.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::debian::{must, root};
use crate::inventory::{inventory, must_equal};
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone];
const BOTH: [&str; 2] = ["microvm", "container"];

cases_with!(
    "bad_ends",
    Place::new(),
    [
        a_panic_is_told_with_the_kernels_words,
        a_triple_fault_is_told,
        eating_all_memory_is_told_as_such,
        an_endless_command_ends_by_signal,
        a_signal_while_processes_are_made_ends_the_command,
        a_killed_duplex_leaves_nothing,
        a_kernel_that_is_none_is_named,
        memory_too_small_to_boot_is_told_with_the_need,
        an_unknown_image_is_told_with_the_mend,
        a_taken_name_is_told,
        no_permission_on_kvm_is_told_with_the_mend,
    ]
);

/// A state folder of the case's own; the store is the lab's copy of the tests' one.
struct Place {
    folder: tempfile::TempDir,
    before: std::collections::BTreeSet<String>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder, before: std::collections::BTreeSet::new() };
        // The embedded image is converted once and the folder of names made, before anything is counted.
        must(place.duplex().args(["run", "--rm", "--isolation", "container", "--name", "first", "workloads", "true"]));
        let before = inventory(&[place.folder.path()]);
        Self { before, ..place }
    }

    fn duplex(&self) -> Command {
        let mut command = Command::new(root().join("target/duplex/duplex"));
        command
            .env("DUPLEX_ROOT", self.folder.path().join("store"))
            .env("DUPLEX_STATE", self.folder.path().join("state"));
        command
    }

    fn run(&self, isolation: &str, words: &[&str]) -> Output {
        self.duplex().args(["run", "--rm", "--isolation", isolation]).args(words).stdin(Stdio::null()).output().unwrap()
    }

    /// The code, a part of what stderr says, and nothing left.
    fn must_end(&self, output: &Output, code: i32, words: &str) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.to_lowercase().contains(&words.to_lowercase()), "{words:?} is not in: {text}");
        self.must_be_clean(words);
    }

    fn must_be_clean(&self, what: &str) {
        must_equal(&self.before, &[self.folder.path()], what);
    }

    /// A copy of the installed parts with another initial RAM file system: this static program as PID 1.
    fn parts_with_init(&self, program: &Path) -> PathBuf {
        let parts = self.folder.path().parent().unwrap().join(format!("parts-{}", std::process::id()));
        must(Command::new("cp").arg("-a").arg(root().join("target/duplex")).arg(&parts));
        let pack = root().join("target/static/x86_64-unknown-linux-gnu/release/duplex-pack");
        must(Command::new(pack).arg("initramfs").arg(program).arg(parts.join("guest/initramfs.cpio")));
        parts
    }
}

fn a_panic_is_told_with_the_kernels_words(place: &Place) {
    let program = root().join("target/static/x86_64-unknown-linux-gnu/release/duplex-workloads");
    let parts = place.parts_with_init(&program);
    let output =
        place.duplex().env("DUPLEX_LIBDIR", &parts).args(["run", "--rm", "workloads", "hello"]).output().unwrap();
    fs::remove_dir_all(&parts).unwrap();
    place.must_end(&output, 125, "Attempted to kill init");
    assert!(String::from_utf8_lossy(&output.stderr).contains("panic"), "{output:?}");
}

/// An x86-64 ELF program of one page at 16 MiB whose first instruction is `ud2`; no interrupt table is set up, so the fault becomes a
/// triple fault (Intel SDM volume 3, "Interrupt 8: Double Fault Exception").
fn faulting_kernel() -> Vec<u8> {
    const AT: u64 = 16 << 20;
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([2_u16, 62].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([AT, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 64, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend([1_u32, 5].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend([4096_u64, AT, AT, 4096, 4096, 4096].iter().flat_map(|v| v.to_le_bytes()));
    elf.resize(8192, 0);
    elf[4096..4098].copy_from_slice(&[0x0f, 0x0b]);
    elf
}

fn a_triple_fault_is_told(place: &Place) {
    let kernel = tempfile::NamedTempFile::new().unwrap();
    fs::write(kernel.path(), faulting_kernel()).unwrap();
    let output = place.run("microvm", &["--kernel", kernel.path().to_str().unwrap(), "workloads", "hello"]);
    place.must_end(&output, 125, "triple fault");
}

fn eating_all_memory_is_told_as_such(place: &Place) {
    for isolation in BOTH {
        let output = place.run(isolation, &["--memory", "128m", "workloads", "eat", "1024"]);
        place.must_end(&output, 137, "memory");
    }
}

/// Starts a command that prints a line and then spins for ever; returns once the line is there.
fn spinning(place: &Place, isolation: &str) -> Child {
    busy(place, isolation, &["spin"])
}

/// A program that says so when it begins.
fn busy(place: &Place, isolation: &str, program: &[&str]) -> Child {
    let mut command = place.duplex();
    command.args(["run", "--rm", "--isolation", isolation, "workloads"]).args(program);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Asked once to end, it ends, and nothing of it is left.
fn must_end_by_term(place: &Place, isolation: &str, mut child: Child) {
    signal(&child, rustix::process::Signal::TERM);
    let until = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            signal(&child, rustix::process::Signal::KILL);
            panic!("{isolation}: still running a minute after SIGTERM");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(143), "{isolation}");
    place.must_be_clean(isolation);
}

fn an_endless_command_ends_by_signal(place: &Place) {
    for isolation in BOTH {
        must_end_by_term(place, isolation, spinning(place, isolation));
    }
}

/// posix_spawn(3) blocks every signal until its child has executed: most of this program's time.
fn a_signal_while_processes_are_made_ends_the_command(place: &Place) {
    for isolation in BOTH {
        for wait_ms in [0, 7, 33, 100] {
            let child = busy(place, isolation, &["spawn", "1000000"]);
            std::thread::sleep(Duration::from_millis(wait_ms));
            must_end_by_term(place, isolation, child);
        }
    }
}

fn a_killed_duplex_leaves_nothing(place: &Place) {
    for isolation in BOTH {
        let mut child = spinning(place, isolation);
        signal(&child, rustix::process::Signal::KILL);
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{isolation}");
        // The next command finds what is left, and clears it.
        must(place.duplex().args(["run", "--rm", "--isolation", "container", "workloads", "true"]));
        place.must_be_clean(isolation);
    }
}

fn a_kernel_that_is_none_is_named(place: &Place) {
    let output = place.run("microvm", &["--kernel", "/etc/passwd", "workloads", "hello"]);
    place.must_end(&output, 125, "/etc/passwd");
    let output = place.run("microvm", &["--kernel", "/no/such/kernel", "workloads", "hello"]);
    place.must_end(&output, 125, "/no/such/kernel");
}

fn memory_too_small_to_boot_is_told_with_the_need(place: &Place) {
    let output = place.run("microvm", &["--memory", "8m", "workloads", "hello"]);
    place.must_end(&output, 125, "memory");
    assert!(String::from_utf8_lossy(&output.stderr).contains("MiB"), "{output:?}");
}

fn an_unknown_image_is_told_with_the_mend(place: &Place) {
    let output = place.run("microvm", &["--pull", "never", "no-such-image:here", "hello"]);
    place.must_end(&output, 125, "no-such-image:here");
    assert!(String::from_utf8_lossy(&output.stderr).contains("duplex pull"), "{output:?}");
}

fn a_taken_name_is_told(place: &Place) {
    let mut command = place.duplex();
    command.args(["run", "--rm", "--isolation", "container", "--name", "mine", "workloads", "spin"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let output = place.run("container", &["--name", "mine", "workloads", "hello"]);
    signal(&child, rustix::process::Signal::TERM);
    child.wait().unwrap();
    place.must_end(&output, 125, "mine");
}

fn no_permission_on_kvm_is_told_with_the_mend(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(root().join("target/duplex/duplex"))
        .args(["--no-lab", "run", "--rm", "workloads", "hello"])
        .env("DUPLEX_ROOT", folder.path().join("store"))
        .env("DUPLEX_STATE", folder.path().join("state"))
        .output()
        .unwrap();
    drop(folder);
    place.must_end(&output, 125, "/dev/kvm");
    assert!(String::from_utf8_lossy(&output.stderr).contains("kvm"), "{output:?}");
}
