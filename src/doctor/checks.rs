//! The checks, one function each: what was found and how to mend it.

use std::ffi::c_long;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, CheckStatus, HostFacts, KvmFinding, Places, missing_for_lab, tools};
use crate::sys::landlock;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// cgroup2's `f_type` (linux/magic.h).
const CGROUP2_MAGIC: c_long = 0x6367_7270;

/// Controllers that limits and meters use.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// Builds and images together; the lab's kernel takes 40 MB of it.
const LEAST_DISK: u64 = 2 * GIB;

/// The lab with two guests of the default size.
const LEAST_MEMORY: u64 = 3 * GIB;

impl Check {
    pub(super) fn new(
        name: &str,
        status: CheckStatus,
        found: impl Into<String>,
        mend: impl Into<Option<String>>,
    ) -> Self {
        let mend = mend.into().filter(|_| status != CheckStatus::Ok);
        Self { name: name.to_owned(), status, found: found.into(), mend }
    }
}

/// Every check, in the order of reading.
pub(super) fn all(host: &HostFacts, kvm: &KvmFinding, places: &Places) -> Vec<Check> {
    let mut checks = vec![
        processor(host),
        memory(host),
        kernel(host),
        kvm_check(kvm),
        nesting(kvm),
        cgroups(),
        namespaces(),
        user_namespaces(),
        landlock_check(landlock::abi()),
    ];
    checks.extend(FILE_SYSTEMS.map(file_system));
    checks.push(erofs_from_files(&host.kernel));
    checks.push(network(&places.search, Path::new("/dev/net/tun")));
    checks.push(network_rates());
    checks.push(shares(tools::file_server(&places.search).as_deref()));
    checks.push(user());
    checks.push(disk(&places.store));
    checks.push(lab(places));
    checks.extend(OPTIONAL.map(|(program, package, use_for)| optional(program, package, use_for, &places.search)));
    checks
}

fn processor(host: &HostFacts) -> Check {
    let place = if host.virtual_machine { ", in a virtual machine" } else { "" };
    let found = format!("{} x {}{place}", host.cpus, host.cpu_model);
    Check::new("processor", CheckStatus::Ok, found, None)
}

fn memory(host: &HostFacts) -> Check {
    let (all, free) = (host.memory_bytes, host.memory_available_bytes);
    let status = if free < LEAST_MEMORY { CheckStatus::Warn } else { CheckStatus::Ok };
    let mend = format!("{} GiB free memory let the lab and its guests start", LEAST_MEMORY / GIB);
    Check::new("memory", status, format!("{} MiB, {} MiB free", all / MIB, free / MIB), mend)
}

fn kernel(host: &HostFacts) -> Check {
    let status = if release(&host.kernel) < (5, 15) { CheckStatus::Missing } else { CheckStatus::Ok };
    let found = if host.distribution.is_empty() {
        format!("Linux {}", host.kernel)
    } else {
        format!("Linux {}, {}", host.kernel, host.distribution)
    };
    Check::new("kernel", status, found, "use Linux 5.15 or later".to_owned())
}

fn kvm_check(kvm: &KvmFinding) -> Check {
    let status = if kvm.is_usable() { CheckStatus::Ok } else { CheckStatus::Missing };
    Check::new("KVM", status, kvm.words(), kvm.mend().map(str::to_owned))
}

fn nesting(kvm: &KvmFinding) -> Check {
    let parameter = |module: &str| fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok();
    let value =
        parameter("kvm_intel").map(|v| ("kvm_intel", v)).or_else(|| parameter("kvm_amd").map(|v| ("kvm_amd", v)));
    match value {
        Some((_, on)) if ["Y", "1"].contains(&on.trim()) => Check::new("nested KVM", CheckStatus::Ok, "on", None),
        Some((module, _)) => {
            let mend = format!(
                "echo 'options {module} nested=1' | sudo tee /etc/modprobe.d/kvm.conf, then reboot (only guests with KVM need it)"
            );
            Check::new("nested KVM", CheckStatus::Warn, "off", mend)
        }
        None if kvm.is_usable() => Check::new("nested KVM", CheckStatus::Ok, "unknown: KVM is built in", None),
        None => Check::new("nested KVM", CheckStatus::Warn, "none, for want of KVM", kvm.mend().map(str::to_owned)),
    }
}

/// What the unified hierarchy lacks, if anything.
pub(super) fn cgroup_v2_lacks() -> Option<String> {
    let root = Path::new("/sys/fs/cgroup");
    let unified = rustix::fs::statfs(root).is_ok_and(|s| s.f_type == CGROUP2_MAGIC);
    if !unified {
        return Some("no cgroup v2 at /sys/fs/cgroup".to_owned());
    }
    let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|c| !there.split_whitespace().any(|t| t == *c)).collect();
    (!missing.is_empty()).then(|| format!("cgroup v2 without the controllers {}", missing.join(", ")))
}

fn cgroups() -> Check {
    match cgroup_v2_lacks() {
        None => Check::new("cgroup v2", CheckStatus::Ok, CONTROLLERS.join(", "), None),
        Some(lack) => {
            let mend = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all on the kernel's command line; until then Duplex works in its lab";
            Check::new("cgroup v2", CheckStatus::Missing, lack, mend.to_owned())
        }
    }
}

fn namespaces() -> Check {
    let wanted = ["cgroup", "ipc", "mnt", "net", "pid", "time", "uts"];
    let missing: Vec<&str> = wanted.into_iter().filter(|n| !Path::new("/proc/self/ns").join(n).exists()).collect();
    if missing.is_empty() {
        return Check::new("namespaces", CheckStatus::Ok, wanted.join(", "), None);
    }
    let mend = "use a kernel with all CONFIG_*_NS; until then Duplex works in its lab".to_owned();
    Check::new("namespaces", CheckStatus::Missing, format!("no {}", missing.join(", ")), mend)
}

fn user_namespaces() -> Check {
    let number = |path| fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let (name, warn) = ("user namespaces", CheckStatus::Warn);
    if !Path::new("/proc/self/ns/user").exists() {
        return Check::new(name, warn, "none in this kernel", "use a kernel with CONFIG_USER_NS".to_owned());
    }
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Check::new(name, warn, "switched off", "sudo sysctl user.max_user_namespaces=15000".to_owned());
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Check::new(name, warn, "for root only", "sudo sysctl kernel.unprivileged_userns_clone=1".to_owned());
    }
    Check::new(name, CheckStatus::Ok, "for all users", None)
}

fn landlock_check(abi: Option<u32>) -> Check {
    match abi {
        Some(abi) => Check::new("Landlock", CheckStatus::Ok, format!("ABI {abi}"), None),
        None => {
            let mend = "add landlock to lsm= on the kernel's command line (CONFIG_SECURITY_LANDLOCK)".to_owned();
            Check::new("Landlock", CheckStatus::Warn, "none", mend)
        }
    }
}

const FILE_SYSTEMS: [&str; 4] = ["erofs", "overlay", "tmpfs", "fuse"];

/// Why the kernel cannot mount this file system, if it cannot.
pub(super) fn file_system_lacks(name: &str) -> Option<String> {
    let loaded = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let loaded = loaded.lines().any(|l| l.split_whitespace().last() == Some(name));
    (!loaded && !module_exists(&Path::new("/lib/modules").join(kernel), name)).then(|| format!("no file system {name}"))
}

/// A module of this name is in the kernel's folder, loadable or built in (modprobe(8)).
fn module_exists(folder: &Path, name: &str) -> bool {
    let file = format!("/{name}.ko");
    let names = |list: &str| {
        let text = fs::read_to_string(folder.join(list)).unwrap_or_default();
        text.lines().any(|l| l.split(':').next().is_some_and(|path| path.contains(&file)))
    };
    names("modules.dep") || names("modules.builtin")
}

fn file_system(name: &str) -> Check {
    match file_system_lacks(name) {
        None => Check::new(name, CheckStatus::Ok, "the kernel has it", None),
        Some(lack) => {
            let mend = "use a kernel with it (Debian's has); until then Duplex works in its lab".to_owned();
            Check::new(name, CheckStatus::Missing, lack, mend)
        }
    }
}

/// Layers are mounted from files; older kernels need a loop device for each.
fn erofs_from_files(kernel: &str) -> Check {
    let name = "EROFS from files";
    if release(kernel) >= (6, 12) {
        return Check::new(name, CheckStatus::Ok, "Linux 6.12 or later", None);
    }
    if Path::new("/dev/loop-control").exists() {
        return Check::new(name, CheckStatus::Ok, "over loop devices", None);
    }
    let mend = "sudo modprobe loop, or use Linux 6.12 or later".to_owned();
    Check::new(name, CheckStatus::Missing, "neither Linux 6.12 nor loop devices", mend)
}

/// What serves folders of the host to microVMs.
fn shares(file_server: Option<&Path>) -> Check {
    let name = "folders in microVMs";
    if let Some(program) = file_server {
        return Check::new(name, CheckStatus::Ok, program.display().to_string(), None);
    }
    let package = tools::package_of_file_server(Path::new("/etc/os-release"));
    let mend = format!("{}; until then use volumes, or --isolation container", install(std::iter::once(package)));
    Check::new(name, CheckStatus::Warn, "no virtiofsd, which serves folders of the host (-v /path:/path)", mend)
}

/// What the default network of both isolations needs: passt for microVMs, pasta for containers, and a tap that pasta, as nobody, can make.
fn network(search: &[PathBuf], tun: &Path) -> Check {
    let name = "network";
    let missing = ["passt", "pasta"].into_iter().find(|program| tools::find(program, search).is_none());
    if let Some(program) = missing {
        let mend = format!("{}; until then use --net none", install(std::iter::once("passt")));
        return Check::new(
            name,
            CheckStatus::Missing,
            format!("no {program}, which makes sandboxes' connections"),
            mend,
        );
    }
    match rustix::fs::stat(tun) {
        Ok(stat) if stat.st_mode & 0o006 == 0o006 => Check::new(name, CheckStatus::Ok, "passt and pasta", None),
        Ok(_) => {
            let found = format!("{} is not open to everyone, so containers have no network", tun.display());
            Check::new(name, CheckStatus::Warn, found, format!("sudo chmod 666 {}", tun.display()))
        }
        Err(_) => {
            let found = format!("no {}, so containers have no network", tun.display());
            Check::new(name, CheckStatus::Warn, found, "sudo modprobe tun".to_owned())
        }
    }
}

/// What limits the rate of a container's network; a microVM's monitor does it itself.
fn network_rates() -> Check {
    let (name, module) = ("network rates", "sch_tbf");
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let loaded = Path::new("/sys/module").join(module).exists();
    if loaded || module_exists(&Path::new("/lib/modules").join(kernel), module) {
        return Check::new(name, CheckStatus::Ok, format!("the kernel has {module}"), None);
    }
    let mend = "use a kernel with CONFIG_NET_SCH_TBF (Debian's has); until then --net-rate is for microVMs".to_owned();
    Check::new(name, CheckStatus::Warn, format!("no module {module}, which limits containers (--net-rate)"), mend)
}

fn user() -> Check {
    let id = rustix::process::geteuid();
    if id.is_root() {
        return Check::new("user", CheckStatus::Ok, "root", None);
    }
    let mend = "containers and the lab need root: run duplex with sudo".to_owned();
    Check::new("user", CheckStatus::Missing, format!("user id {}", id.as_raw()), mend)
}

fn disk(store: &Path) -> Check {
    let there = store.ancestors().find(|p| p.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let name = "disk";
    match rustix::fs::statvfs(&there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let status = if free < LEAST_DISK { CheckStatus::Warn } else { CheckStatus::Ok };
            let mend = format!("free some space in {}: 'duplex rmi' removes images", there.display());
            Check::new(name, status, format!("{} MiB free for {}", free / MIB, store.display()), mend)
        }
        Err(e) => {
            let mend = format!("make {} readable, or name another store by --root", there.display());
            Check::new(name, CheckStatus::Missing, format!("{}: {e}", there.display()), mend)
        }
    }
}

fn lab(places: &Places) -> Check {
    let missing = missing_for_lab(&places.search, true);
    if missing.is_empty() {
        return Check::new("lab", CheckStatus::Ok, "QEMU and virtiofsd", None);
    }
    let found = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Check::new("lab", CheckStatus::Warn, format!("no {found}"), install(missing.iter().map(|m| m.package)))
}

/// The line that installs these packages.
pub(crate) fn install<'a>(packages: impl Iterator<Item = &'a str>) -> String {
    let mut packages: Vec<&str> = packages.collect();
    packages.sort_unstable();
    packages.dedup();
    format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Programs that some things use: program, package, what for.
const OPTIONAL: [(&str, &str, &str); 3] = [
    ("crun", "crun", "an OCI runtime to compare with"),
    ("runc", "runc", "an OCI runtime to compare with"),
    ("fsck.erofs", "erofs-utils", "a second opinion on layers"),
];

fn optional(program: &str, package: &str, use_for: &str, search: &[PathBuf]) -> Check {
    match tools::find(program, search) {
        Some(path) => Check::new(program, CheckStatus::Ok, path.display().to_string(), None),
        None => {
            let found = format!("not there ({use_for})");
            Check::new(program, CheckStatus::Warn, found, install(std::iter::once(package)))
        }
    }
}

/// First two numbers of a kernel release.
fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_as_numbers() {
        assert!(release("6.12.117+deb12-cloud-amd64") >= (6, 12));
        assert!(release("6.9.1") < (6, 12));
        assert_eq!(release("strange"), (0, 0));
    }

    #[test]
    fn modules_are_found_loadable_or_built_in() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.dep"), "kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\n").unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/fs/fuse/fuse.ko\n").unwrap();
        assert!(module_exists(dir.path(), "erofs") && module_exists(dir.path(), "fuse"));
        assert!(!module_exists(dir.path(), "overlay") && !module_exists(dir.path(), "libcrc32c"));
    }

    #[test]
    fn what_is_not_ok_says_how_to_mend_it() {
        let places = Places { store: "/nonexistent/store".into(), search: Vec::new() };
        let host = HostFacts { kernel: "4.19.0".to_owned(), ..HostFacts::default() };
        let checks = all(&host, &KvmFinding::NoPermission, &places);
        for check in &checks {
            assert_eq!(check.status == CheckStatus::Ok, check.mend.is_none(), "{check:?}");
        }
        let kvm = checks.iter().find(|c| c.name == "KVM").unwrap();
        assert_eq!(kvm.status, CheckStatus::Missing);
        assert!(kvm.mend.as_ref().unwrap().contains("usermod -aG kvm"));
        let names: std::collections::BTreeSet<&str> = checks.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), checks.len(), "two checks of one name");
    }

    #[test]
    fn a_network_needs_its_programs_and_an_open_tap() {
        let dir = tempfile::tempdir().unwrap();
        let (search, tun) = (vec![dir.path().to_owned()], dir.path().join("tun"));
        let check = network(&search, &tun);
        assert_eq!(check.status, CheckStatus::Missing);
        assert!(check.mend.unwrap().contains("install --no-install-recommends passt"));
        for program in ["passt", "pasta"] {
            fs::write(dir.path().join(program), "").unwrap();
        }
        assert!(network(&search, &tun).mend.unwrap().contains("modprobe"));
        fs::write(&tun, "").unwrap();
        assert!(network(&search, &tun).mend.unwrap().contains("chmod"));
        fs::set_permissions(&tun, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(network(&search, &tun).status, CheckStatus::Ok);
    }

    #[test]
    fn folders_in_microvms_need_a_file_server() {
        let check = shares(None);
        assert!(check.status == CheckStatus::Warn && check.mend.unwrap().contains("apt-get install"));
        assert_eq!(shares(Some(Path::new("/x/virtiofsd"))).status, CheckStatus::Ok);
    }

    #[test]
    fn packages_are_named_once() {
        let line = install(["b", "a", "b"].into_iter());
        assert_eq!(line, "sudo apt-get install --no-install-recommends a b");
    }
}
