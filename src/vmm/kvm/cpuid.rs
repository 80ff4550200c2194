//! What the guest sees of the processor: the host's features as KVM can offer them, less what costs a start time and serves no guest, with
//! the topology of one socket of up to eight cores.
//!
//! Leaves and bits: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Features, leaf 1.
const ECX1_MONITOR: u32 = 1 << 3;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_MCE: u32 = 1 << 7;
const EDX1_MCA: u32 = 1 << 14;
const EDX1_HTT: u32 = 1 << 28;
/// Leaf 6: the APIC timer runs in all sleep states.
const EAX6_ARAT: u32 = 1 << 2;
/// Leaf 0x8000_0001: performance counter extensions of AMD.
const ECX81_PERFCTR: u32 = (1 << 23) | (1 << 24) | (1 << 28);
/// Leaf 0x8000_0001: CmpLegacy and TopologyExtensions of AMD.
const ECX81_CMP_LEGACY: u32 = 1 << 1;

/// The leaves of processor `index` of `count`, made from those that KVM supports.
pub(super) fn of_vcpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    // Leaves that describe the host's own topology or counters; topology comes back below as the guest's own.
    cpuid.retain(|e| !matches!(e.function, 0xb | 0x1f | 0x8000_0026));
    for entry in cpuid.as_mut_slice() {
        fit(entry, index, count);
    }
    for entry in topology(index, count) {
        // A full table is no reason to fail: the kernel falls back to the counts in leaf 1.
        let _ = cpuid.push(entry);
    }
    cpuid
}

fn fit(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    let cores = u32::from(count);
    match entry.function {
        1 => {
            entry.ecx = (entry.ecx | ECX1_HYPERVISOR | ECX1_TSC_DEADLINE) & !ECX1_MONITOR;
            // No machine-check banks: nothing would ever report there, and each costs exits at start.
            entry.edx &= !(EDX1_MCE | EDX1_MCA | EDX1_HTT);
            if count > 1 {
                entry.edx |= EDX1_HTT;
            }
            entry.ebx = (entry.ebx & 0x0000_ffff) | (cores << 16) | (u32::from(index) << 24);
        }
        // Cache parameters: cores in the package, and how many share each cache, minus one.
        4 | 0x8000_001d => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { cores - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
            if entry.function == 4 {
                entry.eax |= (cores - 1) << 26;
            }
        }
        6 => entry.eax |= EAX6_ARAT,
        // No performance counters: probing them costs exits at start.
        0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !(ECX81_PERFCTR | ECX81_CMP_LEGACY);
            if count > 1 {
                entry.ecx |= ECX81_CMP_LEGACY;
            }
        }
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (id_bits(count) << 12) | (cores - 1),
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (u32::from(index), u32::from(index), 0),
        _ => {}
    }
}

/// Bits of an APIC id that number the cores of the package.
fn id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

/// Leaf 0xb, extended topology enumeration: one thread per core, `count` cores, one package.
fn topology(index: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    const BY_INDEX: u32 = 1;
    let level = |subleaf: u32, shift: u32, threads: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: subleaf,
        flags: BY_INDEX,
        eax: shift,
        ebx: threads,
        ecx: subleaf | (kind << 8),
        edx: u32::from(index),
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, id_bits(count), u32::from(count), 2), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_processor_knows_its_number_and_its_neighbours() {
        let host = CpuId::from_entries(&[
            entry(1, [0, 0xff40_0800, ECX1_MONITOR, EDX1_MCE | EDX1_HTT]),
            entry(0xb, [5, 16, 0, 9]),
            entry(0x8000_0008, [0x3030, 0, 0x701f, 0]),
            entry(0xa, [2, 2, 2, 2]),
        ])
        .unwrap();
        let cpuid = of_vcpu(&host, 3, 6);
        let leaf1 = find(&cpuid, 1, 0);
        assert_eq!(leaf1.ebx, 0x0306_0800);
        assert_eq!(leaf1.ecx, ECX1_HYPERVISOR | ECX1_TSC_DEADLINE);
        assert_eq!(leaf1.edx, EDX1_HTT);
        assert_eq!(find(&cpuid, 0xb, 1).eax, 3, "six cores need three bits");
        assert_eq!(find(&cpuid, 0xb, 1).edx, 3);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x3005);
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
        assert_eq!(find(&of_vcpu(&host, 0, 1), 1, 0).edx, 0, "a lone processor has no hyper-threading bit");
    }
}
