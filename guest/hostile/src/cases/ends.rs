//! Cases after which there is no machine any more, or none that does anything. Each has a machine of its own, and the host's half of the tests
//! knows how each must end.

use super::{Case, named};
use crate::health::block_header;
use crate::report::say;
use crate::sys::{self, DATA, TABLES, fill, halt, out8, out16, out32, poke};
use crate::virtio::{Device, EXIT_PORT, Part};
use crate::{Trouble, Verdict};

pub(crate) const CASES: &[Case] = named![
    triple_fault,
    tables_lost,
    pages_of_tables_given_away,
    stack_in_the_hole,
    jump_to_no_memory,
    jump_into_a_device,
    jump_into_the_apic,
    compare_with_a_device,
    init_to_itself,
    init_by_a_device,
    smi_to_itself,
    shutdown_port,
    shutdown_port_by_words,
    failure_port_of_zero,
    failure_port_of_all_ones,
    reset_line,
    reset_line_by_words,
    reset_behind_words_of_a_panic,
    reset_behind_words_without_end,
    halted_for_ever,
    spinning_for_ever,
    faulting_for_ever,
    notifying_for_ever,
    printing_for_ever,
    reading_for_ever,
    sending_for_ever,
    asking_for_randomness_for_ever,
    giving_pages_for_ever,
    broken_devices_left_behind,
    requests_left_behind,
    timer_left_behind,
];

/// The machine must not come back from what was done to it.
fn came_back() -> Verdict {
    Err(Trouble("the machine goes on", 0))
}

fn triple_fault(_: &Device) -> Verdict {
    sys::load_vectors(0);
    sys::undefined();
    came_back()
}

fn tables_lost(_: &Device) -> Verdict {
    sys::lose_tables(0x7000_0000);
    came_back()
}

/// The balloon gets the pages that hold the page tables and the vectors: they are zeroes from then on.
fn pages_of_tables_given_away(device: &Device) -> Verdict {
    let balloon = other(device, 5)?;
    balloon.start()?;
    let first = (TABLES >> 12) as u32;
    (0..16).for_each(|page| poke(DATA + u64::from(page) * 4, first + page));
    let ring = balloon.ring(0);
    ring.set(0, Part::out(DATA, 64));
    ring.offer(0);
    balloon.notify(0);
    sys::lose_tables(TABLES + 0x2000);
    sys::undefined();
    came_back()
}

fn stack_in_the_hole(_: &Device) -> Verdict {
    sys::lose_stack(0xc000_1000);
    came_back()
}

fn jump_to_no_memory(_: &Device) -> Verdict {
    sys::jump(0x7000_0000);
    came_back()
}

fn jump_into_a_device(device: &Device) -> Verdict {
    sys::jump(device.base);
    came_back()
}

fn jump_into_the_apic(_: &Device) -> Verdict {
    sys::jump(0xfee0_0000);
    came_back()
}

/// KVM does not emulate it; whether the machine survives that is KVM's.
fn compare_with_a_device(_: &Device) -> Verdict {
    sys::compare_device();
    Ok(())
}

/// INIT, which the boot processor takes for the way to its reset vector.
fn init_to_itself(_: &Device) -> Verdict {
    poke(0xfee0_00f0_u64, 0x1ff_u32);
    poke(0xfee0_0310_u64, 0_u32);
    poke(0xfee0_0300_u64, 0x4500_u32);
    sys::wait(100_000);
    came_back()
}

/// The same by way of the IOAPIC and a device.
fn init_by_a_device(device: &Device) -> Verdict {
    poke(0xfee0_00f0_u64, 0x1ff_u32);
    for pin in 0..24_u32 {
        for (register, value) in [(0x11 + pin * 2, 0), (0x10 + pin * 2, 0x500_u32)] {
            poke(0xfec1_0000_u64, register);
            poke(0xfec1_0010_u64, value);
        }
    }
    device.start()?;
    crate::health::block(device, 0, 0, Part::into(DATA + 0x1000, 512))?;
    sys::wait(100_000);
    came_back()
}

/// An SMI whose handler is RSM alone. A KVM without SMM ignores it.
fn smi_to_itself(_: &Device) -> Verdict {
    sys::put(0x3_8000, &[0x0f, 0xaa]);
    poke(0xfee0_00f0_u64, 0x1ff_u32);
    for _ in 0..5 {
        poke(0xfee0_0300_u64, 0x0004_0200_u32);
    }
    Ok(())
}

fn shutdown_port(_: &Device) -> Verdict {
    out8(EXIT_PORT, crate::virtio::SHUTDOWN);
    came_back()
}

fn shutdown_port_by_words(_: &Device) -> Verdict {
    out32(EXIT_PORT, 0xffff_ff00 | u32::from(crate::virtio::SHUTDOWN));
    came_back()
}

fn failure_port_of_zero(_: &Device) -> Verdict {
    out8(EXIT_PORT, 0);
    came_back()
}

fn failure_port_of_all_ones(_: &Device) -> Verdict {
    out16(EXIT_PORT, u16::MAX);
    came_back()
}

fn reset_line(_: &Device) -> Verdict {
    out8(0x64, 0xfe);
    came_back()
}

fn reset_line_by_words(_: &Device) -> Verdict {
    out32(0x64, 0xfe00_0000);
    came_back()
}

/// What the monitor tells of a panic is what the guest says: words of every byte.
fn reset_behind_words_of_a_panic(_: &Device) -> Verdict {
    say("Kernel panic - not syncing: ");
    (0..=u8::MAX).filter(|byte| *byte != b'\n').for_each(|byte| out8(0x3f8, byte));
    say("\n");
    out8(0x64, 0xfe);
    came_back()
}

fn reset_behind_words_without_end(_: &Device) -> Verdict {
    fill(DATA, b'x', 0x8000);
    say("Kernel panic - not syncing: ");
    sys::out_many(0x3f8, DATA, 0x8000);
    say("\n");
    out8(0x64, 0xfe);
    came_back()
}

fn halted_for_ever(_: &Device) -> Verdict {
    halt()
}

fn spinning_for_ever(_: &Device) -> Verdict {
    loop {
        sys::pause();
    }
}

fn faulting_for_ever(_: &Device) -> Verdict {
    loop {
        sys::undefined();
    }
}

fn notifying_for_ever(device: &Device) -> Verdict {
    device.start()?;
    loop {
        device.notify(0);
    }
}

/// The first device of this kind.
fn other(device: &Device, kind: u32) -> Result<Device, Trouble> {
    let windows = (0..24).map(|number| 0xd000_0000 + number * 0x1000);
    let target = crate::virtio::Target::DEVICES.iter().find(|target| target.kind() == kind);
    let target = *target.ok_or(Trouble("no such kind", kind.into()))?;
    let mut devices = windows.map(|base| Device { base, target, ..*device });
    devices.find(|device| device.read(0) == 0x7472_6976 && device.read(8) == kind).ok_or(Trouble("no such device", 0))
}

/// A ring full of one chain, again and again, as long as the device takes it.
fn for_ever(device: &Device, parts: &[Part]) -> Verdict {
    device.start()?;
    let queue = device.target.queue();
    let ring = device.ring(queue);
    ring.chain(0, parts);
    say("\nBUSY\n");
    loop {
        let room = (ring.size as u16).wrapping_sub(ring.avail_index().wrapping_sub(ring.used_index()));
        (0..room).for_each(|_| ring.offer(0));
        device.notify(queue);
    }
}

/// Each chain is all of memory, and more than 3 GiB of console output long.
fn printing_for_ever(device: &Device) -> Verdict {
    let console = other(device, 3)?;
    let mut parts = [Part::out(0x10_0000, (device.memory_end - 0x10_0000) as u32); 60];
    parts[0].len = 1;
    for_ever(&console, &parts)
}

/// Each request has all the bytes that one may have.
fn reading_for_ever(device: &Device) -> Verdict {
    block_header(0, 0);
    let mut parts = [Part::into(DATA + 0x10_0000, 0x10_0000); 34];
    parts[0] = Part::out(DATA, 16);
    parts[33] = Part::into(DATA + 0x100, 1);
    for_ever(device, &parts)
}

fn sending_for_ever(device: &Device) -> Verdict {
    let net = other(device, 1)?;
    crate::health::net_frame(1500, 0);
    poke(DATA + 24, 0xb688_u16);
    for_ever(&net, &[Part::out(DATA, 1512)])
}

fn asking_for_randomness_for_ever(device: &Device) -> Verdict {
    for_ever(&other(device, 4)?, &[Part::into(DATA, 4096)])
}

fn giving_pages_for_ever(device: &Device) -> Verdict {
    let balloon = other(device, 5)?;
    (0..1024_u32).for_each(|page| poke(DATA + u64::from(page) * 4, (0x280_0000 >> 12) + page));
    for_ever(&balloon, &[Part::out(DATA, 4096)])
}

/// Every device waits for a reset that does not come.
fn broken_devices_left_behind(device: &Device) -> Verdict {
    for kind in [1, 2, 3, 4, 5, 19] {
        let one = other(device, kind)?;
        one.start()?;
        one.ring(one.target.queue()).set_avail_index(0x8000);
        one.notify(one.target.queue());
        one.expect_broken()?;
    }
    halt()
}

/// Every device has buffers and requests, and nobody asks for answers.
fn requests_left_behind(device: &Device) -> Verdict {
    for kind in [1, 2, 3, 4, 5, 19] {
        let one = other(device, kind)?;
        one.start()?;
        for queue in 0..one.target.queues() {
            let ring = one.ring(queue);
            ring.set(0, Part::into(DATA, 100));
            (0..ring.size).for_each(|_| ring.offer(0));
            one.notify(queue);
        }
    }
    halt()
}

/// The fastest timer that there is, and a processor that does not listen.
fn timer_left_behind(_: &Device) -> Verdict {
    for (register, value) in [(0xf0, 0x1ff), (0x3e0, 0xb), (0x320, 1 << 17 | 0x80), (0x380, 1_u32)] {
        poke(0xfee0_0000_u64 + register, value);
    }
    halt()
}
