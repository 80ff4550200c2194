//! What of this host weakens the walls between sandboxes, whatever Duplex does: flaws of the processor, settings and age of the kernel.
//!
//! Only what the kernel itself says is believed (Documentation/ABI/testing/sysfs-devices-system-cpu, admin-guide/hw-vuln). Inside a virtual machine
//! it speaks of the processor that it was given, and not of the host below.

use std::fs;
use std::path::Path;

use super::facts::has_flag;
use super::{Check, CheckStatus};

const FLAWS: &str = "sys/devices/system/cpu/vulnerabilities";

/// Words of a kernel's command line that take a defence away, as the beginning or as all of a word
/// (Documentation/admin-guide/kernel-parameters.txt).
const UNDEFENDED: [&str; 24] = [
    "mitigations=off",
    "nopti",
    "pti=off",
    "nospectre_v1",
    "nospectre_v2",
    "spectre_v2=off",
    "spectre_bhi=off",
    "spec_store_bypass_disable=off",
    "nospec_store_bypass_disable",
    "l1tf=off",
    "mds=off",
    "tsx_async_abort=off",
    "mmio_stale_data=off",
    "retbleed=off",
    "spec_rstack_overflow=off",
    "gather_data_sampling=off",
    "reg_file_data_sampling=off",
    "indirect_target_selection=off",
    "tsa=off",
    "vmscape=off",
    "srbds=off",
    "kvm.nx_huge_pages=off",
    "kvm.nx_huge_pages=never",
    "kvm-intel.vmentry_l1d_flush=never",
];

/// What a flaw of the processor lets a guest do, by the kernel's names of them.
const MEANINGS: [(&str, &str); 6] = [
    ("itlb_multihit", "a guest can stop the whole host"),
    ("l1tf", "a guest can read what lies in the level-1 cache of its core"),
    ("vmscape", "a guest can read the memory of its own monitor"),
    ("spec_store_bypass", "a program can read what it should not within its own process"),
    ("spectre_v1", "a program can read memory of the kernel it runs on"),
    ("meltdown", "a program can read memory of the kernel it runs on"),
];

/// Of those that are not named above.
const MEANING: &str = "what runs on a core can read some of what ran there before";

/// A hole of the kernel that crosses a wall.
struct Hole {
    name: &'static str,
    what: &'static str,
    /// First upstream release that has it.
    since: (u32, u32),
    /// First upstream release without it, and for older branches the first of them without, newest branch first.
    mended: &'static [(u32, u32, u32)],
}

/// Holes of kernels that Duplex runs on (5.15 and later) that led out of a container or through KVM and were used or shown to work.
const HOLES: [Hole; 7] = [
    Hole {
        name: "CVE-2022-0185",
        what: "root in a container becomes root of the host",
        since: (5, 1),
        mended: &[(5, 17, 0), (5, 16, 2), (5, 15, 16)],
    },
    Hole {
        name: "CVE-2022-0492",
        what: "root in a container can have the host run programs (cgroup v1)",
        since: (2, 6),
        mended: &[(5, 17, 0), (5, 16, 6), (5, 15, 20)],
    },
    Hole {
        name: "CVE-2022-0847",
        what: "any program can write to files that it may only read, an image's too",
        since: (5, 8),
        mended: &[(5, 17, 0), (5, 16, 11), (5, 15, 25)],
    },
    Hole {
        name: "CVE-2022-1158",
        what: "whoever may use /dev/kvm can write to the kernel's memory",
        since: (5, 2),
        mended: &[(5, 18, 0), (5, 17, 1), (5, 16, 18), (5, 15, 32)],
    },
    Hole {
        name: "CVE-2023-0386",
        what: "a user becomes root through overlayfs",
        since: (5, 11),
        mended: &[(6, 2, 0), (6, 1, 9), (5, 15, 91)],
    },
    Hole {
        name: "CVE-2023-32233",
        what: "root in a container with CAP_NET_ADMIN becomes root of the host",
        since: (3, 13),
        mended: &[(6, 4, 0), (6, 3, 2), (6, 2, 15), (6, 1, 28), (5, 15, 111)],
    },
    Hole {
        name: "CVE-2024-1086",
        what: "root in a container with CAP_NET_ADMIN becomes root of the host",
        since: (3, 15),
        mended: &[(6, 8, 0), (6, 7, 3), (6, 6, 15), (6, 1, 76), (5, 15, 149)],
    },
];

impl Hole {
    fn is_in(&self, (major, minor, patch): (u32, u32, u32)) -> bool {
        let branch = self.mended.iter().find(|(m, n, _)| (*m, *n) == (major, minor));
        let newest = self.mended.first().is_some_and(|(m, n, _)| (major, minor) >= (*m, *n));
        (major, minor) >= self.since && !newest && branch.is_none_or(|(_, _, first)| patch < *first)
    }
}

/// All checks of the host whose root folder this is.
pub fn checks(root: &Path) -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(root.join(path)).map(|text| text.trim().to_owned()).ok();
    let mut checks = vec![view(&read("proc/cpuinfo").unwrap_or_default())];
    checks.extend(flaws(&root.join(FLAWS)));
    checks.extend([
        command_line(&read("proc/cmdline").unwrap_or_default()),
        microcode(&read("proc/cpuinfo").unwrap_or_default(), read(&format!("{FLAWS}/old_microcode")).as_deref()),
        threads(read("sys/devices/system/cpu/smt/active").as_deref()),
        merging(read("sys/kernel/mm/ksm/run").as_deref()),
        bpf(read("proc/sys/kernel/unprivileged_bpf_disabled").as_deref()),
        addresses(read("proc/sys/kernel/kptr_restrict").as_deref()),
        device(&root.join("dev/kvm")),
        holes(&read("proc/version").unwrap_or_default(), &read("proc/version_signature").unwrap_or_default()),
    ]);
    checks
}

fn ok(name: &str, found: impl Into<String>) -> Check {
    Check::new(name, CheckStatus::Ok, found, None)
}

fn note(name: &str, found: impl Into<String>, mend: &str) -> Check {
    Check::new(name, CheckStatus::Warn, found, mend.to_owned())
}

fn view(cpuinfo: &str) -> Check {
    if has_flag(cpuinfo, "hypervisor") {
        let mend = "ask whoever runs the host below: its defences cannot be seen from here";
        return note("view", "this host is a virtual machine: what follows is what it was told", mend);
    }
    ok("view", "this host is no virtual machine")
}

/// One check for each flaw that is open, and one for all the others.
fn flaws(folder: &Path) -> Vec<Check> {
    let Ok(entries) = fs::read_dir(folder) else {
        let mend = "use Linux 5.15 or later with /sys mounted";
        return vec![note("processor flaws", "the kernel does not tell", mend)];
    };
    let mut all: Vec<(String, String)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, fs::read_to_string(entry.path()).ok()?)))
        .map(|(name, said)| (name, said.trim().to_owned()))
        .filter(|(name, _)| name != "old_microcode")
        .collect();
    all.sort();
    let open: Vec<_> = all.iter().filter(|(_, said)| is_open(said)).collect();
    let unaffected = all.iter().filter(|(_, said)| said.ends_with("Not affected") && !is_open(said)).count();
    let defended = all.len() - unaffected - open.len();
    let found = format!("{unaffected} not there, {defended} defended against, {} open", open.len());
    let mut checks = vec![match open.is_empty() {
        true => ok("processor flaws", found),
        false => note("processor flaws", found, "each that is open has a line of its own"),
    }];
    checks.extend(open.into_iter().map(|(name, said)| {
        let meaning = MEANINGS.iter().find(|(known, _)| known == name).map_or(MEANING, |(_, meaning)| meaning);
        let mend = format!("{meaning}; {}", mend_of(said));
        note(name, said.as_str(), &mend)
    }));
    checks
}

/// The kernel's words for a flaw that some defence does not cover.
fn is_open(said: &str) -> bool {
    said.contains("Vulnerable") || said.contains("SMT vulnerable") || said.contains("no microcode")
}

fn mend_of(said: &str) -> &'static str {
    if said.contains("no microcode") || said.contains("No microcode") {
        "install the processor's microcode (package intel-microcode or amd64-microcode) and reboot"
    } else if said.contains("SMT vulnerable") {
        "switch the second threads of all cores off (see SMT)"
    } else {
        "use the newest kernel and microcode, without a word on its command line that takes the defence away"
    }
}

fn command_line(cmdline: &str) -> Check {
    // To the kernel `-` and `_` are the same in a parameter's name.
    let same = |a: &str, b: &str| a.replace('-', "_") == b.replace('-', "_");
    let words = cmdline.split_whitespace().filter(|word| UNDEFENDED.iter().any(|known| same(known, word)));
    let words: Vec<&str> = words.collect();
    if words.is_empty() {
        return ok("command line", "takes no defence away");
    }
    note("command line", words.join(" "), "boot without these words")
}

fn microcode(cpuinfo: &str, old: Option<&str>) -> Check {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("microcode")).unwrap_or_default();
    let revision = line.trim_start_matches([' ', '\t', ':']);
    let revision = if revision.is_empty() { "unknown" } else { revision };
    match old {
        Some(said) if said.contains("Vulnerable") => {
            let mend = "install the package intel-microcode or amd64-microcode and reboot";
            note("microcode", format!("revision {revision}, which the kernel knows to be old"), mend)
        }
        Some(_) => ok("microcode", format!("revision {revision}, not known to be old")),
        None => ok("microcode", format!("revision {revision}; this kernel does not know which are old")),
    }
}

fn threads(active: Option<&str>) -> Check {
    match active {
        Some("1") => note(
            "SMT",
            "on: two sandboxes may run on one core at the same time",
            "where tenants do not trust each other: echo off | sudo tee /sys/devices/system/cpu/smt/control, or boot with nosmt",
        ),
        Some(_) => ok("SMT", "off"),
        None => note("SMT", "the kernel does not tell", "look at the firmware's settings"),
    }
}

fn merging(run: Option<&str>) -> Check {
    match run {
        Some("1") => note(
            "KSM",
            "on: the time a write takes tells a sandbox what pages others have, where a program asks for merging",
            "echo 2 | sudo tee /sys/kernel/mm/ksm/run",
        ),
        Some(_) => ok("KSM", "off"),
        None => ok("KSM", "not in this kernel"),
    }
}

fn bpf(disabled: Option<&str>) -> Check {
    match disabled {
        Some("0") => note(
            "unprivileged BPF",
            "any user may load programs into the kernel",
            "echo kernel.unprivileged_bpf_disabled=2 | sudo tee /etc/sysctl.d/bpf.conf, then sudo sysctl --system",
        ),
        Some(_) => ok("unprivileged BPF", "off"),
        None => ok("unprivileged BPF", "not in this kernel"),
    }
}

fn addresses(restrict: Option<&str>) -> Check {
    match restrict {
        Some("0") => note(
            "kernel addresses",
            "any program that /proc/kallsyms is shown to learns where the kernel lies",
            "echo kernel.kptr_restrict=1 | sudo tee /etc/sysctl.d/kptr.conf, then sudo sysctl --system",
        ),
        Some(_) => ok("kernel addresses", "hidden"),
        None => note("kernel addresses", "the kernel does not tell", "mount /proc"),
    }
}

/// Who may use KVM.
fn device(path: &Path) -> Check {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path).map(|about| about.mode()) {
        Ok(mode) if mode & 0o006 != 0 => note(
            "/dev/kvm",
            format!("mode {:o}: every user of this host reaches KVM's interface", mode & 0o777),
            "sudo chmod o-rw /dev/kvm, and put those who need it into the group kvm",
        ),
        Ok(mode) => ok("/dev/kvm", format!("mode {:o}", mode & 0o777)),
        Err(_) => ok("/dev/kvm", "not there"),
    }
}

/// The upstream release that a kernel is made from: distributions keep the first number of a branch and tell the rest elsewhere.
fn upstream(version: &str, signature: &str) -> Option<(u32, u32, u32)> {
    let triple = |text: &str| {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0)))
    };
    // "Ubuntu 5.15.0-91.101-generic 5.15.131"
    if let Some(last) = signature.split_whitespace().nth(2) {
        return triple(last);
    }
    // "Linux version 6.1.0-41-amd64 (...) #1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (...)"
    if let Some((_, debian)) = version.split_once(" Debian ") {
        return triple(debian);
    }
    let release = version.strip_prefix("Linux version ")?.split_whitespace().next()?;
    // Red Hat's kernels are their first release with thousands of changes.
    if release.contains(".el") { None } else { triple(release) }
}

fn holes(version: &str, signature: &str) -> Check {
    let Some(release @ (major, minor, patch)) = upstream(version, signature) else {
        let mend = "look for them in the changelog of the distribution's kernel";
        return note("kernel holes", format!("cannot tell from this version: {version}"), mend);
    };
    let open: Vec<String> =
        HOLES.iter().filter(|hole| hole.is_in(release)).map(|hole| format!("{} ({})", hole.name, hole.what)).collect();
    let known = HOLES.len();
    if open.is_empty() {
        return ok(
            "kernel holes",
            format!("none of the {known} that Duplex knows of is in Linux {major}.{minor}.{patch}"),
        );
    }
    let found = format!("Linux {major}.{minor}.{patch} has {}", open.join(", "));
    note(
        "kernel holes",
        found,
        "install the distribution's newest kernel and reboot, unless its changelog says that they are mended",
    )
}

#[cfg(test)]
#[path = "security/tests.rs"]
mod tests;
