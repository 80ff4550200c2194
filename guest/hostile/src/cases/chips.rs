//! Interrupt chips: the local APIC (Intel SDM volume 3, chapter 11), the machine's IOAPIC and KVM's own (82093AA data sheet), the PICs.

use super::{Case, named};
use crate::health::block;
use crate::sys::{self, DATA, in8, interrupts, out8, peek, poke, read_msr, wait, write_msr};
use crate::virtio::{Device, Part};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    local_apic_read,
    local_apic_read_unaligned,
    local_apic_written,
    local_apic_off_and_on,
    local_apic_elsewhere,
    x2apic_registers,
    timer_as_fast_as_can_be,
    interrupts_to_itself,
    interrupts_to_nobody,
    interrupts_of_every_mode,
    interrupts_of_low_vectors,
    ioapic_registers,
    ioapic_in_every_width,
    ioapic_entries_of_garbage,
    ioapic_vectors_of_exceptions,
    ioapic_modes_of_none,
    ioapic_to_nobody,
    ioapic_unmasked_late,
    kvms_ioapic,
    the_pics,
];

const LOCAL: u64 = 0xfee0_0000;
/// The machine's, and KVM's.
const IOAPIC: u64 = 0xfec1_0000;
const KVMS_IOAPIC: u64 = 0xfec0_0000;
const APIC_BASE: u32 = 0x1b;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_TO: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const TIMER_COUNT: u64 = 0x380;
const TIMER_DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;

fn local(offset: u64, value: u32) {
    poke(LOCAL + offset, value);
}

/// On, with every source of its own masked.
fn settle() {
    local(SPURIOUS, 0x1ff);
    for entry in (LVT_TIMER..=0x370).step_by(0x10) {
        local(entry, MASKED);
    }
    local(TIMER_COUNT, 0);
    local(0x80, 0);
    local(0xb0, 0);
}

fn local_apic_read(_: &Device) -> Verdict {
    for offset in (0..0x1000).step_by(0x10) {
        let _: u32 = peek(LOCAL + offset);
    }
    Ok(())
}

fn local_apic_read_unaligned(_: &Device) -> Verdict {
    for offset in (0..0xff8).step_by(7) {
        let at = LOCAL + offset;
        let _: (u8, u16, u32, u64) = (peek(at), peek(at), peek(at), peek(at));
    }
    Ok(())
}

/// All registers but the command's, which starts and stops processors.
fn local_apic_written(_: &Device) -> Verdict {
    for offset in (0..0x1000).step_by(0x10).filter(|offset| *offset != COMMAND) {
        for value in [u32::MAX, 0, 0x5555_5555] {
            local(offset, value);
        }
        settle();
    }
    for offset in (0..0xff8).step_by(13).filter(|offset| offset & !0xf != COMMAND) {
        poke(LOCAL + offset, 0_u8);
        poke(LOCAL + offset, 0_u64);
    }
    settle();
    Ok(())
}

fn local_apic_off_and_on(_: &Device) -> Verdict {
    let base = read_msr(APIC_BASE).unwrap_or(0);
    for _ in 0..10 {
        write_msr(APIC_BASE, base & !0x800);
        local(SPURIOUS, 0);
        write_msr(APIC_BASE, base);
    }
    settle();
    Ok(())
}

fn local_apic_elsewhere(_: &Device) -> Verdict {
    let base = read_msr(APIC_BASE).unwrap_or(0);
    for place in [0xd000_0000, DATA, 0, 0x7000_0000, 1 << 45, u64::MAX] {
        write_msr(APIC_BASE, place & !0xfff | base & 0xfff);
    }
    write_msr(APIC_BASE, base);
    settle();
    Ok(())
}

/// All but the command's and those that are not there.
fn x2apic_registers(_: &Device) -> Verdict {
    let base = read_msr(APIC_BASE).unwrap_or(0);
    if write_msr(APIC_BASE, base | 0xc00) {
        for register in (0x800..0x900).filter(|register| *register != 0x830) {
            read_msr(register);
            for value in [u64::MAX, 0, 0xff] {
                write_msr(register, value);
            }
        }
    }
    // From x2APIC to xAPIC only by way of off (11.12.5).
    write_msr(APIC_BASE, base & !0xc00);
    write_msr(APIC_BASE, base);
    settle();
    Ok(())
}

fn timer_as_fast_as_can_be(_: &Device) -> Verdict {
    settle();
    local(TIMER_DIVIDE, 0xb);
    local(LVT_TIMER, 1 << 17 | 0x80);
    local(TIMER_COUNT, 1);
    let before = interrupts();
    for _ in 0..50 {
        sys::sleep_once();
    }
    settle();
    ensure(interrupts() != before, "no interrupt comes", interrupts())
}

/// Sends so many interrupts by this command.
fn command(to: u32, low: u32, count: u32) {
    local(COMMAND_TO, to << 24);
    (0..count).for_each(|_| local(COMMAND, low));
}

fn interrupts_to_itself(_: &Device) -> Verdict {
    settle();
    let before = interrupts();
    command(0, 1 << 18 | 0x80, 500);
    sys::sleep_once();
    ensure(interrupts() > before, "no interrupt comes", interrupts())
}

fn interrupts_to_nobody(_: &Device) -> Verdict {
    settle();
    for to in [1, 7, 8, 0xfe] {
        command(to, 0x80, 50);
        command(to, 1 << 11 | 0x80, 50);
    }
    // All but itself.
    command(0, 3 << 18 | 0x80, 200);
    Ok(())
}

/// Lowest priority, reserved, NMI, and those by which another processor is started; an SMI and an INIT to oneself are cases of their own.
fn interrupts_of_every_mode(_: &Device) -> Verdict {
    settle();
    for mode in [1, 3, 4, 7] {
        command(0, 1 << 18 | mode << 8 | 0x80, 20);
        command(0, mode << 8 | 0x80, 20);
    }
    for mode in [2, 5, 6] {
        command(5, mode << 8 | 0x80, 20);
        command(0, 3 << 18 | mode << 8 | 0x80, 5);
    }
    Ok(())
}

fn interrupts_of_low_vectors(_: &Device) -> Verdict {
    settle();
    (0..32).for_each(|vector| command(0, 1 << 18 | vector, 3));
    let errors: u32 = peek(LOCAL + 0x280);
    let _ = errors;
    local(0x280, 0);
    Ok(())
}

fn select(register: u8) {
    poke(IOAPIC, u32::from(register));
}

fn ioapic_registers(_: &Device) -> Verdict {
    for register in 0..=u8::MAX {
        select(register);
        let before: u32 = peek(IOAPIC + 0x10);
        for value in [0, u32::MAX, before] {
            poke(IOAPIC + 0x10, value | MASKED);
            let _: u32 = peek(IOAPIC + 0x10);
        }
    }
    entries(MASKED, 0);
    Ok(())
}

fn ioapic_in_every_width(_: &Device) -> Verdict {
    for offset in (0..0x48).chain([0xff0, 0xff8]) {
        let at = IOAPIC + offset;
        let _: (u8, u16, u32, u64) = (peek(at), peek(at), peek(at), peek(at));
        poke(at, 0x10_u8);
        poke(at, MASKED as u16);
        poke(at, u64::MAX);
    }
    entries(MASKED, 0);
    Ok(())
}

/// Writes these words into the entry of each pin.
fn entries(low: u32, high: u32) {
    for pin in 0..24 {
        select(0x11 + pin * 2);
        poke(IOAPIC + 0x10, high);
        select(0x10 + pin * 2);
        poke(IOAPIC + 0x10, low);
    }
}

/// A device raises its interrupt while the entries are like this.
fn interrupted(device: &Device, low: u32, high: u32) -> Verdict {
    settle();
    entries(low, high);
    device.start()?;
    (0..5).try_for_each(|_| block(device, 0, 0, Part::into(DATA + 0x1000, 512)).map(drop))?;
    entries(MASKED, 0);
    Ok(())
}

fn ioapic_entries_of_garbage(device: &Device) -> Verdict {
    // Fixed and to one processor that is none, so that nothing is started or stopped by it.
    for low in [0xffff_f8ff & !MASKED, 0x80, 0xa8ff, 0x20ff] {
        interrupted(device, low, 0xfe00_0000)?;
    }
    Ok(())
}

fn ioapic_vectors_of_exceptions(device: &Device) -> Verdict {
    (0..32).step_by(3).try_for_each(|vector| interrupted(device, vector, 0))
}

/// Reserved modes, ExtINT and lowest priority; SMI and INIT are cases of their own.
fn ioapic_modes_of_none(device: &Device) -> Verdict {
    [1, 3, 4, 6, 7].into_iter().try_for_each(|mode| interrupted(device, mode << 8 | 0x80, 0))
}

fn ioapic_to_nobody(device: &Device) -> Verdict {
    for to in [1, 7, 0xff] {
        interrupted(device, 0x80, to << 24)?;
        interrupted(device, 1 << 11 | 0x80, to << 24)?;
    }
    Ok(())
}

fn ioapic_unmasked_late(device: &Device) -> Verdict {
    settle();
    entries(MASKED | 0x80, 0);
    device.start()?;
    block(device, 0, 0, Part::into(DATA + 0x1000, 512))?;
    let before = interrupts();
    entries(0x80, 0);
    sys::sleep_once();
    entries(MASKED, 0);
    ensure(interrupts() > before, "an interrupt is lost", interrupts())
}

fn kvms_ioapic(_: &Device) -> Verdict {
    for register in 0..=0x40_u32 {
        poke(KVMS_IOAPIC, register);
        for value in [0, u32::MAX, 0x0001_8000 | 0x80, MASKED] {
            poke(KVMS_IOAPIC + 0x10, value);
            let _: u32 = peek(KVMS_IOAPIC + 0x10);
        }
    }
    for offset in 0..0x48 {
        let at = KVMS_IOAPIC + offset;
        let _: (u8, u16, u64) = (peek(at), peek(at), peek(at));
    }
    poke(KVMS_IOAPIC + 0x40, u32::MAX);
    Ok(())
}

/// Every word of initialisation and of operation, then masked.
fn the_pics(_: &Device) -> Verdict {
    for port in [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1] {
        for value in 0..=u8::MAX {
            out8(port, value);
            in8(port);
        }
    }
    for port in [0x21, 0xa1] {
        out8(port, 0xff);
    }
    wait(1000);
    Ok(())
}
