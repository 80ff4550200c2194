//! Docker's notation for limits of processes, file systems in memory and kernel parameters.

use std::path::{Component, Path};

use crate::spec::{MemorySize, NetRate, ProcessLimit, Sysctl, Tmpfs};

/// Why such an option means nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ResourceError {
    /// Not a limit.
    #[error("Limit '{0}' is not NAME=SOFT[:HARD] with numbers or -1, SOFT at most HARD, and one of the names {names}", names = ProcessLimit::NAMES.join(", "))]
    Limit(String),
    /// Not a tmpfs.
    #[error(
        "'{0}' is no place for a tmpfs: write an absolute path that is not / and not in /proc, /sys or /dev (but /dev/shm)"
    )]
    TmpfsPath(String),
    /// An option that a tmpfs does not have.
    #[error(
        "Option '{option}' of the tmpfs at {path} is none of rw, ro, exec, noexec, suid, nosuid, dev, nodev, size=, mode=, uid=, gid=, nr_inodes="
    )]
    TmpfsOption {
        /// Where.
        path: String,
        /// The option.
        option: String,
    },
    /// Not NAME=VALUE.
    #[error("Kernel parameter '{0}' is not NAME=VALUE")]
    Sysctl(String),
    /// One of the host's.
    #[error(
        "Kernel parameter '{0}' is not the sandbox's own: net.*, fs.mqueue.*, kernel.shm*, kernel.msg* and kernel.sem are"
    )]
    SysctlOfHost(String),
    /// Made for other machines.
    #[error("Platform '{0}' is not linux/amd64, the only one that runs here")]
    Platform(String),
}

/// Parameters of the kernel's own namespaces beside those that begin like [`OWN_BEGINNINGS`].
const OWN: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

const OWN_BEGINNINGS: [&str; 2] = ["net.", "fs.mqueue."];

/// `nofile=1024:2048`.
pub(crate) fn process_limit(text: &str) -> Result<ProcessLimit, ResourceError> {
    let refuse = || ResourceError::Limit(text.to_owned());
    let (name, values) = text.split_once('=').ok_or_else(refuse)?;
    let (_, resource) = ProcessLimit::NAMES.iter().zip(0_u8..).find(|(n, _)| **n == name).ok_or_else(refuse)?;
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(None),
        text => text.parse::<u64>().map(Some).map_err(|_| refuse()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    let fits = hard.is_none_or(|hard| soft.is_some_and(|soft| soft <= hard));
    if fits { Ok(ProcessLimit { resource, soft, hard }) } else { Err(refuse()) }
}

/// `/run:size=64m,mode=1777`: Docker's defaults are rw, noexec, nosuid, nodev and mode 1777.
pub(crate) fn tmpfs(text: &str) -> Result<Tmpfs, ResourceError> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let mut tmpfs = Tmpfs { path: mount_point(path)?, ..Tmpfs::default() };
    let mut own: Vec<&str> = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "rw" => tmpfs.read_only = false,
            "ro" => tmpfs.read_only = true,
            "exec" => tmpfs.exec = true,
            "noexec" => tmpfs.exec = false,
            "suid" => tmpfs.suid = true,
            "nosuid" => tmpfs.suid = false,
            "dev" => tmpfs.dev = true,
            "nodev" => tmpfs.dev = false,
            other if is_own(other) => own.push(other),
            other => return Err(ResourceError::TmpfsOption { path: tmpfs.path, option: other.to_owned() }),
        }
    }
    if !own.iter().any(|option| option.starts_with("mode=")) {
        own.push("mode=1777");
    }
    tmpfs.options = own.join(",");
    Ok(tmpfs)
}

/// An option that tmpfs itself takes (tmpfs(5)).
fn is_own(option: &str) -> bool {
    let Some((name, value)) = option.split_once('=') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match name {
        "size" | "nr_inodes" => {
            let unit = value.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', '%']);
            digits(unit.unwrap_or(value))
        }
        "mode" => digits(value) && u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777),
        "uid" | "gid" => value.parse::<u32>().is_ok(),
        _ => false,
    }
}

fn mount_point(path: &str) -> Result<String, ResourceError> {
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    let as_path = Path::new(path);
    let clean: &Path = &as_path.components().collect::<std::path::PathBuf>();
    let closed = ["/proc", "/sys", "/dev"].iter().any(|folder| clean.starts_with(folder)) && clean != "/dev/shm";
    let good = as_path.is_absolute() && as_path.components().all(plain) && clean != "/" && !closed;
    match clean.to_str().filter(|_| good) {
        Some(path) => Ok(path.to_owned()),
        None => Err(ResourceError::TmpfsPath(path.to_owned())),
    }
}

/// `/dev/shm` of this size.
pub(crate) fn shared_memory(size: MemorySize) -> Tmpfs {
    Tmpfs { path: "/dev/shm".to_owned(), options: format!("mode=1777,size={}", size.0), ..Tmpfs::default() }
}

/// `net.core.somaxconn=1024`.
pub(crate) fn sysctl(text: &str) -> Result<Sysctl, ResourceError> {
    let (name, value) = text.split_once('=').ok_or_else(|| ResourceError::Sysctl(text.to_owned()))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || !name.chars().all(plain) || name.split('.').any(str::is_empty) {
        return Err(ResourceError::Sysctl(text.to_owned()));
    }
    let own = OWN.contains(&name) || OWN_BEGINNINGS.iter().any(|begin| name.starts_with(begin));
    if !own {
        return Err(ResourceError::SysctlOfHost(name.to_owned()));
    }
    Ok(Sysctl { name: name.to_owned(), value: value.to_owned() })
}

/// The receive buffers that keep what is under way to a sandbox with this rate short: least, usual and longest (tcp(7)).
pub(crate) fn windows(rate: NetRate) -> Sysctl {
    let longest = rate.receive_buffer();
    Sysctl { name: "net.ipv4.tcp_rmem".to_owned(), value: format!("4096 {} {longest}", longest.min(128 << 10)) }
}

/// Only one platform runs here.
pub(crate) fn platform(text: &str) -> Result<(), ResourceError> {
    let normal = text.to_ascii_lowercase();
    let known = ["linux/amd64", "linux/x86_64", "linux/x86-64", "amd64", "linux"];
    if known.contains(&normal.as_str()) { Ok(()) } else { Err(ResourceError::Platform(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_as_docker_reads_them() {
        let limit = |resource, soft, hard| Ok(ProcessLimit { resource, soft, hard });
        assert_eq!(process_limit("nofile=1024:2048"), limit(7, Some(1024), Some(2048)));
        assert_eq!(process_limit("core=0"), limit(4, Some(0), Some(0)));
        assert_eq!(process_limit("memlock=-1:-1"), limit(8, None, None));
        assert_eq!(process_limit("stack=5:unlimited"), limit(3, Some(5), None));
        for bad in ["nofile", "nofile=", "nofile=2:1", "nofile=-1:5", "files=1", "nofile=1:2:3", "nofile=-2"] {
            assert!(process_limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tmpfs_has_dockers_defaults() {
        let made = tmpfs("/run").unwrap();
        assert_eq!((made.path.as_str(), made.options.as_str()), ("/run", "mode=1777"));
        assert!(!made.exec && !made.suid && !made.dev && !made.read_only);
        let made = tmpfs("/a//b/:exec,ro,size=64m,mode=700,uid=5").unwrap();
        assert_eq!((made.path.as_str(), made.options.as_str()), ("/a/b", "size=64m,mode=700,uid=5"));
        assert!(made.exec && made.read_only);
        assert_eq!(tmpfs("/dev/shm").unwrap().path, "/dev/shm");
        for bad in [
            "",
            "run",
            "/",
            "/a/../b",
            "/proc/x",
            "/sys",
            "/dev",
            "/dev/pts",
            "/a:size=x",
            "/a:mode=9",
            "/a:bind",
            "/a:uid=-1",
        ] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_parameters_of_the_sandbox_are_set() {
        assert_eq!(sysctl("net.core.somaxconn=9").unwrap().value, "9");
        assert_eq!(sysctl("kernel.sem=250 32000 32 128").unwrap().value, "250 32000 32 128");
        assert!(matches!(sysctl("vm.swappiness=1"), Err(ResourceError::SysctlOfHost(_))));
        assert!(matches!(sysctl("kernel.shm=1"), Err(ResourceError::SysctlOfHost(_))));
        for bad in ["net.core", "=1", "net/../x=1", "net..x=1", ".net=1"] {
            assert!(matches!(sysctl(bad), Err(ResourceError::Sysctl(_))), "{bad}");
        }
        assert!(platform("linux/amd64").is_ok() && platform("linux/arm64").is_err());
    }
}
