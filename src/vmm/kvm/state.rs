//! What KVM keeps of a machine: taken out of one, put into another that was made the same way.
//!
//! Order: KVM API, 4.38 (the multiprocessing state first, as asking for it settles pending INIT and SIPI), 4.57 (the local APIC after the special
//! registers, which hold its base), 4.31 (events last, as other calls change them). The TSC deadline is set behind TSC and APIC, which it is
//! counted with.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_MSR_ENTRIES, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{KvmError, refused};

/// Time-stamp counter, and the counter's value at which the local APIC's timer fires.
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A task state segment's type has this bit while its task runs.
const TSS_BUSY: u8 = 1 << 1;

/// One processor. Its parts have the kernel's own layout, which never changes.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: Box<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    /// Model-specific registers as they were when the processor was made.
    fresh: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl VcpuState {
    /// Model-specific registers as they were when the processor was made: a processor that goes on from this one was made alike.
    pub fn fresh(&self) -> &[(u32, u64)] {
        &self.fresh
    }
}

/// What all processors share: the interrupt chips of KVM and the paravirtual clock, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    chips: Vec<kvm_irqchip>,
    clock: u64,
}

/// The values of these model-specific registers, without those that the processor does not have.
pub(super) fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let refused = || refused("read model-specific registers");
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let (some, _) = rest.split_at(rest.len().min(KVM_MAX_MSR_ENTRIES));
        let asked: Vec<_> = some.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut asked = Msrs::from_entries(&asked).map_err(|_| refused()(kvm_ioctls::Error::new(libc::ENOMEM)))?;
        // KVM says how many it read: the one behind them it does not have.
        let read = vcpu.get_msrs(&mut asked).map_err(refused())?;
        values.extend(asked.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        rest = rest.get(if read < some.len() { read + 1 } else { read }..).unwrap_or(&[]);
    }
    Ok(values)
}

fn write_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmError> {
    for some in values.chunks(KVM_MAX_MSR_ENTRIES) {
        let entries: Vec<_> = some
            .iter()
            .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
            .collect();
        let refused = || refused("set a processor's saved model-specific registers");
        let entries = Msrs::from_entries(&entries).map_err(|_| refused()(kvm_ioctls::Error::new(libc::ENOMEM)))?;
        if vcpu.set_msrs(&entries).map_err(refused())? < some.len() {
            return Err(refused()(kvm_ioctls::Error::new(libc::EINVAL)));
        }
    }
    Ok(())
}

/// The processor, which is not in the guest and has no exit that waits for its answer. `fresh` are its model-specific registers as they were when
/// it was made: those that have not changed need not be set.
pub(super) fn save(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2], fresh: &[(u32, u64)]) -> Result<VcpuState, KvmError> {
    let mp = vcpu.get_mp_state().map_err(refused("tell whether a processor runs"))?;
    let refused = || refused("tell a processor's state");
    let indices: Vec<u32> = fresh.iter().map(|(index, _)| *index).collect();
    let mut msrs = read_msrs(vcpu, &indices)?;
    msrs.retain(|now| matches!(now.0, MSR_TSC | MSR_TSC_DEADLINE) || !fresh.contains(now));
    msrs.sort_by_key(|(index, _)| match *index {
        MSR_TSC => (0, 0),
        MSR_TSC_DEADLINE => (2, 0),
        other => (1, other),
    });
    Ok(VcpuState {
        mp,
        regs: vcpu.get_regs().map_err(refused())?,
        sregs: vcpu.get_sregs().map_err(refused())?,
        xsave: Box::new(vcpu.get_xsave().map_err(refused())?),
        xcrs: Box::new(vcpu.get_xcrs().map_err(refused())?),
        debug: vcpu.get_debug_regs().map_err(refused())?,
        lapic: vcpu.get_lapic().map_err(refused())?,
        msrs,
        fresh: fresh.to_vec(),
        events: vcpu.get_vcpu_events().map_err(refused())?,
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        cpuid: cpuid.to_vec(),
    })
}

/// Puts a state into a processor that has just been made.
pub(super) fn restore(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2], state: &VcpuState) -> Result<(), KvmError> {
    if cpuid != state.cpuid {
        return Err(KvmError::OtherProcessor("its features are others"));
    }
    if vcpu.get_tsc_khz().unwrap_or(0) != state.tsc_khz {
        return Err(KvmError::OtherProcessor("its time-stamp counter has another frequency"));
    }
    let refused = || refused("set a processor's saved state");
    vcpu.set_mp_state(state.mp).map_err(refused())?;
    vcpu.set_regs(&state.regs).map_err(refused())?;
    let mut sregs = state.sregs;
    if is_amd(cpuid) {
        // KVM adds the busy bit, which the processor itself does not keep there, and QEMU's has no ports for a task that is busy.
        sregs.tr.type_ &= !TSS_BUSY;
    }
    vcpu.set_sregs(&sregs).map_err(refused())?;
    // SAFETY: KVM reads 4096 bytes, which is the structure: no feature with a larger state was asked for in this process.
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(refused())?;
    if state.xcrs.nr_xcrs > 0 {
        vcpu.set_xcrs(&state.xcrs).map_err(refused())?;
    }
    vcpu.set_debug_regs(&state.debug).map_err(refused())?;
    vcpu.set_lapic(&state.lapic).map_err(refused())?;
    write_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(refused())
}

/// "AuthenticAMD" or "HygonGenuine" in leaf 0.
fn is_amd(cpuid: &[kvm_cpuid_entry2]) -> bool {
    let vendor = |leaf: &kvm_cpuid_entry2| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    let first = cpuid.iter().find(|leaf| leaf.function == 0).map(vendor);
    first.is_some_and(|vendor| vendor == b"AuthenticAMD" || vendor == b"HygonGenuine")
}

pub(super) fn save_vm(vm: &VmFd) -> Result<VmState, KvmError> {
    let refused = || refused("tell the interrupt chips' state");
    let mut chips = Vec::new();
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(refused())?;
        chips.push(chip);
    }
    Ok(VmState { chips, clock: vm.get_clock().map_err(refused())?.clock })
}

pub(super) fn restore_vm(vm: &VmFd, state: &VmState) -> Result<(), KvmError> {
    let refused = || refused("set the interrupt chips' saved state");
    for chip in &state.chips {
        vm.set_irqchip(chip).map_err(refused())?;
    }
    // The guest's clock goes on where it was: it never runs back, and the time between does not count.
    vm.set_clock(&kvm_clock_data { clock: state.clock, ..Default::default() }).map_err(refused())
}
