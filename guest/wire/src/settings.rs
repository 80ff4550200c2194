//! What a sandbox sets for its command beside the process itself: resource limits, file systems in memory, kernel parameters.

use serde::{Deserialize, Serialize};

/// A limit of each process (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimit {
    /// What is limited: the place of its name in [`ProcessLimit::NAMES`], which is its number (`asm-generic/resource.h`).
    pub resource: u8,
    /// What holds; `None` is no limit.
    pub soft: Option<u64>,
    /// What the process may raise it to.
    pub hard: Option<u64>,
}

impl ProcessLimit {
    /// Docker's names in the order of their numbers.
    pub const NAMES: [&'static str; 16] = [
        "cpu",
        "fsize",
        "data",
        "stack",
        "core",
        "rss",
        "nproc",
        "nofile",
        "memlock",
        "as",
        "locks",
        "sigpending",
        "msgqueue",
        "nice",
        "rtprio",
        "rttime",
    ];

    /// The resource's name, if the number has one.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.get(usize::from(self.resource)).copied()
    }
}

/// A file system in memory, empty at the start (tmpfs(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where; an absolute path without `.` and `..`, made if it is not there.
    pub path: String,
    /// tmpfs's own options, such as `size=64m,mode=1777`.
    pub options: String,
    /// Programs in it may be executed.
    pub exec: bool,
    /// Set-user-id counts.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// It refuses writes.
    pub read_only: bool,
}

/// A kernel parameter of the sandbox's own namespaces (sysctl(8)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Its name, such as `net.core.somaxconn`.
    pub name: String,
    /// What is written.
    pub value: String,
}

impl Sysctl {
    /// The file below `/proc/sys`.
    pub fn path(&self) -> String {
        self.name.replace('.', "/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        for (number, name) in [(7, "nofile"), (6, "nproc"), (4, "core"), (8, "memlock"), (15, "rttime")] {
            assert_eq!(ProcessLimit { resource: number, soft: None, hard: None }.name(), Some(name));
        }
        assert_eq!(ProcessLimit { resource: 16, soft: None, hard: None }.name(), None);
        assert_eq!(Sysctl { name: "net.core.somaxconn".into(), value: String::new() }.path(), "net/core/somaxconn");
    }
}
