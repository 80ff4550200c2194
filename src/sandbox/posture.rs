//! How confined the processes of a live sandbox are, as this host's kernel says it (proc(5)): its keeper, the monitor and its file servers or what
//! runs in a container, and what makes its connections.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroup;
use crate::spec::SandboxId;

/// Most processes that are looked at.
const MOST: usize = 64;

/// Most threads, and most descriptors, that are told of a process: how many a container's have is theirs to choose.
const MOST_ENTRIES: usize = 1024;

/// Namespaces by their names in `/proc/PID/ns`.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// Sets of capabilities by their names in `/proc/PID/status`.
const CAPABILITIES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// What a process is to its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Keeps it, to its end.
    Keeper,
    /// Is in its cgroup: a monitor, file servers, or what runs in a container.
    Sandbox,
    /// Makes its connections.
    Network,
}

impl Part {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Keeper => "keeper",
            Self::Sandbox => "sandbox",
            Self::Network => "network",
        }
    }
}

/// One process. What the kernel does not tell to the asker is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posture {
    /// What it is to its sandbox.
    pub part: Part,
    /// Its number on this host.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its effective user and group on this host.
    pub user: Option<u32>,
    /// As above.
    pub group: Option<u32>,
    /// Its sets of capabilities, by the kernel's names: each has what any of its threads has.
    pub capabilities: BTreeMap<&'static str, u64>,
    /// None of its threads can gain rights by executing a program.
    pub no_new_privs: Option<bool>,
    /// Seccomp's mode of each of its threads, by the thread's number: 2 is a filter.
    pub seccomp: BTreeMap<u32, u8>,
    /// Namespaces that are not this process's.
    pub own_namespaces: Option<Vec<&'static str>>,
    /// Its root has nothing in it.
    pub empty_root: Option<bool>,
    /// Its descriptors and what they are.
    pub descriptors: Option<BTreeMap<u32, PathBuf>>,
}

/// The processes of a sandbox now, with the keeper that it has. None if it does not run.
pub fn postures(id: &SandboxId, keeper: Option<u32>) -> Vec<Posture> {
    let of = |cgroup: Cgroup| cgroup.processes().unwrap_or_default();
    let parts = [
        (Part::Keeper, keeper.into_iter().collect()),
        (Part::Sandbox, of(Cgroup::of(id))),
        (Part::Network, of(Cgroup::of_network(id))),
    ];
    let processes = parts.into_iter().flat_map(|(part, pids)| pids.into_iter().map(move |pid| (part, pid)));
    processes.take(MOST).filter_map(|(part, pid)| Posture::of(part, pid)).collect()
}

impl Posture {
    /// `None` if the process is gone.
    fn of(part: Part, pid: u32) -> Option<Self> {
        let place = PathBuf::from(format!("/proc/{pid}"));
        let status = Status::read(&place)?;
        let threads = numbers(&place.join("task")).unwrap_or_default();
        let threads = threads.into_iter().filter_map(|number| {
            let status = Status::read(&place.join(format!("task/{number}")))?;
            Some((number, status))
        });
        let threads: Vec<(u32, Status)> = threads.collect();
        let seccomp = threads.iter().filter_map(|(number, status)| {
            let mode = status.number("Seccomp")?.try_into().ok()?;
            Some((*number, mode))
        });
        let any_has =
            |name: &str| threads.iter().filter_map(|(_, status)| status.set(name)).reduce(|all, set| all | set);
        let no_new_privs = threads.iter().map(|(_, status)| status.number("NoNewPrivs").map(|n| n == 1));
        let descriptors = numbers(&place.join("fd")).map(|all| {
            let named = |fd: u32| Some((fd, fs::read_link(place.join(format!("fd/{fd}"))).ok()?));
            all.into_iter().filter_map(named).collect()
        });
        Some(Self {
            part,
            pid,
            name: status.word("Name", 0)?.to_owned(),
            user: status.word("Uid", 1).and_then(|word| word.parse().ok()),
            group: status.word("Gid", 1).and_then(|word| word.parse().ok()),
            capabilities: CAPABILITIES.into_iter().filter_map(|name| Some((name, any_has(name)?))).collect(),
            no_new_privs: no_new_privs.reduce(|all, this| Some(all? && this?)).flatten(),
            seccomp: seccomp.collect(),
            own_namespaces: own_namespaces(&place),
            empty_root: fs::read_dir(place.join("root")).ok().map(|mut entries| entries.next().is_none()),
            descriptors,
        })
    }
}

/// Entries of a folder that are numbers, at most [`MOST_ENTRIES`]; `None` if it cannot be read.
fn numbers(folder: &Path) -> Option<Vec<u32>> {
    let entries = fs::read_dir(folder).ok()?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Some(numbers.take(MOST_ENTRIES).collect())
}

/// `None` if the kernel does not tell.
fn own_namespaces(place: &Path) -> Option<Vec<&'static str>> {
    let mut own = Vec::new();
    for name in NAMESPACES {
        let theirs = fs::read_link(place.join("ns").join(name)).ok()?;
        if fs::read_link(format!("/proc/self/ns/{name}")).is_ok_and(|ours| ours != theirs) {
            own.push(name);
        }
    }
    Some(own)
}

/// `/proc/PID/status`: `Name:\tvalue...` lines.
struct Status(String);

impl Status {
    fn read(place: &Path) -> Option<Self> {
        fs::read_to_string(place.join("status")).ok().map(Self)
    }

    /// A word of the line with this name, from 0.
    fn word(&self, name: &str, at: usize) -> Option<&str> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().nth(at)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.word(name, 0)?.parse().ok()
    }

    fn set(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.word(name, 0)?, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_back() {
        let own = Posture::of(Part::Keeper, std::process::id()).unwrap();
        assert_eq!(own.user, Some(rustix::process::geteuid().as_raw()));
        assert_eq!(own.own_namespaces, Some(Vec::new()), "they are the asker's");
        assert_eq!(own.empty_root, Some(false));
        assert!(own.descriptors.unwrap().len() >= 3 && own.capabilities.len() == 5 && !own.seccomp.is_empty());
        assert_eq!(Posture::of(Part::Sandbox, u32::MAX), None);
    }

    #[test]
    fn no_more_is_told_than_a_person_reads() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MOST_ENTRIES {
            fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        fs::write(folder.path().join("name"), "").unwrap();
        assert_eq!(numbers(folder.path()).unwrap().len(), MOST_ENTRIES);
        assert_eq!(numbers(&folder.path().join("missing")), None);
    }
}
