//! How a machine begins: at its kernel's entry, or where a saved one stood.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::assemble::{AssembleError, Inherited};
use super::boot::{self, Image, LoadError, Payload};
use super::bus::{Bus, Routes};
use super::kvm::{KvmError, Vcpu, Vm};
use super::memory::GuestRam;
use super::snapshot::format::FormatError;
use super::snapshot::hot::{self, HotRun};
use super::snapshot::{self, Saved, Saver};
use crate::spec::{MachineSpec, TemplateSpec};

/// Where the first instruction comes from.
#[derive(Debug)]
pub(super) enum Beginning {
    /// The kernel's entry.
    Kernel { file: Arc<OwnedFd>, image: Box<Image>, initramfs: Option<Arc<OwnedFd>> },
    /// The one behind a saved machine's last.
    Saved { file: Arc<OwnedFd>, saved: Box<Saved>, hot: Vec<HotRun> },
}

/// A machine without processors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Empty<'a> {
    pub(super) vm: &'a Arc<Vm>,
    pub(super) ram: &'a Arc<GuestRam>,
    pub(super) bus: &'a Bus,
    /// Windows of devices as (address, length, interrupt).
    pub(super) windows: &'a [(u64, u64, u32)],
    pub(super) routes: &'a Routes,
}

impl Beginning {
    /// Opens what the spec names and checks that it fits the machine, before any of it is made.
    pub(super) fn open(spec: &MachineSpec, inherited: &mut Inherited) -> Result<Self, AssembleError> {
        let (file, hot) = match spec.template {
            Some(TemplateSpec::Restore { file, hot }) => (Some(file), hot),
            Some(TemplateSpec::Resume(file)) => (Some(file), None),
            Some(TemplateSpec::Boot | TemplateSpec::Save(_)) | None => (None, None),
        };
        if let Some(file) = file {
            let file = inherited.get(file, "template")?;
            let saved = Saved::read(&file, spec.memory_mib, spec.vcpus)?;
            // A template has no devices, and all others have.
            if saved.state.devices.is_some() != matches!(spec.template, Some(TemplateSpec::Resume(_))) {
                return Err(FormatError::Devices.into());
            }
            let hot = hot.map(|hot| inherited.get(hot, "template's hot pages")).transpose()?;
            let hot = hot.map_or_else(Vec::new, |hot| hot::read(&hot));
            return Ok(Self::Saved { file, saved: Box::new(saved), hot });
        }
        let file = inherited.get(spec.kernel, "kernel")?;
        let initramfs = spec.initramfs.map(|fd| inherited.get(fd, "initramfs")).transpose()?;
        let image = Image::read(&file).map_err(LoadError::from)?;
        boot::check_memory(&image, initramfs.as_deref(), spec.memory_mib)?;
        Ok(Self::Kernel { file, image: Box::new(image), initramfs })
    }

    /// Fills the machine's memory and makes its processors, the boot processor first.
    pub(super) fn processors(&self, spec: &MachineSpec, empty: Empty<'_>) -> Result<Vec<Vcpu>, AssembleError> {
        let Empty { vm, ram, bus, .. } = empty;
        match self {
            Self::Kernel { file, image, initramfs } => {
                let cmdline = boot::cmdline(&spec.cmdline, empty.windows)?;
                let payload = Payload {
                    kernel: (file, image),
                    initramfs: initramfs.as_deref(),
                    cmdline: &cmdline,
                    vcpus: spec.vcpus,
                    routes: empty.routes,
                };
                let state = boot::load(ram, spec.memory_mib, &payload)?;
                let vcpus = make(vm, spec.vcpus)?;
                if let Some(first) = vcpus.first() {
                    first.prepare_boot(&state)?;
                    let mapped = boot::mapped(image, initramfs.as_deref());
                    mapped.into_iter().for_each(|(addr, len)| first.map_ahead(addr, len));
                }
                Ok(vcpus)
            }
            Self::Saved { file, saved, hot } => {
                snapshot::place(ram, file, saved)?;
                let state = &saved.state;
                bus.ioapic().restore(&state.ioapic);
                bus.ports.restore(state.serial);
                let mut vcpus = make(vm, spec.vcpus)?;
                // The clock first: a processor's own page of it is written when its registers are set.
                vm.restore(&state.vm)?;
                vcpus.iter_mut().zip(&state.vcpus).try_for_each(|(vcpu, state)| vcpu.restore(state))?;
                // Behind the processors, which they interrupt.
                state.devices.as_ref().map_or(Ok(()), |devices| bus.restore_devices(devices)).map_err(|refused| {
                    refused.map_or(FormatError::Devices, |(number, why)| FormatError::Device { number, why })
                })?;
                if let Some(first) = vcpus.first() {
                    hot::make_ready(ram, first, hot);
                }
                Ok(vcpus)
            }
        }
    }
}

fn make(vm: &Vm, count: u8) -> Result<Vec<Vcpu>, KvmError> {
    (0..count).map(|index| vm.create_vcpu(index, count)).collect()
}

impl Beginning {
    /// Runs of memory, as (begin, length), that are a file's until the guest writes to them.
    fn mapped(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Kernel { image, initramfs, .. } => boot::mapped(image, initramfs.as_deref()),
            Self::Saved { saved, .. } => saved.state.extents.iter().map(|extent| (extent.addr, extent.len)).collect(),
        }
    }

    /// What writes the machine, if it can be written: its devices appeared late, and nobody else has its memory.
    pub(super) fn saver(
        &self,
        spec: &MachineSpec,
        (vm, ram): (&Arc<Vm>, &Arc<GuestRam>),
        vcpus: &mut [Vcpu],
    ) -> Result<Option<Saver>, AssembleError> {
        if spec.template.is_none() || !spec.shares.is_empty() {
            return Ok(None);
        }
        if matches!(self, Self::Kernel { .. }) {
            vcpus.iter_mut().try_for_each(|vcpu| vcpu.expect_saving(vm.msrs()))?;
        }
        let (vm, ram, mapped) = (vm.clone(), ram.clone(), self.mapped());
        Ok(Some(Saver { ram, memory_mib: spec.memory_mib, vm, mapped }))
    }
}
