//! From a sandbox's spec to the monitor's: every file opened, every socket made, every descriptor numbered.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use duplex_wire::{GUEST_CID, SLOTS, port};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::MicroVmError;
use super::qemu::{self, Bridge, Way};
use super::templates::{self, Kept, Lesson, Shape, Template};
use crate::image::RootDisk;
use crate::jail::around_monitor;
use crate::net::{self, MAC, bridge};
use crate::spec::{
    BridgeAttachment, DiskSpec, ExtentSpec, Installation, Limits, MIB, MachineSpec, MemorySize, MountSpec, NetBackend,
    NetDeviceSpec, NetRate, SandboxSpec, ShareSpec, SpecFd, TemplateSpec, VsockSpec, VsockStream,
};
use crate::sys::birth::FIRST_FD;
use crate::sys::walls::Walls;
use crate::volume::Attached;

/// Machine size where the user gives none.
pub(super) const DEFAULT_MEMORY: MemorySize = MemorySize(512 << 20);

/// Smallest machine, in MiB: below it the guest kernel finds no room for itself and the agent.
pub(super) const SMALLEST_MEMORY_MIB: u64 = 48;

/// Most virtual processors.
const MOST_VCPUS: u32 = 8;

/// Kernel command line of every machine. The serial console is for a panic's last words and costs an exit a byte: silent otherwise. A
/// panic resets the machine at once, through the keyboard controller's port, and a fault inside the kernel is one: a machine whose kernel has
/// killed one of its own threads may wait for ever. KVM's clock is reliable and needs no check by timers.
const CMDLINE: &str =
    "panic=-1 oops=panic reboot=k rdinit=/init tsc=reliable no_timer_check random.trust_cpu=on audit=0";

/// What the console says: nothing but a panic, or all to the log file.
const SILENT: &str = "quiet loglevel=1 8250.nr_uarts=0 earlyprintk=ttyS0,keep";
const LOGGED: &str = "8250.nr_uarts=1 console=ttyS0 console=hvc0 loglevel=7";

/// All that a monitor inherits.
#[derive(Debug)]
pub(super) struct Machine {
    fds: Vec<OwnedFd>,
    args: Vec<String>,
    lesson: Option<Lesson>,
    walls: Option<Walls>,
    bridge: Option<Bridge>,
    is_qemus: bool,
}

/// The caller's ends of the machine's sockets.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) control: OwnedFd,
    pub(super) agent: UnixStream,
    pub(super) stdin: Option<UnixStream>,
    pub(super) stdout: UnixStream,
    pub(super) stderr: Option<UnixStream>,
}

/// What leads from the machine to processes and networks beside it.
#[derive(Debug)]
pub(super) struct Wires {
    /// The wire of the user-mode network.
    pub(super) user: Option<UnixStream>,
    /// The tap in a shared network.
    pub(super) bridge: Option<(OwnedFd, BridgeAttachment)>,
    /// To the file servers of shares, with the tags of their devices.
    pub(super) shares: Vec<(String, UnixStream)>,
}

impl Wires {
    /// Network devices: the guest's first interface is the first of them.
    fn devices(self, fds: &mut Numbered, rate: Option<NetRate>) -> Result<Vec<NetDeviceSpec>, MicroVmError> {
        let mut devices = Vec::new();
        if let Some(wire) = self.user {
            devices.push(NetDeviceSpec {
                backend: NetBackend::Stream(fds.add(wire)?),
                mac: MAC,
                mtu: net::mtu(rate),
                rate,
            });
        }
        if let Some((tap, BridgeAttachment { mac, .. })) = self.bridge {
            devices.push(NetDeviceSpec { backend: NetBackend::Tap(fds.add(tap)?), mac, mtu: bridge::MTU, rate });
        }
        Ok(devices)
    }
}

/// Descriptors in the order of their numbers in the monitor.
#[derive(Default)]
pub(super) struct Numbered(Vec<OwnedFd>);

impl Numbered {
    /// What the caller keeps after all. Nothing is behind its number then.
    pub(super) fn take(&mut self, fd: SpecFd) -> Result<OwnedFd, MicroVmError> {
        let nothing = File::open("/dev/null").map_err(MicroVmError::Resource)?;
        let place = fd.0.checked_sub(FIRST_FD).and_then(|n| self.0.get_mut(usize::try_from(n).ok()?));
        Ok(std::mem::replace(place.ok_or(MicroVmError::TooManyFiles)?, nothing.into()))
    }

    pub(super) fn add(&mut self, fd: impl Into<OwnedFd>) -> Result<SpecFd, MicroVmError> {
        let number = RawFd::try_from(self.0.len()).ok().and_then(|n| n.checked_add(FIRST_FD));
        self.0.push(fd.into());
        number.map(SpecFd).ok_or(MicroVmError::TooManyFiles)
    }

    fn add_stream(&mut self, port: u32, streams: &mut Vec<VsockStream>) -> Result<UnixStream, MicroVmError> {
        let (ours, theirs) = UnixStream::pair().map_err(MicroVmError::Resource)?;
        streams.push(VsockStream { port, fd: self.add(theirs)? });
        Ok(ours)
    }
}

/// Opens all that the machine needs.
pub(super) fn build(
    spec: &SandboxSpec,
    installation: &Installation,
    root: &RootDisk,
    mut wires: Wires,
    volumes: &[(&MountSpec, Attached)],
) -> Result<(Machine, Ends), MicroVmError> {
    let mut fds = Numbered::default();
    let (memory_mib, vcpus) = size(&spec.limits)?;
    let console = spec.kernel_log.as_deref().map(|path| create_log(path).and_then(|f| fds.add(f))).transpose()?;
    let way = spec.runtime.is_some().then(Way::find).transpose()?;
    let beginning = beginning(spec, installation, (memory_mib, vcpus), (&wires, way.as_ref()), &mut fds)?;
    let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(MicroVmError::Kvm)?;
    let kvm = fds.add(kvm)?;
    let kernel = fds.add(open("guest kernel", kernel_of(spec, installation))?)?;
    let initramfs = fds.add(open("guest's initial RAM file system", &installation.initramfs)?)?;
    let disk = root_disk(root, &mut fds)?;
    let mut disks = vec![disk];
    for (mount, volume) in volumes {
        let fd = fds.add(volume.disk.try_clone().map_err(MicroVmError::Resource)?)?;
        disks.push(DiskSpec {
            extents: vec![ExtentSpec { fd, offset: 0, len: volume.len }],
            read_only: mount.read_only,
            direct: spec.limits_writes(),
        });
    }
    let shares = std::mem::take(&mut wires.shares).into_iter();
    let shares = shares.map(|(tag, socket)| Ok(ShareSpec { tag, socket: fds.add(socket)? }));
    let shares = shares.collect::<Result<_, MicroVmError>>()?;
    let nets = wires.devices(&mut fds, spec.network.rate)?;
    let mut streams = Vec::new();
    let agent = fds.add_stream(port::CONTROL, &mut streams)?;
    let stdin = spec.process.stdin.then(|| fds.add_stream(port::STDIN, &mut streams)).transpose()?;
    let stdout = fds.add_stream(port::STDOUT, &mut streams)?;
    let separate = spec.process.terminal.is_none();
    let stderr = separate.then(|| fds.add_stream(port::STDERR, &mut streams)).transpose()?;
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| MicroVmError::Resource(e.into()))?;
    let machine = MachineSpec {
        kvm,
        vcpus,
        memory_mib,
        kernel,
        initramfs: Some(initramfs),
        cmdline: beginning.cmdline,
        disks,
        vsock: Some(VsockSpec { cid: GUEST_CID.into(), streams }),
        console,
        nets,
        shares,
        template: beginning.template,
        control: fds.add(theirs)?,
    };
    let largest_disk = volumes.iter().map(|(_, volume)| volume.len).max().unwrap_or(0);
    let (args, walls, bridge) = match way {
        Some(way) => qemu::machine(&machine, way, &mut fds).map(|(args, bridge)| (args, None, Some(bridge)))?,
        None => {
            let walls = around_monitor(&spec.id, u64::from(memory_mib).saturating_mul(MIB), largest_disk);
            (vec![fds.add(in_memory(&machine)?)?.0.to_string()], Some(walls), None)
        }
    };
    let is_qemus = bridge.is_some();
    Ok((
        Machine { fds: fds.0, args, lesson: beginning.lesson, walls, bridge, is_qemus },
        Ends { control: ours, agent, stdin, stdout, stderr },
    ))
}

/// Where a machine begins.
struct Beginning {
    cmdline: String,
    template: Option<TemplateSpec>,
    lesson: Option<Lesson>,
}

fn kernel_of<'a>(spec: &'a SandboxSpec, installation: &'a Installation) -> &'a Path {
    spec.kernel.as_ref().unwrap_or(&installation.kernel)
}

/// One of QEMU's has all devices from the start, and boots. Of ours, a machine without a log and without shares goes on from a template, or becomes one, unless the user wants a boot. Only one with a log finds its
/// devices, of which its console is one, while its kernel boots.
fn beginning(
    spec: &SandboxSpec,
    installation: &Installation,
    (memory_mib, vcpus): (u32, u8),
    (wires, way): (&Wires, Option<&Way>),
    fds: &mut Numbered,
) -> Result<Beginning, MicroVmError> {
    let saying = if spec.kernel_log.is_some() { LOGGED } else { SILENT };
    let cmdline = format!("{saying} {CMDLINE}");
    if let Some(way) = way {
        return Ok(Beginning { cmdline: format!("{cmdline} {}", way.word()), template: None, lesson: None });
    }
    if spec.kernel_log.is_some() {
        return Ok(Beginning { cmdline, template: None, lesson: None });
    }
    let with_slots = format!("{cmdline} -- {SLOTS}");
    if let Some(path) = &spec.from {
        let file = fds.add(open("saved machine", path)?)?;
        return Ok(Beginning { cmdline: with_slots, template: Some(TemplateSpec::Resume(file)), lesson: None });
    }
    let boot = |cmdline| Ok(Beginning { cmdline, template: Some(TemplateSpec::Boot), lesson: None });
    if spec.cold || !wires.shares.is_empty() {
        return boot(with_slots);
    }
    let files = [kernel_of(spec, installation), &installation.initramfs, &installation.monitor];
    let shape = Shape { files, cmdline: &with_slots, memory_mib, vcpus };
    let template = templates::find(&installation.state, &shape).unwrap_or_else(|e| {
        tracing::warn!("no template for this machine: {e}");
        Template::None
    });
    let (template, lesson) = match template {
        Template::Restore(Kept { file, hot, learner }) => {
            let (file, hot) = (fds.add(file)?, hot.map(|hot| fds.add(hot)).transpose()?);
            (TemplateSpec::Restore { file, hot }, Some(Lesson::Touched(learner)))
        }
        Template::Save(saving) => {
            let file = fds.add(saving.file().map_err(MicroVmError::Resource)?)?;
            (TemplateSpec::Save(file), Some(Lesson::Saved(saving)))
        }
        Template::None => return boot(with_slots),
    };
    Ok(Beginning { cmdline: with_slots, template: Some(template), lesson })
}

/// Most bytes that the memory of a machine has of the file that it begins with: the saved machine, or a template, which is larger than the kernel.
pub(super) fn bytes_of_beginning(spec: &SandboxSpec, installation: &Installation) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |about| about.len());
    let kernel = size(kernel_of(spec, installation)).saturating_add(size(&installation.initramfs));
    spec.from.as_deref().map_or(kernel.saturating_mul(3), size)
}

impl Machine {
    /// What confines the monitor.
    pub(super) fn walls(&self) -> Option<&Walls> {
        self.walls.as_ref()
    }

    /// The monitor's arguments.
    pub(super) fn args(&self) -> &[String] {
        &self.args
    }

    /// QEMU is in the monitor's place.
    pub(super) fn is_qemus(&self) -> bool {
        self.is_qemus
    }

    /// What speaks for QEMU.
    pub(super) fn take_bridge(&mut self) -> Option<Bridge> {
        self.bridge.take()
    }

    /// What others will have of this machine's start.
    pub(super) fn take_lesson(&mut self) -> Option<Lesson> {
        self.lesson.take()
    }

    /// Its descriptors.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }
}

/// Memory in MiB and vCPUs.
pub(super) fn size(limits: &Limits) -> Result<(u32, u8), MicroVmError> {
    let memory = limits.memory.unwrap_or(DEFAULT_MEMORY);
    if memory.mib_ceil() < SMALLEST_MEMORY_MIB {
        return Err(MicroVmError::MemoryTooSmall { asked: memory, least: SMALLEST_MEMORY_MIB });
    }
    let memory_mib = u32::try_from(memory.mib_ceil()).map_err(|_| MicroVmError::MemoryTooLarge(memory))?;
    let vcpus = limits.cpus.map_or(1, |c| c.ceil());
    if !(1..=MOST_VCPUS).contains(&vcpus) {
        return Err(MicroVmError::TooManyCpus { asked: vcpus, most: MOST_VCPUS });
    }
    Ok((memory_mib, u8::try_from(vcpus).unwrap_or(1)))
}

fn open(what: &'static str, path: &Path) -> Result<File, MicroVmError> {
    File::open(path).map_err(|source| MicroVmError::Open { what, path: path.to_owned(), source })
}

fn create_log(path: &Path) -> Result<File, MicroVmError> {
    File::create(path).map_err(|source| MicroVmError::Open { what: "kernel log", path: path.to_owned(), source })
}

fn root_disk(root: &RootDisk, fds: &mut Numbered) -> Result<DiskSpec, MicroVmError> {
    let extents = root.pieces.iter().map(|piece| {
        let fd = fds.add(open("piece of the image's root disk", &piece.path)?)?;
        Ok(ExtentSpec { fd, offset: 0, len: piece.len })
    });
    Ok(DiskSpec { extents: extents.collect::<Result<_, MicroVmError>>()?, read_only: true, direct: false })
}

/// The spec as the content of a file without a name, at its begin.
fn in_memory(machine: &MachineSpec) -> Result<File, MicroVmError> {
    let bytes = postcard::to_stdvec(machine).map_err(|e| MicroVmError::Resource(std::io::Error::other(e)))?;
    let fd = memfd_create("duplex-machine", MemfdFlags::CLOEXEC).map_err(|e| MicroVmError::Resource(e.into()))?;
    let mut file = File::from(fd);
    file.write_all(&bytes).map_err(MicroVmError::Resource)?;
    std::io::Seek::rewind(&mut file).map_err(MicroVmError::Resource)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Cpus, MIB};

    #[test]
    fn machines_have_a_least_and_a_most() {
        let of = |memory: Option<u64>, cpus: Option<u32>| {
            size(&Limits { memory: memory.map(MemorySize), cpus: cpus.map(Cpus), ..Limits::default() })
        };
        assert!(matches!(of(None, None), Ok((512, 1))));
        assert!(matches!(of(Some(64 * MIB + 1), Some(1500)), Ok((65, 2))));
        assert!(matches!(of(Some(SMALLEST_MEMORY_MIB * MIB), Some(8000)), Ok((_, 8))));
        assert!(matches!(of(Some(SMALLEST_MEMORY_MIB * MIB - MIB), None), Err(MicroVmError::MemoryTooSmall { .. })));
        assert!(matches!(of(Some(u64::MAX), None), Err(MicroVmError::MemoryTooLarge(_))));
        assert!(matches!(of(None, Some(8001)), Err(MicroVmError::TooManyCpus { asked: 9, most: 8 })));
        assert!(matches!(of(None, Some(0)), Err(MicroVmError::TooManyCpus { .. })));
    }
}
