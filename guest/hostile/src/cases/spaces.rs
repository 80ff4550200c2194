//! Ports and addresses, those that nobody has above all.

use super::{Case, named};
use crate::sys::{
    self, ABOVE, DATA, cpuid, in_many, in8, in16, in32, map_above, out_many, out8, out16, out32, peek, poke,
};
use crate::virtio::{Device, EXIT_PORT, READY_PORT};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    every_port_read,
    every_port_written,
    ports_read_by_words,
    ports_written_by_words,
    ports_by_strings,
    the_last_port_by_words,
    the_ready_port_again_and_again,
    keyboard_controller_commands,
    pci_configuration,
    serial_registers,
    serial_without_line_ends,
    windows_of_no_device,
    the_hole_below_4_gib,
    pages_around_the_chips,
    the_last_bytes_below_4_gib,
    behind_memory,
    the_last_physical_page,
    just_above_4_gib,
    wide_accesses,
    locked_accesses,
    exchanges,
    strings_between_devices,
    strings_from_a_port,
    strings_to_a_port,
];

/// Ports whose writes end the machine or print.
fn is_left_out(port: u16) -> bool {
    matches!(port, 0x64 | 0x3f8..0x400 | EXIT_PORT | READY_PORT)
}

fn every_port_read(_: &Device) -> Verdict {
    for port in 0..=u16::MAX {
        in8(port);
    }
    Ok(())
}

fn every_port_written(_: &Device) -> Verdict {
    for port in (0..=u16::MAX).filter(|port| !is_left_out(*port)) {
        out8(port, port as u8);
    }
    Ok(())
}

/// A multiple of this is no multiple of 2: all places within a device's ports come up.
const STEP: usize = 13;

fn ports_read_by_words(_: &Device) -> Verdict {
    for port in (0..=u16::MAX).step_by(STEP) {
        in16(port);
        in32(port);
    }
    for port in [0x60, 0x62, 0x64, 0x3f6, 0x3f8, 0x3fa, 0x3ff, EXIT_PORT - 2, EXIT_PORT, READY_PORT] {
        in16(port);
        in32(port);
    }
    Ok(())
}

fn ports_written_by_words(_: &Device) -> Verdict {
    for port in (0..=u16::MAX).step_by(STEP).filter(|port| !is_left_out(*port)) {
        out16(port, 0xffff);
        out32(port, u32::MAX);
    }
    for port in [0x61, 0x63, 0x3f5, 0x3f6, 0x3f7, 0x3ff, 0x400, EXIT_PORT - 1, EXIT_PORT - 3] {
        out16(port, 0x1010);
        out32(port, 0x1010_1010);
    }
    Ok(())
}

fn ports_by_strings(_: &Device) -> Verdict {
    sys::fill(DATA, 0, 4096);
    for port in [0x20, 0x40, 0x60, 0x80, 0x3fd, 0xcf8, EXIT_PORT - 1, READY_PORT + 1] {
        in_many(port, DATA, 1024);
        out_many(port, DATA, 1024);
    }
    Ok(())
}

fn the_last_port_by_words(_: &Device) -> Verdict {
    for port in [0xfffc, 0xfffd, 0xfffe, 0xffff] {
        in16(port);
        in32(port);
        out16(port, 0xffff);
        out32(port, u32::MAX);
    }
    Ok(())
}

/// What an agent says once. Nobody waits for it here.
fn the_ready_port_again_and_again(_: &Device) -> Verdict {
    for _ in 0..200 {
        out8(READY_PORT, 0xff);
        out32(READY_PORT, u32::MAX);
        in32(READY_PORT);
    }
    Ok(())
}

/// All but those that reset the processor.
fn keyboard_controller_commands(_: &Device) -> Verdict {
    for command in (0..=u8::MAX).filter(|command| *command != 0xfe) {
        out8(0x64, command);
        out8(0x60, command);
        ensure(in8(0x64) & 2 == 0, "the controller is never ready", command.into())?;
    }
    Ok(())
}

fn pci_configuration(_: &Device) -> Verdict {
    for device in 0..64_u32 {
        out32(0xcf8, 0x8000_0000 | device << 11);
        let found = in32(0xcfc);
        ensure(found == u32::MAX, "a device that is none", found.into())?;
        out32(0xcfc, u32::MAX);
    }
    Ok(())
}

/// Every value in every register, then as it was.
fn serial_registers(_: &Device) -> Verdict {
    for value in 0..=u8::MAX {
        for register in 1..8 {
            out8(0x3f8 + register, value);
            in8(0x3f8 + register);
        }
        out8(0x3f8, value);
    }
    for (register, value) in [(3, 3), (1, 0), (4, 0), (2, 0)] {
        out8(0x3f8 + register, value);
    }
    Ok(())
}

fn serial_without_line_ends(_: &Device) -> Verdict {
    sys::fill(DATA, b'-', 8192);
    out_many(0x3f8, DATA, 8192);
    Ok(())
}

/// Reads and writes in every width.
fn touch(addr: u64) {
    let _: (u8, u16, u32, u64) = (peek(addr), peek(addr), peek(addr), peek(addr));
    poke(addr, u8::MAX);
    poke(addr, u16::MAX);
    poke(addr, u32::MAX);
    poke(addr, u64::MAX);
}

fn windows_of_no_device(_: &Device) -> Verdict {
    for window in 12..64_u64 {
        for offset in [0, 4, 0x50, 0x70, 0x100, 0xffc] {
            touch(0xd000_0000 + window * 0x1000 + offset);
        }
    }
    Ok(())
}

/// Clear of the devices' windows.
fn the_hole_below_4_gib(_: &Device) -> Verdict {
    (0xc000_0000..0xcfff_f000_u64).step_by(0x40_1000).for_each(touch);
    (0xd020_0000..0xfebf_f000_u64).step_by(0x40_1000).for_each(touch);
    Ok(())
}

/// Clear of the chips' own registers.
fn pages_around_the_chips(_: &Device) -> Verdict {
    let chips = [0xfec0_0000, 0xfec1_0000, 0xfee0_0000];
    for page in (0xfec0_0000..0xff00_0000_u64).step_by(0x5000).filter(|page| !chips.contains(page)) {
        touch(page);
        touch(page + 0x7f9);
    }
    Ok(())
}

fn the_last_bytes_below_4_gib(_: &Device) -> Verdict {
    for addr in (0xfff0_0000..0xffff_f000_u64).step_by(0x1_1000) {
        touch(addr);
    }
    touch(0xffff_fff0);
    poke(0xffff_ffff_u64, 1_u8);
    poke(0xffff_fffc_u64, 1_u32);
    Ok(())
}

fn behind_memory(device: &Device) -> Verdict {
    touch(device.memory_end);
    touch(device.memory_end - 4);
    (device.memory_end..0xc000_0000).step_by(0x80_1000).for_each(touch);
    Ok(())
}

/// The last GiB of the processor's physical addresses (CPUID 0x8000_0008).
fn the_last_physical_page(_: &Device) -> Verdict {
    let bits = cpuid(0x8000_0008, 0).eax & 0xff;
    map_above((1 << bits) - (1 << 30));
    touch(ABOVE + (1 << 30) - 8);
    (ABOVE..ABOVE + (1 << 30) - 0x1000).step_by(0x80_1000).for_each(touch);
    Ok(())
}

fn just_above_4_gib(_: &Device) -> Verdict {
    map_above(4 << 30);
    (ABOVE..ABOVE + (1 << 30) - 0x1000).step_by(0x80_1000).for_each(touch);
    // Over the border.
    let _: u64 = peek(ABOVE - 4);
    Ok(())
}

fn wide_accesses(_: &Device) -> Verdict {
    sys::wide_device();
    Ok(())
}

fn locked_accesses(_: &Device) -> Verdict {
    sys::locked_device();
    Ok(())
}

fn exchanges(_: &Device) -> Verdict {
    sys::exchange_device();
    Ok(())
}

fn strings_between_devices(_: &Device) -> Verdict {
    sys::string_device();
    Ok(())
}

fn strings_from_a_port(_: &Device) -> Verdict {
    sys::port_string_to_device();
    Ok(())
}

fn strings_to_a_port(_: &Device) -> Verdict {
    sys::device_to_port_string();
    Ok(())
}
