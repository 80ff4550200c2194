//! A sandbox spec as an OCI runtime config ("config.md", "config-linux.md") with Docker's defaults.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use duplex_wire::{DEFAULT_OPEN_FILES, Identity};
use libcontainer::oci_spec::runtime::Spec;
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use super::inside::tidy;
use super::orders::{NetworkSource, Orders};
use super::rootfs::by_number;
use super::walls::{Walls, set_of};
use crate::spec::{Capability, ProcessLimit, Tmpfs};

/// Read by nobody inside (config-linux.md, "Masked Paths").
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// A folder for each of the host's processors. How hot each has been (`thermal_throttle`) tells what neighbours do, as `/proc/interrupts` does.
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// Written by nobody inside (config-linux.md, "Readonly Paths").
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The config for a root file system that is mounted here, and for this user namespace, if it is to have one of its own.
///
/// # Errors
/// A value that the OCI types do not take.
pub(super) fn config(
    (orders, users): (&Orders, Option<BorrowedFd<'_>>),
    identity: &Identity,
    environment: &[String],
    root: &Path,
    walls: &Walls,
) -> serde_json::Result<Spec> {
    let spec = &orders.spec;
    let mut linux = json!({
        "cgroupsPath": orders.cgroup,
        "namespaces": namespaces(orders.runtime.is_some() && orders.network == NetworkSource::New, users),
        "maskedPaths": masked(Path::new(PROCESSORS)),
        "readonlyPaths": READ_ONLY,
        "sysctl": sysctls(orders),
    });
    // The built-in runtime's container has its cgroup's own filter of devices.
    if orders.runtime.is_some() {
        linux["resources"] = json!({ "devices": devices() });
        if let Some(profile) = walls.profile() {
            linux["seccomp"] = profile.oci();
        }
    }
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": { "path": root, "readonly": spec.read_only },
        "process": {
            "terminal": spec.process.terminal.is_some(),
            "user": { "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups, "umask": 0o022 },
            "args": spec.process.args,
            "env": environment,
            "cwd": tidy(Path::new(&spec.process.cwd)),
            "capabilities": capabilities(orders, identity, walls),
            "rlimits": process_limits(&spec.process.limits),
            "noNewPrivileges": spec.process.no_new_privileges,
        },
        "mounts": mounts(&spec.tmpfs),
        "linux": linux,
    }))
}

/// All that is masked on a host with these processors: a runtime masks what there is.
fn masked(processors: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(processors).into_iter().flatten().filter_map(Result::ok);
    let hot = folders.map(|folder| folder.path().join("thermal_throttle")).filter(|path| path.exists());
    MASKED.iter().map(PathBuf::from).chain(hot).collect()
}

/// container-init's network namespace is its container's too. Only an outside runtime makes a new one itself.
fn namespaces(new_network: bool, users: Option<BorrowedFd<'_>>) -> Vec<Value> {
    let mut kinds = vec!["pid", "mount", "ipc", "uts", "cgroup"];
    if new_network {
        kinds.push("network");
    }
    let new = kinds.into_iter().map(|kind| json!({ "type": kind }));
    // The runtime's processes have the descriptor: they are this one's copies.
    new.chain(users.map(|users| json!({ "type": "user", "path": by_number(&users) }))).collect()
}

/// Root holds what the spec grants; another user holds nothing, and gains through set-user-id programs at most what the spec grants.
/// The built-in runtime's process holds more until it has confined itself.
fn capabilities(orders: &Orders, identity: &Identity, walls: &Walls) -> Value {
    let granted = set_of(&orders.spec.process.capabilities);
    let held = if identity.uid == 0 { granted } else { CapabilitySet::empty() };
    let held = if orders.runtime.is_none() { walls.until_closed(held) } else { held };
    let named = |set: CapabilitySet| -> Vec<String> {
        let names = (0u8..64).filter(|number| set.bits() & 1 << number != 0).filter_map(|n| Capability(n).name());
        names.map(|name| format!("CAP_{name}")).collect()
    };
    let (granted, held) = (named(granted), named(held));
    json!({ "bounding": granted, "effective": held, "permitted": held, "inheritable": [], "ambient": [] })
}

/// All parameters for an outside runtime; without those of the network, which are set already, for the built-in one.
fn sysctls(orders: &Orders) -> serde_json::Map<String, Value> {
    let ours = |name: &str| orders.runtime.is_some() || !name.starts_with("net.");
    let sysctls = orders.spec.sysctls.iter().filter(|s| ours(&s.name));
    sysctls.map(|s| (s.name.clone(), Value::from(s.value.clone()))).collect()
}

/// The user's limits, and Docker's of open files unless the user has one.
fn process_limits(limits: &[ProcessLimit]) -> Vec<Value> {
    let endless = |value: Option<u64>| value.unwrap_or(u64::MAX);
    let entry = |name: &str, soft: u64, hard: u64| json!({ "type": format!("RLIMIT_{}", name.to_uppercase()), "soft": soft, "hard": hard });
    let mut entries: Vec<Value> = limits
        .iter()
        .filter_map(|limit| Some(entry(limit.name()?, endless(limit.soft), endless(limit.hard))))
        .collect();
    if !limits.iter().any(|limit| limit.name() == Some("nofile")) {
        entries.push(entry("nofile", DEFAULT_OPEN_FILES.0, DEFAULT_OPEN_FILES.1));
    }
    entries
}

fn tmpfs(tmpfs: &Tmpfs) -> Value {
    let flag = |yes: bool, word: &str, other: &str| if yes { word.to_owned() } else { other.to_owned() };
    let mut options = vec![
        flag(tmpfs.exec, "exec", "noexec"),
        flag(tmpfs.suid, "suid", "nosuid"),
        flag(tmpfs.dev, "dev", "nodev"),
        flag(tmpfs.read_only, "ro", "rw"),
    ];
    options.extend(tmpfs.options.split(',').filter(|o| !o.is_empty()).map(str::to_owned));
    json!({ "type": "tmpfs", "source": "tmpfs", "destination": tmpfs.path, "options": options })
}

fn mounts(own: &[Tmpfs]) -> Value {
    let mut mounts = usual_mounts();
    if let Value::Array(list) = &mut mounts {
        list.extend(own.iter().map(tmpfs));
    }
    mounts
}

fn usual_mounts() -> Value {
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "type": kind, "source": kind, "destination": at, "options": options });
    json!([
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ])
}

/// Nothing but what every container has (config-linux.md, "Default Devices"), and the making of any node, as Docker allows.
fn devices() -> Value {
    let allow = |major: i64, minor: Option<i64>| json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" });
    let make = |kind: &str| json!({ "allow": true, "type": kind, "access": "m" });
    let nodes =
        [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];
    let mut rules = vec![json!({ "allow": false, "access": "rwm" }), make("c"), make("b")];
    rules.extend(nodes.map(|(major, minor)| allow(major, minor)));
    Value::Array(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processors_tell_of_their_heat_is_masked() {
        let host = tempfile::tempdir().unwrap();
        for folder in ["cpu0/thermal_throttle", "cpu1/thermal_throttle", "cpu2/cache", "cpufreq"] {
            std::fs::create_dir_all(host.path().join(folder)).unwrap();
        }
        let mut masked = masked(host.path());
        masked.sort();
        let hot = [0, 1].map(|n| host.path().join(format!("cpu{n}/thermal_throttle")));
        assert!(hot.iter().all(|path| masked.contains(path)), "{masked:?}");
        assert_eq!(masked.len(), MASKED.len() + 2);
    }
}
