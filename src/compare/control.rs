//! Proof that an arm is what it says: an own kernel or the host's, and the limits in force. An arm without the proof is refused.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{Arm, Plan};
use super::venv::{self, Python};
use crate::spec::{Isolation, MIB};

/// The files that a sandbox shows of itself for the proof, and what [`Evidence::from_inside`] reads.
pub(super) const INSIDE: [&str; 4] =
    ["/proc/sys/kernel/random/boot_id", "/proc/self/status", "/proc/meminfo", "/proc/cpuinfo"];

/// The same of a sandbox whose kernel is an outside runtime's and knows no boot id.
pub(super) const INSIDE_RUNTIME: [&str; 4] = ["/proc/version", INSIDE[1], INSIDE[2], INSIDE[3]];

/// Kinds of namespaces that a container has of its own and a plain process has not, with whatever network.
pub(super) const NAMESPACES: [&str; 4] = ["pid", "net", "uts", "ipc"];

/// Kinds of namespaces of which an arm's are looked at: what runs in the host's own root directory has its mounts too, and a container has users of
/// its own, unless an outside runtime makes it.
pub(super) fn namespaces(arm: &Arm) -> Vec<&'static str> {
    let users = arm.isolation == Isolation::Container && arm.runtime.is_none();
    NAMESPACES.into_iter().chain(arm.venv.is_some().then_some("mnt")).chain(users.then_some("user")).collect()
}

/// What was seen of one sandbox. What could not be seen is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Boot id inside.
    pub boot_id: Option<String>,
    /// Release of the kernel that answers inside.
    pub release: Option<String>,
    /// Process id of the command inside.
    pub pid: Option<u32>,
    /// `MemTotal` inside, in bytes.
    pub memory_total: Option<u64>,
    /// Processors inside.
    pub processors: Option<u32>,
    /// `memory.max` of the sandbox's cgroup, in bytes.
    pub memory_max: Option<u64>,
    /// `cpu.max` of the sandbox's cgroup, in thousandths of a processor.
    pub cpu_max: Option<u64>,
    /// Seccomp's mode of a process inside: 2 is a filter of system calls (proc(5), `Seccomp`).
    pub seccomp: Option<u8>,
    /// Its capabilities (`CapEff`).
    pub effective: Option<u64>,
    /// It gains no privileges (`NoNewPrivs`).
    pub no_new_privileges: Option<bool>,
    /// Which of [`NAMESPACES`] are the host's.
    pub shared: Option<Vec<String>>,
    /// Its root directory, as the host calls it.
    pub root: Option<PathBuf>,
    /// The program of its first process on this host, links resolved, where another than the built-in one is to make the machine.
    pub program: Option<PathBuf>,
    /// The Python that answers, where a virtual environment is compared.
    pub python: Option<Python>,
}

impl Evidence {
    /// Reads the contents of [`INSIDE`] or [`INSIDE_RUNTIME`], one behind the other.
    pub fn from_inside(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix(':')?.split_whitespace().next().map(str::to_owned))
        };
        let uuid = |l: &&str| l.len() == 36 && l.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        let processors = text.lines().filter(|l| l.starts_with("processor") && l.contains(':')).count();
        Self {
            boot_id: text.lines().find(uuid).map(str::to_owned),
            release: text
                .lines()
                .find_map(|line| line.strip_prefix("Linux version ")?.split(' ').next().map(str::to_owned)),
            pid: value("Pid").and_then(|v| v.parse().ok()),
            memory_total: value("MemTotal").and_then(|v| v.parse::<u64>().ok()?.checked_mul(1024)),
            processors: u32::try_from(processors).ok().filter(|n| *n > 0),
            memory_max: None,
            cpu_max: None,
            seccomp: value("Seccomp").and_then(|v| v.parse().ok()),
            effective: value("CapEff").and_then(|v| u64::from_str_radix(&v, 16).ok()),
            no_new_privileges: value("NoNewPrivs").map(|v| v == "1"),
            shared: None,
            root: None,
            program: None,
            python: None,
        }
    }

    /// Adds the contents of the sandbox's `memory.max` and `cpu.max` (cgroup v2, "Controllers").
    pub fn with_limits(mut self, memory_max: Option<&str>, cpu_max: Option<&str>) -> Self {
        self.memory_max = memory_max.and_then(|t| t.trim().parse().ok());
        self.cpu_max = cpu_max.and_then(|t| {
            let (quota, period) = t.trim().split_once(' ')?;
            quota.parse::<u64>().ok()?.checked_mul(1000)?.checked_div(period.parse().ok()?)
        });
        self
    }
}

/// Names in a list, or that there are none.
fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// One proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// What is proved.
    pub name: String,
    /// What must be.
    pub expected: String,
    /// What is.
    pub found: String,
    /// Whether that is as it must be.
    pub passed: bool,
}

fn control<T: std::fmt::Display>(
    name: &str,
    expected: String,
    found: Option<T>,
    holds: impl Fn(&T) -> bool,
) -> Control {
    let passed = found.as_ref().is_some_and(holds);
    let found = found.map_or_else(|| "not seen".to_owned(), |f| f.to_string());
    Control { name: name.to_owned(), expected, found, passed }
}

/// The proofs of a microVM on a host with this boot id.
fn of_machine(arm: &Arm, plan: &Plan, host: &str, evidence: &Evidence) -> Vec<Control> {
    let (boot_id, memory) = (evidence.boot_id.clone(), plan.memory.0);
    let all = format!("{} to {memory} bytes in all", memory / 2);
    let mut proofs = vec![
        control("own kernel", format!("a boot id that is not {host}"), boot_id, |id| id != host),
        control("memory", all, evidence.memory_total, |total| {
            (memory / 2..=memory.next_multiple_of(MIB)).contains(total)
        }),
        control("processors", plan.cpus.ceil().to_string(), evidence.processors, |n| *n == plan.cpus.ceil()),
    ];
    proofs.extend(arm.runtime.as_deref().map(|program| {
        let program = program.canonicalize().unwrap_or_else(|_| program.to_owned()).display().to_string();
        let found = evidence.program.as_deref().map(|found| found.display().to_string());
        control("machine by", program.clone(), found, |found| *found == program)
    }));
    proofs
}

/// The proofs of this arm, on a host with this boot id and kernel's release.
pub(super) fn controls(
    arm: &Arm,
    plan: &Plan,
    (host_boot_id, host_release): (&str, Option<&str>),
    evidence: &Evidence,
) -> Vec<Control> {
    let boot_id = evidence.boot_id.clone();
    let host = host_boot_id.trim().to_owned();
    let memory = plan.memory.0;
    let cpus = u64::from(plan.cpus.0);
    let limits = || {
        let near = |limit: &u64, least: u64| limit.abs_diff(memory) < least;
        [
            control("memory limit", format!("{memory} bytes"), evidence.memory_max, |max| near(max, 64 << 10)),
            control("processor limit", format!("{cpus} thousandths"), evidence.cpu_max, |max| max.abs_diff(cpus) <= 1),
        ]
    };
    let shared = evidence.shared.as_deref().map(listed);
    match arm.isolation {
        Isolation::MicroVm => of_machine(arm, plan, &host, evidence),
        Isolation::Container => {
            let kernel = if arm.brings_kernel() {
                let expected = format!("a release that is not {}", host_release.unwrap_or("known"));
                let differs = |release: &String| host_release.is_some_and(|host| host != release);
                control("own kernel", expected, evidence.release.clone(), differs)
            } else {
                control("host's kernel", format!("boot id {host}"), boot_id, |id| *id == host)
            };
            let mut proofs = vec![
                kernel,
                control("own process ids", "process 1".to_owned(), evidence.pid, |pid| *pid == 1),
                control("host's namespaces", "none".to_owned(), shared, |names| names == "none"),
            ];
            proofs.extend(limits());
            if arm.hardened {
                proofs
                    .push(control("system calls", "mode 2, a filter".to_owned(), evidence.seccomp, |mode| *mode == 2));
                proofs.push(control("capabilities", "0".to_owned(), evidence.effective, |set| *set == 0));
                let gains = evidence.no_new_privileges;
                proofs.push(control("no new privileges", "true".to_owned(), gains, |none| *none));
            }
            proofs
        }
        Isolation::Process => {
            let all: Vec<String> = namespaces(arm).into_iter().map(str::to_owned).collect();
            let root = evidence.root.as_deref().map(Path::display);
            let mut proofs = vec![
                control("host's kernel", format!("boot id {host}"), boot_id, |id| *id == host),
                control("host's namespaces", listed(&all), shared, |names| *names == listed(&all)),
                match arm.venv {
                    None => control("own root directory", "not /".to_owned(), root, |root| root.to_string() != "/"),
                    Some(_) => control("host's root directory", "/".to_owned(), root, |root| root.to_string() == "/"),
                },
                control("system calls", "mode 0, no filter".to_owned(), evidence.seccomp, |mode| *mode == 0),
            ];
            proofs.extend(limits());
            proofs.extend(arm.venv.as_ref().map(|venv| venv::control(venv, evidence)));
            proofs
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const BOOT_ID: &str = "0d1a0b3c-1111-2222-3333-444455556666";

    fn plan() -> Plan {
        super::super::drive::tests::plan()
    }

    fn text(boot_id: &str, pid: u32, kib: u64) -> String {
        format!(
            "{boot_id}\nName:\tcat\nPid:\t{pid}\nNSpid:\t99\t{pid}\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\nMemTotal:  {kib} kB\nprocessor\t: 0\nmodel name\t: x\n"
        )
    }

    fn failed(isolation: Isolation, evidence: &Evidence) -> Vec<String> {
        let arm = arm(isolation);
        controls(&arm, &plan(), (BOOT_ID, None), evidence).into_iter().filter(|c| !c.passed).map(|c| c.name).collect()
    }

    /// As a container: with namespaces of its own.
    fn apart(text: &str) -> Evidence {
        Evidence { shared: Some(Vec::new()), root: Some("/".into()), ..Evidence::from_inside(text) }
    }

    fn arm(isolation: Isolation) -> Arm {
        Arm {
            name: "a".into(),
            isolation,
            kernel: None,
            read_only: false,
            cold: false,
            hardened: false,
            runtime: None,
            venv: None,
        }
    }

    #[test]
    fn a_microvm_has_its_own_kernel_and_size() {
        let other = BOOT_ID.replace('0', "9");
        let good = Evidence::from_inside(&text(&other, 7, 490_000));
        assert_eq!(failed(Isolation::MicroVm, &good), [""; 0]);
        let host = Evidence::from_inside(&text(BOOT_ID, 7, 24_000_000));
        assert_eq!(failed(Isolation::MicroVm, &host), ["own kernel", "memory"]);
        assert_eq!(failed(Isolation::MicroVm, &Evidence::default()), ["own kernel", "memory", "processors"]);
    }

    #[test]
    fn a_hardened_container_has_no_rights() {
        let arm = Arm { hardened: true, ..arm(Isolation::Container) };
        let failed = |text: &str| {
            let evidence = apart(text).with_limits(Some("536870912"), Some("100000 100000"));
            let failed = controls(&arm, &plan(), (BOOT_ID, None), &evidence).into_iter().filter(|c| !c.passed);
            failed.map(|c| c.name).collect::<Vec<_>>()
        };
        let ordinary = text(BOOT_ID, 1, 1);
        assert_eq!(failed(&ordinary), ["capabilities", "no new privileges"]);
        let hardened = ordinary.replace("a80425fb", "00000000").replace("NoNewPrivs:\t0", "NoNewPrivs:\t1");
        assert_eq!(failed(&hardened), [""; 0]);
        assert_eq!(failed(&hardened.replace("Seccomp:\t2", "Seccomp:\t0")), ["system calls"]);
        assert_eq!(failed(&hardened.replace("CapEff", "Other")), ["capabilities"], "what is not seen is not proved");
    }

    #[test]
    fn a_container_has_the_hosts_kernel_own_pids_and_limits() {
        let inside = apart(&text(BOOT_ID, 1, 24_000_000));
        let good = inside.clone().with_limits(Some("536870912\n"), Some("100000 100000\n"));
        assert_eq!(failed(Isolation::Container, &good), [""; 0]);
        let unlimited = inside.with_limits(Some("max\n"), Some("max 100000\n"));
        assert_eq!(failed(Isolation::Container, &unlimited), ["memory limit", "processor limit"]);
        let host = apart(&text(BOOT_ID, 4711, 1)).with_limits(Some("536870912"), Some("50000 50000"));
        assert_eq!(failed(Isolation::Container, &host), ["own process ids"]);
        let shared =
            |names: &[&str]| Evidence { shared: Some(names.iter().map(|n| (*n).to_owned()).collect()), ..good.clone() };
        assert_eq!(failed(Isolation::Container, &shared(&["net"])), ["host's namespaces"]);
    }

    #[test]
    fn a_runtimes_own_kernel_has_another_release() {
        let arm = Arm { runtime: Some("/opt/runsc".into()), ..arm(Isolation::Container) };
        let failed = |text: &str, host: Option<&str>| {
            let evidence = apart(text).with_limits(Some("536870912"), Some("100000 100000"));
            let failed = controls(&arm, &plan(), (BOOT_ID, host), &evidence).into_iter().filter(|c| !c.passed);
            failed.map(|c| c.name).collect::<Vec<_>>()
        };
        let inside = format!("Linux version 4.4.0 #1 SMP\n{}", text("-", 1, 1));
        assert_eq!(failed(&inside, Some("6.12.1-amd64")), [""; 0]);
        assert_eq!(failed(&inside, Some("4.4.0")), ["own kernel"]);
        assert_eq!(failed(&inside, None), ["own kernel"], "what is not known cannot differ");
        assert_eq!(failed(&text(BOOT_ID, 7, 1), Some("6.12.1-amd64")), ["own kernel", "own process ids"]);
    }

    #[test]
    fn a_plain_process_has_nothing_of_its_own_but_root_directory_and_limits() {
        let inside = text(BOOT_ID, 4711, 24_000_000).replace("Seccomp:\t2", "Seccomp:\t0");
        let evidence = |kinds: &[&str], root: &str| {
            let shared = Some(kinds.iter().map(|kind| (*kind).to_owned()).collect());
            let inside = Evidence { shared, root: Some(root.into()), ..Evidence::from_inside(&inside) };
            inside.with_limits(Some("536870912\n"), Some("100000 100000\n"))
        };
        assert_eq!(failed(Isolation::Process, &evidence(&NAMESPACES, "/run/image")), [""; 0]);
        assert_eq!(failed(Isolation::Process, &evidence(&NAMESPACES, "/")), ["own root directory"]);
        assert_eq!(failed(Isolation::Process, &evidence(&["pid", "net", "uts"], "/x")), ["host's namespaces"]);
        let venv = Arm { venv: Some("/env".into()), ..arm(Isolation::Process) };
        let failed_of = |arm: &Arm, evidence: &Evidence| {
            let controls = controls(arm, &plan(), (BOOT_ID, None), evidence).into_iter().filter(|c| !c.passed);
            controls.map(|c| c.name).collect::<Vec<_>>()
        };
        let python = |prefix: &str| Some(Python { version: "3.11.2".into(), prefix: prefix.into(), uid: 0 });
        let on_host = evidence(&["pid", "net", "uts", "ipc", "mnt"], "/");
        assert_eq!(failed_of(&venv, &Evidence { python: python("/env"), ..on_host.clone() }), [""; 0]);
        assert_eq!(failed_of(&venv, &Evidence { python: python("/usr"), ..on_host.clone() }), ["Python's prefix"]);
        assert_eq!(failed_of(&venv, &on_host), ["Python's prefix"], "what does not answer is not proved");
        let in_image = Evidence { python: python("/env"), ..evidence(&NAMESPACES, "/run/image") };
        assert_eq!(failed_of(&venv, &in_image), ["host's namespaces", "host's root directory"]);
        let blind = failed(Isolation::Process, &Evidence::default());
        let all = [
            "host's kernel",
            "host's namespaces",
            "own root directory",
            "system calls",
            "memory limit",
            "processor limit",
        ];
        assert_eq!(blind, all, "what is not seen is not proved");
    }
}
