//! Start times beside the peers: the embedded image's `hello` by `duplex run` in both isolations, by crun and runc, and by QEMU's `-M microvm`
//! with the same guest kernel, in one run, interleaved. What is timed: from exec of the command until the first byte of the
//! workload's line arrives, and until the process is gone.
//!
//! QEMU is given the easier job, in two sizes. "bare": the workload is PID 1 in the initramfs, no image, no disk. "image": the image's root disk
//! is its root file system, and the image's command PID 1: what a person with QEMU and the same kernel does to run an image. Neither has an
//! agent, a writable layer, namespaces or separate streams; ours has.
//! A microVM is measured twice: as `run` starts it, from a template, and with `--cold`.
//! Programs and images are copied to a tmpfs first, for all alike, the first two rounds are dropped, and each round has an order of its own. Needs a host with usable KVM and cgroup v2; `make bench` brings it
//! into the lab if this host has none.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for the terminal: it stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use duplex::image::Store;
use serde_json::{Value, json};

/// One way to run the workload.
struct Peer {
    name: &'static str,
    command: Vec<String>,
    /// Runs after each round, not timed.
    cleanup: Vec<String>,
}

/// Pause before each start: what the host still frees of the one before is not charged to the next.
const SETTLED: Duration = Duration::from_secs(1);

/// Memory that is written over before each start, in bytes: about what all peers together leave behind.
///
/// An emulator keeps its translation of code by the memory that the code is in, and undoes it when that memory is written to. A machine that copies its
/// kernel leaves megabytes of such memory, and whoever is given it next would pay for its predecessor.
const WIPED: u64 = 2 << 30;

/// Rounds that do not count: the first leaves a template, the second a list of what a start touches of it.
const DROPPED: usize = 2;

/// Milliseconds of one start.
struct Sample {
    first_byte: f64,
    gone: f64,
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = root.join("target/duplex");
    let rounds: usize = std::env::var("DUPLEX_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let stage = tempfile::Builder::new().prefix("duplex-peers").tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm");
    copy_tree(&parts, &stage.path().join("duplex"));
    let peers = peers(stage.path());
    let expected = expected_line(stage.path());
    println!("workload: {expected:?}, {rounds} rounds, {} peers", peers.len());

    let mut samples: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    // An order of its own each round, so that nobody always follows the same neighbour.
    let orders = duplex::compare::turns(peers.len(), u32::try_from(rounds + DROPPED).unwrap(), 1);
    for (round, order) in orders.into_iter().enumerate() {
        for index in order {
            let peer = &peers[index];
            wipe();
            std::thread::sleep(SETTLED);
            let sample = measure(peer, &expected);
            eprint_round(round, peer.name, &sample);
            if round >= DROPPED {
                samples.entry(peer.name).or_default().push(sample);
            }
        }
    }
    let result = report(&peers, &samples, rounds);
    let file = root.join("target/peers.json");
    fs::write(&file, serde_json::to_string_pretty(&result).unwrap()).unwrap();
    println!("written: target/peers.json");
}

/// Takes memory that others have used, writes to all of it and gives it back.
fn wipe() {
    let block = format!("bs={WIPED}");
    let status =
        Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "count=1", &block]).stderr(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{WIPED} bytes of memory can be written to");
}

#[allow(clippy::print_stderr)]
fn eprint_round(round: usize, name: &str, sample: &Sample) {
    let kind = if round < DROPPED { "dropped" } else { "kept" };
    eprintln!(
        "round {round} ({kind}): {name:<18} first byte {:8.1} ms, gone {:8.1} ms",
        sample.first_byte, sample.gone
    );
}

fn peers(stage: &Path) -> Vec<Peer> {
    let duplex = stage.join("duplex/duplex").display().to_string();
    let store = stage.join("store").display().to_string();
    let run = |isolation: &str| {
        [&duplex, "--root", &store, "run", "--rm", "--net", "none", "--isolation", isolation, "workloads", "hello"]
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let mut cold = run("microvm");
    cold.insert(4, "--cold".to_owned());
    let mut peers = vec![
        Peer { name: "duplex microvm", command: run("microvm"), cleanup: Vec::new() },
        Peer { name: "duplex cold", command: cold, cleanup: Vec::new() },
        Peer { name: "duplex container", command: run("container"), cleanup: Vec::new() },
    ];
    let bundle = bundle(stage);
    for runtime in ["crun", "runc"] {
        if let Some(path) = find(runtime) {
            let id = format!("peers-{runtime}");
            let words =
                |verb: &[&str]| [&[path.as_str()], verb].concat().iter().map(ToString::to_string).collect::<Vec<_>>();
            peers.push(Peer {
                name: if runtime == "crun" { "crun" } else { "runc" },
                command: words(&["run", "--bundle", &bundle.display().to_string(), &id]),
                cleanup: words(&["delete", "--force", &id]),
            });
        } else {
            println!("skipped: {runtime} is not installed");
        }
    }
    match find("qemu-system-x86_64") {
        Some(qemu) => {
            let (initrd, disk) = (hello_initramfs(stage), root_disk(stage));
            let bare = format!("-initrd {initrd}");
            let image = format!(
                "-drive file={disk},if=none,id=root,format=raw,readonly=on -device virtio-blk-device,drive=root"
            );
            let root = "root=/dev/vda rootfstype=erofs ro init=/workloads ";
            peers.push(Peer { name: "qemu bare", command: qemu_command(&qemu, stage, &bare, ""), cleanup: Vec::new() });
            peers.push(Peer {
                name: "qemu image",
                command: qemu_command(&qemu, stage, &image, root),
                cleanup: Vec::new(),
            });
        }
        None => println!("skipped: qemu-system-x86_64 is not installed"),
    }
    peers
}

/// An initramfs with the workload as its only program.
fn hello_initramfs(stage: &Path) -> String {
    let initrd = stage.join("hello.cpio").display().to_string();
    let pack = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static/x86_64-unknown-linux-gnu/release");
    let status = Command::new(pack.join("duplex-pack"))
        .arg("initramfs")
        .arg(pack.join("duplex-workloads"))
        .arg(&initrd)
        .status()
        .expect("duplex-pack runs");
    assert!(status.success(), "duplex-pack made {initrd}");
    initrd
}

/// The embedded image's root disk in one file, byte for byte what our microVM is given.
fn root_disk(stage: &Path) -> String {
    let store = Store::open(&stage.join("store")).unwrap().with_embedded(&stage.join("duplex/guest/workloads.tar"));
    let image = store.resolve(&"workloads".parse().unwrap()).expect("the embedded image");
    let path = stage.join("root.disk");
    let mut disk = fs::File::create(&path).unwrap();
    for piece in &image.disk.pieces {
        let copied = std::io::copy(&mut fs::File::open(&piece.path).unwrap().take(piece.len), &mut disk).unwrap();
        disk.seek_relative(i64::try_from(piece.len - copied).unwrap()).unwrap();
    }
    disk.set_len(image.disk.pieces.iter().map(|piece| piece.len).sum()).unwrap();
    path.display().to_string()
}

/// QEMU's leanest machine with our kernel, KVM and no firmware extras.
fn qemu_command(qemu: &str, stage: &Path, devices: &str, parameters: &str) -> Vec<String> {
    let kernel = stage.join("duplex/guest/vmlinux").display().to_string();
    let machine = "-M microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on -enable-kvm -cpu host -smp 1 -m 512 \
                   -nodefaults -no-user-config -no-reboot -display none -serial stdio";
    // Without `--`: QEMU adds its devices at the end, where the kernel must still look.
    let append = format!("console=ttyS0 quiet loglevel=1 reboot=t panic=-1 {parameters}hello");
    let mut words: Vec<String> = [qemu]
        .into_iter()
        .chain(machine.split_whitespace())
        .chain(devices.split_whitespace())
        .map(Into::into)
        .collect();
    words.extend(["-kernel".to_owned(), kernel, "-append".to_owned(), append]);
    words
}

/// An OCI bundle of the embedded image's one program, as `crun spec` writes it.
fn bundle(stage: &Path) -> PathBuf {
    let bundle = stage.join("bundle");
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    let program =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static/x86_64-unknown-linux-gnu/release/duplex-workloads");
    fs::copy(program, bundle.join("rootfs/workloads")).expect("the embedded image's program is built");
    let Some(crun) = find("crun") else { return bundle };
    assert!(Command::new(crun).arg("spec").current_dir(&bundle).status().unwrap().success());
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/workloads", "hello"]);
    fs::write(&file, config.to_string()).unwrap();
    bundle
}

/// What the workload prints, asked of the program itself.
fn expected_line(stage: &Path) -> String {
    let output = Command::new(stage.join("bundle/rootfs/workloads")).arg("hello").output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().next().unwrap().to_owned()
}

fn find(program: &str) -> Option<String> {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin"].iter().map(|d| format!("{d}/{program}")).find(|p| Path::new(p).exists())
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

fn measure(peer: &Peer, expected: &str) -> Sample {
    let begin = Instant::now();
    let mut child = Command::new(&peer.command[0])
        .args(&peer.command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", peer.name));
    let mut stdout = child.stdout.take().unwrap();
    let (mut text, mut first_byte) = (Vec::new(), None);
    let mut buffer = [0; 4096];
    loop {
        let n = stdout.read(&mut buffer).unwrap();
        text.extend_from_slice(&buffer[..n]);
        // A console may carry other bytes before the workload's: its line is what counts.
        if first_byte.is_none() && String::from_utf8_lossy(&text).contains(&expected[..1]) {
            first_byte = Some(milliseconds(begin));
        }
        if n == 0 {
            break;
        }
    }
    child.wait().unwrap();
    let gone = milliseconds(begin);
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains(expected), "{}: printed {text:?} instead of {expected:?}", peer.name);
    if let Some((program, arguments)) = peer.cleanup.split_first() {
        Command::new(program).args(arguments).stderr(Stdio::null()).status().unwrap();
    }
    Sample { first_byte: first_byte.unwrap(), gone }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] }
}

fn report(peers: &[Peer], samples: &BTreeMap<&str, Vec<Sample>>, rounds: usize) -> Value {
    let of = |name: &str| samples.get(name).map(|s| median(s.iter().map(|s| s.first_byte).collect()));
    let (bare, base) = (of("qemu bare"), of("qemu image"));
    let crun = of("crun");
    println!(
        "\n{:<18} {:>14} {:>10} {:>12} {:>12} {:>8}",
        "", "first byte ms", "gone ms", "x qemu image", "x qemu bare", "x crun"
    );
    let mut rows = Vec::new();
    for peer in peers {
        let list = &samples[peer.name];
        let (first, gone) = (of(peer.name).unwrap(), median(list.iter().map(|s| s.gone).collect()));
        let ratio = |base: Option<f64>| base.map_or("-".to_owned(), |b| format!("{:.2}", first / b));
        println!(
            "{:<18} {first:>14.1} {gone:>10.1} {:>12} {:>12} {:>8}",
            peer.name,
            ratio(base),
            ratio(bare),
            ratio(crun)
        );
        rows.push(json!({
            "name": peer.name, "command": peer.command, "first_byte_ms": first, "gone_ms": gone,
            "of_qemu_image": base.map(|b| first / b), "of_qemu_bare": bare.map(|b| first / b), "of_crun": crun.map(|b| first / b),
            "samples_first_byte_ms": list.iter().map(|s| s.first_byte).collect::<Vec<_>>(),
            "samples_gone_ms": list.iter().map(|s| s.gone).collect::<Vec<_>>(),
        }));
    }
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default();
    json!({ "rounds": rounds, "dropped": DROPPED, "host_kernel": kernel.trim(), "lab": std::env::var_os("DUPLEX_IN_LAB").is_some(), "peers": rows })
}
