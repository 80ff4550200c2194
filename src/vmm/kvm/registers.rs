//! The boot processor's state at the kernel's first instruction: 64-bit mode, flat segments, the first GiB mapped one to one.
//!
//! Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol".

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::vmm::memory::GuestRam;

/// Guest address of the global descriptor table.
pub const GDT_ADDR: u64 = 0x500;
/// Guest address of the three page-table pages.
pub const PAGE_TABLES_ADDR: u64 = 0x9000;

/// `__BOOT_CS` and `__BOOT_DS` of the boot protocol.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Flat 64-bit code (execute, read) and flat data (read, write) segments.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// Where the boot processor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// The kernel's 64-bit entry.
    pub entry: u64,
    /// The zero page, handed over in RSI.
    pub boot_params: u64,
}

/// Writes descriptor table and page tables to guest memory.
///
/// # Errors
/// If memory has not even 64 KiB.
pub fn write_tables(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    let bytes = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    ram.write_slice(&bytes(&GDT), GuestAddress(GDT_ADDR))?;
    let (pml4, pdpt, pd) = (PAGE_TABLES_ADDR, PAGE_TABLES_ADDR + 0x1000, PAGE_TABLES_ADDR + 0x2000);
    ram.write_obj((pdpt | PRESENT_WRITABLE).to_le(), GuestAddress(pml4))?;
    ram.write_obj((pd | PRESENT_WRITABLE).to_le(), GuestAddress(pdpt))?;
    let large_pages: Vec<u64> = (0..512_u64).map(|n| (n << 21) | PRESENT_WRITABLE | LARGE).collect();
    ram.write_slice(&bytes(&large_pages), GuestAddress(pd))
}

pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    // KVM sets them in order and says how many it took: a host without one of them is no obstacle.
    vcpu.set_msrs(&msrs).map(|_| ())
}

pub(super) fn set_boot_state(vcpu: &VcpuFd, state: &BootState) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: state.entry, rsi: state.boot_params, rflags: 2, ..Default::default() })
}

fn long_mode(sregs: &mut kvm_sregs) {
    let segment = |selector: u16, kind: u8, long: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: long,
        db: 1 - long,
        ..Default::default()
    };
    sregs.cs = segment(CODE, 0xb, 1);
    let data = segment(DATA, 0x3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT_ADDR;
    sregs.gdt.limit = u16::try_from(GDT.len() * 8 - 1).unwrap_or(u16::MAX);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES_ADDR;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory::reserve;

    #[test]
    fn the_first_gib_is_mapped_one_to_one() {
        let ram = reserve(1).unwrap();
        write_tables(&ram).unwrap();
        let at = |addr: u64| ram.read_obj::<u64>(GuestAddress(addr)).unwrap();
        let pdpt = at(PAGE_TABLES_ADDR) & !0xfff;
        let pd = at(pdpt) & !0xfff;
        for address in [0_u64, 0x20_0000, 0x3fff_ffff] {
            let entry = at(pd + (address >> 21) * 8);
            assert_eq!(entry & !0x1f_ffff, address & !0x1f_ffff);
            assert_eq!(entry & 0xff, PRESENT_WRITABLE | LARGE);
        }
    }
}
