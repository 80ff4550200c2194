//! What `stats` tells beside what the kernels count: under load, in both isolations.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::busybox::{self, BUSYBOX};
use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Program("mkfs.erofs"),
    Need::Program("mke2fs"),
    Need::File(BUSYBOX),
];
const BOTH: [&str; 2] = ["container", "microvm"];
const IMAGE: &str = "plain:1";
const MIB: u64 = 1 << 20;

/// How far two counters may be apart.
const TOLERANCE: f64 = 0.05;

/// How often one looks for a moment in which both count the same: neither stands still for the other.
const LOOKS: usize = 5;

/// Uses a processor, and tells its number.
const SPINNER: &str = "echo $$ > /tmp/spinner; while :; do :; done";

cases_with!("stats", place(), [numbers_are_the_kernels, a_limit_is_told_where_none_was_set,]);

fn place() -> Place {
    let mut place = Place::new();
    let archive = place.folder().join("image.tar");
    let process = json!({ "Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"] });
    fs::write(&archive, busybox::archive(IMAGE, &process)).unwrap();
    place.say(&["load", "-q", "-i", archive.to_str().unwrap()]);
    place.say(&["volume", "create", "--size", "16m", "first"]);
    place.say(&["volume", "rm", "first"]);
    place.count();
    place
}

/// One look with `stats`: numbers by the names of its columns, in bytes, percent or pieces.
fn stats(place: &Place) -> BTreeMap<String, f64> {
    let told: Value = serde_json::from_str(&place.say(&["stats", "--no-stream", "--format", "json", "box"])).unwrap();
    let mut numbers = BTreeMap::new();
    for (name, text) in told[0].as_object().unwrap() {
        let parts: Vec<&str> = text.as_str().unwrap().split(" / ").collect();
        let names = if parts.len() == 2 { vec![format!("{name}.0"), format!("{name}.1")] } else { vec![name.clone()] };
        numbers.extend(names.into_iter().zip(parts).filter_map(|(name, part)| Some((name, number(part)?))));
    }
    numbers
}

/// `12.5MB`, `99.70%`, `3`.
fn number(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" | "%" | "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    Some(text[..digits].parse::<f64>().ok()? * unit)
}

/// A kernel's own counters of the sandbox's cgroup.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    at: f64,
    cpu_s: f64,
    memory: f64,
    read: f64,
    written: f64,
}

impl Kernel {
    /// From the files of a cgroup, one after the other, and the moment in seconds.
    fn of(text: &str, at: f64) -> Self {
        let keyed = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
            line.map_or(0.0, |n| n.trim().parse().unwrap())
        };
        let pairs = |key: &str| -> f64 {
            text.split_whitespace().filter_map(|w| w.strip_prefix(key)?.parse::<f64>().ok()).sum()
        };
        let current: f64 = text.lines().next().unwrap().parse().unwrap();
        Self {
            at,
            cpu_s: keyed("usage_usec") / 1e6,
            memory: current - keyed("inactive_file"),
            read: pairs("rbytes="),
            written: pairs("wbytes="),
        }
    }

    /// As this host counts.
    fn of_host(place: &Place, began: Instant) -> Self {
        let folder = PathBuf::from("/sys/fs/cgroup/duplex").join(place.look("box", "{{.Id}}"));
        Self::of_group(&folder, began)
    }

    fn of_group(folder: &std::path::Path, began: Instant) -> Self {
        let files = ["memory.current", "memory.stat", "cpu.stat", "io.stat"];
        let text = files.map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default()).concat();
        Self::of(&text, began.elapsed().as_secs_f64())
    }

    /// As the sandbox's own kernel counts.
    fn of_inside(place: &Place) -> Self {
        let script =
            "cd /sys/fs/cgroup && cat memory.current memory.stat cpu.stat io.stat && echo uptime $(cat /proc/uptime)";
        let text = place.say(&["exec", "box", "sh", "-c", script]);
        let uptime = text.lines().find_map(|l| l.strip_prefix("uptime ")?.split(' ').next()?.parse().ok()).unwrap();
        Self::of(&text, uptime)
    }
}

/// Shares of a processor, in percent, over all stretches of the samples that are about as long as the one between the looks of `stats`.
fn shares(samples: &[Kernel]) -> (f64, f64) {
    let mut found = (f64::MAX, 0.0_f64);
    for (at, from) in samples.iter().enumerate() {
        if let Some(to) = samples[at..].iter().find(|s| s.at - from.at >= 1.0) {
            let share = 100.0 * (to.cpu_s - from.cpu_s) / (to.at - from.at);
            found = (found.0.min(share), found.1.max(share));
        }
    }
    assert!(found.1 > 0.0, "too few samples: {samples:?}");
    found
}

/// `stats`, and what this host's kernel counted meanwhile.
fn sampled(place: &Place) -> (BTreeMap<String, f64>, Vec<Kernel>) {
    let folder = PathBuf::from("/sys/fs/cgroup/duplex").join(place.look("box", "{{.Id}}"));
    let (over, began) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut samples = Vec::new();
            while !over.load(Ordering::SeqCst) {
                samples.push(Kernel::of_group(&folder, began));
                std::thread::sleep(Duration::from_millis(50));
            }
            samples
        });
        let told = stats(place);
        over.store(true, Ordering::SeqCst);
        (told, sampler.join().unwrap())
    })
}

/// Bytes read from a guest's disks and written to them since its boot, by whomever (`/proc/diskstats`, iostats.rst).
fn disks_inside(place: &Place) -> (f64, f64) {
    let text = place.say(&["exec", "box", "cat", "/proc/diskstats"]);
    let disks = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|n| n[2].starts_with("vd"));
    let bytes = |sectors: &str| sectors.parse::<f64>().unwrap() * 512.0;
    disks.fold((0.0, 0.0), |sum, n| (sum.0 + bytes(n[5]), sum.1 + bytes(n[9])))
}

/// `stats` of a sandbox with [`SPINNER`], and the share of a processor that this program had meanwhile by `/proc/PID/stat` (proc(5)). Both looks
/// at that are one command's, so that what its start costs is before them.
fn spun(place: &Place) -> (f64, f64) {
    let look = "cat /proc/$p/stat /proc/uptime";
    let script = format!("p=$(cat /tmp/spinner); {look}; sleep 4; {look}");
    let mut command = place.duplex(&["exec", "box", "sh", "-c", &script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut look = || {
        let (stat, uptime) = (lines.next().unwrap(), lines.next().unwrap());
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // User and system time in hundredths of a second: the fields 14 and 15, of which the first two are cut off here.
        let ticks: f64 = fields[11..=12].iter().map(|n| n.parse::<f64>().unwrap()).sum();
        (ticks / 100.0, uptime.split(' ').next().unwrap().parse::<f64>().unwrap())
    };
    let from = look();
    let told = stats(place)["CPUPerc"];
    let to = look();
    assert!(child.wait().unwrap().success());
    (told, 100.0 * (to.0 - from.0) / (to.1 - from.1))
}

fn close(told: f64, counted: f64) -> bool {
    (told - counted).abs() <= TOLERANCE * counted
}

/// Looks until both agree; the last look if they never do.
#[track_caller]
fn agree(what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let mut last = String::new();
    for _ in 0..LOOKS {
        match look() {
            Ok(()) => return,
            Err(words) => last = words,
        }
    }
    panic!("{what}: {last}");
}

fn numbers_are_the_kernels(place: &Place) {
    for isolation in BOTH {
        place.run(isolation, &["--name", "box", "-m", "300m", "-v", "data:/data", IMAGE]);
        memory_disks_and_processes(place, isolation);
        place.say(&["exec", "-d", "box", "sh", "-c", SPINNER]);
        on_this_host(place, isolation);
        match isolation {
            "microvm" => of_the_machine(place),
            _ => {
                let told = stats(place);
                let [inside, host] =
                    [["CPUPerc", "MemUsage.0"], ["HostCPUPerc", "HostMem"]].map(|of| of.map(|n| told[n]));
                assert_eq!(inside, host, "one kernel counts both");
            }
        }
        place.say(&["rm", "-f", "box"]);
        place.say(&["volume", "rm", "data"]);
    }
    place.must_be_clean("after load");
}

fn memory_disks_and_processes(place: &Place, isolation: &str) {
    let sh = |script: &str| place.say(&["exec", "box", "sh", "-c", script]);
    let inside =
        || if isolation == "microvm" { Kernel::of_inside(place) } else { Kernel::of_host(place, Instant::now()) };

    let (before, counted_before) = (stats(place), inside());
    let disks_before = disks_inside(place);
    sh("head -c 67108864 /dev/zero > /tmp/ballast");
    sh("dd if=/dev/zero of=/data/f bs=1M count=24 conv=fsync 2>/dev/null && sync");
    sh("dd if=/data/f of=/dev/null bs=1M iflag=direct 2>/dev/null");
    for _ in 0..3 {
        place.say(&["exec", "-d", "box", "sleep", "1000"]);
    }
    let (told, counted) = (stats(place), inside());
    for (what, told, counted, least) in [
        ("read", told["BlockIO.0"] - before["BlockIO.0"], counted.read - counted_before.read, 24 * MIB),
        ("written", told["BlockIO.1"] - before["BlockIO.1"], counted.written - counted_before.written, 24 * MIB),
        ("memory", told["MemUsage.0"], counted.memory, 64 * MIB),
    ] {
        println!("{isolation} {what}: {told} told, {counted} counted");
        assert!(close(told, counted), "{isolation} {what}: {told} told, {counted} counted");
        let least = least as f64;
        assert!(told >= 0.95 * least && told <= 1.5 * least, "{isolation} {what}: {told} for {least}");
    }
    if isolation == "microvm" {
        let (disks, told) = (disks_inside(place), stats(place));
        let read = (told["BlockIO.0"] - before["BlockIO.0"], disks.0 - disks_before.0);
        let written = (told["BlockIO.1"] - before["BlockIO.1"], disks.1 - disks_before.1);
        println!("{isolation} disks: {read:?} read, {written:?} written, told and in /proc");
        assert!(close(read.0, read.1) && close(written.0, written.1), "{read:?} read, {written:?} written");
    }
    agree("processes", || {
        let (told, listed) = (stats(place)["PIDs"], place.say(&["top", "box"]).lines().count() - 1);
        if told == 4.0 && listed == 4 {
            Ok(())
        } else {
            Err(format!("{isolation}: {told} told, {listed} listed, 4 run"))
        }
    });
}

/// With a program that spins.
fn on_this_host(place: &Place, isolation: &str) {
    agree("processor time on this host", || {
        let (told, samples) = sampled(place);
        let ((least, most), told) = (shares(&samples), told["HostCPUPerc"]);
        println!("{isolation} host processor: {told} told, {least} to {most} counted");
        let fits = told >= least * (1.0 - TOLERANCE) && told <= most * (1.0 + TOLERANCE) && told > 30.0;
        if fits { Ok(()) } else { Err(format!("{isolation}: {told} told, {least} to {most} counted")) }
    });
    agree("memory on this host", || {
        let (told, counted) = (stats(place)["HostMem"], Kernel::of_host(place, Instant::now()).memory);
        println!("{isolation} host memory: {told} told, {counted} counted");
        if close(told, counted) { Ok(()) } else { Err(format!("{isolation}: {told} told, {counted} counted")) }
    });
}

fn of_the_machine(place: &Place) {
    agree("processor time inside", || {
        let (told, share) = spun(place);
        println!("microvm processor inside: {told} told, {share} in /proc");
        if close(told, share) { Ok(()) } else { Err(format!("{told} told, {share} in /proc")) }
    });
}

/// Docker tells what the host has.
fn a_limit_is_told_where_none_was_set(place: &Place) {
    place.run("container", &["--name", "box", IMAGE]);
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let memory =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    let told = stats(place);
    assert!(close(told["MemUsage.1"], memory.unwrap() * 1024.0), "{told:?}");
    assert!(told["MemPerc"] > 0.0 && told["MemPerc"] < 10.0, "{told:?}");
    place.say(&["update", "-m", "1024g", "box"]);
    assert!(close(stats(place)["MemUsage.1"], memory.unwrap() * 1024.0), "a limit above that is none");
    place.say(&["rm", "-f", "box"]);
    place.must_be_clean("after limits");
}
