//! The command's cgroup: its memory ends before the machine's does, so that the agent lives to report it.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};

use crate::trouble::{Doing, Trouble};

/// Where the agent sees the cgroup tree.
pub(crate) const MOUNT: &str = "/cgroup";

/// The command's group.
pub(crate) const GROUP: &str = "/cgroup/workload";

/// How long the group's processes may take to stop: one that waits for a disk stops when it has its answer.
const HOLDING: Duration = Duration::from_secs(5);

/// The group that the command is born in.
pub(crate) struct Workload {
    dir: OwnedFd,
}

impl Workload {
    /// Mounts the cgroup tree and makes the group.
    pub(crate) fn create() -> Result<Self, Trouble> {
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        mount("cgroup2", MOUNT, "cgroup2", flags, None).doing(|| format!("mount {MOUNT}"))?;
        let control = format!("{MOUNT}/cgroup.subtree_control");
        fs::write(&control, "+memory +pids +io").doing(|| format!("write '+memory +pids +io' to {control}"))?;
        fs::create_dir(GROUP).doing(|| format!("make {GROUP}"))?;
        let dir = rustix::fs::open(GROUP, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { dir: dir.doing(|| format!("open {GROUP}"))? })
    }

    /// Sets the group's limits: all memory but the agent's reserve, and the number of processes.
    pub(crate) fn limit(&self, pids: Option<u32>) -> Result<(), Trouble> {
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit).max(1);
        let memory = workload_memory(info.totalram.saturating_mul(unit), info.freeram.saturating_mul(unit));
        set("memory.max", &memory.to_string())?;
        pids.map_or(Ok(()), |pids| set("pids.max", &pids.to_string()))
    }

    /// The kernel has killed a process of the group for want of memory.
    #[allow(clippy::unused_self, reason = "the group must exist")]
    pub(crate) fn had_oom_kill(&self) -> Result<bool, Trouble> {
        let path = format!("{GROUP}/memory.events");
        Ok(counts_oom_kill(&fs::read_to_string(&path).doing(|| format!("read {path}"))?))
    }
}

impl AsFd for Workload {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Changes the group's limits; 0 processes is no limit. No limit of memory is above what the machine can spare: the kernel's own is the
/// machine's size.
pub(crate) fn change(memory_bytes: Option<u64>, pids: Option<u32>) -> Result<(), Trouble> {
    if let Some(bytes) = memory_bytes {
        let total = fs::read_to_string("/proc/meminfo").doing(|| "read /proc/meminfo".into())?;
        let total = total.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        let total = total.unwrap_or(0_u64).saturating_mul(1024);
        set("memory.max", &bytes.min(workload_memory(total, total)).to_string())?;
    }
    match pids {
        None => Ok(()),
        Some(0) => set("pids.max", "max"),
        Some(most) => set("pids.max", &most.to_string()),
    }
}

/// Holds all processes of the group where they are, or gives up after a while and lets them go on.
pub(crate) fn hold() -> Result<(), Trouble> {
    set("cgroup.freeze", "1")?;
    let deadline = Instant::now() + HOLDING;
    let path = format!("{GROUP}/cgroup.events");
    loop {
        let events = fs::read_to_string(&path).doing(|| format!("read {path}"));
        match events {
            Ok(events) if events.lines().any(|line| line == "frozen 1") => return Ok(()),
            Ok(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            other => {
                set("cgroup.freeze", "0")?;
                return other.and(Err(Trouble::new("hold the command", "a process of it does not stop")));
            }
        }
    }
}

/// Lets them go on.
pub(crate) fn release() -> Result<(), Trouble> {
    set("cgroup.freeze", "0")
}

fn set(file: &str, value: &str) -> Result<(), Trouble> {
    let path = format!("{GROUP}/{file}");
    fs::write(&path, value).doing(|| format!("write {value} to {path}"))
}

/// What the command may use of a machine with this much memory in all and free after boot: all but 4 MiB and 1/64 of the machine, which
/// cover the kernel's low-memory marks and the agent's buffers. Never less than half of what is free.
fn workload_memory(total: u64, free: u64) -> u64 {
    let reserve = (4 << 20) + total / 64;
    free.saturating_sub(reserve).max(free / 2)
}

/// `oom_kill` of a `memory.events` file (cgroup-v2.rst, "Memory Interface Files") is above zero.
fn counts_oom_kill(events: &str) -> bool {
    let line = events.lines().find_map(|l| l.strip_prefix("oom_kill "));
    line.and_then(|n| n.trim().parse::<u64>().ok()).is_some_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_small_and_never_all() {
        const MIB: u64 = 1 << 20;
        assert_eq!(workload_memory(512 * MIB, 480 * MIB), 468 * MIB);
        assert_eq!(workload_memory(64 * MIB, 30 * MIB), 25 * MIB);
        assert_eq!(workload_memory(32 * MIB, 4 * MIB), 2 * MIB);
    }

    #[test]
    fn only_the_oom_kill_line_counts() {
        assert!(counts_oom_kill("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(!counts_oom_kill("low 0\nhigh 0\nmax 12\noom 1\noom_kill 0\noom_group_kill 3\n"));
        assert!(!counts_oom_kill(""));
    }
}
