//! QEMU in the monitor's place, for comparisons: the same kernel, agent and image, by its leanest machine, `microvm`.
//!
//! QEMU knows nothing of our monitor's protocol, so a thread here speaks it for QEMU; and vsock is the host's kernel's (vhost-vsock), whose ports
//! all guests share, so each machine has a range of its own. QEMU has its own filter of system calls, and none of our monitor's walls.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::Builder;

use duplex_wire::port;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};

use super::MicroVmError;
use super::machine::Numbered;
use crate::container::orders::receive;
use crate::spec::{
    DiskSpec, EXIT_PORT, MIB, MachineExit, MachineSpec, NetBackend, NetDeviceSpec, RequestToMonitor, SandboxSpec,
    SpecFd, guest_exit,
};
use crate::sys::vsock;

/// Where the host's kernel carries vsock for guests.
const VHOST: &str = "/dev/vhost-vsock";

/// Context ids that machines here have: far from the small ones that people give by hand, and few enough for a range of ports each.
const CIDS: std::ops::Range<u32> = 64..4096;

/// Bits of a port that are the machine's own; the others are its context id.
const PORT_BITS: u32 = 20;

/// What QEMU takes beside its guest's memory, in bytes: kernel and initial RAM file system before the guest has them, and its own.
pub(super) const MEMORY: u64 = 256 * MIB;

/// Threads that QEMU may have: up to 64 of them read and write files.
pub(super) const THREADS: u32 = 128;

/// Bytes moved at once, and the stack of a thread that moves them.
const CHUNK: usize = 64 << 10;

/// The devices that QEMU's machine would not have to boot this kernel are left out, and the console is its standard error: all that it says is
/// a panic's last words.
const MACHINE: &str = "-M microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on -accel kvm -cpu host -nodefaults \
    -no-user-config -no-reboot -display none -global virtio-mmio.force-legacy=false \
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The way of a machine to the host: its context id, and the file that holds it.
#[derive(Debug)]
pub(super) struct Way {
    vhost: File,
    cid: u32,
}

impl Way {
    /// One that no guest has.
    pub(super) fn find() -> Result<Self, MicroVmError> {
        let vhost = File::options().read(true).write(true).open(VHOST).map_err(MicroVmError::Vhost)?;
        for cid in CIDS {
            match vsock::set_guest_cid(&vhost, cid) {
                Ok(()) => return Ok(Self { vhost, cid }),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err(e) => return Err(MicroVmError::Vhost(e)),
            }
        }
        Err(MicroVmError::Vhost(io::ErrorKind::AddrInUse.into()))
    }

    /// The word on the kernel's command line that tells the agent of its ports. Not behind `--`: QEMU's words of devices come after it.
    pub(super) fn word(&self) -> String {
        format!("{}={}", port::BASE, base(self.cid))
    }
}

fn base(cid: u32) -> u32 {
    cid << PORT_BITS
}

/// Refuses what only our monitor does.
pub(super) fn check(spec: &SandboxSpec, shares: usize) -> Result<(), MicroVmError> {
    let lacks = [
        (shares > 0, "folders of the host"),
        (spec.network.bridge.is_some(), "shared networks"),
        (spec.network.rate.is_some(), "rate of its network"),
        (spec.from.is_some(), "saved machine to go on from"),
        // Nothing would keep its guest from filling the host's disk by it.
        (spec.kernel_log.is_some(), "kernel log"),
    ];
    lacks.into_iter().find(|(asked, _)| *asked).map_or(Ok(()), |(_, what)| Err(MicroVmError::QemuLacks(what)))
}

/// QEMU's arguments for this machine. What our monitor would speak with is the bridge's.
pub(super) fn machine(spec: &MachineSpec, way: Way, fds: &mut Numbered) -> Result<(Vec<String>, Bridge), MicroVmError> {
    let mut args: Vec<String> = MACHINE.split_whitespace().map(str::to_owned).collect();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-smp", &spec.vcpus.to_string(), "-m", &format!("{}M", spec.memory_mib)]);
    add(&["-kernel", &path(spec.kernel), "-append", &spec.cmdline]);
    if let Some(initramfs) = spec.initramfs {
        add(&["-initrd", &path(initramfs)]);
    }
    for (number, disk) in spec.disks.iter().enumerate() {
        let file = path(fds.add(description(disk)?)?);
        let on = |yes| if yes { "on" } else { "off" };
        let node = format!(
            "driver=vmdk,node-name=disk{number},read-only={},cache.direct={},file.driver=file,file.filename={file}",
            on(disk.read_only),
            on(disk.direct)
        );
        add(&["-blockdev", &node, "-device", &format!("virtio-blk-device,drive=disk{number}")]);
    }
    for (number, net) in spec.nets.iter().enumerate() {
        add(&["-netdev", &backend(net, number)?, "-device", &device(net, number)]);
    }
    let vhost = fds.add(way.vhost)?.0;
    add(&["-device", &format!("vhost-vsock-device,guest-cid={},vhostfd={vhost}", way.cid)]);
    add(&["-device", &format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1")]);
    add(&["-chardev", "file,id=console,path=/proc/self/fd/2,append=on", "-serial", "chardev:console"]);
    let mut bridge = Bridge { cid: way.cid, control: fds.take(spec.control)?, waiting: Vec::new() };
    for stream in spec.vsock.iter().flat_map(|vsock| &vsock.streams) {
        let held = fds.take(stream.fd)?;
        bridge.hold(stream.port, held).map_err(MicroVmError::Resource)?;
    }
    Ok((args, bridge))
}

fn path(fd: SpecFd) -> String {
    format!("/proc/self/fd/{}", fd.0)
}

/// The disk's pieces laid end to end, in the words of a VMDK descriptor file: the one format of QEMU's that has them ("Extent description",
/// VMware Virtual Disks, Virtual Disk Format 5.0). Reads past a piece's file are zeroes there too.
fn description(disk: &DiskSpec) -> Result<OwnedFd, MicroVmError> {
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n",
    );
    for extent in &disk.extents {
        let (sectors, offset) = (extent.len.div_ceil(512), extent.offset / 512);
        let _ = writeln!(text, "RW {sectors} FLAT \"{}\" {offset}", path(extent.fd));
    }
    let fd = memfd_create("duplex-disk", MemfdFlags::CLOEXEC).map_err(|e| MicroVmError::Resource(e.into()))?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes()).and_then(|()| file.rewind()).map_err(MicroVmError::Resource)?;
    Ok(file.into())
}

fn backend(net: &NetDeviceSpec, number: usize) -> Result<String, MicroVmError> {
    match net.backend {
        NetBackend::Stream(fd) => Ok(format!("stream,id=net{number},server=off,addr.type=fd,addr.str={}", fd.0)),
        NetBackend::Tap(_) => Err(MicroVmError::QemuLacks("shared networks")),
    }
}

fn device(net: &NetDeviceSpec, number: usize) -> String {
    let mac: Vec<String> = net.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("virtio-net-device,netdev=net{number},mac={},host_mtu={}", mac.join(":"), net.mtu)
}

/// How the machine ended, if QEMU's exit code says it: `isa-debug-exit` makes an odd one of what the agent writes, and 0 is a reset.
pub(super) fn said(code: i32) -> Option<MachineExit> {
    const AS_WRITTEN: fn(u8) -> i32 = |byte| i32::from(byte) << 1 | 1;
    match code {
        0 => Some(MachineExit::Reset),
        code if code == AS_WRITTEN(guest_exit::SHUTDOWN) => Some(MachineExit::Shutdown),
        code if code == AS_WRITTEN(guest_exit::AGENT_FAILED) => {
            Some(MachineExit::AgentFailed(guest_exit::AGENT_FAILED))
        }
        _ => None,
    }
}

/// Speaks the monitor's protocol: streams wait for the guest's connections at their ports.
#[derive(Debug)]
pub(super) struct Bridge {
    cid: u32,
    control: OwnedFd,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    port: u32,
    listener: OwnedFd,
    stream: OwnedFd,
}

impl Bridge {
    /// Starts the thread. It ends when the control socket's other end is closed.
    pub(super) fn start(mut self) -> io::Result<()> {
        let body = move || while self.attend().is_ok() {};
        Builder::new().name("duplex-vsock".to_owned()).stack_size(CHUNK).spawn(body).map(drop)
    }

    fn hold(&mut self, port: u32, stream: OwnedFd) -> io::Result<()> {
        if port >> PORT_BITS != 0 {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let listener = vsock::listen(base(self.cid) | port)?;
        self.waiting.push(Waiting { port, listener, stream });
        Ok(())
    }

    /// Waits for a request or a connection, and does what it asks for.
    fn attend(&mut self) -> Result<(), Over> {
        let listeners = self.waiting.iter().map(|waiting| waiting.listener.as_fd());
        let fds = std::iter::once(self.control.as_fd()).chain(listeners);
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(_) => return Err(Over),
            Ok(_) => {}
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        // From the last on: what is taken away moves no other that is yet to be looked at.
        for number in (0..self.waiting.len()).rev() {
            if ready.get(number.saturating_add(1)) == Some(&true) {
                self.connect(number);
            }
        }
        if ready.first() != Some(&true) {
            return Ok(());
        }
        let (request, descriptors) = receive::<RequestToMonitor>(&self.control).map_err(|_| Over)?;
        if let (RequestToMonitor::AddStream { port }, Some(stream)) = (request, descriptors.into_iter().next()) {
            // Without a listener the guest's connection is refused, and the agent says so.
            let _ = self.hold(port, stream);
        }
        Ok(())
    }

    /// Others of this host and their guests can connect to the port too, and are sent away.
    fn connect(&mut self, number: usize) {
        let Some(waiting) = self.waiting.get(number) else { return };
        let Ok((guest, peer)) = vsock::accept(&waiting.listener) else { return };
        let as_root = waiting.port < port::SESSIONS || peer.port < port::PRIVILEGED;
        if peer.cid == self.cid && as_root {
            let stream = self.waiting.swap_remove(number).stream;
            let _ = between(&File::from(guest), &File::from(stream));
        }
    }
}

/// Nobody asks any more.
#[derive(Debug)]
struct Over;

/// Moves bytes both ways until both have ended.
fn between(guest: &File, host: &File) -> io::Result<()> {
    for (from, to) in [(guest, host), (host, guest)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        Builder::new().name("duplex-stream".to_owned()).stack_size(CHUNK).spawn(move || carry(from, to))?;
    }
    Ok(())
}

/// An end goes on to the other side, whichever side it is of.
fn carry(mut from: File, mut to: File) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if to.write_all(buffer.get(..count).unwrap_or(&[])).is_err() {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = rustix::net::shutdown(&to, rustix::net::Shutdown::Write);
    let _ = rustix::net::shutdown(&from, rustix::net::Shutdown::Read);
}
