//! The MP configuration table: processors, IOAPIC and interrupt routing for a kernel without ACPI.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. It lies where the specification lets a kernel look first: in the last KiB of base
//! memory. A machine with one processor has it too: without it Linux would fall back to the PIC and ask for a PIT.

use crate::vmm::ioapic;

/// Guest address of the floating pointer structure, and of the table behind it.
pub(super) const ADDR: u64 = 0x9_fc00;
/// First address behind the reserved area.
pub(super) const END: u64 = 0xa_0000;

const SPEC_1_4: u8 = 4;
const LOCAL_APIC: u32 = 0xfee0_0000;
const APIC_VERSION: u8 = 0x14;

/// Processor flags: usable, boot processor.
const USABLE: u8 = 1;
const BOOT: u8 = 2;

/// Interrupt types and the "all local APICs" address.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
const ALL: u8 = 0xff;

/// Floating pointer and configuration table for this many processors and these interrupts with their IOAPIC pins. Only those of a device are
/// listed: Linux sets up each with a dozen accesses to the IOAPIC, each an exit.
pub(super) fn build(vcpus: u8, routes: impl Iterator<Item = (u32, u32)>) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = USABLE | if id == 0 { BOOT } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, id, APIC_VERSION, flags]);
        // Signature and features: family 6, an FPU and an APIC on the chip.
        entry[4..12].copy_from_slice(&[0, 6, 0, 0, 1, 2, 0, 0]);
        add(&entry);
    }
    add(&[1, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let ioapic_id = vcpus;
    let [a, b, c, d, ..] = ioapic::ADDR.to_le_bytes();
    add(&[2, ioapic_id, ioapic::VERSION, USABLE, a, b, c, d]);
    // Edge-triggered and active high, as on an ISA bus.
    let bytes = |(irq, pin)| Some((u8::try_from(irq).ok()?, u8::try_from(pin).ok()?));
    for (irq, pin) in routes.filter_map(bytes).filter(|(_, pin)| usize::from(*pin) < ioapic::MOST_PINS) {
        add(&[3, INT, 0, 0, 0, irq, ioapic_id, pin]);
    }
    add(&[4, EXTINT, 0, 0, 0, 0, 0, 0]);
    add(&[4, NMI, 0, 0, 0, 0, ALL, 1]);
    let mut bytes = floating_pointer();
    bytes.extend(configuration(&entries, count));
    bytes
}

fn floating_pointer() -> Vec<u8> {
    let table = u32::try_from(ADDR + 16).unwrap_or(0);
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(table.to_le_bytes());
    // Length in 16-byte units, version, checksum, and five feature bytes.
    pointer.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer
}

fn configuration(entries: &[u8], count: u16) -> Vec<u8> {
    let length = u16::try_from(44 + entries.len()).unwrap_or(u16::MAX);
    let mut table = b"PCMP".to_vec();
    table.extend(length.to_le_bytes());
    table.extend([SPEC_1_4, 0]);
    table.extend(b"DUPLEX  MICROVM     ");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    // No extended entries.
    table.extend([0; 4]);
    table.extend_from_slice(entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_lengths_and_counts_agree() {
        for vcpus in 1..=8 {
            let bytes = build(vcpus, [(4, 0), (16, 16), (17, 17), (300, 300)].into_iter());
            assert!(ADDR + bytes.len() as u64 <= END);
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |s, b| s.wrapping_add(*b));
            assert_eq!(sum(&bytes[..16]), 0);
            assert_eq!(&bytes[..4], b"_MP_");
            let table = &bytes[16..];
            assert_eq!(sum(table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            let mut rest = &table[44..];
            let mut kinds = Vec::new();
            while let Some(kind) = rest.first() {
                kinds.push(*kind);
                rest = &rest[if *kind == 0 { 20 } else { 8 }..];
            }
            assert_eq!(kinds.len(), usize::from(u16::from_le_bytes([table[34], table[35]])));
            assert_eq!(kinds.iter().filter(|k| **k == 0).count(), usize::from(vcpus));
            assert_eq!(kinds.iter().filter(|k| **k == 3).count(), 3);
        }
    }
}
