//! What the host was when the samples were taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Facts that decide how fast things are here. What the host does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The samples were taken in the lab: emulated hardware.
    pub lab: bool,
    /// Kind of KVM: `hardware`, `lab` (emulated), `software`, `none`.
    pub kvm: String,
    /// Model of the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Processors online.
    pub cpus: usize,
    /// The host is itself a virtual machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<bool>,
    /// Memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Release of the host's kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Name of the host's system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Version of the cgroup hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<u8>,
    /// Clock source of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clocksource: Option<String>,
    /// Transparent huge pages: the chosen setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
    /// Vulnerabilities of the processor and what the kernel does about them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub mitigations: BTreeMap<String, String>,
    /// Load of the last minute when the comparison began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_1m: Option<f64>,
}

/// Reads the facts from `/proc`, `/sys` and `/etc` below `root`. `kvm` and `lab` are the caller's to know.
pub fn host_facts(root: &Path, kvm: &str, lab: bool) -> HostFacts {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let line = |path: &str| read(path).map(|t| t.trim().to_owned());
    let cpuinfo = read("proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, key: &str| {
        text.lines().find_map(|l| l.strip_prefix(key)?.trim_start().strip_prefix(':').map(|v| v.trim().to_owned()))
    };
    let memory = read("proc/meminfo").and_then(|t| field(&t, "MemTotal"));
    let os = read("etc/os-release")
        .and_then(|t| t.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=").map(|v| v.trim_matches('"').to_owned())));
    HostFacts {
        lab,
        kvm: kvm.to_owned(),
        cpu_model: field(&cpuinfo, "model name"),
        cpus: cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
        hypervisor: field(&cpuinfo, "flags").map(|flags| flags.split(' ').any(|f| f == "hypervisor")),
        memory_bytes: memory.and_then(|m| m.split(' ').next()?.parse::<u64>().ok()?.checked_mul(1024)),
        kernel: line("proc/sys/kernel/osrelease"),
        os,
        cgroup: cgroup_version(root),
        clocksource: line("sys/devices/system/clocksource/clocksource0/current_clocksource"),
        huge_pages: line("sys/kernel/mm/transparent_hugepage/enabled")
            .and_then(|t| Some(t.split_once('[')?.1.split_once(']')?.0.to_owned())),
        mitigations: mitigations(&root.join("sys/devices/system/cpu/vulnerabilities")),
        load_1m: line("proc/loadavg").and_then(|t| t.split(' ').next()?.parse().ok()),
    }
}

fn cgroup_version(root: &Path) -> Option<u8> {
    let cgroup = root.join("sys/fs/cgroup");
    if cgroup.join("cgroup.controllers").exists() { Some(2) } else { cgroup.join("memory").exists().then_some(1) }
}

fn mitigations(dir: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|e| {
            let text = fs::read_to_string(e.path()).ok()?;
            Some((e.file_name().into_string().ok()?, text.trim().to_owned()))
        })
        .filter(|(_, text)| text != "Not affected")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_and_what_is_not_told_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu hypervisor sse\n\nprocessor\t: 1\n",
        );
        write("proc/meminfo", "MemTotal:       2048 kB\n");
        write("proc/loadavg", "0.25 0.1 0.1 1/100 999\n");
        write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        write("sys/devices/system/cpu/vulnerabilities/mds", "Mitigation: Clear buffers\n");
        write("sys/devices/system/cpu/vulnerabilities/l1tf", "Not affected\n");
        write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        let facts = host_facts(dir.path(), "hardware", false);
        assert_eq!((facts.cpus, facts.cpu_model.as_deref()), (2, Some("Fast CPU")));
        assert_eq!((facts.hypervisor, facts.memory_bytes, facts.cgroup), (Some(true), Some(2 << 20), Some(2)));
        assert_eq!((facts.huge_pages.as_deref(), facts.load_1m), (Some("madvise"), Some(0.25)));
        assert_eq!(facts.mitigations.len(), 1);
        assert_eq!((facts.kernel, facts.os), (None, None));
    }
}
