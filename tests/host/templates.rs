//! Machines that go on from others: which, and what they do not share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::busybox::BUSYBOX;
use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone, Need::Program("mkfs.erofs"), Need::File(BUSYBOX)];

const IMAGE: &str = "box:1";

/// Furthest that a machine's clock may be from the host's when its command begins, in seconds.
const CLOCK: f64 = 0.05;

cases_with!(
    "templates",
    place(),
    [
        starts_go_on_from_the_first,
        what_is_damaged_is_made_anew,
        another_processor_is_told,
        no_two_are_alike,
        one_is_written_while_others_boot,
        code_is_the_files_in_all_machines,
    ]
);

fn place() -> Place {
    Place::with_busybox(IMAGE)
}

fn run(place: &Place, options: &[&str], script: &str) -> String {
    let how = ["run", "--rm", "--isolation", "microvm", "--net", "none"];
    place.say(&[&how, options, &[IMAGE, "sh", "-c", script]].concat())
}

/// Templates and what is known of them, with their inode numbers.
fn kept(place: &Place) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(place.folder().join("state/templates")).into_iter().flatten().flatten();
    entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().ino())).collect()
}

/// The only template.
fn template(place: &Place) -> PathBuf {
    let names = kept(place).into_keys().filter(|name| !name.ends_with(".hot"));
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 1, "{names:?}");
    place.folder().join("state/templates").join(&names[0])
}

fn starts_go_on_from_the_first(place: &Place) {
    assert!(kept(place).is_empty());
    assert_eq!(run(place, &["--cold"], "echo cold"), "cold");
    assert!(kept(place).is_empty(), "one that boots leaves nothing");
    assert_eq!(run(place, &[], "echo first"), "first");
    assert_eq!(kept(place).len(), 1);
    assert_eq!(run(place, &[], "echo second"), "second");
    let after = kept(place);
    assert_eq!(after.len(), 2, "what the second touched is known: {after:?}");
    assert_eq!(run(place, &[], "echo third"), "third");
    assert_eq!(run(place, &["-v", "/usr:/host:ro"], "ls /host | grep sbin"), "sbin", "one with a share boots");
    assert_eq!(kept(place), after);

    // Another size is another machine.
    for _ in 0..3 {
        let seen =
            run(place, &["--cpus", "2", "--memory", "3500m"], "grep -c ^cpu[0-9] /proc/stat; head -n 1 /proc/meminfo");
        let (cpus, memory) = seen.split_once('\n').unwrap();
        let kib: u64 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(cpus == "2" && (3_300_000..3_584_000).contains(&kib), "{seen}");
    }
    assert_eq!(kept(place).len(), 4);
    place.say(&["prune", "-f", "--filter", "label=none"]);
    assert_eq!(kept(place).len(), 4, "templates are not what was asked for");
    place.say(&["prune", "-f"]);
    assert!(kept(place).is_empty());
    place.must_be_clean("machines from templates");
}

/// Header and state are checked before they are used, and the list of pages is only a hint.
fn what_is_damaged_is_made_anew(place: &Place) {
    run(place, &["--memory", "300m"], "true");
    let other = fs::read(template(place)).unwrap();
    place.say(&["prune", "-f"]);
    run(place, &[], "true");
    let path = template(place);
    let good = fs::read(&path).unwrap();
    let half = good.len() / 2;
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let damaged = [
        ("empty", Vec::new()),
        ("half", good[..half].to_vec()),
        ("longer", [&good[..], b"x"].concat()),
        ("header", flipped(20)),
        ("state", flipped(good.len() - 1000)),
        ("another machine's", other),
    ];
    for (what, bytes) in damaged {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let before = kept(place);
        assert_eq!(run(place, &[], "echo fine"), "fine", "{what}");
        assert_ne!(kept(place), before, "{what}: it was made anew");
        assert_eq!(run(place, &[], "echo fine"), "fine", "{what}");
    }
    let hot = path.with_extension("hot");
    for bytes in [&b""[..], b"nonsense that is no list of pages", &[0xff; 3000]] {
        fs::write(&hot, bytes).unwrap();
        assert_eq!(run(place, &[], "echo fine"), "fine");
    }
}

/// The monitor compares the processor's features before any processor runs.
fn another_processor_is_told(place: &Place) {
    run(place, &[], "true");
    let path = template(place);
    let mut bytes = fs::read(&path).unwrap();
    let at = |bytes: &[u8], from: usize| {
        usize::try_from(u64::from_le_bytes(bytes[from..from + 8].try_into().unwrap())).unwrap()
    };
    let state = at(&bytes, 16)..at(&bytes, 16) + at(&bytes, 24);
    let vendor = fs::read_to_string("/proc/cpuinfo").unwrap();
    let vendor =
        vendor.lines().find_map(|l| l.strip_prefix("vendor_id")?.trim_start().strip_prefix(": ")).unwrap().as_bytes()
            [..4]
            .to_vec();
    let found: Vec<usize> = state.clone().filter(|i| bytes[*i..].starts_with(&vendor)).collect();
    assert!(!found.is_empty(), "the vendor's name is in the processor's features");
    found.iter().for_each(|i| bytes[*i] ^= 1);
    let sum = crc32fast::hash(&bytes[state]).to_le_bytes();
    bytes[12..16].copy_from_slice(&sum);
    let sum = crc32fast::hash(&bytes[..32]).to_le_bytes();
    bytes[32..36].copy_from_slice(&sum);
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let refused = place.output(&["run", "--rm", "--isolation", "microvm", "--net", "none", IMAGE, "true"]);
    let told = words(&refused);
    assert!(
        refused.status.code() == Some(125) && told.contains("its features are others") && told.contains("--cold"),
        "{told}"
    );
    assert!(!path.exists());
    assert_eq!(run(place, &[], "echo fine"), "fine");
    place.must_be_clean("a template of another processor");
}

/// What each machine must have of its own, from the first instruction of its command.
fn no_two_are_alike(place: &Place) {
    let script = "cd /proc/sys/kernel/random; cat boot_id uuid; dd if=/dev/urandom bs=64 count=1 2>/dev/null | busybox od -An -tx1
        grep stack /proc/self/maps; busybox adjtimex";
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let mut seen = BTreeSet::new();
    for start in 0..8 {
        let before = now();
        let text = run(place, &[], script);
        let after = now();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for line in lines.iter().take(7) {
            assert!(seen.insert((*line).to_owned()), "start {start}: '{line}' was seen before");
        }
        let number = |name: &str| -> f64 {
            lines
                .iter()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_else(|| panic!("{name} in {text}"))
                .trim()
                .parse()
                .unwrap()
        };
        let inside = number("time.tv_sec:") + number("time.tv_usec:") / 1e6;
        assert!(before - CLOCK < inside && inside < after + CLOCK, "{before} {inside} {after}");
    }
    assert_eq!(kept(place).len(), 2);
}

/// Several first starts at once: one is kept, all run.
fn one_is_written_while_others_boot(place: &Place) {
    let started: Vec<_> = (0..3)
        .map(|n| {
            let word = n.to_string();
            let words = ["run", "--rm", "--isolation", "microvm", "--net", "none", IMAGE, "echo", &word];
            (word.clone(), place.duplex(&words).stdout(std::process::Stdio::piped()).spawn().unwrap())
        })
        .collect();
    for (word, child) in started {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == format!("{word}\n").into_bytes(), "{output:?}");
    }
    template(place);
    place.must_be_clean("three at once");
}

/// What a machine has of its own in the mapping of a file, and what it has of it at all, in KiB.
fn own_and_all(monitor: &str, file: &str) -> (u64, u64) {
    let maps = fs::read_to_string(format!("/proc/{monitor}/smaps")).unwrap();
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap();
    let (mut inside, mut own, mut all) = (false, 0, 0);
    for line in maps.lines() {
        if line.split_whitespace().next().is_some_and(|word| !word.ends_with(':')) {
            inside = line.ends_with(file);
        } else if inside && line.starts_with("Rss:") {
            all += kib(line);
        } else if inside && line.starts_with("Anonymous:") {
            own += kib(line);
        }
    }
    (own, all)
}

/// A machine that booted has the agent's and most of the kernel's code as pages of their files.
fn code_is_the_files_in_all_machines(place: &Place) {
    place.run("microvm", &["--name", "booted", "--cold", "--net", "none", IMAGE, "sleep", "1000"]);
    assert_eq!(place.say(&["exec", "booted", "echo", "agent"]), "agent");
    let told: serde_json::Value = serde_json::from_str(&place.say(&["inspect", "booted"])).unwrap();
    let parts = told[0]["Confinement"].as_array().unwrap();
    let monitor = parts.iter().find(|part| part["Name"] == "duplex-vmm").unwrap()["Pid"].to_string();
    let (own, all) = own_and_all(&monitor, "/initramfs.cpio");
    assert!(all >= 1024 && own <= 64, "{own} KiB of the agent's {all} are the machine's own");
    let (own, all) = own_and_all(&monitor, "/vmlinux");
    assert!(all >= 6144 && own * 8 <= all, "{own} KiB of the kernel's {all} are the machine's own");
    place.say(&["rm", "-f", "booted"]);
    place.must_be_clean("a machine that booted");
}
