//! A classic virtual machine beside a microVM: Debian 12 with its own kernel, initrd and systemd on a disk of 2 GiB (`tests/images/classic`) in
//! QEMU's `-M q35`, and the embedded image as `duplex run` starts it, both with KVM, 512 MiB and one processor, from files on a tmpfs.
//!
//! What is timed of the classic machine: from exec of QEMU until a service that starts after multi-user.target has said its line on the console.
//! It is given its kernel and initrd, so no firmware loads a boot loader, it has no network to wait for and no cloud-init: all that would make it
//! slower. Of the microVM: from exec of `duplex run` until the command's first byte. The two do not do the same work, which is the point of
//! a microVM and must be said with the numbers. Memory is the proportional set size of the processes when nothing happens any more; that of the
//! microVM as `compare` takes it, with what its cgroup has beside.
//! Needs a host with usable KVM and cgroup v2; `make bench-classic` brings it into the lab if this host has none.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for the terminal: it stops at the first surprise"
)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duplex::compare::{Record, bytes_on_disk};
use serde_json::{Value, json};

/// What the service of the classic machine says.
const LINE: &str = "classic-is-up";
/// Longest boot.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest wait for memory to become calm.
const SETTLING: Duration = Duration::from_secs(60);

/// One boot of the classic machine.
struct Boot {
    ms: f64,
    pss_bytes: u64,
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rounds: usize = std::env::var("DUPLEX_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let built = root.join("target/images/classic");
    let stage = tempfile::Builder::new().prefix("duplex-classic").tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm");
    for (from, name) in [(root.join("target/duplex"), "duplex"), (built.clone(), "classic")] {
        let copied =
            Command::new("cp").args(["-r", "--sparse=always"]).arg(&from).arg(stage.path().join(name)).status();
        assert!(copied.unwrap().success(), "{} is built and fits on the tmpfs", from.display());
    }
    let boots: Vec<Boot> = (0..=rounds).map(|round| boot(&stage.path().join("classic"), round)).skip(1).collect();
    let ours = ours(stage.path(), rounds);
    let result = report(&built, stage.path(), &boots, &ours);
    fs::write(root.join("target/classic.json"), serde_json::to_string_pretty(&result).unwrap()).unwrap();
    println!("written: target/classic.json");
}

/// Boots it, waits for its line and until its memory is calm, and ends it.
fn boot(parts: &Path, round: usize) -> Boot {
    let part = |name: &str| parts.join(name).display().to_string();
    let began = Instant::now();
    let child = Command::new("qemu-system-x86_64")
        .args("-M q35 -enable-kvm -cpu host -smp 1 -m 512 -nodefaults -no-user-config -no-reboot".split(' '))
        .args("-display none -serial stdio -snapshot -append".split(' '))
        .arg("root=/dev/vda ro console=ttyS0 quiet")
        .args(["-kernel", &part("vmlinuz"), "-initrd", &part("initrd.img")])
        .args(["-drive", &format!("if=virtio,format=raw,file={}", part("disk.raw"))])
        .env("TMPDIR", "/dev/shm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("QEMU starts");
    let mut machine = Machine(child);
    let console = machine.until(LINE, began);
    let ms = began.elapsed().as_secs_f64() * 1e3;
    let pss_bytes = machine.calm();
    assert!(console.contains(LINE));
    println!("boot {round}{}: {ms:.0} ms, {} MiB", if round == 0 { " (not counted)" } else { "" }, pss_bytes >> 20);
    Boot { ms, pss_bytes }
}

/// QEMU, which ends with its owner.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// Its console up to this line.
    fn until(&mut self, line: &str, began: Instant) -> String {
        let mut stdout = self.0.stdout.take().unwrap();
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains(line) {
            let n = stdout.read(&mut buffer).unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            assert!(n > 0 && began.elapsed() < PATIENCE, "it does not come up: {text}");
        }
        // Somebody must go on reading, or a full pipe would stop it.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        text
    }

    /// Its memory, when four looks have found it within a two-hundredth.
    fn calm(&self) -> u64 {
        let (began, mut last, mut calm) = (Instant::now(), self.pss(), 0);
        while calm < 4 && began.elapsed() < SETTLING {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.pss();
            calm = if now.abs_diff(last) <= last / 200 { calm + 1 } else { 0 };
            last = now;
        }
        last
    }

    fn pss(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("the kernel tells it");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

/// The embedded image from a template and booted, by `compare`.
fn ours(stage: &Path, rounds: usize) -> Record {
    let json = stage.join("ours.json");
    let duplex = Command::new(stage.join("duplex/duplex"))
        .arg("--root")
        .arg(stage.join("store"))
        .args(["compare", "--arm", "microvm", "--arm", "cold=microvm,cold", "--memory-runs", "3", "--runs"])
        .args([&rounds.to_string(), "--json"])
        .arg(&json)
        .env("DUPLEX_STATE", stage.join("state"))
        .stdout(Stdio::null())
        .status();
    assert!(duplex.unwrap().success(), "duplex compares");
    serde_json::from_slice(&fs::read(json).unwrap()).unwrap()
}

/// What a file takes: its length, and what is allocated of it.
fn size(path: &Path) -> Option<[u64; 2]> {
    let about = File::open(path).ok()?.metadata().ok()?;
    Some([about.len(), about.blocks() * 512])
}

#[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] }
}

fn report(built: &Path, stage: &Path, boots: &[Boot], ours: &Record) -> Value {
    let in_lab = ours.host.lab;
    if in_lab {
        println!("\nMeasured in the lab, on emulated hardware: ratios mean something, absolute times do not.");
    }
    let mut disks: Vec<(String, [u64; 2])> = Vec::new();
    let mut add = |name: &str, path: PathBuf| disks.extend(size(&path).map(|size| (name.to_owned(), size)));
    for (name, file) in
        [("disk, raw", "disk.raw"), ("disk, qcow2", "disk.qcow2"), ("kernel", "vmlinuz"), ("initrd", "initrd.img")]
    {
        add(&format!("classic: {name}"), built.join(file));
    }
    let (first, [warm, cold]) = (&ours.arms[0], [&ours.arms[0], &ours.arms[1]]);
    for (part, bytes) in &first.disk_bytes {
        disks.push((format!("microVM: {part}"), [*bytes, *bytes]));
    }
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static/x86_64-unknown-linux-gnu/agent/duplex-agent");
    disks.extend(size(&agent).map(|size| ("microVM: agent (in the initramfs)".to_owned(), size)));
    let template = bytes_on_disk(&stage.join("state/templates"));
    disks.push(("microVM: template, made at the first start".to_owned(), [template, template]));
    disks.push(("microVM: scratch (in the guest's memory)".to_owned(), [0, 0]));
    println!("\n{:<46} {:>12} {:>12}", "on disk", "apparent", "allocated");
    for (name, [apparent, allocated]) in &disks {
        println!("{name:<46} {:>12} {:>12}", mebibytes(float(*apparent)), mebibytes(float(*allocated)));
    }
    let classic =
        (median(boots.iter().map(|b| b.ms).collect()), median(boots.iter().map(|b| float(b.pss_bytes)).collect()));
    println!("\n{:<46} {:>12} {:>12}", format!("medians of {} starts", boots.len()), "up", "memory idle");
    println!("{:<46} {:>9.0} ms {:>12}", "classic VM, to multi-user.target", classic.0, mebibytes(classic.1));
    let mut rows = Vec::new();
    for (name, arm) in
        [("microVM from a template, to the first byte", warm), ("microVM booted, to the first byte", cold)]
    {
        let up = arm.summary.first_byte_ms.expect("it says hello").median;
        let idle = arm.summary.memory_bytes["idle"].median;
        println!("{name:<46} {up:>9.0} ms {:>12}", mebibytes(idle));
        rows.push(json!({ "arm": arm.arm.name, "first_byte_ms": arm.summary.first_byte_ms, "idle_bytes": arm.summary.memory_bytes["idle"] }));
    }
    json!({
        "lab": in_lab, "host": ours.host, "limits": { "memory_mib": 512, "cpus": 1 },
        "disk_bytes": disks.iter().map(|(name, [apparent, allocated])| json!({ "part": name, "apparent": apparent, "allocated": allocated })).collect::<Vec<_>>(),
        "classic": {
            "packages": fs::read_to_string(built.join("packages")).unwrap_or_default().lines().collect::<Vec<_>>(),
            "up_ms": classic.0, "pss_bytes": classic.1,
            "samples_up_ms": boots.iter().map(|b| b.ms).collect::<Vec<_>>(),
            "samples_pss_bytes": boots.iter().map(|b| b.pss_bytes).collect::<Vec<_>>(),
        },
        "microvm": rows,
    })
}
