//! KVM: the virtual machine, its interrupt chips and its processors.
//!
//! The machine has KVM's in-kernel interrupt chips (local APICs, and the PIC and IOAPIC that come with them; the guest is shown another IOAPIC,
//! [`super::ioapic`]) and no PIT: with an MP table, the always-running APIC timer in TSC deadline mode and the paravirtual clock, Linux asks for none (`apic_needs_pit`).
#![allow(unsafe_code)]

mod cpuid;
mod registers;
mod state;
mod vcpu;

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

pub use registers::{BootState, GDT_ADDR, PAGE_TABLES_ADDR, write_tables};
pub use state::{VcpuState, VmState};
pub use vcpu::{Bound, Exit, Kicker, Vcpu, kick_signal, ready_for_kicks};

use super::ioapic::Messages;
use super::memory::GuestRam;

/// Where KVM on Intel keeps its three-page task state segment and, behind it, an identity page: in the hole, outside RAM and devices.
const TSS_ADDR: usize = 0xfffb_d000;

/// Why KVM did not make a machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not KVM.
    #[error("The file given as /dev/kvm does not answer as KVM does")]
    NotKvm(#[source] io::Error),
    /// A KVM from before 2007.
    #[error("KVM speaks version {0} of its interface, not 12")]
    Version(i32),
    /// KVM lacks an ability.
    #[error("This host's KVM lacks {0}: `duplex doctor` says whether the lab can stand in")]
    Missing(&'static str),
    /// A saved machine is of another processor.
    #[error("The saved machine is of another processor: {0}")]
    OtherProcessor(&'static str),
    /// A request to KVM failed.
    #[error("KVM refused to {what}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Names the request that failed.
fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Refused { what, source: e.into() }
}

/// One virtual machine. Keeps its memory mapped for as long as it lives.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    cpuid: CpuId,
    /// Model-specific registers that KVM can save.
    msrs: Vec<u32>,
    _ram: Arc<GuestRam>,
}

impl Vm {
    /// Makes a machine with this memory and its interrupt chips.
    ///
    /// # Errors
    /// [`KvmError`], telling a file that is not KVM from a KVM that lacks something.
    pub fn new(kvm: OwnedFd, ram: &Arc<GuestRam>) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is owned and handed over; if it is not KVM, its ioctls fail with ENOTTY.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        match kvm.get_api_version() {
            version if u32::try_from(version) == Ok(KVM_API_VERSION) => {}
            -1 => return Err(KvmError::NotKvm(io::Error::last_os_error())),
            version => return Err(KvmError::Version(version)),
        }
        if !kvm.check_extension(Cap::Irqchip) {
            return Err(KvmError::Missing("in-kernel interrupt chips"));
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("tell which processor features it offers"))?;
        let msrs = kvm.get_msr_index_list().map_err(refused("name the model-specific registers"))?.as_slice().to_vec();
        let fd = kvm.create_vm().map_err(refused("create a virtual machine"))?;
        fd.set_tss_address(TSS_ADDR).map_err(refused("place the task state segment"))?;
        fd.create_irq_chip().map_err(refused("create the interrupt chips"))?;
        let vm = Self { fd, cpuid, msrs, _ram: ram.clone() };
        vm.give_memory(ram)?;
        Ok(vm)
    }

    /// One KVM memory slot per region, whatever files are mapped inside.
    fn give_memory(&self, ram: &GuestRam) -> Result<(), KvmError> {
        for (slot, region) in (0_u32..).zip(ram.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr().addr() as u64,
            };
            // SAFETY: the range is one region's whole mapping; `self` holds the memory, so that it stays mapped while the VM exists.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(refused("take the guest's memory"))?;
        }
        Ok(())
    }

    /// Makes processor `index` of `count`.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn create_vcpu(&self, index: u8, count: u8) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(u64::from(index)).map_err(refused("create a processor"))?;
        let cpuid = cpuid::of_vcpu(&self.cpuid, index, count);
        fd.set_cpuid2(&cpuid).map_err(refused("set a processor's features"))?;
        registers::set_msrs(&fd).map_err(refused("set a processor's model-specific registers"))?;
        Ok(Vcpu::new(fd, cpuid))
    }

    /// Model-specific registers that KVM can save.
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// What the processors, which stand still, share.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn save(&self) -> Result<VmState, KvmError> {
        state::save_vm(&self.fd)
    }

    /// Puts a state into a machine that has just been made. Memory must be in its place.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn restore(&self, state: &VmState) -> Result<(), KvmError> {
        state::restore_vm(&self.fd, state)
    }
}

impl Messages for Vm {
    /// KVM takes the message as a device's write to the local APICs' address range. A message that no processor takes is lost, as on a bus.
    fn send(&self, address: u32, data: u32) {
        let _ = self.fd.signal_msi(kvm_msi { address_lo: address, data, ..Default::default() });
    }
}
