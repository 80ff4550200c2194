//! One sandbox: what to run, where, and how it ended.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DeviceRate, Digest, Limits, MountSpec, NetworkSpec, ProcessSpec, SandboxId, Security, Sysctl, Tmpfs};

/// Which kind of walls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A virtual machine with its own kernel.
    MicroVm,
    /// Namespaces and cgroups of the host's kernel.
    Container,
    /// None: a plain process with a root directory of its own and the limits of a cgroup. An arm of `compare` and nothing else.
    Process,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MicroVm => "microvm",
            Self::Container => "container",
            Self::Process => "process",
        })
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "microvm" => Ok(Self::MicroVm),
            "container" => Ok(Self::Container),
            "process" => Ok(Self::Process),
            other => Err(format!("'{other}' is neither 'microvm' nor 'container'")),
        }
    }
}

/// Where the program of a command in the host's own root directory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramOf {
    /// The host: by the search path, as for any of its programs.
    Host,
    /// The image, which is nowhere else to be seen: it must need nothing but itself.
    Image,
}

impl fmt::Display for ProgramOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Image => "image",
        })
    }
}

impl FromStr for ProgramOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "image" => Ok(Self::Image),
            other => Err(format!("'{other}' is neither 'host' nor 'image'")),
        }
    }
}

/// Everything that decides what a sandbox is. Immutable once made, and kept as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Identity; names of host resources derive from it.
    pub id: SandboxId,
    /// The user's name for it.
    pub name: Option<String>,
    /// Kind of walls.
    pub isolation: Isolation,
    /// The reference as the user gave it.
    pub reference: String,
    /// Digest of the image's manifest in the store.
    pub image: Digest,
    /// What runs.
    pub process: ProcessSpec,
    /// Host name inside.
    pub hostname: String,
    /// Limits.
    pub limits: Limits,
    /// Rates of the host's block devices.
    #[serde(default)]
    pub devices: Vec<DeviceRate>,
    /// The root file system refuses writes.
    pub read_only: bool,
    /// Its first process is an init of ours, and the command that one's child.
    #[serde(default)]
    pub init: bool,
    /// The program in the built-in one's place: an OCI runtime (container), or QEMU (microVM).
    #[serde(default)]
    pub runtime: Option<PathBuf>,
    /// The command runs in the host's own root directory, and whose program it is there (process only).
    #[serde(default)]
    pub host_root: Option<ProgramOf>,
    /// Another guest kernel than the one installed (microVM only).
    pub kernel: Option<PathBuf>,
    /// Keep the guest's kernel log in this file (microVM only).
    pub kernel_log: Option<PathBuf>,
    /// Boot the guest kernel, even if there is a machine to go on from (microVM only).
    #[serde(default)]
    pub cold: bool,
    /// Go on from the machine that was saved in this file, as another sandbox (microVM only).
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// File systems in memory, in the order in which they are mounted. One at `/dev/shm` takes the place of the usual one.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Kernel parameters of its own namespaces.
    #[serde(default)]
    pub sysctls: Vec<Sysctl>,
    /// Its network.
    #[serde(default)]
    pub network: NetworkSpec,
    /// What is mounted beside the image, those above before those below.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// Its further walls.
    #[serde(default)]
    pub security: Security,
}

impl SandboxSpec {
    /// A sandbox of this image with this command and nothing else asked for: no limits, no network, a writable root, the host name `host`.
    pub fn plain(id: SandboxId, isolation: Isolation, image: Digest, process: ProcessSpec) -> Self {
        Self {
            id,
            name: None,
            isolation,
            reference: "image".to_owned(),
            image,
            process,
            hostname: "host".to_owned(),
            limits: Limits::default(),
            devices: Vec::new(),
            read_only: false,
            init: false,
            runtime: None,
            host_root: None,
            kernel: None,
            kernel_log: None,
            cold: false,
            from: None,
            tmpfs: Vec::new(),
            sysctls: Vec::new(),
            network: NetworkSpec::default(),
            mounts: Vec::new(),
            security: Security::default(),
        }
    }

    /// The rate of writes to some device is limited.
    pub fn limits_writes(&self) -> bool {
        self.devices.iter().any(DeviceRate::limits_writes)
    }
}

/// Where the parts of Duplex and its data are on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// The `duplex` program itself.
    pub duplex: PathBuf,
    /// The monitor program.
    pub monitor: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest's initial RAM file system, with the agent in it.
    pub initramfs: PathBuf,
    /// The embedded image, an OCI archive.
    pub workloads: PathBuf,
    /// Root of the image store.
    pub store: PathBuf,
    /// Folder of running sandboxes, one folder each; gone after a reboot.
    pub state: PathBuf,
}

/// Life of a sandbox.
///
/// ```text
///              Paused
///              |    ^
///              v    |
/// Created -> Running -> Exited
///        \______________^
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Resources exist, nothing runs.
    Created,
    /// The command runs.
    Running,
    /// It would run, and is stopped where it is.
    Paused,
    /// The command, or the sandbox around it, has ended.
    Exited,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
    /// It could not be executed (permission, format): Docker's 126.
    CannotExecute,
    /// It was not found: Docker's 127.
    NotFound,
    /// The sandbox ended around it (panic, reset, triple fault, monitor failure): Docker's 125.
    SandboxFailed,
}

impl Exit {
    /// The code that `duplex run` exits with.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
            Self::SandboxFailed => 125,
            Self::CannotExecute => 126,
            Self::NotFound => 127,
        }
    }
}

/// An [`Exit`] with what a person should know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// The kernel killed a process of the sandbox for want of memory.
    pub oom: bool,
    /// A sentence for stderr where the code alone does not tell: a panic's words, why a command could not be executed.
    pub reason: Option<String>,
}

/// What a sandbox uses now. What a backend cannot measure is `None`, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of host memory charged to the sandbox's cgroup.
    pub memory_bytes: Option<u64>,
    /// Highest value that `memory_bytes` had.
    pub memory_peak_bytes: Option<u64>,
    /// Processor time, microseconds, user and system.
    pub cpu_usec: Option<u64>,
    /// Processes and threads on the host.
    pub pids: Option<u64>,
}
