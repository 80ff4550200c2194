//! Instructions and registers of the processor that a guest's kernel may use, and those that it may not.

use super::{Case, named};
use crate::sys::{self, DATA, cpuid, read_msr, write_msr};
use crate::virtio::Device;
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    every_leaf_of_cpuid,
    leaves_that_are_none,
    every_register_read,
    every_register_written,
    registers_of_kvm,
    registers_of_hyper_v,
    the_clock_nowhere,
    stolen_time_nowhere,
    page_faults_nowhere,
    microcode_of_garbage,
    time_stamp_of_all_ones,
    memory_types_of_all_ones,
    undefined_instruction,
    breakpoint,
    division_by_zero,
    hypercalls_of_intel,
    hypercalls_of_amd,
    a_guest_of_the_guest_on_amd,
    a_guest_of_the_guest_on_intel,
    monitor_and_mwait,
    performance_counter,
    every_extended_state,
    write_back_all_caches,
    return_from_no_smm,
    far_return_to_nowhere,
    paging_without_protection,
    every_bit_of_cr4,
    every_bit_of_cr8,
    every_bit_of_dr7,
    task_that_is_none,
    table_that_is_none,
    page_that_is_none,
    address_that_is_none,
];

/// Registers without which the program cannot go on, and the local APIC's base, which is a case of its own.
const KEPT: [u32; 2] = [0xc000_0080, 0x1b];

/// Ranges of registers in which something is: the architecture's, KVM's, Hyper-V's, AMD's.
const RANGES: [(u32, u32); 6] = [
    (0, 0x200),
    (0x200, 0x800),
    (0x4b56_4d00, 0x4b56_4d10),
    (0x4000_0000, 0x4000_0110),
    (0xc000_0080, 0xc000_0110),
    (0xc001_0000, 0xc001_0140),
];

fn every_leaf_of_cpuid(_: &Device) -> Verdict {
    for leaf in (0..0x30).chain(0x4000_0000..0x4000_0010).chain(0x8000_0000..0x8000_0028) {
        for index in 0..4 {
            cpuid(leaf, index);
        }
    }
    Ok(())
}

fn leaves_that_are_none(_: &Device) -> Verdict {
    for leaf in [0x31, 0x1000, 0x3fff_ffff, 0x4000_0100, 0x7fff_ffff, 0x8000_0100, 0xc000_0000, u32::MAX] {
        for index in [0, 1, 0x7fff_ffff, u32::MAX] {
            cpuid(leaf, index);
        }
    }
    Ok(())
}

fn every_register_read(_: &Device) -> Verdict {
    let mut found = 0;
    for (begin, end) in RANGES {
        found += (begin..end).filter(|register| read_msr(*register).is_some()).count();
    }
    for register in [0x1000, 0x1fff, 0x2000, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        read_msr(register);
    }
    ensure(found > 20, "hardly any register can be read", found as u64)
}

/// Each value, and then as it was.
fn write(register: u32, values: &[u64]) {
    let before = read_msr(register);
    for value in values {
        write_msr(register, *value);
    }
    write_msr(register, before.unwrap_or(0));
}

fn every_register_written(_: &Device) -> Verdict {
    for (begin, end) in RANGES {
        for register in (begin..end).filter(|register| !KEPT.contains(register)) {
            write(register, &[0, u64::MAX, 1 << 63 | DATA]);
        }
    }
    Ok(())
}

fn registers_of_kvm(_: &Device) -> Verdict {
    for register in 0x4b56_4d00..0x4b56_4d08 {
        write(register, &[DATA | 1, DATA | 0x3f, 0xd000_0001, u64::MAX, 1 << 51 | 1, 0]);
    }
    for register in [0x11, 0x12] {
        write(register, &[DATA | 1, 0xd000_0001, u64::MAX, 0]);
    }
    Ok(())
}

fn registers_of_hyper_v(_: &Device) -> Verdict {
    for register in 0x4000_0000..0x4000_0110 {
        write(register, &[1, DATA | 1, 0xd000_0001, u64::MAX]);
    }
    Ok(())
}

fn the_clock_nowhere(_: &Device) -> Verdict {
    for addr in [0x7000_0000, 0xd000_0000, 0xfee0_0000, 1 << 45] {
        write(0x4b56_4d01, &[addr | 1]);
        write(0x4b56_4d00, &[addr]);
    }
    Ok(())
}

fn stolen_time_nowhere(_: &Device) -> Verdict {
    for addr in [0x7000_0000, 0xd000_0000, 0xfee0_0000, 1 << 45] {
        write(0x4b56_4d03, &[addr | 1]);
    }
    Ok(())
}

fn page_faults_nowhere(_: &Device) -> Verdict {
    for addr in [0x7000_0000, 0xd000_0000, 0xfee0_0000, 1 << 45] {
        write(0x4b56_4d02, &[addr | 1, addr | 0xf]);
        write(0x4b56_4d06, &[0xff, u64::MAX]);
    }
    Ok(())
}

fn microcode_of_garbage(_: &Device) -> Verdict {
    for register in [0x79, 0x8b, 0xc001_0020] {
        write(register, &[0, DATA, 0xd000_0000, u64::MAX]);
    }
    Ok(())
}

fn time_stamp_of_all_ones(_: &Device) -> Verdict {
    for register in [0x10, 0x3b, 0x6e0, 0xc000_0103, 0xc000_0104] {
        write(register, &[u64::MAX, 1 << 63, 1]);
    }
    Ok(())
}

fn memory_types_of_all_ones(_: &Device) -> Verdict {
    for register in (0x200..0x220).chain([0x250, 0x258, 0x259]).chain(0x268..0x270).chain([0x277, 0x2ff]) {
        write(register, &[u64::MAX, 0x0101_0101_0101_0101, 0xc06]);
    }
    Ok(())
}

/// It must fault.
fn faults(done: bool) -> Verdict {
    ensure(!done, "no fault", 0)
}

fn undefined_instruction(_: &Device) -> Verdict {
    faults(sys::undefined())
}

fn breakpoint(_: &Device) -> Verdict {
    faults(sys::breakpoint())
}

fn division_by_zero(_: &Device) -> Verdict {
    faults(sys::divide_by_zero())
}

fn hypercalls_of_intel(_: &Device) -> Verdict {
    for _ in 0..20 {
        sys::vmcall();
    }
    Ok(())
}

fn hypercalls_of_amd(_: &Device) -> Verdict {
    for _ in 0..20 {
        sys::vmmcall();
    }
    Ok(())
}

fn a_guest_of_the_guest_on_amd(_: &Device) -> Verdict {
    faults(sys::vmrun())
}

fn a_guest_of_the_guest_on_intel(_: &Device) -> Verdict {
    faults(sys::vmxon())
}

fn monitor_and_mwait(_: &Device) -> Verdict {
    sys::monitor_wait();
    Ok(())
}

fn performance_counter(_: &Device) -> Verdict {
    sys::read_counter();
    Ok(())
}

fn every_extended_state(_: &Device) -> Verdict {
    faults(sys::extended_state())
}

fn write_back_all_caches(_: &Device) -> Verdict {
    for _ in 0..20 {
        sys::write_back();
    }
    Ok(())
}

fn return_from_no_smm(_: &Device) -> Verdict {
    faults(sys::leave_smm())
}

fn far_return_to_nowhere(_: &Device) -> Verdict {
    faults(sys::far_call())
}

fn paging_without_protection(_: &Device) -> Verdict {
    faults(sys::control_0())
}

fn every_bit_of_cr4(_: &Device) -> Verdict {
    faults(sys::control_4())
}

/// Emulated processors take it.
fn every_bit_of_cr8(_: &Device) -> Verdict {
    sys::control_8();
    sys::control_8_clear();
    Ok(())
}

fn every_bit_of_dr7(_: &Device) -> Verdict {
    faults(sys::debug_7())
}

fn task_that_is_none(_: &Device) -> Verdict {
    faults(sys::task_register())
}

fn table_that_is_none(_: &Device) -> Verdict {
    faults(sys::local_table())
}

fn page_that_is_none(_: &Device) -> Verdict {
    faults(sys::touch_unmapped())
}

fn address_that_is_none(_: &Device) -> Verdict {
    faults(sys::touch_odd())
}
