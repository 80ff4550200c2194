//! The way from a fresh process in new namespaces to the command: mounts, files, identity, privileges, exec. What Docker gives a container.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use duplex_wire::{
    Accounts, DEFAULT_OPEN_FILES, DEFAULT_PATH, FailureKind, Identity, MAX_ACCOUNTS_FILE, Names, ProcessLimit,
    ProcessSpec, Start, Sysctl, TerminalSize, Tmpfs, environment,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, Uid, makedev, mknodat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::launch::Channel;
use crate::program::{self, Failure};
use crate::stdio::ChildEnds;
use crate::trouble::{Doing, Trouble};
use crate::{boot, root, sys};

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// File systems of every command: source, target, type, flags, options.
const MOUNTS: [(&str, &str, &str, MountFlags, &CStr); 7] = [
    ("proc", "/proc", "proc", SAFE, c""),
    ("tmpfs", "/dev", "tmpfs", MountFlags::NOSUID, c"mode=755,size=65536k"),
    (
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    ),
    ("shm", "/dev/shm", "tmpfs", SAFE, c"mode=1777,size=65536k"),
    ("mqueue", "/dev/mqueue", "mqueue", SAFE, c""),
    ("sysfs", "/sys", "sysfs", SAFE.union(MountFlags::RDONLY), c""),
    ("cgroup", "/sys/fs/cgroup", "cgroup2", SAFE.union(MountFlags::RDONLY), c""),
];

/// Device nodes: name, major, minor (devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links in `/dev`: name and target.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// What Docker hides: files become empty, folders too.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
];

/// What Docker makes read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::new(FailureKind::Other, trouble.chain())
    }
}

/// Becomes the command. Returns only if that fails.
pub(crate) fn become_command(start: &Start, ends: Option<ChildEnds>, channel: &Channel) -> Failure {
    let command = prepare(start, ends, channel).and_then(|command| {
        if start.init {
            duplex_init::split().doing(|| "make the command's process".into())?;
        }
        Ok(command)
    });
    match command {
        Ok(command) => command.execute(),
        Err(failure) => failure,
    }
}

/// Becomes a further process beside the command, whose namespaces and cgroup it is in already. Returns only if that fails.
pub(crate) fn become_further(
    process: &ProcessSpec,
    hostname: &str,
    ends: Option<ChildEnds>,
    channel: &Channel,
) -> Failure {
    let prepare = || {
        let identity = find_identity(process)?;
        enter_folder(&process.cwd)?;
        rustix::process::setsid().doing(|| "make a session".into())?;
        match (ends, process.terminal) {
            (Some(ends), _) => take_streams(ends, &identity)?,
            (None, size) => drop(take_terminal(size.unwrap_or_default(), &identity, channel)?),
        }
        drop_privileges(process, &identity)?;
        command(process, hostname, &identity)
    };
    match prepare() {
        Ok(command) => command.execute(),
        Err(failure) => failure,
    }
}

/// Enters a folder that must be there: only the command's own is made.
fn enter_folder(cwd: &str) -> Result<(), Failure> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let text = |why: &str| format!("Cannot enter the working folder '{cwd}': {why}");
    rustix::process::chdir(cwd).map_err(|errno| match errno {
        Errno::NOENT => Failure::new(FailureKind::NotFound, text("no such file or directory")),
        Errno::NOTDIR => Failure::new(FailureKind::CannotExecute, text("not a directory")),
        other => Failure::new(FailureKind::CannotExecute, text(&io::Error::from(other).to_string())),
    })?;
    // A folder outside the root has no path (CVE-2024-21626).
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(Failure::new(FailureKind::CannotExecute, text("it is outside the root"))),
    }
}

/// All that execve(2) takes.
struct Command {
    name: String,
    path: CString,
    args: Vec<CString>,
    environment: Vec<CString>,
}

impl Command {
    /// Returns only why it failed.
    fn execute(&self) -> Failure {
        // Without it the program comes in pieces as it runs into them. What cannot be read is no reason not to try.
        let _ = program::read_ahead(&self.path);
        program::refused(&self.name, sys::execute(&self.path, &self.args, &self.environment))
    }
}

fn prepare(start: &Start, ends: Option<ChildEnds>, channel: &Channel) -> Result<Command, Failure> {
    let process = &start.process;
    root::enter()?;
    mount_all()?;
    start.tmpfs.iter().try_for_each(mount_tmpfs)?;
    make_devices()?;
    write_network_files(&start.names())?;
    start.sysctls.iter().try_for_each(set_sysctl)?;
    close_kernel_interfaces()?;
    let identity = find_identity(process)?;
    enter_working_folder(&process.cwd)?;
    if start.root.read_only {
        close_root()?;
    }
    rustix::process::setsid().doing(|| "make a session".into())?;
    match (ends, process.terminal) {
        (Some(ends), _) => take_streams(ends, &identity)?,
        (None, size) => make_console(&take_terminal(size.unwrap_or_default(), &identity, channel)?)?,
    }
    drop_privileges(process, &identity)?;
    command(process, &start.hostname, &identity)
}

fn mount_all() -> Result<(), Trouble> {
    for (source, target, kind, flags, options) in MOUNTS {
        make_mount_point(target)?;
        mount(source, target, kind, flags, options).doing(|| format!("mount {target} in the image"))?;
    }
    Ok(())
}

/// Mounts a file system in memory that the user asked for; one at `/dev/shm` covers the usual one.
fn mount_tmpfs(tmpfs: &Tmpfs) -> Result<(), Trouble> {
    make_folder(&tmpfs.path)?;
    let mut flags = MountFlags::empty();
    for (allowed, flag) in [
        (tmpfs.exec, MountFlags::NOEXEC),
        (tmpfs.suid, MountFlags::NOSUID),
        (tmpfs.dev, MountFlags::NODEV),
        (!tmpfs.read_only, MountFlags::RDONLY),
    ] {
        if !allowed {
            flags |= flag;
        }
    }
    let options = CString::new(tmpfs.options.as_str()).doing(|| format!("read the options of {}", tmpfs.path))?;
    mount("tmpfs", tmpfs.path.as_str(), "tmpfs", flags, options.as_c_str())
        .doing(|| format!("mount a tmpfs with '{}' at {}", tmpfs.options, tmpfs.path))
}

/// Sets a kernel parameter, in the namespaces of the command where it has one of its own.
fn set_sysctl(sysctl: &Sysctl) -> Result<(), Trouble> {
    std::fs::write(format!("/proc/sys/{}", sysctl.path()), &sysctl.value)
        .doing(|| format!("set the kernel parameter {} to '{}'", sysctl.name, sysctl.value))
}

/// Makes sure that the path is a folder and no link: an image must not lead a mount elsewhere.
fn make_mount_point(path: &str) -> Result<(), Trouble> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => std::fs::remove_file(path).doing(|| format!("replace {path} in the image"))?,
        Err(_) => {}
    }
    std::fs::create_dir(path).doing(|| format!("make the folder {path} in the image"))
}

/// Makes a folder and those above it where they are missing.
fn make_folder(path: &str) -> Result<(), Trouble> {
    std::fs::create_dir_all(path).doing(|| format!("make the folder {path} in the image"))
}

fn make_devices() -> Result<(), Trouble> {
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))
            // The mask of new files, which is the kernel's first process's, takes others' right to write.
            .and_then(|()| rustix::fs::chmod(&path, Mode::from_raw_mode(0o666)))
            .doing(|| format!("make {path}"))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, CWD, format!("/dev/{name}")).doing(|| format!("link /dev/{name}"))?;
    }
    Ok(())
}

/// Replaces the files that a container engine gives every container.
fn write_network_files(names: &Names) -> Result<(), Trouble> {
    let hostname = format!("{}\n", names.hostname);
    let files = [("/etc/hosts", &names.hosts), ("/etc/hostname", &hostname), ("/etc/resolv.conf", &names.resolv_conf)];
    make_folder("/etc")?;
    for (path, content) in files {
        match std::fs::remove_file(path) {
            // A folder of that name stays what it is.
            Err(e) if e.kind() == std::io::ErrorKind::IsADirectory => continue,
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Trouble::new(format!("replace {path}"), e));
            }
            _ => {}
        }
        std::fs::write(path, content).doing(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Hides and closes what the kernel shows of itself, as Docker does.
fn close_kernel_interfaces() -> Result<(), Trouble> {
    for path in MASKED {
        let Ok(found) = rustix::fs::stat(path) else { continue };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            mount("tmpfs", path, "tmpfs", SAFE | MountFlags::RDONLY, c"size=0k").doing(|| format!("hide {path}"))?;
        } else {
            mount_bind("/dev/null", path).doing(|| format!("hide {path}"))?;
        }
    }
    for path in READ_ONLY {
        if rustix::fs::stat(path).is_err() {
            continue;
        }
        mount_bind(path, path).doing(|| format!("bind {path}"))?;
        mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | SAFE, "").doing(|| format!("close {path}"))?;
    }
    Ok(())
}

/// Gives the sandbox, in whose namespaces this process is, other names. A root that is closed is opened meanwhile, which only this process sees:
/// the command is held.
pub(crate) fn rename(names: &Names) -> Result<(), Trouble> {
    boot::set_hostname(&names.hostname)?;
    let flags = rustix::fs::statvfs("/").doing(|| "look at the root".into())?.f_flag;
    let closed = flags.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    if closed {
        mount_remount("/", MountFlags::BIND, "").doing(|| "open the root".into())?;
    }
    let written = write_network_files(names);
    if closed {
        close_root()?;
    }
    written
}

fn close_root() -> Result<(), Trouble> {
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, "").doing(|| "make the root read-only".into())
}

/// Looks user and groups up in the image's own files.
fn find_identity(process: &ProcessSpec) -> Result<Identity, Failure> {
    let (passwd, group) = (read_accounts("/etc/passwd")?, read_accounts("/etc/group")?);
    Identity::resolve(&process.user, Accounts { passwd: &passwd, group: &group })
        .map_err(|e| Failure::new(FailureKind::Other, e.to_string()))
}

/// A regular file's content up to one byte more than [`Identity::resolve`] takes; nothing where there is none.
fn read_accounts(path: &str) -> Result<Vec<u8>, Trouble> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(Vec::new()) };
    let found = rustix::fs::fstat(&file).doing(|| format!("look at {path}"))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let mut content = Vec::new();
    let most = u64::try_from(MAX_ACCOUNTS_FILE).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::from(file).take(most).read_to_end(&mut content).doing(|| format!("read {path}"))?;
    Ok(content)
}

fn enter_working_folder(cwd: &str) -> Result<(), Trouble> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    make_folder(cwd)?;
    rustix::process::chdir(cwd).doing(|| format!("enter the working folder {cwd}"))
}

/// Makes the pipes the standard streams. They belong to the user, so that it can open `/dev/stdout` again.
fn take_streams(ends: ChildEnds, identity: &Identity) -> Result<(), Trouble> {
    let owner = Some(Uid::from_raw(identity.uid));
    let stdin = match ends.stdin {
        Some(pipe) => pipe,
        None => rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .doing(|| "open /dev/null".into())?,
    };
    for pipe in [&ends.stdout, &ends.stderr] {
        rustix::fs::fchown(pipe, owner, None).doing(|| "give the user its output".into())?;
    }
    if FileType::from_raw_mode(rustix::fs::fstat(&stdin).doing(|| "look at the input".into())?.st_mode)
        == FileType::Fifo
    {
        rustix::fs::fchown(&stdin, owner, None).doing(|| "give the user its input".into())?;
    }
    take(&stdin, &ends.stdout, &ends.stderr)
}

/// Makes a terminal of the command's own devpts the standard streams and the controlling terminal; its master goes to the agent.
fn take_terminal(size: TerminalSize, identity: &Identity, channel: &Channel) -> Result<OwnedFd, Trouble> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).doing(|| "open a terminal".into())?;
    unlockpt(&master).doing(|| "unlock the terminal".into())?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer).doing(|| "open the terminal's other end".into())?;
    set_terminal_size(&master, size)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(identity.uid)), None)
        .doing(|| "give the user the terminal".into())?;
    rustix::process::ioctl_tiocsctty(&slave).doing(|| "take the terminal".into())?;
    channel.send_terminal(&master)?;
    take(&slave, &slave, &slave)?;
    Ok(master)
}

/// `/dev/console` is the terminal, as in a container.
fn make_console(master: &OwnedFd) -> Result<(), Trouble> {
    let flags = OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open("/dev/console", flags, Mode::from_raw_mode(0o600)).doing(|| "make /dev/console".into())?;
    let name = rustix::pty::ptsname(master, Vec::new()).doing(|| "name the terminal".into())?;
    mount_bind(&name, "/dev/console").doing(|| "bind /dev/console".into())
}

/// Sets a terminal's size; 0 x 0 leaves it unknown.
pub(crate) fn set_terminal_size(terminal: impl AsFd, size: TerminalSize) -> Result<(), Trouble> {
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).doing(|| "set the terminal's size".into())
}

fn take(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<(), Trouble> {
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .doing(|| "connect the standard streams".into())
}

/// Resource limits, capabilities and user. Order matters: the bounding set needs CAP_SETPCAP, the user needs CAP_SETUID, and the sets of
/// root are cut last.
fn drop_privileges(process: &ProcessSpec, identity: &Identity) -> Result<(), Trouble> {
    let (soft, hard) = DEFAULT_OPEN_FILES;
    let files = Rlimit { current: Some(soft), maximum: Some(hard) };
    rustix::process::setrlimit(Resource::Nofile, files).doing(|| "limit open files".into())?;
    let unlimited = Rlimit { current: None, maximum: None };
    rustix::process::setrlimit(Resource::Nproc, unlimited).doing(|| "lift the limit of processes".into())?;
    process.limits.iter().try_for_each(set_limit)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let kept = process.capabilities.iter().filter(|c| c.0 < 64).fold(0_u64, |set, c| set | 1 << c.0);
    drop_bounding_set(kept)?;
    rustix::thread::clear_ambient_capability_set().doing(|| "clear the ambient capabilities".into())?;
    sys::set_identity(identity.uid, identity.gid, &identity.groups)
        .doing(|| format!("become user {} and group {}", identity.uid, identity.gid))?;
    let kept = CapabilitySet::from_bits_retain(if identity.uid == 0 { kept } else { 0 });
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).doing(|| "set the capabilities".into())?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).doing(|| "forbid new privileges".into())?;
    }
    Ok(())
}

fn set_limit(limit: &ProcessLimit) -> Result<(), Trouble> {
    let resource = match limit.resource {
        0 => Resource::Cpu,
        1 => Resource::Fsize,
        2 => Resource::Data,
        3 => Resource::Stack,
        4 => Resource::Core,
        5 => Resource::Rss,
        6 => Resource::Nproc,
        7 => Resource::Nofile,
        8 => Resource::Memlock,
        9 => Resource::As,
        10 => Resource::Locks,
        11 => Resource::Sigpending,
        12 => Resource::Msgqueue,
        13 => Resource::Nice,
        14 => Resource::Rtprio,
        15 => Resource::Rttime,
        other => return Err(Trouble::new("limit the command's process", format!("there is no limit {other}"))),
    };
    rustix::process::setrlimit(resource, Rlimit { current: limit.soft, maximum: limit.hard })
        .doing(|| format!("set the limit {}", limit.name().unwrap_or_default()))
}

fn drop_bounding_set(kept: u64) -> Result<(), Trouble> {
    for number in 0..64_u32 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept & capability.bits() != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the kernel's last capability (capabilities(7), "cap_last_cap").
            Err(rustix::io::Errno::INVAL) => break,
            Err(e) => return Err(e).doing(|| format!("drop capability {number}")),
        }
    }
    Ok(())
}

fn command(process: &ProcessSpec, hostname: &str, identity: &Identity) -> Result<Command, Failure> {
    let environment = environment(process, hostname, identity);
    let path = environment.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let name = process.args.first().ok_or_else(|| Failure::new(FailureKind::Other, "There is no command to run"))?;
    let strings = |texts: &[String]| texts.iter().map(|t| CString::new(t.as_str())).collect::<Result<Vec<_>, _>>();
    let nul = |_| Failure::new(FailureKind::Other, "An argument or a variable of the command has a NUL byte");
    Ok(Command {
        path: program::find(name, path)?,
        args: strings(&process.args).map_err(nul)?,
        name: name.clone(),
        environment: strings(&environment).map_err(nul)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_reader_takes_only_files() {
        assert!(!read_accounts("/etc/passwd").unwrap().is_empty());
        assert!(read_accounts("/no/such").unwrap().is_empty());
        assert!(read_accounts("/dev/zero").unwrap().is_empty());
        assert!(read_accounts("/etc").unwrap().is_empty());
    }
}
