//! One cgroup v2 folder per sandbox: limits, usage, kill (Linux `admin-guide/cgroup-v2.rst`).
//!
//! The folder is `/sys/fs/cgroup/duplex/<id>`. Its name derives from the id and from nothing else, so that whoever finds a sandbox's shelf
//! folder after a crash finds its cgroup too.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::spec::{Counters, DeviceRate, LimitChange, Limits, MIB, MemorySize, MemorySwap, SandboxId, Usage};

/// Where cgroup v2 is mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The folder above all sandboxes.
const FAMILY: &str = "duplex";

/// What every sandbox is limited and measured by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// What a sandbox is measured by where the host has it.
const OPTIONAL: &str = "io";

/// Length of a `cpu.max` period in microseconds.
const PERIOD_USEC: u64 = 100_000;

/// What the process of a user-mode network may use: it needs 30 MiB, and the kernel counts the buffers of its connections.
const NETWORK_MEMORY: MemorySize = MemorySize(512 * MIB);
const NETWORK_PROCESSES: u32 = 16;

/// How long the kernel gets to let go of a killed cgroup.
const PATIENCE: Duration = Duration::from_secs(10);

/// One sandbox's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

/// Why a cgroup does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has version 1, or a mixture.
    #[error(
        "This host has no cgroup v2 at {MOUNT} (no cgroup.controllers there): boot it with systemd.unified_cgroup_hierarchy=1, or run in the lab, where it works"
    )]
    NotUnified,
    /// A controller that limits need is not there or cannot be switched on.
    #[error("Cannot switch on the cgroup controller '{controller}' in {path}")]
    Controller {
        /// Which.
        controller: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A file of the cgroup cannot be read or written.
    #[error("Cannot {operation} {path}")]
    File {
        /// The verb.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The filter of devices cannot be attached: without it a container could open the host's disks.
    #[error(
        "Cannot keep the processes of {path} from the host's devices: the kernel needs CONFIG_CGROUP_BPF, and we CAP_BPF"
    )]
    Devices {
        /// The folder.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Not a disk, or a kernel that does not limit disks.
    #[error(
        "Cannot limit the rate of the device {device}: it must be a whole disk of this host (no partition), and the kernel needs CONFIG_BLK_DEV_THROTTLING"
    )]
    Device {
        /// Its node.
        device: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A limit below what is there.
    #[error("It uses {used} of memory, so {asked} would end it: let it use less first")]
    InUse {
        /// What was asked for.
        asked: MemorySize,
        /// What is in use.
        used: MemorySize,
    },
    /// Some process does not stop.
    #[error("The processes of {path} have not stopped within {} s", PATIENCE.as_secs())]
    Unfrozen {
        /// The folder.
        path: PathBuf,
    },
    /// Killed processes are still there.
    #[error("The cgroup {path} still has the processes {processes} after {} s", PATIENCE.as_secs())]
    Busy {
        /// The folder.
        path: PathBuf,
        /// Their numbers.
        processes: String,
    },
}

impl Cgroup {
    /// Makes the sandbox's cgroup with these limits. After an error it is not there.
    ///
    /// # Errors
    /// [`CgroupError::NotUnified`] on a host without cgroup v2, else what the kernel refuses.
    pub fn create(id: &SandboxId, limits: &Limits) -> Result<Self, CgroupError> {
        if !Path::new(MOUNT).join("cgroup.controllers").exists() {
            return Err(CgroupError::NotUnified);
        }
        let family = Path::new(MOUNT).join(FAMILY);
        switch_on_controllers(Path::new(MOUNT))?;
        match fs::DirBuilder::new().mode(0o755).create(&family) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make", &family, e)),
            _ => switch_on_controllers(&family)?,
        }
        let cgroup = Self::of(id);
        fs::DirBuilder::new().mode(0o755).create(&cgroup.path).map_err(|e| failed("make", &cgroup.path, e))?;
        if let Err(error) = cgroup.limit(limits) {
            let _ = fs::remove_dir(&cgroup.path);
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Makes the cgroup of the process that makes the sandbox's connections: beside the sandbox's own, which the user's limits of memory
    /// and processes are for.
    ///
    /// # Errors
    /// As [`Cgroup::create`], after which it is made.
    pub fn create_for_network(id: &SandboxId, limits: &Limits) -> Result<Self, CgroupError> {
        let cgroup = Self::of_network(id);
        fs::DirBuilder::new().mode(0o755).create(&cgroup.path).map_err(|e| failed("make", &cgroup.path, e))?;
        let (memory, pids) = (Some(NETWORK_MEMORY), Some(NETWORK_PROCESSES));
        let limits = Limits { memory, pids, swap: MemorySwap::NONE, ..*limits };
        if let Err(error) = cgroup.limit(&limits) {
            let _ = fs::remove_dir(&cgroup.path);
            return Err(error);
        }
        Ok(cgroup)
    }

    /// The network's cgroup that this sandbox has or had.
    pub fn of_network(id: &SandboxId) -> Self {
        Self { path: Path::new(MOUNT).join(FAMILY).join(format!("{id}.net")) }
    }

    /// The cgroup that this sandbox has or had, found by its name.
    pub fn of(id: &SandboxId) -> Self {
        Self { path: Path::new(MOUNT).join(FAMILY).join(id.as_str()) }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path from the root of the hierarchy, as the OCI runtime spec's `cgroupsPath` wants it.
    pub fn path_in_hierarchy(&self) -> PathBuf {
        Path::new("/").join(FAMILY).join(self.path.file_name().unwrap_or_default())
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// What the kernel says, such as `ESRCH` for a process that has ended.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Lets its processes open no devices but those that every container has.
    ///
    /// # Errors
    /// [`CgroupError::Devices`].
    pub fn allow_standard_devices_only(&self) -> Result<(), CgroupError> {
        let filter = || crate::sys::devices::allow_standard_only(fs::File::open(&self.path)?.as_fd());
        filter().map_err(|source| CgroupError::Devices { path: self.path.clone(), source })
    }

    fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(memory) = limits.memory {
            self.write("memory.max", &memory.0.to_string())?;
            let swap = limits.swap.beside(memory).map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
            match self.write("memory.swap.max", &swap) {
                // A kernel that does not count swap.
                Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        if let Some(cpus) = limits.cpus {
            let quota = u64::from(cpus.0).saturating_mul(PERIOD_USEC).div_ceil(1000).max(1000);
            self.write("cpu.max", &format!("{quota} {PERIOD_USEC}"))?;
        }
        if let Some(pids) = limits.pids {
            self.write("pids.max", &pids.to_string())?;
        }
        limits.cpu_shares.map_or(Ok(()), |shares| self.write("cpu.weight", &weight(shares).to_string()))
    }

    /// Limits what its processes read from block devices and write to them ("IO Interface Files", `io.max`).
    ///
    /// # Errors
    /// [`CgroupError::Device`] for what is no disk.
    pub fn throttle(&self, devices: &[DeviceRate]) -> Result<(), CgroupError> {
        devices.iter().try_for_each(|rate| {
            let refused = |source| CgroupError::Device { device: rate.device.clone(), source };
            let metadata = fs::metadata(&rate.device).map_err(refused)?;
            if !metadata.file_type().is_block_device() {
                return Err(refused(io::Error::from_raw_os_error(libc::ENOTBLK)));
            }
            let number = metadata.rdev();
            let keys = [
                ("rbps", rate.read_bytes),
                ("wbps", rate.write_bytes),
                ("riops", rate.read_operations),
                ("wiops", rate.write_operations),
            ];
            let set = keys.iter().filter_map(|(key, value)| Some(format!(" {key}={}", (*value)?)));
            let line =
                format!("{}:{}{}", rustix::fs::major(number), rustix::fs::minor(number), set.collect::<String>());
            write_existing(&self.path.join("io.max"), &line).map_err(refused)
        })
    }

    /// Changes limits of what runs in it.
    ///
    /// # Errors
    /// [`CgroupError::InUse`] for less memory than is in use, else what the kernel says.
    pub fn change(&self, change: &LimitChange) -> Result<(), CgroupError> {
        let used = self.counters().memory_bytes.unwrap_or(0);
        if let Some(least) = change.memory.filter(|asked| asked.0 < used) {
            return Err(CgroupError::InUse { asked: least, used: MemorySize(used) });
        }
        let LimitChange { memory, swap, cpus, pids, cpu_shares } = *change;
        let most = pids.filter(|most| *most > 0);
        self.limit(&Limits { memory, swap: swap.unwrap_or_default(), cpus, pids: most, cpu_shares })?;
        if pids == Some(0) { self.write("pids.max", "max") } else { Ok(()) }
    }

    /// What it uses now. A file that this kernel does not have is `None`.
    pub fn usage(&self) -> Usage {
        let number = |name: &str| fs::read_to_string(self.path.join(name)).ok()?.trim().parse().ok();
        Usage {
            memory_bytes: number("memory.current"),
            memory_peak_bytes: number("memory.peak"),
            cpu_usec: self.value("cpu.stat", "usage_usec"),
            pids: number("pids.current"),
        }
    }

    /// What it uses and has used, as [`Stats`](crate::spec::Stats) tells it. No limit of memory is above what the host has.
    pub fn counters(&self) -> Counters {
        let counters = Counters::of_cgroup(|name| fs::read_to_string(self.path.join(name)).ok());
        let info = rustix::system::sysinfo();
        let all = info.totalram.saturating_mul(u64::from(info.mem_unit).max(1));
        let most = counters.memory_bytes.map(|_| counters.memory_limit_bytes.map_or(all, |limit| limit.min(all)));
        Counters { memory_limit_bytes: most, ..counters }
    }

    /// Whether this host limits swap. It is asked of any group below the root, which has no limits; `true` where there is none to ask.
    pub fn counts_swap() -> bool {
        let groups = fs::read_dir(MOUNT).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let limited = groups.filter(|path| path.join("memory.max").exists());
        limited.take(1).all(|path| path.join("memory.swap.max").exists())
    }

    /// Numbers of its processes on this host.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let path = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&path).map_err(|e| failed("read", &path, e))?;
        Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// Stops all its processes where they are, or lets them go on, and waits until they have. SIGKILL ends stopped ones too.
    ///
    /// # Errors
    /// [`CgroupError::Unfrozen`] if they do not stop in time, else what the kernel says.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let deadline = Instant::now() + PATIENCE;
        while self.is_frozen() != frozen {
            if Instant::now() > deadline {
                // Better all than some.
                let _ = self.write("cgroup.freeze", "0");
                return Err(CgroupError::Unfrozen { path: self.path.clone() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// All its processes are stopped.
    pub fn is_frozen(&self) -> bool {
        self.value("cgroup.events", "frozen") == Some(1)
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> Option<u64> {
        self.value("memory.events", "oom_kill")
    }

    /// Kills every process in it, those that are being forked included.
    ///
    /// # Errors
    /// What the kernel says; a cgroup that is not there is no error.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Kills what runs in it and removes it with all cgroups below. One that is not there is removed.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if the kernel does not let go in time.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.kill()?;
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(500);
        loop {
            match remove_tree(&self.path) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(failed("remove", &self.path, e)),
                Err(_) if Instant::now() > deadline => {
                    let processes = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
                    return Err(CgroupError::Busy {
                        path: self.path.clone(),
                        processes: processes.split_whitespace().collect::<Vec<_>>().join(" "),
                    });
                }
                Err(_) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CgroupError> {
        let path = self.path.join(name);
        write_existing(&path, text).map_err(|e| failed("write", &path, e))
    }

    /// The number behind a key in a flat keyed file.
    fn value(&self, name: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(name)).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    }
}

fn switch_on_controllers(folder: &Path) -> Result<(), CgroupError> {
    let control = folder.join("cgroup.subtree_control");
    let on = fs::read_to_string(&control).map_err(|e| failed("read", &control, e))?;
    for controller in CONTROLLERS {
        if !on.split_whitespace().any(|c| c == controller) {
            write_existing(&control, &format!("+{controller}")).map_err(|source| CgroupError::Controller {
                controller,
                path: folder.to_owned(),
                source,
            })?;
        }
    }
    if !on.split_whitespace().any(|c| c == OPTIONAL) {
        let _ = write_existing(&control, &format!("+{OPTIONAL}"));
    }
    Ok(())
}

/// `cpu.weight` (1 to 10000, 100 if not set) of Docker's shares (2 to 262144), as OCI runtimes convert them.
fn weight(shares: u32) -> u64 {
    1 + u64::from(shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Writes to a file that must be there: `fs::write` would try to create one.
fn write_existing(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::options().write(true).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::File { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_in_other_runtimes() {
        for (shares, expected) in
            [(0, 1), (2, 1), (512, 20), (1024, 39), (2048, 79), (262_144, 10_000), (u32::MAX, 10_000)]
        {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }
}
