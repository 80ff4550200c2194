//! Steps of a boot that concern the machine as a whole.

use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::sys;
use crate::trouble::{Doing, Trouble};

/// Where the agent has mounted the kernel's interfaces for itself; a command's mount namespace loses them.
pub(crate) const OWN_MOUNTS: [&str; 3] = ["/dev", "/proc", crate::cgroup::MOUNT];

/// A clock that is this far off is set, in nanoseconds. KVM's clock is much better; a guest without it starts in 1970.
const CLOCK_TOLERANCE_NS: u64 = 20_000_000;

/// Mounts `/dev` for the disk and `/proc` for the agent's own OOM score.
pub(crate) fn mount_kernel_interfaces() -> Result<(), Trouble> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devtmpfs", "/dev", "devtmpfs", flags, None).doing(|| "mount /dev".into())?;
    mount("proc", "/proc", "proc", flags | MountFlags::NODEV, None).doing(|| "mount /proc".into())
}

/// Gives the guest kernel the host's randomness and counts it in full, so that no program waits for entropy and no two sandboxes
/// share a random number.
pub(crate) fn seed_entropy(seed: &[u8]) -> Result<(), Trouble> {
    let fewest = duplex_wire::Start::MIN_SEED;
    if seed.len() < fewest {
        return Err(Trouble::new("seed the random generator", format!("{} bytes, at least {fewest}", seed.len())));
    }
    sys::add_entropy(seed).doing(|| "seed the random generator".into())
}

/// Sets the wall clock if it is off.
pub(crate) fn set_clock(realtime_ns: u64) -> Result<(), Trouble> {
    let now = clock_gettime(ClockId::Realtime);
    let now_ns = u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000);
    let now_ns = now_ns.saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0));
    if now_ns.abs_diff(realtime_ns) <= CLOCK_TOLERANCE_NS {
        return Ok(());
    }
    let seconds = i64::try_from(realtime_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let nanos = i64::try_from(realtime_ns % 1_000_000_000).unwrap_or(0);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanos }).doing(|| "set the clock".into())
}

/// Sets the host name; what is longer than the kernel allows (64 bytes) is an error.
pub(crate) fn set_hostname(name: &str) -> Result<(), Trouble> {
    rustix::system::sethostname(name.as_bytes()).doing(|| format!("set the host name '{name}'"))
}

/// Brings `lo` up; the kernel then gives it 127.0.0.1 and ::1.
pub(crate) fn loopback_up() -> Result<(), Trouble> {
    sys::interface_up("lo").doing(|| "bring the loopback interface up".into())
}
