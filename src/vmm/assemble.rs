//! From a spec to a machine that is ready to run.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::begin::{Beginning, Empty};
use super::boot::LoadError;
use super::bus::{self, Bus, Routes, Slots};
use super::events::{Poller, Wake};
use super::ioapic::{IoApic, Pin};
use super::kvm::{KvmError, Vcpu, Vm};
use super::memory::{self, GuestRam, MemoryError};
use super::ports::{Ports, SERIAL_IRQ, Serial};
use super::snapshot::Saver;
use super::snapshot::format::FormatError;
use super::virtio::balloon::Balloon;
use super::virtio::blk::{Block, Disk, DiskError, Extent};
use super::virtio::console::Console;
use super::virtio::device::{Sources, VirtioDevice};
use super::virtio::fs::{Fs, FsError, LONGEST_TAG};
use super::virtio::interrupt::Interrupt;
use super::virtio::mmio::{MmioDevice, WINDOW};
use super::virtio::net::{LONGEST_MTU, LONGEST_MTU_OF_STREAM, Net, SHORTEST_MTU};
use super::virtio::rng::Rng;
use super::virtio::vsock::{Vsock, WaitingFull, WaitingStreams};
use crate::spec::{DiskSpec, MachineSpec, NetBackend, NetDeviceSpec, ShareSpec, SpecFd, TemplateSpec};
use crate::sys::fd;

/// Most processors.
pub const MOST_VCPUS: u8 = 8;
/// Most disks.
pub const MOST_DISKS: usize = 8;
/// Most network devices.
pub const MOST_NETS: usize = 2;
/// Most shares.
pub const MOST_SHARES: usize = 7;

/// Why a machine was not made.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Too few or too many processors.
    #[error("A machine has 1 to {MOST_VCPUS} processors, not {0}")]
    Vcpus(u8),
    /// Too many disks.
    #[error("A machine has at most {MOST_DISKS} disks, not {0}")]
    Disks(usize),
    /// Too many network devices.
    #[error("A machine has at most {MOST_NETS} network devices, not {0}")]
    Nets(usize),
    /// Too many shares.
    #[error("A machine has at most {MOST_SHARES} shares, not {0}")]
    Shares(usize),
    /// More devices than the bus has places.
    #[error("A machine has at most {most} devices, not {0}", most = bus::MOST_DEVICES)]
    Devices(usize),
    /// No name for a share.
    #[error("A share's tag has 1 to {LONGEST_TAG} bytes and is its own, not '{0}'")]
    Tag(String),
    /// A context id that belongs to somebody else.
    #[error("The guest's context id must be 3 or more and fit 32 bits, not {0}")]
    Cid(u64),
    /// A descriptor of the spec is not open.
    #[error("Descriptor {number} ({what}) is not open")]
    Descriptor {
        /// Its number.
        number: i32,
        /// What the spec says it is.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A descriptor cannot be duplicated or an event made.
    #[error("The monitor has no descriptors left")]
    Descriptors(#[source] io::Error),
    /// Kernel, initramfs or memory size do not do.
    #[error("The machine cannot be loaded")]
    Load(#[from] LoadError),
    /// The template is none, or of another machine.
    #[error("The machine's template cannot be used")]
    Template(#[from] FormatError),
    /// Others have a part of memory that is the template's.
    #[error("A machine with shares cannot begin from a template or become one")]
    SharedTemplate,
    /// No memory.
    #[error("The machine's memory cannot be made")]
    Memory(#[from] MemoryError),
    /// KVM does not make it.
    #[error("KVM does not make the machine")]
    Kvm(#[from] KvmError),
    /// A disk is impossible.
    #[error("Disk {index} cannot be made")]
    Disk {
        /// Which, from 0.
        index: usize,
        /// The cause.
        #[source]
        source: DiskError,
    },
    /// Packets shorter or longer than the back end carries.
    #[error("The network device's MTU must be {SHORTEST_MTU} to {most}, not {asked}")]
    Mtu {
        /// What the spec says.
        asked: u16,
        /// The most with this back end.
        most: u16,
    },
    /// The network device's descriptor is no tap with IFF_VNET_HDR.
    #[error("The network device's descriptor is not a tap interface")]
    Tap(#[source] io::Error),
    /// A share's file server.
    #[error("The file server of the share '{tag}' cannot be worked with")]
    Share {
        /// The share.
        tag: String,
        /// The cause.
        #[source]
        source: FsError,
    },
    /// Too many streams.
    #[error("A stream for the guest cannot be held")]
    Stream(#[from] WaitingFull),
}

/// Inherited descriptors: each number is taken once and may be used several times.
#[derive(Debug, Default)]
pub(super) struct Inherited(BTreeMap<i32, Arc<OwnedFd>>);

impl Inherited {
    pub(super) fn get(&mut self, SpecFd(number): SpecFd, what: &'static str) -> Result<Arc<OwnedFd>, AssembleError> {
        if let Some(fd) = self.0.get(&number) {
            return Ok(fd.clone());
        }
        let fd = fd::take(number).map_err(|source| AssembleError::Descriptor { number, what, source })?;
        Ok(self.0.entry(number).or_insert(Arc::new(fd)).clone())
    }

    /// For one who must own it: the same descriptor if nobody else uses it, else a duplicate.
    pub(super) fn own(&mut self, number: SpecFd, what: &'static str) -> Result<OwnedFd, AssembleError> {
        let fd = self.get(number, what)?;
        self.0.remove(&number.0);
        match Arc::try_unwrap(fd) {
            Ok(fd) => Ok(fd),
            Err(shared) => {
                let own = shared.try_clone().map_err(AssembleError::Descriptors)?;
                self.0.insert(number.0, shared);
                Ok(own)
            }
        }
    }
}

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    /// Its processors, the boot processor first.
    pub vcpus: Vec<Vcpu>,
    /// Everything that they reach outside memory.
    pub bus: Arc<Bus>,
    /// Streams for guest connections.
    pub waiting: WaitingStreams,
    /// Writes it to a file, if that can be done.
    pub saver: Option<Saver>,
    /// It is written to this file when its agent is ready.
    pub template: Option<OwnedFd>,
}

/// Builds the machine. `wake` calls the event loop, `poller` is its.
///
/// # Errors
/// [`AssembleError`].
pub fn assemble(spec: &MachineSpec, poller: &Arc<Poller>, wake: &Arc<Wake>) -> Result<Machine, AssembleError> {
    check(spec)?;
    let mut inherited = Inherited::default();
    let beginning = Beginning::open(spec, &mut inherited)?;
    let reserve = if spec.shares.is_empty() { memory::reserve } else { memory::reserve_shared };
    let ram = Arc::new(reserve(spec.memory_mib)?);
    let vm = Arc::new(Vm::new(inherited.own(spec.kvm, "/dev/kvm")?, &ram)?);
    let mut devices = Devices {
        spec,
        inherited: &mut inherited,
        poller,
        ram: &ram,
        waiting: WaitingStreams::default(),
        list: Vec::new(),
    };
    devices.make()?;
    let (list, waiting) = (devices.list, devices.waiting);
    if list.len() > bus::MOST_DEVICES {
        return Err(AssembleError::Devices(list.len()));
    }
    // Whoever goes on from a template may have other devices.
    let places = match spec.template {
        None | Some(TemplateSpec::Boot) => list.len(),
        Some(_) => bus::MOST_DEVICES,
    };
    let windows: Vec<_> =
        (0..places).filter_map(|number| Some((bus::window(number), WINDOW, bus::irq(number)?))).collect();
    let routes = Routes::new(windows.iter().map(|(_, _, irq)| *irq).chain([SERIAL_IRQ]));
    let ioapic = Arc::new(IoApic::new(routes.pins(), vm.clone()));
    let copy = spec.console.map(|fd| inherited.get(fd, "console")).transpose()?;
    let ports = Ports::new(Serial::new(Arc::new(Pin::new(ioapic.clone(), routes.pin(SERIAL_IRQ))), copy));
    let devices = on_bus(list, (&ioapic, &routes), &ram, wake);
    let slots = spec
        .template
        .map(|template| Slots::new(matches!(template, TemplateSpec::Restore { .. } | TemplateSpec::Resume(_))));
    let bus = Bus::new(ports, ioapic, devices, slots);
    let empty = Empty { vm: &vm, ram: &ram, bus: &bus, windows: &windows, routes: &routes };
    let mut vcpus = beginning.processors(spec, empty)?;
    let saver = beginning.saver(spec, (&vm, &ram), &mut vcpus)?;
    let template = match spec.template {
        Some(TemplateSpec::Save(file)) => Some(inherited.own(file, "template")?),
        _ => None,
    };
    Ok(Machine { vcpus, bus: Arc::new(bus), waiting, saver, template })
}

fn check(spec: &MachineSpec) -> Result<(), AssembleError> {
    if !(1..=MOST_VCPUS).contains(&spec.vcpus) {
        return Err(AssembleError::Vcpus(spec.vcpus));
    }
    if spec.disks.len() > MOST_DISKS {
        return Err(AssembleError::Disks(spec.disks.len()));
    }
    if spec.nets.len() > MOST_NETS {
        return Err(AssembleError::Nets(spec.nets.len()));
    }
    check_shares(&spec.shares)?;
    if !matches!(spec.template, None | Some(TemplateSpec::Boot)) && !spec.shares.is_empty() {
        return Err(AssembleError::SharedTemplate);
    }
    match &spec.vsock {
        Some(vsock) if vsock.cid < 3 || vsock.cid >= u64::from(u32::MAX) => Err(AssembleError::Cid(vsock.cid)),
        _ => spec.nets.iter().try_for_each(check_net),
    }
}

fn check_shares(shares: &[ShareSpec]) -> Result<(), AssembleError> {
    if shares.len() > MOST_SHARES {
        return Err(AssembleError::Shares(shares.len()));
    }
    for (number, ShareSpec { tag, .. }) in shares.iter().enumerate() {
        let taken = shares.iter().take(number).any(|other| other.tag == *tag);
        if taken || tag.contains('\0') || !(1..=LONGEST_TAG).contains(&tag.len()) {
            return Err(AssembleError::Tag(tag.clone()));
        }
    }
    Ok(())
}

fn check_net(net: &NetDeviceSpec) -> Result<(), AssembleError> {
    let most = match net.backend {
        NetBackend::Stream(_) => LONGEST_MTU_OF_STREAM,
        NetBackend::Tap(_) => LONGEST_MTU,
    };
    let good = (SHORTEST_MTU..=most).contains(&net.mtu);
    if good { Ok(()) } else { Err(AssembleError::Mtu { asked: net.mtu, most }) }
}

fn on_bus(
    list: Vec<Box<dyn VirtioDevice>>,
    (ioapic, routes): (&Arc<IoApic>, &Routes),
    ram: &Arc<GuestRam>,
    wake: &Arc<Wake>,
) -> Vec<MmioDevice> {
    list.into_iter()
        .enumerate()
        .filter_map(|(number, device)| {
            let line = Arc::new(Pin::new(ioapic.clone(), routes.pin(bus::irq(number)?)));
            Some(MmioDevice::new(device, ram.clone(), Interrupt::new(line), wake.clone()))
        })
        .collect()
}

/// The devices of a spec, in the order of their numbers on the bus: disks, vsock, entropy, balloon, console, network, shares; where they appear late
/// vsock, disks, network, shares, entropy, balloon, console.
struct Devices<'a> {
    spec: &'a MachineSpec,
    inherited: &'a mut Inherited,
    poller: &'a Arc<Poller>,
    ram: &'a GuestRam,
    waiting: WaitingStreams,
    list: Vec<Box<dyn VirtioDevice>>,
}

impl Devices<'_> {
    fn make(&mut self) -> Result<(), AssembleError> {
        if self.spec.template.is_some() {
            // The agent wants them in this order, and the last ones when the command runs.
            self.vsock()?;
            self.disks()?;
            self.nets()?;
            self.shares()?;
            self.always();
            return self.console();
        }
        self.disks()?;
        self.vsock()?;
        self.always();
        self.console()?;
        self.nets()?;
        self.shares()
    }

    /// Late: their file servers get ready meanwhile.
    fn shares(&mut self) -> Result<(), AssembleError> {
        for ShareSpec { tag, socket } in &self.spec.shares {
            let socket = self.inherited.own(*socket, "share")?;
            let share = Fs::new(tag, socket, self.ram, &self.sources());
            let share = share.map_err(|source| AssembleError::Share { tag: tag.clone(), source })?;
            self.list.push(Box::new(share));
        }
        Ok(())
    }

    fn disks(&mut self) -> Result<(), AssembleError> {
        for (index, disk) in self.spec.disks.iter().enumerate() {
            let device = Block::new(self.disk(index, disk)?);
            self.list.push(Box::new(if disk.direct { device.in_blocks() } else { device }));
        }
        Ok(())
    }

    fn vsock(&mut self) -> Result<(), AssembleError> {
        let Some(vsock) = &self.spec.vsock else { return Ok(()) };
        for stream in &vsock.streams {
            self.waiting.add(stream.port, self.inherited.own(stream.fd, "vsock stream")?)?;
        }
        let device = Vsock::new(vsock.cid, self.waiting.clone(), self.sources());
        self.list.push(Box::new(device));
        Ok(())
    }

    fn always(&mut self) {
        self.list.push(Box::new(Rng));
        self.list.push(Box::new(Balloon));
    }

    fn console(&mut self) -> Result<(), AssembleError> {
        if let Some(console) = self.spec.console {
            let console = Console::new(self.inherited.get(console, "console")?, self.sources());
            self.list.push(Box::new(console));
        }
        Ok(())
    }

    fn nets(&mut self) -> Result<(), AssembleError> {
        for net in &self.spec.nets {
            let net = self.net(net)?;
            self.list.push(Box::new(net));
        }
        Ok(())
    }

    fn net(&mut self, spec: &NetDeviceSpec) -> Result<Net, AssembleError> {
        let sources = self.sources();
        let device = match spec.backend {
            NetBackend::Stream(fd) => {
                Net::over_stream(self.inherited.own(fd, "network stream")?, spec.mac, spec.mtu, sources)
            }
            NetBackend::Tap(fd) => Net::over_tap(self.inherited.own(fd, "tap")?, spec.mac, spec.mtu, sources)
                .map_err(AssembleError::Tap)?,
        };
        match spec.rate {
            Some(rate) => device.limited(rate).map_err(AssembleError::Descriptors),
            None => Ok(device),
        }
    }

    /// For the device that is made next.
    fn sources(&self) -> Sources {
        Sources::new(self.poller.clone(), u32::try_from(self.list.len()).unwrap_or(u32::MAX))
    }

    fn disk(&mut self, index: usize, spec: &DiskSpec) -> Result<Disk, AssembleError> {
        let mut extents = Vec::with_capacity(spec.extents.len());
        for extent in &spec.extents {
            let file = self.inherited.get(extent.fd, "disk")?;
            extents.push(Extent { file, offset: extent.offset, len: extent.len });
        }
        Disk::new(extents, spec.read_only).map_err(|source| AssembleError::Disk { index, source })
    }
}
