//! Memory that a sandbox costs the host, seen from outside.
//!
//! Counted are, for one `duplex run`, all processes below and including it (keeper, monitor or runtime, the container's processes): their
//! proportional set size (`Pss` of `/proc/PID/smaps_rollup`: private pages in full, shared ones in equal parts), which holds a microVM's
//! resident guest memory with the guest's kernel and page cache in it; and from the sandbox's cgroup what no process maps: pages of
//! tmpfs (`shmem` of `memory.stat`) and of the host kernel (`kernel`). The host's own page cache of image files is not counted: it is
//! shared and can be dropped at any time.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Memory at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySample {
    /// Sum of the processes' proportional set sizes.
    pub pss: u64,
    /// Pages of tmpfs that no process maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<u64>,
    /// Pages of the host's kernel on behalf of the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<u64>,
}

impl MemorySample {
    /// This and another's together.
    pub(super) fn and(self, other: Self) -> Self {
        let both = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (one, other) => one.or(other),
        };
        Self {
            pss: self.pss.saturating_add(other.pss),
            tmpfs: both(self.tmpfs, other.tmpfs),
            kernel: both(self.kernel, other.kernel),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.pss.saturating_add(self.tmpfs.unwrap_or(0)).saturating_add(self.kernel.unwrap_or(0))
    }
}

/// Reads what the kernel shows under `/proc` and `/sys/fs/cgroup`.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    proc: PathBuf,
    cgroup: PathBuf,
}

impl Default for Meter {
    fn default() -> Self {
        Self { proc: "/proc".into(), cgroup: "/sys/fs/cgroup".into() }
    }
}

impl Meter {
    /// What the processes from `root` down use now. `None` when not one of them could be read.
    pub(super) fn sample(&self, root: u32) -> Option<MemorySample> {
        let mut pss = None;
        let mut mapped_shmem = 0u64;
        let sandbox = self.sandbox_cgroup(root);
        for pid in self.family(root) {
            let Ok(text) = fs::read_to_string(self.proc.join(format!("{pid}/smaps_rollup"))) else { continue };
            let Some(own) = kib(&text, "Pss") else { continue };
            pss = Some(pss.unwrap_or(0u64).saturating_add(own));
            if sandbox.is_some() && self.cgroup_of(pid) == sandbox {
                mapped_shmem = mapped_shmem.saturating_add(kib(&text, "Pss_Shmem").unwrap_or(0));
            }
        }
        let stat = sandbox.and_then(|path| fs::read_to_string(self.cgroup.join(path).join("memory.stat")).ok());
        let counted = |key: &str| stat.as_deref().and_then(|text| counter(text, key));
        Some(MemorySample {
            pss: pss?,
            tmpfs: counted("shmem").map(|bytes| bytes.saturating_sub(mapped_shmem)),
            kernel: counted("kernel"),
        })
    }

    /// What the kernel believes could be given to new programs without swapping (`MemAvailable` of `/proc/meminfo`), in bytes.
    pub(super) fn available(&self) -> Option<u64> {
        kib(&fs::read_to_string(self.proc.join("meminfo")).ok()?, "MemAvailable")
    }

    /// A file of the cgroup of the sandbox that runs below `root`.
    pub(super) fn sandbox_file(&self, root: u32, name: &str) -> Option<String> {
        fs::read_to_string(self.cgroup.join(self.sandbox_cgroup(root)?).join(name)).ok()
    }

    /// The sandbox's cgroup, relative to the hierarchy's root: the one below `duplex/` that some process of the family is in.
    fn sandbox_cgroup(&self, root: u32) -> Option<PathBuf> {
        self.family(root)
            .into_iter()
            .filter_map(|pid| self.cgroup_of(pid))
            .find(|path| sandbox_of(path).is_some())
            .map(|path| sandbox_of(&path).unwrap_or(path))
    }

    /// The program of the first process in the sandbox below `root`.
    pub(super) fn program(&self, root: u32) -> Option<PathBuf> {
        fs::read_link(self.proc.join(self.first(root)?.to_string()).join("exe")).ok()
    }

    fn first(&self, root: u32) -> Option<u32> {
        let sandbox = self.sandbox_cgroup(root)?;
        self.family(root).into_iter().find(|pid| self.cgroup_of(*pid).as_ref() == Some(&sandbox))
    }

    /// Which of these kinds of namespaces the sandbox below `root` shares with this process, and the root directory of its first process here:
    /// the links below `/proc/PID` (namespaces(7), proc(5)).
    pub(super) fn shared(&self, root: u32, kinds: &[&str]) -> Option<(Vec<String>, PathBuf)> {
        let first = self.first(root)?;
        let link = |of: &str, kind: &str| fs::read_link(self.proc.join(of).join("ns").join(kind)).ok();
        let (first, mut shared) = (first.to_string(), Vec::new());
        for kind in kinds {
            if link(&first, kind)? == link("self", kind)? {
                shared.push((*kind).to_owned());
            }
        }
        Some((shared, fs::read_link(self.proc.join(first).join("root")).ok()?))
    }

    fn cgroup_of(&self, pid: u32) -> Option<PathBuf> {
        let text = fs::read_to_string(self.proc.join(format!("{pid}/cgroup"))).ok()?;
        let path = text.lines().find_map(|l| l.strip_prefix("0::/"))?;
        Some(sandbox_of(Path::new(path)).unwrap_or_else(|| path.into()))
    }

    /// The process and all its descendants, by the kernel's lists of children (`proc(5)`, `/proc/pid/task/tid/children`).
    fn family(&self, root: u32) -> BTreeSet<u32> {
        let mut found = BTreeSet::from([root]);
        let mut next = vec![root];
        while let Some(pid) = next.pop() {
            let Ok(tasks) = fs::read_dir(self.proc.join(format!("{pid}/task"))) else { continue };
            for task in tasks.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                next.extend(children.split_whitespace().filter_map(|c| c.parse().ok()).filter(|c| found.insert(*c)));
            }
        }
        found
    }
}

/// `duplex/<id>` of a path in or below it.
fn sandbox_of(path: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = path.components().collect();
    let at = parts.iter().position(|p| p.as_os_str() == "duplex")?;
    parts.get(..at + 2).map(|parts| parts.iter().collect())
}

/// The value of a `Key:   123 kB` line, in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The value of a `key 123` line.
fn counter(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(root: &Path, pid: u32, children: &str, cgroup: &str, pss: u64, shmem: u64) {
        let dir = root.join(format!("proc/{pid}/task/{pid}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("children"), children).unwrap();
        let dir = root.join(format!("proc/{pid}"));
        fs::write(dir.join("cgroup"), format!("0::/{cgroup}\n")).unwrap();
        let rollup =
            format!("00400000-7fff [rollup]\nRss: 9999 kB\nPss:    {pss} kB\nPss_Dirty: 1 kB\nPss_Shmem: {shmem} kB\n");
        fs::write(dir.join("smaps_rollup"), rollup).unwrap();
    }

    #[test]
    fn a_sandbox_is_its_processes_and_what_its_cgroup_holds_besides() {
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), 10, "11 12 ", "user", 1000, 7);
        process(dir.path(), 11, "", "duplex/0123456789ab/payload", 300, 20);
        process(dir.path(), 12, "13", "user", 50, 0);
        process(dir.path(), 13, "", "user", 5, 0);
        process(dir.path(), 99, "", "duplex/ffffffffffff", 100_000, 0);
        let cgroup = dir.path().join("cgroup/duplex/0123456789ab");
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("memory.stat"), "anon 1\nshmem 1048576\nkernel_stack 5\nkernel 65536\n").unwrap();
        fs::write(cgroup.join("memory.max"), "max\n").unwrap();
        let meter = Meter { proc: dir.path().join("proc"), cgroup: dir.path().join("cgroup") };
        let sample = meter.sample(10).unwrap();
        assert_eq!(sample, MemorySample { pss: 1355 * 1024, tmpfs: Some(1_048_576 - 20 * 1024), kernel: Some(65_536) });
        assert_eq!(sample.total(), 1355 * 1024 + 1_048_576 - 20 * 1024 + 65_536);
        assert_eq!(meter.sandbox_file(10, "memory.max").as_deref(), Some("max\n"));
        assert_eq!(meter.sample(12).unwrap(), MemorySample { pss: 55 * 1024, tmpfs: None, kernel: None });
        assert_eq!(meter.sample(4711), None, "what is not there is absent, not zero");
        assert_eq!(meter.available(), None);
        fs::write(dir.path().join("proc/meminfo"), "MemTotal:  4096 kB\nMemAvailable:    3072 kB\n").unwrap();
        assert_eq!(meter.available(), Some(3 << 20));
    }

    #[test]
    fn namespaces_are_the_hosts_or_not() {
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), 10, "11", "user", 1, 0);
        process(dir.path(), 11, "", "duplex/0123456789ab/payload", 1, 0);
        let link = |of: &str, name: &str, to: &str| {
            let path = dir.path().join("proc").join(of).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, path).unwrap();
        };
        for (kind, of_first, ours) in [("pid", "pid:[2]", "pid:[1]"), ("net", "net:[7]", "net:[7]")] {
            link("11", &format!("ns/{kind}"), of_first);
            link("self", &format!("ns/{kind}"), ours);
        }
        link("11", "root", "/run/image");
        let meter = Meter { proc: dir.path().join("proc"), cgroup: dir.path().join("cgroup") };
        assert_eq!(meter.shared(10, &["pid", "net"]), Some((vec!["net".to_owned()], "/run/image".into())));
        assert_eq!(meter.shared(10, &["pid", "uts"]), None, "what is not seen is not proved");
        assert_eq!(meter.shared(11, &["pid"]).unwrap().0, [""; 0]);
        assert_eq!(meter.shared(4711, &["pid"]), None);
    }

    #[test]
    fn samples_add_up_and_what_one_lacks_is_the_others() {
        let sample = |pss, tmpfs, kernel| MemorySample { pss, tmpfs, kernel };
        let sum = sample(5, Some(1), None).and(sample(7, Some(2), Some(3)));
        assert_eq!((sum, sum.total()), (sample(12, Some(3), Some(3)), 18));
    }

    #[test]
    fn this_very_process_has_memory() {
        let sample = Meter::default().sample(std::process::id());
        assert!(sample.is_none_or(|s| s.pss > 100 << 10), "{sample:?}");
    }
}
