//! The machine: what a report of numbers needs said about it.

use std::fs;

use serde::{Deserialize, Serialize};

/// Facts about this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The processor's own name.
    pub cpu_model: String,
    /// Logical processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Memory that new programs can have now, bytes.
    pub memory_available_bytes: u64,
    /// `uname -r`.
    pub kernel: String,
    /// The distribution's own name.
    pub distribution: String,
    /// This host is itself a virtual machine.
    pub virtual_machine: bool,
}

impl HostFacts {
    /// Reads them; what cannot be read is empty or 0.
    pub fn gather() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        Self {
            cpu_model: cpu_model(&cpuinfo),
            cpus: std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_bytes: memory(&meminfo, "MemTotal:"),
            memory_available_bytes: memory(&meminfo, "MemAvailable:"),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            distribution: distribution(&read("/etc/os-release")),
            virtual_machine: has_flag(&cpuinfo, "hypervisor"),
        }
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim().to_owned()).unwrap_or_default()
}

/// A flag of the processor (proc(5), cpuinfo).
pub(super) fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let line = cpuinfo.lines().find(|l| l.starts_with("flags"));
    line.is_some_and(|l| l.split_whitespace().any(|f| f == flag))
}

fn memory(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.and_then(|kib| kib.checked_mul(1024)).unwrap_or(0)
}

fn distribution(release: &str) -> String {
    let line = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map(|name| name.trim_matches('"').to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_the_kernels_words() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu hypervisor svm\n";
        assert_eq!(cpu_model(cpuinfo), "A CPU @ 2 GHz");
        assert!(has_flag(cpuinfo, "svm") && !has_flag(cpuinfo, "vmx"));
        assert_eq!(memory("MemTotal:       1024 kB\nMemAvailable: 512 kB\n", "MemAvailable:"), 512 << 10);
        assert_eq!(memory("", "MemTotal:"), 0);
        assert_eq!(distribution("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }

    #[test]
    fn this_machine_has_a_processor_and_memory() {
        let facts = HostFacts::gather();
        assert!(facts.cpus > 0 && facts.memory_bytes > 0 && !facts.kernel.is_empty(), "{facts:?}");
    }
}
