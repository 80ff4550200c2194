//! What an arm reaches of the host while its command runs, counted and read: the host's system calls, exits of its virtual processors, what a
//! set-user-id program gains in it, and the folders of the host that it may write to. It is counted in a run of its own, so that no time is one of
//! a run that was watched so closely.

pub(super) mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::spec::Isolation;
use crate::sys::counts::PAIRS;

/// What of itself a sandbox shows for this, one behind the other.
pub(super) const INSIDE: [&str; 3] = ["/proc/self/status", "/proc/self/mountinfo", "/proc/self/uid_map"];

/// What one arm reaches. What could not be measured is absent, and `not_measured` says why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// System calls of the host's kernel by the processes of the sandbox's cgroup, from the first program on that was executed there to their end:
    /// the command and what it starts, or the monitor of a microVM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_calls: Option<Counts>,
    /// Exits of its virtual processors to the host, by reason. Absent in an arm without a virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_exits: Option<Counts>,
    /// Functions of the host's kernel that its processes, as in `system_calls`, were in, by name, if that was asked for; what interrupts did meanwhile is among it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_functions: Option<Counts>,
    /// What a program that is set-user-id root gains in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_user_id: Option<SetUserId>,
    /// Where it may write to file systems that are the host's: the mounts that share their superblock with one of the host's and are not read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable_host_paths: Option<Vec<String>>,
    /// What was not measured, and why, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_measured: Vec<String>,
}

/// Events by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// How many.
    pub total: u64,
    /// How many different ones.
    pub distinct: u64,
    /// How many of each: system calls by their numbers on x86-64, exits by the processor's name for their reason.
    pub by_kind: BTreeMap<String, u64>,
    /// How many of the total are missing in `by_kind`: the kernel's table of kinds was full, so that there are more different ones than `distinct`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub unsorted: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Counts {
    /// Of these, and so many of which the kind is not known.
    pub fn of(by_kind: BTreeMap<String, u64>, unsorted: u64) -> Self {
        let total = by_kind.values().fold(unsorted, |sum: u64, count| sum.saturating_add(*count));
        Self { total, distinct: by_kind.len() as u64, by_kind, unsorted }
    }

    /// What is not known of these events, if anything, in a sentence.
    pub(super) fn without_kinds(&self, what: &str) -> Option<String> {
        let full = || {
            format!(
                "the kinds of {} {what}: the table of {PAIRS} kinds, of all sandboxes together, was full",
                self.unsorted
            )
        };
        (self.unsorted > 0).then(full)
    }

    /// The most frequent ones, so many.
    pub(super) fn most(&self, count: usize) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self.by_kind.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        all.truncate(count);
        all
    }
}

/// What a program that is set-user-id root gains when another user executes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUserId {
    /// It becomes root at all: processes may gain privileges and the root file system heeds the bit.
    pub becomes_root: bool,
    /// Capabilities that it then has: those of the bounding set, or none.
    pub capabilities: u32,
    /// The host's root, not one of a kernel or a user namespace of the sandbox's own.
    pub of_host: bool,
}

/// Devices of every container (OCI runtime-spec, config-linux.md, "Default Devices"), where they are not its own nodes but mounts of the host's. What
/// is written to them is in no file system.
const NODES: [&str; 6] = ["/null", "/zero", "/full", "/tty", "/random", "/urandom"];

/// One line of `/proc/PID/mountinfo` (proc(5)).
struct Mounted<'a> {
    device: &'a str,
    /// What of its file system is mounted.
    root: &'a str,
    kind: &'a str,
    at: &'a str,
    options: &'a str,
    super_options: &'a str,
}

fn mounts(text: &str) -> impl Iterator<Item = Mounted<'_>> {
    text.lines().filter_map(|line| {
        let (own, file_system) = line.split_once(" - ")?;
        let own: Vec<&str> = own.split(' ').collect();
        let [_, _, device, root, at, options, ..] = own.as_slice() else { return None };
        device.contains(':').then_some(())?;
        let mut words = file_system.split(' ');
        Some(Mounted { device, root, kind: words.next()?, at, options, super_options: words.nth(1)? })
    })
}

fn has(options: &str, word: &str) -> bool {
    options.split(',').any(|option| option == word)
}

/// What a sandbox of this isolation says of itself ([`INSIDE`]), beside the host's own `mountinfo`.
pub(super) fn read(inside: &str, isolation: Isolation, host: &str) -> (Option<SetUserId>, Option<Vec<String>>) {
    let value = |key: &str| inside.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()));
    let mounted: Vec<Mounted<'_>> = mounts(inside).collect();
    let own_kernel = isolation == Isolation::MicroVm;
    let root = mounted.iter().rfind(|mount| mount.at == "/");
    let set_user_id = || {
        let gains = value("NoNewPrivs")? == "0" && !has(root?.options, "nosuid");
        let bounding = u64::from_str_radix(value("CapBnd")?, 16).ok()?;
        let capabilities = if gains { bounding.count_ones() } else { 0 };
        Some(SetUserId { becomes_root: gains, capabilities, of_host: !own_kernel && !has_users(inside) })
    };
    if own_kernel {
        // Numbers of devices are those of its kernel, and none is the host's.
        return (set_user_id(), root.map(|_| Vec::new()));
    }
    let hosts: BTreeSet<&str> = mounts(host).map(|mount| mount.device).collect();
    let writable = |mount: &&Mounted<'_>| {
        let node = mount.kind == "devtmpfs" && NODES.contains(&mount.root);
        hosts.contains(mount.device) && !node && !has(mount.options, "ro") && !has(mount.super_options, "ro")
    };
    let paths = || mounted.iter().filter(writable).map(|mount| mount.at.to_owned()).collect();
    (set_user_id(), root.filter(|_| !hosts.is_empty()).map(|_| paths()))
}

/// Whether its user 0 is another on the host, by a line of `/proc/self/uid_map` (user_namespaces(7)).
fn has_users(inside: &str) -> bool {
    inside.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().map_while(|number| number.parse().ok()).collect();
        matches!(numbers[..], [0, first, count] if first != 0 && line.split_whitespace().count() == 3 && count != 0)
    })
}

/// Where in an event of KVM's `kvm_exit` its reason and its instruction set are, by the tracepoint's `format` (trace/events.rst).
pub(super) fn places(format: &str) -> Option<(i16, i16)> {
    let place = |name: &str| {
        let field = format.lines().find(|line| line.split(';').next().is_some_and(|f| f.trim_end().ends_with(name)))?;
        let number = |key: &str| field.split(';').find_map(|part| part.trim().strip_prefix(key)?.parse::<i16>().ok());
        (number("size:")? == 4).then(|| number("offset:"))?
    };
    Some((place(" exit_reason")?, place(" isa")?))
}

/// A reason for an exit in the words of the processor's maker. `code` has the instruction set in its upper half: 1 is VMX, 2 is SVM.
pub(super) fn exit_reason(code: u64) -> String {
    let (isa, reason) = (code >> 32, code & u64::from(u32::MAX));
    let names = if isa == 2 { SVM } else { VMX };
    let known = names.iter().find(|(number, _)| *number == reason).map(|(_, name)| (*name).to_owned());
    known.unwrap_or_else(|| format!("{}:{reason:#x}", if isa == 2 { "svm" } else { "vmx" }))
}

/// AMD64 Architecture Programmer's Manual, volume 2, appendix C.
const SVM: &[(u64, &str)] = &[
    (0x4e, "page fault"),
    (0x60, "interrupt"),
    (0x61, "nmi"),
    (0x64, "interrupt window"),
    (0x6e, "rdtsc"),
    (0x72, "cpuid"),
    (0x77, "pause"),
    (0x78, "hlt"),
    (0x7b, "port i/o"),
    (0x7c, "msr"),
    (0x7f, "shutdown"),
    (0x81, "hypercall"),
    (0x89, "wbinvd"),
    (0x8d, "xsetbv"),
    (0x400, "nested page fault"),
];

/// Intel 64 Software Developer's Manual, volume 3, appendix C.
const VMX: &[(u64, &str)] = &[
    (0, "exception or nmi"),
    (1, "interrupt"),
    (2, "shutdown"),
    (7, "interrupt window"),
    (10, "cpuid"),
    (12, "hlt"),
    (18, "hypercall"),
    (28, "control register"),
    (30, "port i/o"),
    (31, "msr read"),
    (32, "msr write"),
    (40, "pause"),
    (44, "apic access"),
    (48, "nested page fault"),
    (49, "nested page misconfigured"),
    (52, "preemption timer"),
    (54, "wbinvd"),
    (55, "xsetbv"),
    (56, "apic write"),
];

/// The id of a cgroup, by which the kernel's programs know it: the inode's number of its folder.
pub(super) fn cgroup_id(folder: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(folder)?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw\n25 1 254:0 / / rw - ext4 /dev/vda rw\n";

    fn inside(root: &str, more: &str) -> String {
        format!(
            "Name:\tcat\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\n90 80 0:44 / / {root} - overlay duplex rw\n{more}"
        )
    }

    #[test]
    fn what_is_writable_and_the_hosts_is_found() {
        let more = "91 90 0:20 / /sys ro - sysfs sysfs rw\n92 90 254:0 /srv /data rw shared:1 - ext4 /dev/vda rw\n\
            95 90 0:20 /null /proc/kcore rw - devtmpfs udev rw\n93 90 254:0 /etc /conf rw - ext4 /dev/vda ro\n94 90 0:50 / /dev rw - tmpfs tmpfs rw\n";
        let paths = |isolation| read(&inside("rw", more), isolation, HOST).1;
        assert_eq!(paths(Isolation::Container), Some(vec!["/data".to_owned()]));
        assert_eq!(paths(Isolation::MicroVm), Some(vec![]), "its kernel's numbers are not the host's");
        assert_eq!(read("", Isolation::Container, HOST), (None, None), "what is not said is not known");
        assert_eq!(read(&inside("rw", more), Isolation::Container, "").1, None);
    }

    #[test]
    fn set_user_id_programs_gain_what_is_not_taken_away() {
        let gains = |text: &str, isolation| read(text, isolation, HOST).0.unwrap();
        let found = |becomes_root, capabilities, of_host| SetUserId { becomes_root, capabilities, of_host };
        let usual = inside("rw,nodev", "");
        assert_eq!(gains(&usual, Isolation::Container), found(true, 14, true));
        assert_eq!(gains(&usual, Isolation::MicroVm), found(true, 14, false));
        assert_eq!(gains(&inside("rw,nosuid", ""), Isolation::Container), found(false, 0, true));
        let of_users = |map: &str| gains(&inside("rw,nodev", map), Isolation::Container);
        assert_eq!(of_users("         0 2013265920      65536\n"), found(true, 14, false));
        assert_eq!(of_users("         0          0 4294967295\n"), found(true, 14, true));
        let none = usual.replace("NoNewPrivs:\t0", "NoNewPrivs:\t1");
        assert_eq!(gains(&none, Isolation::Container), found(false, 0, true));
    }

    #[test]
    fn exits_have_the_names_of_the_processor() {
        let format = "name: kvm_exit\nID: 1337\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
            \tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;\n\
            \tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;\n\
            \tfield:u32 isa;\toffset:24;\tsize:4;\tsigned:0;\n\nprint fmt: \"exit_reason\"\n";
        assert_eq!(places(format), Some((8, 24)));
        assert_eq!(places(&format.replace(" isa", " other")), None);
        assert_eq!(places(&format.replace("offset:24;\tsize:4", "offset:24;\tsize:8")), None);
        let reasons = [0x2_0000_0078, 0x1_0000_000c, 0x2_0000_0400, 0x1_0000_0030, 0x2_0000_0999];
        assert_eq!(reasons.map(exit_reason), ["hlt", "hlt", "nested page fault", "nested page fault", "svm:0x999"]);
    }

    #[test]
    fn counts_add_up() {
        let counts =
            |unsorted| Counts::of([("1", 5), ("0", 9), ("7", 5)].map(|(k, n)| (k.to_owned(), n)).into(), unsorted);
        assert_eq!((counts(3).total, counts(3).distinct, counts(3).unsorted), (22, 3, 3));
        let words = "the kinds of 3 exits: the table of 32768 kinds, of all sandboxes together, was full";
        assert_eq!(counts(3).without_kinds("exits").unwrap(), words);
        let counts = counts(0);
        assert_eq!(counts.without_kinds("exits"), None);
        assert_eq!((counts.total, counts.distinct), (19, 3));
        assert_eq!(counts.most(2), [("0", 9), ("1", 5)]);
    }
}
