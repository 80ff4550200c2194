//! The process that a sandbox runs.

use serde::{Deserialize, Serialize};

use crate::ProcessLimit;

/// A process as the image's config and the user's options say it (OCI runtime spec, "config.md", section "Process"). Names are not
/// resolved: user and groups are looked up in the image's own files, inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments; the program is looked up in the `PATH` of `env` inside the image.
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// Working folder; made if it is not there, as Docker does.
    pub cwd: String,
    /// `user[:group]` by name or number as in the image config's `User`; empty is root.
    pub user: String,
    /// A terminal of this size; stdout and stderr are one stream then.
    pub terminal: Option<TerminalSize>,
    /// Standard input is connected; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Capabilities the process keeps if it runs as root, and its bounding set.
    pub capabilities: Vec<Capability>,
    /// The process cannot gain privileges by set-user-id programs.
    pub no_new_privileges: bool,
    /// Resource limits in place of the defaults.
    #[serde(default)]
    pub limits: Vec<ProcessLimit>,
}

/// What a process's standard streams are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connected {
    /// Standard input is connected.
    pub stdin: bool,
    /// All are one terminal.
    pub terminal: bool,
}

impl ProcessSpec {
    /// Its streams.
    pub fn connected(&self) -> Connected {
        Connected { stdin: self.stdin, terminal: self.terminal.is_some() }
    }
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A Linux capability by number (`linux/capability.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability(pub u8);

impl Capability {
    /// Names in the order of their numbers, without `CAP_`.
    pub const NAMES: [&'static str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];

    /// The name without `CAP_`, if the number has one.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.get(usize::from(self.0)).copied()
    }
}

/// What Docker leaves a container by default: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
/// SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability(0),
    Capability(1),
    Capability(3),
    Capability(4),
    Capability(5),
    Capability(6),
    Capability(7),
    Capability(8),
    Capability(10),
    Capability(13),
    Capability(18),
    Capability(27),
    Capability(29),
    Capability(31),
];

/// Open files that a process may have, soft and hard limit: what systemd gives a service and Docker hands on since version 25. The other
/// resource limits are the kernel's defaults.
pub const DEFAULT_OPEN_FILES: (u64, u64) = (1024, 524_288);
