//! Process 1 of the lab: from the bare virtio-fs root to a system that commands can run in.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{WaitOptions, pivot_root, wait};
use rustix::system::{RebootCommand, reboot, sethostname};

use super::super::machine::LIVE_TAG;
use super::{AGENT, VERB, complain};
use crate::sys::loopback;

/// Where this machine's whole tree is live.
pub(super) const HOST: &str = "/host";

/// Commands run in cgroups under this one.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup/lab";

/// Modules that are needed at once or that nothing loads by itself. Others come by modprobe when they are asked for.
const MODULES: [&str; 5] = ["kvm-amd", "erofs", "loop", "tun", "vhost_vsock"];

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {cause}")]
pub(super) struct BootError {
    step: String,
    cause: io::Error,
}

trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, BootError> {
        self.map_err(|cause| BootError { step: step.into(), cause: cause.into() })
    }
}

/// Builds the lab, starts the agent, reaps until it ends, and powers off. Does not return if all goes well.
pub(super) fn main(kernel: &OsStr) -> Result<(), BootError> {
    let built = build(Path::new(kernel)).and_then(|()| serve());
    if let Err(error) = &built {
        complain(&error.to_string());
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).step("power off")?;
    built
}

fn build(kernel: &Path) -> Result<(), BootError> {
    attach("proc", "proc", "/proc", "")?;
    // On the way to the overlay, where the running system's folders are not yet at hand.
    modprobe(&["-d", &kernel.to_string_lossy(), "overlay"])?;
    attach("tmpfs", "tmpfs", "/tmp", "mode=755")?;
    for dir in ["upper", "work", "root"] {
        fs::create_dir(Path::new("/tmp").join(dir)).step("make the overlay's folders")?;
    }
    attach("overlay", "overlay", "/tmp/root", "lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work")?;
    // Not a chroot: user namespaces and some mounts are refused to processes in one.
    pivot_root("/tmp/root", "/tmp/root/mnt").step("enter the overlay")?;
    std::env::set_current_dir("/").step("enter the overlay")?;
    unmount("/mnt", UnmountFlags::DETACH).step("leave the bare root")?;
    system_mounts()?;
    let modules = modules_of(kernel)?;
    modprobe(&[&["-a", "-q"][..], &MODULES[..]].concat())
        .unwrap_or_else(|e| complain(&format!("{} ({e})", modules.display())));
    sethostname(b"lab").step("name the host")?;
    steady_addresses()?;
    open_tun();
    loopback::up().step("bring up the loopback interface")
}

fn system_mounts() -> Result<(), BootError> {
    fs::create_dir_all(HOST).step("make /host")?;
    attach(LIVE_TAG, "virtiofs", HOST, "")?;
    for (kind, at, data) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", ""),
        ("tmpfs", "/run", "mode=755"),
        ("tmpfs", "/tmp", "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", ""),
    ] {
        attach(kind, kind, at, data)?;
    }
    for dir in ["/dev/pts", "/dev/shm", "/run/lock", CGROUPS] {
        fs::create_dir_all(dir).step(dir)?;
    }
    attach("devpts", "devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666")?;
    attach("tmpfs", "tmpfs", "/dev/shm", "mode=1777")?;
    for (link, to) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _ = symlink(format!("/proc/self/fd{to}"), Path::new("/dev").join(link));
    }
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).step("read the cgroup controllers")?;
    let all: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
    fs::write(root.join("cgroup.subtree_control"), all.join(" ")).step("enable the cgroup controllers")
}

/// Programs start at the same addresses every time: the emulator keeps its translation of code by address, and would translate each program
/// anew at each start, as no hardware does. The lab is for trying and measuring; it is not a wall.
fn steady_addresses() -> Result<(), BootError> {
    fs::write("/proc/sys/kernel/randomize_va_space", "0").step("switch address randomisation off")
}

/// What udev does elsewhere: whoever may make interfaces in its own network namespace may open the node.
fn open_tun() {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions("/dev/net/tun", mode).unwrap_or_else(|e| complain(&format!("/dev/net/tun ({e})")));
}

/// Puts the kernel's modules where modprobe, and the kernel when it calls it, look for them.
fn modules_of(kernel: &Path) -> Result<PathBuf, BootError> {
    let release = kernel.file_name().unwrap_or_default();
    let from = Path::new(HOST).join(kernel.strip_prefix("/").unwrap_or(kernel)).join("lib/modules").join(release);
    let at = Path::new("/lib/modules").join(release);
    fs::create_dir_all(&at).step("make the modules' folder")?;
    mount_bind(&from, &at).step(format!("mount the modules of {}", from.display()))?;
    Ok(at)
}

fn attach(what: &str, kind: &str, at: &str, data: &str) -> Result<(), BootError> {
    let data = std::ffi::CString::new(data).map_err(io::Error::from).step(at)?;
    mount(what, at, kind, MountFlags::empty(), data.as_c_str()).step(format!("mount {kind} on {at}"))
}

fn modprobe(args: &[&str]) -> Result<(), BootError> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let status = Command::new("modprobe").args(args).env("PATH", path).status().step("modprobe")?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(status.to_string())).step(format!("modprobe {}", args.join(" ")))
    }
}

/// Starts the agent and reaps what it and its commands leave, until the agent itself ends.
fn serve() -> Result<(), BootError> {
    let agent = Command::new("/proc/self/exe").args([VERB, AGENT]).spawn().step("start the agent")?;
    // A command that takes all memory must not take the agent along: with it the lab would end.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", agent.id()), "-1000");
    let agent = rustix::process::Pid::from_child(&agent);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => {
                let ended = status.exit_status() == Some(0);
                return if ended {
                    Ok(())
                } else {
                    Err(io::Error::other(format!("{status:?}"))).step("the agent failed")
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).step("wait"),
        }
    }
}
