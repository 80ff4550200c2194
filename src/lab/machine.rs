//! The lab's processes: QEMU and two file servers. All end with the keeper, however it ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::kernel::Kernel;
use super::leftovers::{Recorded, ended};
use super::{KERNEL_MARK, Settings, inside};
use crate::doctor::tools;
use crate::sys::spawn::ChildSetup;

/// What QEMU emulates: the newest AMD processor it can, with SVM; without 5-level paging, which its nested paging does not know, and without
/// the fast `rep stosb` and `rep movsb`: emulated they go byte by byte, so kernels that trust in them clear and copy pages eight times slower.
/// Two more are left out because QEMU 7.2 gets them wrong: after `cmpxchg16b` the flags register holds bits of an unrelated number (a kernel
/// whose NT flag appears so dies at its next `iret`), and a guest's `xsetbv` never reaches KVM, which takes the guest's choice back at its next
/// exit.
const CPU: &str = "max,-la57,-erms,-fsrm,-cx16,-xsave";

/// The same in words.
pub(super) const CPU_WORDS: &str = "AMD with SVM, emulated by QEMU (TCG), 1 processor";

/// Tags of the file systems inside.
pub(super) const ROOT_TAG: &str = "root";
pub(super) const LIVE_TAG: &str = "live";

/// Name of the serial port that carries the channel.
pub(super) const PORT: &str = "duplex.lab";

/// Memory of a lab unless told otherwise, MiB; and the least one that boots it and a guest.
const MEMORY_MIB: u64 = 6144;
const LEAST_MIB: u64 = 1024;

/// Why the lab's processes could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum MachineError {
    #[error("{program} is not there")]
    Missing { program: &'static str },
    #[error("{program} could not be started for the lab")]
    Spawn { program: &'static str, source: io::Error },
    #[error("{path}: the lab could not prepare this file")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: the lab's kernel cannot be given a path with blanks, quotes or other than UTF-8")]
    Path { path: PathBuf },
    #[error("The lab needs {LEAST_MIB} MiB of memory, and this machine has {available} MiB to give")]
    Memory { available: u64 },
}

/// The running processes.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    qemu_fd: OwnedFd,
    file_servers: Vec<Child>,
    /// The keeper's end of the channel.
    pub(super) channel: UnixStream,
    /// Memory given, MiB.
    pub(super) memory_mib: u32,
}

impl Machine {
    /// Starts file servers and QEMU and notes them. They end when the calling thread does.
    pub(super) fn start(settings: &Settings, kernel: &Kernel) -> Result<Self, MachineError> {
        let places = &settings.places;
        let memory_mib = memory(settings.memory_mib)?;
        let program = places.program();
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| MachineError::File { path, source }
        };
        fs::copy(&settings.program, &program).map_err(file(&program))?;
        let own = std::process::id();
        let mut recorded = vec![Recorded::of(own, "keeper").map_err(file(&places.pids()))?];
        let log = File::create(places.log()).map_err(file(&places.log()))?;
        let mut servers = Vec::new();
        let mut streams = Vec::new();
        for tag in [ROOT_TAG, LIVE_TAG] {
            let (child, stream) = file_server(settings, tag, &log)?;
            recorded.extend(Recorded::of(child.id(), "virtiofsd"));
            places.record(&recorded).map_err(file(&places.pids()))?;
            servers.push(child);
            streams.push(stream);
        }
        let spawn = |source| MachineError::Spawn { program: tools::QEMU, source };
        let (channel, theirs) = UnixStream::pair().map_err(spawn)?;
        streams.push(theirs);
        let qemu = qemu(settings, kernel, memory_mib, streams, &log)?;
        recorded.extend(Recorded::of(qemu.id(), "qemu"));
        places.record(&recorded).map_err(file(&places.pids()))?;
        let pid = Pid::from_child(&qemu);
        let qemu_fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| spawn(e.into()))?;
        Ok(Self { qemu, qemu_fd, file_servers: servers, channel, memory_mib })
    }

    /// Readable when QEMU has ended.
    pub(super) fn qemu_fd(&self) -> &OwnedFd {
        &self.qemu_fd
    }

    /// Memory that QEMU has taken, bytes.
    pub(super) fn memory_used(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.qemu.id())).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        kib.checked_mul(1024)
    }

    /// Waits for QEMU to end, kills it if it does not, and ends the file servers.
    pub(super) fn end(mut self, patience: Duration) {
        if !ended(&self.qemu_fd, patience) {
            let _ = pidfd_send_signal(&self.qemu_fd, Signal::KILL);
        }
        let _ = self.qemu.wait();
        for server in &mut self.file_servers {
            // A file server ends with its connection; one that does not has nothing to lose.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Starts a file server of the whole tree, connected to the stream that is returned.
fn file_server(settings: &Settings, tag: &str, log: &File) -> Result<(Child, UnixStream), MachineError> {
    let program = tools::file_server(&settings.search).ok_or(MachineError::Missing { program: "virtiofsd" })?;
    let spawn = |source| MachineError::Spawn { program: "virtiofsd", source };
    let socket = settings.places.state.join(tag);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(spawn)?;
    let stream = UnixStream::connect(&socket).map_err(spawn)?;
    fs::remove_file(&socket).map_err(spawn)?;
    let mut command = Command::new(&program);
    command.arg(format!("--fd={}", listener.as_raw_fd()));
    command.args(if is_part_of_qemu(&program) { options_of_qemus(tag) } else { options_of_rusts(tag) });
    tie(&mut command, vec![listener.into()], log).map_err(spawn)?;
    Ok((command.spawn().map_err(spawn)?, stream))
}

/// QEMU's own virtiofsd says "virtiofsd version 7.2.0 ...", its successor "virtiofsd 1.13.0".
fn is_part_of_qemu(program: &Path) -> bool {
    let said = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    said.is_ok_and(|s| String::from_utf8_lossy(&s.stdout).starts_with("virtiofsd version"))
}

/// `cache=always` keeps contents while a file's time stamp stands; with a time-out of 0 the stamp is asked for at every look-up, so
/// nothing stale is ever seen and yet nothing is read twice.
fn options_of_qemus(tag: &str) -> &'static [&'static str] {
    match tag {
        LIVE_TAG => &["-o", "source=/,sandbox=chroot,cache=always,timeout=0,flock", "--thread-pool-size=8"],
        _ => &["-o", "source=/,sandbox=chroot,cache=always"],
    }
}

/// The successor has no time-out to set (`auto` is one second) and no locks across.
fn options_of_rusts(tag: &str) -> &'static [&'static str] {
    match tag {
        LIVE_TAG => &["--shared-dir=/", "--sandbox=chroot", "--cache=auto"],
        _ => &["--shared-dir=/", "--sandbox=chroot", "--cache=always"],
    }
}

fn qemu(
    settings: &Settings,
    kernel: &Kernel,
    memory_mib: u32,
    streams: Vec<UnixStream>,
    log: &File,
) -> Result<Child, MachineError> {
    let program = tools::find(tools::QEMU, &settings.search).ok_or(MachineError::Missing { program: tools::QEMU })?;
    let mut command = Command::new(program);
    // One thread and one processor: with more, the emulator's translations of code that the lab's kernel patches go stale.
    command.args(["-M", "q35", "-accel", "tcg,thread=single,tb-size=2048", "-cpu", CPU, "-smp", "1"]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-nographic", "-monitor", "none"]);
    command.arg("-m").arg(format!("{memory_mib}M"));
    // vhost-user file servers reach the lab's memory through this file.
    command.arg("-object").arg(format!("memory-backend-memfd,id=mem,size={memory_mib}M,share=on"));
    command.args(["-numa", "node,memdev=mem"]);
    let console = settings.places.console();
    command.arg("-serial").arg(format!("file:{}", plain(&console)?.replace(',', ",,")));
    command.arg("-kernel").arg(kernel.dir.join("vmlinuz"));
    command.arg("-append").arg(command_line(settings, kernel)?);
    command.args(["-device", "virtio-serial-pci"]);
    for (id, stream) in [ROOT_TAG, LIVE_TAG, "channel"].iter().zip(&streams) {
        command.arg("-chardev").arg(format!("socket,id={id},fd={}", stream.as_raw_fd()));
        let device = match *id {
            "channel" => format!("virtserialport,chardev={id},name={PORT}"),
            tag => format!("vhost-user-fs-pci,chardev={id},tag={tag}"),
        };
        command.arg("-device").arg(device);
    }
    let spawn = |source| MachineError::Spawn { program: tools::QEMU, source };
    tie(&mut command, streams.into_iter().map(OwnedFd::from).collect(), log).map_err(spawn)?;
    command.spawn().map_err(spawn)
}

/// The kernel mounts this machine's root by itself (virtio-fs is built in) and starts the copy of `duplex` on it: no initial RAM file system.
fn command_line(settings: &Settings, kernel: &Kernel) -> Result<String, MachineError> {
    let program = settings.places.program();
    Ok(format!(
        "root={ROOT_TAG} rootfstype=virtiofs rw init={} console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off cgroup_no_v1=all \
         {KERNEL_MARK} -- {} {}",
        plain(&program)?,
        inside::VERB,
        plain(&kernel.dir)?
    ))
}

/// A path that the kernel's command line takes as one word.
fn plain(path: &Path) -> Result<&str, MachineError> {
    let fit = |c: char| !c.is_whitespace() && !c.is_control() && c != '"';
    path.to_str().filter(|text| text.chars().all(fit)).ok_or_else(|| MachineError::Path { path: path.to_owned() })
}

fn tie(command: &mut Command, keep: Vec<OwnedFd>, log: &File) -> io::Result<()> {
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    ChildSetup { keep, death_signal: Some(Signal::KILL), ..ChildSetup::default() }.apply(command);
    Ok(())
}

fn memory(wanted: Option<u32>) -> Result<u32, MachineError> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let available =
        line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(u64::MAX, |kib| kib / 1024);
    choose_memory(wanted, available)
}

fn choose_memory(wanted: Option<u32>, available: u64) -> Result<u32, MachineError> {
    let share = wanted.map_or_else(|| MEMORY_MIB.min(available / 2), u64::from);
    if share < LEAST_MIB || share > available {
        return Err(MachineError::Memory { available });
    }
    u32::try_from(share).map_err(|_| MachineError::Memory { available })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_share_of_what_is_free() {
        assert_eq!(choose_memory(None, 24_000).unwrap(), 6144);
        assert_eq!(choose_memory(None, 7000).unwrap(), 3500);
        assert_eq!(choose_memory(Some(2048), 3000).unwrap(), 2048);
        assert!(choose_memory(None, 1500).is_err());
        assert!(choose_memory(Some(4096), 3000).is_err());
        assert!(choose_memory(Some(100), 3000).is_err());
    }

    #[test]
    fn paths_that_would_be_two_words_are_refused() {
        assert!(plain(Path::new("/a/b-c")).is_ok());
        assert!(plain(Path::new("/a b")).is_err());
        assert!(plain(Path::new("/a\"b")).is_err());
    }
}
