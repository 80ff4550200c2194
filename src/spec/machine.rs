//! One microVM as the monitor sees it: memory, processors, and files that the caller has opened.

use serde::{Deserialize, Serialize};

use super::{MemorySize, NetRate};

/// I/O port on which the guest's agent says how the machine ended, in one byte (see [`guest_exit`]).
pub const EXIT_PORT: u16 = duplex_wire::EXIT_PORT;

/// I/O port on which the agent says that it waits for its devices.
pub const READY_PORT: u16 = duplex_wire::READY_PORT;

pub use duplex_wire::guest_exit;

/// Number of an open file descriptor that the monitor inherits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecFd(pub i32);

/// Everything the monitor is told, once, before it starts. It opens no path: all files are descriptors it inherits.
///
/// It travels postcard-encoded as the whole content of one inherited file (a memfd, positioned at its begin) whose descriptor number in
/// decimal is the monitor's only argument: `duplex-vmm 3`. All other descriptors above 2 that the monitor inherits are named in here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: SpecFd,
    /// Virtual processors, 1 to 8.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The kernel: an uncompressed x86-64 ELF `vmlinux`, open for reading.
    pub kernel: SpecFd,
    /// The initial RAM file system, open for reading.
    pub initramfs: Option<SpecFd>,
    /// Kernel command line before the monitor adds its devices.
    pub cmdline: String,
    /// Disks in the order in which the guest names them (`/dev/vda`, ...). At most 8.
    pub disks: Vec<DiskSpec>,
    /// The vsock device, absent if `None`.
    pub vsock: Option<VsockSpec>,
    /// Where the virtio console's output goes; no console device if `None`.
    pub console: Option<SpecFd>,
    /// The network devices, in the order in which the guest names them (`eth0`, ...). At most 2.
    pub nets: Vec<NetDeviceSpec>,
    /// Folders of the host: file system devices, at most 7. A machine that has any has memory that their file servers see.
    pub shares: Vec<ShareSpec>,
    /// How the machine begins if its devices appear only when its agent waits for them.
    pub template: Option<TemplateSpec>,
    /// A unix SOCK_SEQPACKET socket: [`MachineEvent`]s go out, [`RequestToMonitor`]s come in.
    pub control: SpecFd,
}

/// What a machine has from its first instruction to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSize {
    /// Memory.
    pub memory: MemorySize,
    /// Virtual processors.
    pub vcpus: u8,
}

/// The beginning of a machine up to the moment when its agent has written to [`READY_PORT`], which may be kept in a file. Its devices appear after
/// that moment: to a driver that looks before, each place on the bus is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TemplateSpec {
    /// Boot, and go on. The guest's kernel looks for no device before its agent wants one.
    Boot,
    /// Boot, write the machine to this file, which is empty, and go on.
    Save(SpecFd),
    /// Go on from this file. Kernel and initramfs are not read.
    Restore {
        /// The saved machine.
        file: SpecFd,
        /// The list of pages that a start touches, if there is one.
        hot: Option<SpecFd>,
    },
    /// Go on from this file, which [`RequestToMonitor::Save`] has filled in a machine with the same devices in the same order. Kernel and initramfs
    /// are not read.
    Resume(SpecFd),
}

/// One raw disk, composed of pieces of files laid end to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The pieces, in order. Each is a whole number of 4096-byte blocks, except that a lone extent may be any number of 512-byte sectors.
    pub extents: Vec<ExtentSpec>,
    /// Writes are answered with an error and VIRTIO_BLK_F_RO is offered.
    pub read_only: bool,
    /// Its files are open with O_DIRECT: the guest is told to read and write in 4096-byte blocks.
    pub direct: bool,
}

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentSpec {
    /// The file.
    pub fd: SpecFd,
    /// First byte of the piece in the file.
    pub offset: u64,
    /// Length in bytes as the guest sees it; past the file's end it reads as zeroes.
    pub len: u64,
}

/// The vsock device: a table of connected unix stream sockets that guest connections take by port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSpec {
    /// The guest's context id, 3 or more.
    pub cid: u64,
    /// Sockets that are there from the start.
    pub streams: Vec<VsockStream>,
}

/// A connected unix stream socket that the first guest connection to `port` on CID 2 takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockStream {
    /// The port that the guest connects to.
    pub port: u32,
    /// The host's end.
    pub fd: SpecFd,
}

/// The network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDeviceSpec {
    /// Where its frames go and come from.
    pub backend: NetBackend,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Longest packet without the Ethernet header, in bytes: 1280 to 65520.
    pub mtu: u16,
    /// How fast it takes frames from the guest, and how fast it gives it frames, at most.
    pub rate: Option<NetRate>,
}

/// Where a network device's frames go and come from. The caller has opened it; other processes must not read or write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetBackend {
    /// A connected unix stream socket: each frame behind its length in 4 bytes, big-endian. What passt and QEMU's `-netdev stream` speak.
    Stream(SpecFd),
    /// A tap interface of one queue made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    Tap(SpecFd),
}

/// A file system device, whose requests a process of the host serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSpec {
    /// The name by which the guest mounts it: 1 to 36 bytes, each share another one.
    pub tag: String,
    /// A connected unix stream socket to a file server that speaks vhost-user as a back end, such as virtiofsd.
    pub socket: SpecFd,
}

/// What the monitor is asked while it runs: one postcard message per packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestToMonitor {
    /// Hold the descriptor that comes with this packet (SCM_RIGHTS) for the next guest connection to this port.
    AddStream {
        /// The port.
        port: u32,
    },
    /// End the machine now.
    Kill,
    /// Take every processor out of the guest and keep it out. Answered by [`MachineEvent::Paused`].
    Pause,
    /// Let the processors go on. Answered by [`MachineEvent::Resumed`].
    Resume,
    /// Take every processor out of the guest, write the machine to the empty file whose descriptor comes with this packet, answer
    /// [`MachineEvent::Saved`], and wait for [`RequestToMonitor::Resume`] if it has been written. Only a machine
    /// whose devices appeared late ([`MachineSpec::template`]), without shares, and not while it is paused.
    Save,
}

/// What the monitor reports: one postcard message per packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineEvent {
    /// The first vCPU is about to run. Time in nanoseconds of CLOCK_MONOTONIC.
    Running {
        /// When.
        at_ns: u64,
    },
    /// The machine has ended; the last event.
    Exited {
        /// Why.
        exit: MachineExit,
        /// When, in nanoseconds of CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// The machine could not be built or started; the last event. The text is an error chain, one cause per line.
    Failed {
        /// The error and its causes.
        causes: Vec<String>,
    },
    /// No processor runs any more.
    Paused,
    /// The processors go on.
    Resumed,
    /// The machine has been written to its [`TemplateSpec::Save`] file, or to that of [`RequestToMonitor::Save`], or why not, one cause per line. It goes
    /// on either way, in the second case when it is told to.
    Saved {
        /// The error and its causes; empty if all is well.
        causes: Vec<String>,
    },
    /// A share's file server is gone or does not keep to its protocol: the guest's accesses to it wait for ever.
    ShareLost {
        /// Which and why, in words.
        why: String,
    },
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineExit {
    /// The agent wrote [`guest_exit::SHUTDOWN`] to [`EXIT_PORT`]: orderly.
    Shutdown,
    /// The agent wrote another byte there.
    AgentFailed(u8),
    /// The guest reset itself through the keyboard controller without a panic.
    Reset,
    /// The guest kernel panicked; its own words.
    Panic(String),
    /// A vCPU shut down on a triple fault.
    TripleFault,
    /// [`RequestToMonitor::Kill`], or the control socket's other end is gone.
    Killed,
    /// KVM gave up on a vCPU: entry failure or internal error, in words.
    KvmFault(String),
}
