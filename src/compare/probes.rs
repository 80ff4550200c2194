//! What the walls of an arm let through: first steps of known ways out of a sandbox, and what its programs learn of the host. The embedded image's
//! `probe` takes the steps and says what happened; here is known what a step means, and what it reached.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::spec::Isolation;

/// What a step that is let through reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// What namespaces or the sandbox itself make its own in both isolations.
    Own,
    /// The kernel below: the host's for a container, its own for a microVM.
    Kernel,
    /// What is no sandbox's, whichever kernel it has.
    Outside,
}

/// One step: its name, what is tried and why it matters, and what it reaches.
struct Step(&'static str, &'static str, Reach);

/// One thing that can be learnt: its name, what it is, file and the word before the value in its line.
struct Fact(&'static str, &'static str, &'static str, &'static str);

use Reach::{Kernel, Outside, Own};

const STEPS: [Step; 44] = [
    Step("bpf", "make a BPF map: the verifier and its maps, as in CVE-2021-31440 and CVE-2023-2163", Kernel),
    Step("io-uring", "make a ring of asynchronous I/O, as in CVE-2022-29582 and CVE-2023-2598", Kernel),
    Step("userfaultfd", "handle its own page faults, which stretches races in the kernel", Kernel),
    Step("perf", "count events of itself, as in CVE-2013-2094 and CVE-2023-5717", Kernel),
    Step(
        "keyring",
        "look for its session's keyring, as in CVE-2016-0728: keyrings know no namespaces of containers",
        Kernel,
    ),
    Step("user-namespace", "become root of a user namespace: the door to most holes for those without rights", Kernel),
    Step("mount-namespace", "make a mount namespace: the first step to mounts of its own", Kernel),
    Step("file-system", "begin to mount a file system, as in CVE-2022-0185 and CVE-2023-0386", Kernel),
    Step("handle", "open a file by its number on the disk, past every path, as in the 'shocker' of 2014", Kernel),
    Step("ldt", "read its table of segments (modify_ldt), as in CVE-2017-17053", Kernel),
    Step("splice", "move a page of a file into a pipe, as in CVE-2022-0847 ('dirty pipe')", Kernel),
    Step(
        "crypto-socket",
        "open a socket to the kernel's ciphers (AF_ALG), as in CVE-2011-4081 and CVE-2025-38079",
        Kernel,
    ),
    Step("vsock", "open a socket between machines (AF_VSOCK), as in CVE-2021-26708", Kernel),
    Step("netfilter", "speak to the packet filter (nf_tables), as in CVE-2023-32233 and CVE-2024-1086", Kernel),
    Step(
        "packet-socket",
        "open a raw socket on its network (AF_PACKET), as in CVE-2020-14386; forges what its network allows",
        Kernel,
    ),
    Step("module", "load a kernel module", Kernel),
    Step("kexec", "replace the kernel", Kernel),
    Step("reboot", "restart the machine", Kernel),
    Step("clock", "set the clock", Kernel),
    Step("kernel-log", "ask for the kernel's log: addresses and what others did", Kernel),
    Step("ports", "use the processor's I/O ports", Kernel),
    Step("swap", "swap to a file", Kernel),
    Step("accounting", "write down every process that ends", Kernel),
    Step("real-time", "run before all others (SCHED_FIFO)", Kernel),
    Step(
        "core-pattern",
        "open /proc/sys/kernel/core_pattern for writing: the program that the kernel starts as root at a crash",
        Kernel,
    ),
    Step("modprobe", "open /proc/sys/kernel/modprobe for writing: a program that the kernel starts as root", Kernel),
    Step(
        "uevent-helper",
        "open /sys/kernel/uevent_helper for writing: a program that the kernel starts as root",
        Kernel,
    ),
    Step(
        "binary-formats",
        "open binfmt_misc's register for writing: a program for files of a kind, on the whole machine",
        Kernel,
    ),
    Step("sysrq", "open /proc/sysrq-trigger for writing: restarts, crashes, kills", Kernel),
    Step("cgroup", "open its cgroup for writing: limits, and release_agent as in CVE-2022-0492", Kernel),
    Step(
        "program-of-first",
        "open the program of process 1 for writing, as in CVE-2019-5736: the image's own here, not the runtime",
        Own,
    ),
    Step("kernel-memory", "read of /proc/kcore: all memory", Kernel),
    Step("kernel-addresses", "read the kernel's addresses (/proc/kallsyms), which exploits need", Kernel),
    Step("memory-device", "open /dev/mem", Kernel),
    Step("log-device", "open /dev/kmsg", Kernel),
    Step("disk", "make a device node of the first disk and open it", Kernel),
    Step("kvm", "open /dev/kvm, as in CVE-2021-29657", Kernel),
    Step("fuse", "open /dev/fuse: file systems that stretch races in the kernel", Kernel),
    Step("trace-a-child", "trace a child of its own (ptrace)", Own),
    Step("host-processes", "see threads of the kernel among the processes", Kernel),
    Step("left-descriptors", "find open files that the runtime left it, as in CVE-2024-21626", Outside),
    Step("container-engine", "reach the socket of a container engine", Outside),
    Step("metadata", "reach 169.254.169.254, where a cloud gives out its keys", Outside),
    Step(
        "host-loopback",
        "reach a program that listens on the host's loopback alone, by the loopback or the gateway",
        Outside,
    ),
];

const FACTS: [Fact; 10] = [
    Fact("boot-id", "which start of which machine it is", "/proc/sys/kernel/random/boot_id", ""),
    Fact("kernel-release", "which kernel it is, and so which holes are open", "/proc/sys/kernel/osrelease", ""),
    Fact("kernel-build", "which build of it", "/proc/sys/kernel/version", ""),
    Fact("kernel-command-line", "how it was started", "/proc/cmdline", ""),
    Fact("processor-model", "the processor's model", "/proc/cpuinfo", "model name"),
    Fact(
        "processor-holes",
        "what is done against the processor's holes",
        "/sys/devices/system/cpu/vulnerabilities/spectre_v2",
        "",
    ),
    Fact("memory-size", "how much memory the machine has", "/proc/meminfo", "MemTotal:"),
    Fact("last-disk", "number, size and name of its last disk", "/proc/partitions", "\n"),
    Fact("machine", "the machine's maker's name for it", "/sys/class/dmi/id/product_name", ""),
    Fact("paths-of-host", "where on the host the image lies", "/proc/self/mountinfo", "lowerdir="),
];

/// What a sandbox's programs reach by a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// Nothing: it is refused, or there is nothing.
    Blocked,
    /// What is the sandbox's own: its own kernel, its own namespaces, what differs from the host's.
    Contained,
    /// The host's kernel, or what is the host's.
    Reachable,
}

impl Reached {
    /// In tables.
    pub fn words(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Contained => "contained",
            Self::Reachable => "reachable",
        }
    }
}

/// One probe of one arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// What it reached.
    pub reached: Reached,
    /// What the sandbox said: an error's words or the value that it read; nothing when the step was let through.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub found: String,
}

/// What the program says is not what it should say.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProbesError {
    /// A probe is missing.
    #[error("the probe '{0}' said nothing")]
    Missing(String),
    /// A line is none of a probe's.
    #[error("'{0}' is not what a probe says")]
    Line(String),
}

/// What the probe of this name tries, and why it matters. `None` if there is none of this name.
pub(super) fn meaning(name: &str) -> Option<&'static str> {
    let steps = STEPS.iter().map(|step| (step.0, step.1));
    steps.chain(FACTS.iter().map(|fact| (fact.0, fact.1))).find(|(known, _)| *known == name).map(|(_, meaning)| meaning)
}

/// Reads what `probe` printed in a sandbox with the walls of this isolation. `host` is the root of the host's files, for what it is compared with.
pub(super) fn probes(text: &str, isolation: Isolation, host: &Path) -> Result<Vec<Probe>, ProbesError> {
    let mut said = text.lines().map(|line| line.split_once(' ').ok_or_else(|| ProbesError::Line(line.to_owned())));
    let names = STEPS.iter().map(|step| step.0).chain(FACTS.iter().map(|fact| fact.0));
    let mut found = Vec::new();
    for expected in names {
        let (name, words) = said.next().ok_or_else(|| ProbesError::Missing(expected.to_owned()))??;
        if name != expected {
            return Err(ProbesError::Missing(expected.to_owned()));
        }
        let (what, value) = words.split_once(' ').unwrap_or((words, ""));
        let (reached, found_words) = match what {
            "passed" => (let_through(name, isolation), String::new()),
            "refused" => (Reached::Blocked, refusal(value)),
            "told" => (told(name, value, host), value.to_owned()),
            _ => return Err(ProbesError::Line(format!("{name} {words}"))),
        };
        found.push(Probe { name: name.to_owned(), reached, found: found_words });
    }
    match said.next() {
        Some(line) => Err(ProbesError::Line(line?.0.to_owned())),
        None => Ok(found),
    }
}

fn refusal(number: &str) -> String {
    number.parse().map_or_else(|_| number.to_owned(), |number| std::io::Error::from_raw_os_error(number).to_string())
}

/// A microVM's kernel is its own: its boot id was proved to be another than the host's.
fn let_through(name: &str, isolation: Isolation) -> Reached {
    let reach = STEPS.iter().find(|step| step.0 == name).map(|step| step.2);
    match (reach, isolation) {
        (Some(Own), Isolation::MicroVm | Isolation::Container) | (Some(Kernel), Isolation::MicroVm) => {
            Reached::Contained
        }
        _ => Reached::Reachable,
    }
}

/// The host's own value is the host's; another is not. A path of the host is the host's wherever its kernel keeps the mounts.
fn told(name: &str, value: &str, host: &Path) -> Reached {
    let Some(Fact(_, _, path, key)) = FACTS.iter().find(|fact| fact.0 == name) else { return Reached::Reachable };
    let hosts = if name == "paths-of-host" {
        value.split([':', ',', ' ']).next().is_some_and(|folder| host.join(folder.trim_start_matches('/')).is_dir())
    } else {
        fact(&host.join(path.trim_start_matches('/')), key).is_some_and(|own| own == value)
    };
    if hosts { Reached::Reachable } else { Reached::Contained }
}

/// As `probe` reads it.
fn fact(path: &Path, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = match key {
        "" => text.lines().next()?,
        "\n" => text.lines().last()?,
        key => text.lines().find(|line| line.contains(key))?.split(key).nth(1)?,
    };
    Some(line.split_whitespace().collect::<Vec<_>>().join(" ").trim_start_matches(": ").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sandbox says that lets every step through and tells what this host has.
    pub(crate) fn everything(refuse: &[&str]) -> String {
        let steps = STEPS
            .iter()
            .map(|s| if refuse.contains(&s.0) { format!("{} refused 1\n", s.0) } else { format!("{} passed\n", s.0) });
        let facts = FACTS.iter().map(|f| match fact(Path::new(f.2), f.3) {
            Some(value) if f.0 != "paths-of-host" => format!("{} told {value}\n", f.0),
            _ => format!("{} refused 2\n", f.0),
        });
        steps.chain(facts).collect()
    }

    fn by_name<'a>(probes: &'a [Probe], name: &str) -> &'a Probe {
        probes.iter().find(|p| p.name == name).unwrap()
    }

    #[test]
    fn names_are_unique_and_have_a_meaning() {
        let mut names: Vec<&str> = STEPS.iter().map(|s| s.0).chain(FACTS.iter().map(|f| f.0)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(names.iter().all(|name| meaning(name).is_some_and(|words| words.len() > 10)));
        assert_eq!(meaning("other"), None);
    }

    #[test]
    fn what_is_let_through_is_reachable_where_the_kernel_is_the_hosts() {
        let text = everything(&["bpf"]);
        let container = probes(&text, Isolation::Container, Path::new("/")).unwrap();
        let vm = probes(&text, Isolation::MicroVm, Path::new("/")).unwrap();
        let both = |name| (by_name(&container, name).reached, by_name(&vm, name).reached);
        assert_eq!(both("bpf"), (Reached::Blocked, Reached::Blocked));
        assert!(by_name(&vm, "bpf").found.contains("not permitted"), "{:?}", by_name(&vm, "bpf"));
        assert_eq!(both("io-uring"), (Reached::Reachable, Reached::Contained));
        assert_eq!(both("trace-a-child"), (Reached::Contained, Reached::Contained));
        assert_eq!(both("host-loopback"), (Reached::Reachable, Reached::Reachable), "no kernel makes that its own");
        assert_eq!(both("boot-id"), (Reached::Reachable, Reached::Reachable), "it is this host's");
    }

    #[test]
    fn a_value_that_differs_from_the_hosts_is_the_sandboxs() {
        let host = tempfile::tempdir().unwrap();
        let release = host.path().join("proc/sys/kernel/osrelease");
        std::fs::create_dir_all(release.parent().unwrap()).unwrap();
        std::fs::write(release, "6.1\n").unwrap();
        assert_eq!(told("kernel-release", "6.1", host.path()), Reached::Reachable);
        assert_eq!(told("kernel-release", "6.12", host.path()), Reached::Contained);
        assert_eq!(told("boot-id", "x", host.path()), Reached::Contained, "the host does not tell its own");
        std::fs::create_dir_all(host.path().join("store/blobs")).unwrap();
        assert_eq!(told("paths-of-host", "/store/blobs:/store/more,upperdir=/x", host.path()), Reached::Reachable);
        assert_eq!(told("paths-of-host", "/base,upperdir=/x", host.path()), Reached::Contained);
    }

    #[test]
    fn what_is_missing_or_too_much_is_told() {
        let text = everything(&[]);
        let read = |text: &str| probes(text, Isolation::MicroVm, Path::new("/")).unwrap_err();
        assert_eq!(read(&text.replace("perf passed\n", "")), ProbesError::Missing("perf".into()));
        assert_eq!(read("bpf"), ProbesError::Line("bpf".into()));
        assert_eq!(read(&text.replace("bpf passed", "bpf danced")), ProbesError::Line("bpf danced".into()));
        assert_eq!(read(&(text.clone() + "more passed\n")), ProbesError::Line("more".into()));
        assert_eq!(read(""), ProbesError::Missing("bpf".into()));
    }
}
