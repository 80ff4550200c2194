//! From what was typed to what is meant: pure, no file is opened and no variable read here.

mod capabilities;
mod command;
mod definition;
mod further;
mod health;
mod mounts;
mod network;
mod rates;
mod resources;
mod security;
mod signal;

use std::collections::BTreeMap;

use crate::spec::{
    Digest, Healthcheck, Isolation, LimitChange, Limits, MIB, MOST_PUBLISHED, MemorySize, MemorySwap, NetworkError,
    NetworkMode, ProcessSpec, SandboxId, SandboxSpec, Sysctl, TerminalSize, Tmpfs,
};

use super::args::{LimitArgs, RunArgs};

pub(super) use capabilities::capabilities;
pub(super) use command::{Variables, command, environment};
pub(super) use definition::{LifeError, definition};
pub(super) use further::further;
pub(super) use mounts::host_paths;
pub(super) use resources::ResourceError;
pub(super) use security::profile_file;
pub(super) use signal::signal;

use mounts::MountsError;
use security::SecurityError;

/// Docker's least memory limit.
const LEAST_MEMORY: MemorySize = MemorySize(6 * MIB);
/// Most vCPUs of a microVM.
const MOST_VCPUS: u32 = 8;

/// The fields of an image's config that decide what runs (OCI image spec, "config.md", "Properties", `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageDefaults {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`.
    pub env: Vec<String>,
    /// `WorkingDir`, empty if unset.
    pub working_dir: String,
    /// `User`, empty if unset.
    pub user: String,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
    /// `Healthcheck`, Docker's own field.
    pub health: Option<Healthcheck>,
    /// `Shell`, the same.
    pub shell: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
    /// `Volumes`.
    pub volumes: Vec<String>,
}

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
/// For the target of fuzzing: one text as a value of each kind that is read here.
pub(super) fn fuzz(text: &str) {
    let _ =
        (resources::process_limit(text), resources::tmpfs(text), resources::sysctl(text), resources::platform(text));
    if let Ok(number) = signal::signal(text) {
        assert!((1..=64).contains(&number), "{text} is {number}");
    }
}

/// What the meaning of a command line depends on beside its words.
#[allow(missing_debug_implementations, reason = "a closure is in it")]
pub(super) struct Surroundings<'a> {
    /// Identity of the new sandbox.
    pub id: SandboxId,
    /// The caller's variables, for `-e NAME`.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Contents of the `--env-file`s, in order, each with its name.
    pub env_files: &'a [(String, String)],
    /// Content of the `--security-opt seccomp=FILE`.
    pub profile: Option<&'a str>,
    /// Size of the caller's terminal, if it has one.
    pub terminal: Option<TerminalSize>,
}

/// Why a command line means nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum MeaningError {
    /// Neither the image nor the user says what to run.
    #[error("Image '{0}' has neither entrypoint nor command: name the command behind the image")]
    NoCommand(String),
    /// A variable without a name.
    #[error("Variable '{0}' has no name: write NAME=VALUE, or NAME to pass the caller's value")]
    Variable(String),
    /// A line of an `--env-file`.
    #[error("Line {line} of '{file}' is not NAME[=VALUE]: '{text}'")]
    EnvFile {
        /// The file.
        file: String,
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A working folder that depends on where one stands.
    #[error("Working folder '{0}' is not an absolute path")]
    Workdir(String),
    /// An unknown capability.
    #[error("Capability '{0}' is unknown: 'man 7 capabilities' lists them, such as NET_ADMIN")]
    Capability(String),
    /// Docker's rule for names.
    #[error("Name '{0}' is not two or more of letters, digits, '_', '.' and '-', the first a letter or digit")]
    Name(String),
    /// Not a host name.
    #[error("Host name '{0}' is not 1 to 63 letters, digits, '.' and '-'")]
    Hostname(String),
    /// Less memory than anything runs in.
    #[error("Memory of {0} is less than the least, 6 MiB")]
    Memory(MemorySize),
    /// Swap without a limit of memory.
    #[error("Option --memory-swap limits memory and swap together: name the limit of memory too (--memory)")]
    SwapAlone,
    /// Less of both than of one.
    #[error(
        "Memory and swap together ({total}) are less than memory alone ({memory}): --memory-swap is the sum of both"
    )]
    Swap {
        /// Of both.
        total: MemorySize,
        /// Of memory.
        memory: MemorySize,
    },
    /// More processors than a microVM can have.
    #[error("A microVM has at most {MOST_VCPUS} CPUs, not {0}")]
    Vcpus(u32),
    /// Not a limit of processes.
    #[error("Limit of processes '{0}' is neither a positive number nor -1 for no limit")]
    Pids(i64),
    /// Not a share of processor time.
    #[error("CPU shares of {0} are neither 2 to 262144 nor 0 for the usual 1024")]
    Shares(u32),
    /// An option of microVMs only.
    #[error("Option {0} is for microVMs: a container runs on the host's kernel")]
    MicroVmOnly(&'static str),
    /// Not a network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// More ports than passt is asked to bind.
    #[error("{0} ports are published, at most {MOST_PUBLISHED} can be")]
    Published(usize),
    /// Ports without a network that could have them published.
    #[error("Option {option} is of no use with --net {mode}")]
    NoNetwork {
        /// The option.
        option: &'static str,
        /// The kind of network.
        mode: NetworkMode,
    },
    /// A rate of a network that it does not have, or that is not its own.
    #[error("Option --net-rate limits a network of the sandbox's own, and with --net {0} it has none")]
    NetworkRate(NetworkMode),
    /// The host's network for a machine with a kernel of its own.
    #[error(
        "Option --net host is for containers: a microVM's kernel has a network of its own; publish its ports with -p"
    )]
    HostNetwork,
    /// The host's root directory for what has one of its own.
    #[error("Option --host-root is for plain processes")]
    HostRoot,
    /// A runtime for what has none.
    #[error("Option --runtime is for containers and microVMs")]
    Runtime,
    /// A network of its own for a process that has nothing of its own.
    #[error("A plain process has the host's network: say --net host")]
    ProcessNetwork,
    /// A terminal was asked for and there is none to connect.
    #[error("Standard input is not a terminal, and -i -t connects it to one: leave out -t")]
    NotATerminal,
    /// About limits, file systems in memory and kernel parameters.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// About its walls.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// About its mounts.
    #[error(transparent)]
    Mounts(#[from] MountsError),
    /// About the sandbox's life.
    #[error(transparent)]
    Life(#[from] LifeError),
}

/// The sandbox that this command line and image describe.
pub(super) fn sandbox(
    args: &RunArgs,
    image: &ImageDefaults,
    digest: &Digest,
    around: &Surroundings<'_>,
) -> Result<SandboxSpec, MeaningError> {
    let (reference, words) = args.image_and_command.split_first().map_or(("", &[][..]), |(i, w)| (i.as_str(), w));
    check_isolation(args)?;
    args.platform.as_deref().map_or(Ok(()), resources::platform)?;
    let hostname = args.hostname.clone().unwrap_or_else(|| around.id.as_str().to_owned());
    check_names(args.name.as_deref(), &hostname)?;
    let variables = Variables {
        image: &image.env,
        files: around.env_files,
        flags: &args.process.env,
        caller: around.variable,
        hostname: &hostname,
        terminal: args.process.tty,
    };
    let cwd = args.workdir.clone().unwrap_or_else(|| match image.working_dir.as_str() {
        "" => "/".to_owned(),
        dir => dir.to_owned(),
    });
    if !cwd.starts_with('/') {
        return Err(MeaningError::Workdir(cwd));
    }
    let capabilities = capabilities(args)?;
    let mut tmpfs = tmpfs(args)?;
    let mounts = mounts::mounts(args, &image.volumes, &around.id, &mut tmpfs)?;
    let (security, no_new_privileges) = security::security(args, around.profile, &capabilities)?;
    Ok(SandboxSpec {
        id: around.id.clone(),
        name: args.name.clone(),
        isolation: args.isolation,
        reference: reference.to_owned(),
        image: digest.clone(),
        process: ProcessSpec {
            args: command(args.entrypoint.as_deref(), words, image)
                .ok_or_else(|| MeaningError::NoCommand(reference.to_owned()))?,
            env: environment(&variables)?,
            cwd,
            user: args.user.clone().unwrap_or_else(|| image.user.clone()),
            terminal: args.process.tty.then(|| around.terminal.unwrap_or(TerminalSize { rows: 24, columns: 80 })),
            stdin: args.process.interactive,
            capabilities,
            no_new_privileges,
            limits: args.ulimit.iter().map(|text| resources::process_limit(text)).collect::<Result<_, _>>()?,
        },
        hostname,
        limits: limits(args)?,
        devices: rates::devices(&args.rates),
        read_only: args.read_only,
        init: args.init,
        runtime: args.runtime.clone(),
        host_root: args.host_root,
        kernel: args.kernel.clone(),
        kernel_log: args.kernel_log.clone(),
        cold: args.cold,
        from: None,
        tmpfs,
        sysctls: sysctls(args)?,
        network: network::network(args)?,
        mounts,
        security,
    })
}

/// The size of shared memory first: a tmpfs at its place covers it.
fn tmpfs(args: &RunArgs) -> Result<Vec<Tmpfs>, ResourceError> {
    let shared = args.shm_size.map(|size| Ok(resources::shared_memory(size)));
    shared.into_iter().chain(args.tmpfs.iter().map(|text| resources::tmpfs(text))).collect()
}

/// What a rate asks for first: what is said by name is set after it, and holds.
fn sysctls(args: &RunArgs) -> Result<Vec<Sysctl>, ResourceError> {
    let windows = args.rates.net_rate.map(|rate| Ok(resources::windows(rate)));
    windows.into_iter().chain(args.sysctl.iter().map(|text| resources::sysctl(text))).collect()
}

fn check_isolation(args: &RunArgs) -> Result<(), MeaningError> {
    if args.runtime.is_some() && args.isolation == Isolation::Process {
        return Err(MeaningError::Runtime);
    }
    if args.host_root.is_some() && args.isolation != Isolation::Process {
        return Err(MeaningError::HostRoot);
    }
    if args.isolation == Isolation::Process && args.net.mode != NetworkMode::Host {
        return Err(MeaningError::ProcessNetwork);
    }
    if args.isolation != Isolation::MicroVm {
        if args.kernel.is_some() {
            return Err(MeaningError::MicroVmOnly("--kernel"));
        }
        if args.kernel_log.is_some() {
            return Err(MeaningError::MicroVmOnly("--kernel-log"));
        }
        if args.cold {
            return Err(MeaningError::MicroVmOnly("--cold"));
        }
    }
    Ok(())
}

fn check_names(name: Option<&str>, hostname: &str) -> Result<(), MeaningError> {
    if let Some(name) = name {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let valid = name.len() >= 2 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain);
        if !valid {
            return Err(MeaningError::Name(name.to_owned()));
        }
    }
    let valid = (1..=63).contains(&hostname.len())
        && hostname.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && !hostname.starts_with('-');
    if valid { Ok(()) } else { Err(MeaningError::Hostname(hostname.to_owned())) }
}

fn limits(args: &RunArgs) -> Result<Limits, MeaningError> {
    let limits = Limits::default().changed(&limit_change(&args.limits, args.isolation)?);
    swap_fits(&limits).map(|()| limits)
}

/// Whether a limit of memory and swap together can be one, beside that of memory.
pub(super) fn swap_fits(limits: &Limits) -> Result<(), MeaningError> {
    match (limits.swap, limits.memory) {
        (MemorySwap::Total(_), None) => Err(MeaningError::SwapAlone),
        (MemorySwap::Total(total), Some(memory)) if total < memory => Err(MeaningError::Swap { total, memory }),
        _ => Ok(()),
    }
}

/// What these options change of a sandbox's limits.
pub(super) fn limit_change(args: &LimitArgs, isolation: Isolation) -> Result<LimitChange, MeaningError> {
    if let Some(memory) = args.memory.filter(|m| *m < LEAST_MEMORY) {
        return Err(MeaningError::Memory(memory));
    }
    if let Some(cpus) = args.cpus.filter(|c| isolation == Isolation::MicroVm && c.ceil() > MOST_VCPUS) {
        return Err(MeaningError::Vcpus(cpus.ceil()));
    }
    if let Some(shares) = args.cpu_shares.filter(|shares| !(2..=262_144).contains(shares) && *shares != 0) {
        return Err(MeaningError::Shares(shares));
    }
    let pids = match args.pids_limit {
        None => None,
        Some(-1) => Some(0),
        Some(n) => Some(u32::try_from(n).map_err(|_| MeaningError::Pids(n))?),
    };
    let cpu_shares = args.cpu_shares.map(|shares| if shares == 0 { 1024 } else { shares });
    Ok(LimitChange { memory: args.memory, swap: args.memory_swap, cpus: args.cpus, pids, cpu_shares })
}

#[cfg(test)]
mod tests;
