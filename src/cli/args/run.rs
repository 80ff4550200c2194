//! `duplex run`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{HealthArgs, RateArgs};
use crate::spec::{Cpus, Isolation, MemorySize, MemorySwap, NetworkChoice, ProgramOf, Restart};

/// Run an image as a microVM or as a container
#[derive(Args, Clone, Debug)]
#[command(
    disable_help_flag = true,
    after_help = "Exit codes: the command's own; 125 Duplex failed, 126 the command cannot be executed, \
    127 it was not found, 128+n signal n ended it."
)]
pub(crate) struct RunArgs {
    /// Kind of walls: microvm or container
    #[arg(long, value_name = "KIND", default_value = "microvm")]
    pub isolation: Isolation,
    /// Remove the sandbox when its command has ended
    #[arg(long)]
    pub rm: bool,
    /// Go on in the background and print the sandbox's id
    #[arg(short, long)]
    pub detach: bool,
    /// What connects the command
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Working folder inside
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group inside, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Program in place of the image's entrypoint; empty clears it
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Limits
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Rates
    #[command(flatten)]
    pub rates: RateArgs,
    /// Mount a volume, or a folder or file of the host; /path alone is a new volume
    #[arg(short, long, value_name = "[SOURCE:]/PATH[:ro|rw,nocopy]")]
    pub volume: Vec<String>,
    /// The same in words: type=volume|bind|tmpfs,source=,target=,readonly,volume-nocopy,tmpfs-size=,tmpfs-mode=
    #[arg(long, value_name = "NAME=VALUE,...")]
    pub mount: Vec<String>,
    /// Run an init as the first process, which hands signals on to the command and reaps what it leaves behind
    #[arg(long)]
    pub init: bool,
    /// Refuse writes to the root file system
    #[arg(long)]
    pub read_only: bool,
    /// Mount a file system in memory; again for more
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<MemorySize>,
    /// Limit of each process, such as nofile=1024:2048; again for more
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Kernel parameter of the sandbox's own, such as net.core.somaxconn=1024; again for more
    #[arg(long, value_name = "NAME=VALUE")]
    pub sysctl: Vec<String>,
    /// The image's platform, which must be linux/amd64
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Name of the sandbox
    #[arg(long)]
    pub name: Option<String>,
    /// Host name inside [default: the sandbox's id]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Write the sandbox's id to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Set labels from a file of NAME[=VALUE] lines
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Start again when the command has ended: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: Restart,
    /// Signal that asks the command to end [default: the image's, else SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds from that signal to SIGKILL
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub stop_timeout: u32,
    /// Health checks
    #[command(flatten)]
    pub health: HealthArgs,
    /// Where output is kept: local, or none
    #[arg(long, value_name = "DRIVER", default_value = "local")]
    pub log_driver: String,
    /// How much of it: max-size=SIZE of one file [default: 4m], max-file=N files [default: 3]
    #[arg(long, value_name = "NAME=VALUE")]
    pub log_opt: Vec<String>,
    /// Network: user (connections by a process of this host's), none, host (container), or bridge:NAME (also those of the same NAME)
    #[arg(long, visible_alias = "network", value_name = "KIND", default_value = "user")]
    pub net: NetworkChoice,
    /// Hand a port of this host on: 8080:80, 127.0.0.1:53:53/udp, 8000-8009:8000-8009
    #[arg(short, long, value_name = "[ADDR:][HOST:]PORT[/udp]")]
    pub publish: Vec<String>,
    /// Ask this name server, not the host's
    #[arg(long, value_name = "ADDR")]
    pub dns: Vec<IpAddr>,
    /// Add a line to /etc/hosts; host-gateway is an address at which this host's own loopback is then open
    #[arg(long, value_name = "NAME:ADDR")]
    pub add_host: Vec<String>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// As in Docker: seccomp=FILE, seccomp=unconfined (container); no-new-privileges
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub security_opt: Vec<String>,
    /// No capabilities, no new privileges, fewer system calls, Landlock, users of its own (container)
    #[arg(long)]
    pub hardened: bool,
    /// Whose users its users are: in a user namespace its own, or the host's (container) [default: private; host with --net host]
    #[arg(long, value_enum, value_name = "MODE")]
    pub userns: Option<Users>,
    /// When to fetch the image
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub pull: PullPolicy,
    /// Boot this uncompressed x86-64 vmlinux (microVM)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Keep the guest kernel's log in this file (microVM)
    #[arg(long, value_name = "FILE")]
    pub kernel_log: Option<PathBuf>,
    /// Boot the guest kernel, and do not go on from a machine that has booted before (microVM)
    #[arg(long)]
    pub cold: bool,
    /// The program of an arm of 'compare': an OCI runtime (container), or QEMU (microVM)
    #[arg(long, value_name = "FILE", hide = true)]
    pub runtime: Option<PathBuf>,
    /// Run an arm of 'compare' in the host's root directory, by a program of the host or of the image (process)
    #[arg(long, value_name = "host|image", hide = true)]
    pub host_root: Option<ProgramOf>,
    /// Write the moments of the start to this file as JSON
    #[arg(long, value_name = "FILE", hide = true)]
    pub trace: Option<PathBuf>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
    /// The image and the command to run in it
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<String>,
}

/// Streams, terminal and environment of a command, whether it is a sandbox's first or a further one.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProcessArgs {
    /// Keys that leave an attached terminal without ending its command
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
    /// Connect standard input; without it the command reads end of file
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable; NAME alone passes the caller's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set variables from a file of NAME[=VALUE] lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
}

/// Limits of a sandbox.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct LimitArgs {
    /// Memory: the machine's size of a microVM [default: 512m], the limit of a container [default: none]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// Memory and swap together, -1 for all swap of the host [default: twice the memory]; a microVM has no swap
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_swap: Option<MemorySwap>,
    /// Processors, such as 1.5 [default: 1 for a microVM, no limit for a container]
    #[arg(long, value_name = "N")]
    pub cpus: Option<Cpus>,
    /// Share of processor time where others want it too, 2 to 262144 [default: 1024]
    #[arg(short, long, value_name = "N")]
    pub cpu_shares: Option<u32>,
    /// Most processes at once; -1 is no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
}

/// Who the users of a container are on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Users {
    /// The same numbers.
    Host,
    /// Users that own nothing.
    Private,
}

/// When `run` fetches the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Always ask the registry.
    Always,
    /// When the store does not have it.
    #[default]
    Missing,
    /// Not at all.
    Never,
}
