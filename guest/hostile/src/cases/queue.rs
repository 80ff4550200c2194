//! Descriptors and indices that break the rules of split virtqueues (virtio 1.2, 2.7), on each device alike.

use super::{Case, named};
use crate::sys::{DATA, fill, poke};
use crate::virtio::{Device, F_EVENT_IDX, F_VERSION_1, INDIRECT, NEEDS_RESET, NEXT, Part, Ring, WRITE};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    address_outside_memory,
    address_just_behind_memory,
    address_wraps,
    address_in_the_hole,
    address_of_a_device,
    address_of_the_apic,
    end_outside_memory,
    length_of_4_gib,
    lengths_sum_over_32_bits,
    zero_length,
    zero_length_nowhere,
    next_one_too_far,
    next_far_away,
    next_to_itself,
    two_in_a_loop,
    all_in_a_loop,
    as_long_as_can_be,
    indirect_unasked,
    indirect_with_next,
    indirect_of_odd_length,
    indirect_empty,
    indirect_outside_memory,
    indirect_in_itself,
    readable_behind_writable,
    unknown_flags,
    head_one_too_far,
    head_far_away,
    index_one_too_far,
    index_half_way_round,
    index_goes_back,
    one_head_again_and_again,
    used_ring_over_available,
    used_ring_over_table,
    table_over_available,
    buffer_over_used_ring,
    buffer_over_table,
    buffer_over_available,
    available_flags_of_garbage,
    event_index_of_garbage,
    rings_of_garbage,
];

/// Starts the device, lets `lay` fill its queue, notifies. Returns the ring.
fn attack(device: &Device, lay: impl FnOnce(&Ring)) -> Result<Ring, crate::Trouble> {
    device.start()?;
    let ring = device.ring(device.target.queue());
    lay(&ring);
    device.notify(device.target.queue());
    Ok(ring)
}

/// One that must be noticed.
fn must_break(device: &Device, lay: impl FnOnce(&Ring)) -> Verdict {
    attack(device, lay)?;
    device.expect_broken()
}

/// One that may be served or not.
fn may_break(device: &Device, lay: impl FnOnce(&Ring)) -> Verdict {
    attack(device, lay)?;
    let status = device.status() & !NEEDS_RESET;
    ensure(status == 15, "the status is none", status.into())
}

/// Chains of one descriptor, device-readable and device-writable, must both break.
fn one(device: &Device, addr: u64, len: u32) -> Verdict {
    for flags in [0, WRITE] {
        must_break(device, |ring| {
            ring.set(0, Part { addr, len, flags, next: 0 });
            ring.offer(0);
        })?;
    }
    Ok(())
}

fn address_outside_memory(device: &Device) -> Verdict {
    one(device, 0x7000_0000, 64)
}

fn address_just_behind_memory(device: &Device) -> Verdict {
    one(device, device.memory_end, 1)
}

fn address_wraps(device: &Device) -> Verdict {
    one(device, u64::MAX - 15, 64)
}

fn address_in_the_hole(device: &Device) -> Verdict {
    one(device, 0xc000_0000, 4096)
}

fn address_of_a_device(device: &Device) -> Verdict {
    one(device, device.base, 256)
}

fn address_of_the_apic(device: &Device) -> Verdict {
    one(device, 0xfee0_0000, 4096)
}

fn end_outside_memory(device: &Device) -> Verdict {
    one(device, device.memory_end - 16, 32)
}

fn length_of_4_gib(device: &Device) -> Verdict {
    one(device, DATA, u32::MAX)
}

/// Each part is in memory, all together are more than a chain may have.
fn lengths_sum_over_32_bits(device: &Device) -> Verdict {
    let len = (device.memory_end - 0x10_0000) as u32;
    let count = (u32::MAX / len + 2) as u16;
    device.start()?;
    let queue = device.target.queue();
    let ring = Ring::at(device.ring(queue).table, 0).with_size(device.most(queue));
    if u32::from(count) > ring.size {
        return Ok(());
    }
    device.negotiate(F_VERSION_1);
    ring.clear();
    device.lay(queue, &ring);
    device.go()?;
    for index in 0..count {
        ring.set(index, Part::into(0x10_0000, len).with(if index + 1 < count { NEXT } else { 0 }, index + 1));
    }
    ring.offer(0);
    device.notify(queue);
    device.expect_broken()
}

fn zero_length(device: &Device) -> Verdict {
    for flags in [0, WRITE] {
        may_break(device, |ring| {
            ring.set(0, Part { addr: DATA, len: 0, flags, next: 0 });
            ring.offer(0);
        })?;
    }
    Ok(())
}

fn zero_length_nowhere(device: &Device) -> Verdict {
    may_break(device, |ring| {
        ring.set(0, Part::out(u64::MAX, 0).with(NEXT, 1));
        ring.set(1, Part::into(0x7000_0000, 0));
        ring.offer(0);
    })
}

fn next_one_too_far(device: &Device) -> Verdict {
    must_break(device, |ring| {
        ring.set(0, Part::out(DATA, 16).with(NEXT, ring.size as u16));
        ring.offer(0);
    })
}

fn next_far_away(device: &Device) -> Verdict {
    must_break(device, |ring| {
        ring.set(0, Part::out(DATA, 16).with(NEXT, u16::MAX));
        ring.offer(0);
    })
}

fn next_to_itself(device: &Device) -> Verdict {
    must_break(device, |ring| {
        ring.set(0, Part::out(DATA, 16).with(NEXT, 0));
        ring.offer(0);
    })
}

fn two_in_a_loop(device: &Device) -> Verdict {
    must_break(device, |ring| {
        ring.set(0, Part::out(DATA, 16).with(NEXT, 1));
        ring.set(1, Part::out(DATA, 16).with(NEXT, 0));
        ring.offer(0);
    })
}

fn all_in_a_loop(device: &Device) -> Verdict {
    must_break(device, |ring| {
        for index in 0..ring.size as u16 {
            ring.set(index, Part::into(DATA, 1).with(NEXT, (index + 1) % ring.size as u16));
        }
        ring.offer(5);
    })
}

fn as_long_as_can_be(device: &Device) -> Verdict {
    may_break(device, |ring| {
        let last = ring.size as u16 - 1;
        for index in 0..last {
            ring.set(index, Part::out(DATA + u64::from(index), 1).with(NEXT, index + 1));
        }
        ring.set(last, Part::into(DATA + 0x1000, 1));
        ring.offer(0);
    })
}

/// An indirect table that nobody asked for, with two good descriptors in it.
fn indirect(device: &Device, addr: u64, len: u32, flags: u16) -> Verdict {
    must_break(device, |ring| {
        let table = Ring { table: DATA, ..*ring };
        table.chain(0, &[Part::out(DATA + 0x1000, 16), Part::into(DATA + 0x2000, 16)]);
        ring.set(0, Part::out(addr, len).with(INDIRECT | flags, 1));
        ring.set(1, Part::into(DATA + 0x3000, 16));
        ring.offer(0);
    })
}

fn indirect_unasked(device: &Device) -> Verdict {
    indirect(device, DATA, 32, 0)
}

fn indirect_with_next(device: &Device) -> Verdict {
    indirect(device, DATA, 32, NEXT)
}

fn indirect_of_odd_length(device: &Device) -> Verdict {
    indirect(device, DATA, 17, 0)
}

fn indirect_empty(device: &Device) -> Verdict {
    indirect(device, DATA, 0, 0)
}

fn indirect_outside_memory(device: &Device) -> Verdict {
    indirect(device, 0x7000_0000, 32, WRITE)
}

fn indirect_in_itself(device: &Device) -> Verdict {
    must_break(device, |ring| {
        let table = Ring { table: DATA, ..*ring };
        table.set(0, Part::out(DATA, 32).with(INDIRECT, 0));
        ring.set(0, Part::out(DATA, 32).with(INDIRECT, 0));
        ring.offer(0);
    })
}

fn readable_behind_writable(device: &Device) -> Verdict {
    must_break(device, |ring| {
        ring.chain(0, &[Part::into(DATA, 64), Part::out(DATA + 64, 64)]);
        ring.offer(0);
    })
}

fn unknown_flags(device: &Device) -> Verdict {
    may_break(device, |ring| {
        ring.set(0, Part::out(DATA, 64).with(0xfff8, 9));
        ring.offer(0);
    })
}

fn head_one_too_far(device: &Device) -> Verdict {
    must_break(device, |ring| ring.offer(ring.size as u16))
}

fn head_far_away(device: &Device) -> Verdict {
    must_break(device, |ring| ring.offer(u16::MAX))
}

fn index_one_too_far(device: &Device) -> Verdict {
    must_break(device, |ring| ring.set_avail_index(ring.size as u16 + 1))
}

fn index_half_way_round(device: &Device) -> Verdict {
    must_break(device, |ring| ring.set_avail_index(0x8000))
}

fn index_goes_back(device: &Device) -> Verdict {
    must_break(device, |ring| ring.set_avail_index(u16::MAX))
}

fn one_head_again_and_again(device: &Device) -> Verdict {
    may_break(device, |ring| {
        ring.set(0, Part::into(DATA, 64));
        (0..ring.size).for_each(|_| ring.offer(0));
    })
}

/// The device's rings lie over each other; whatever it makes of that, it survives.
fn overlapping(device: &Device, change: impl Fn(&mut Ring)) -> Verdict {
    let queue = device.target.queue();
    device.negotiate(F_VERSION_1);
    let mut ring = device.ring(queue);
    ring.clear();
    change(&mut ring);
    device.lay(queue, &ring);
    device.go()?;
    ring.set(1, Part::into(DATA, 64));
    ring.offer(1);
    ring.offer(0);
    for _ in 0..4 {
        device.notify(queue);
    }
    Ok(())
}

fn used_ring_over_available(device: &Device) -> Verdict {
    overlapping(device, |ring| ring.used = ring.avail)
}

fn used_ring_over_table(device: &Device) -> Verdict {
    overlapping(device, |ring| ring.used = ring.table)
}

fn table_over_available(device: &Device) -> Verdict {
    overlapping(device, |ring| ring.table = ring.avail)
}

/// What the device writes goes over its own queue.
fn over(device: &Device, place: impl FnOnce(&Ring) -> u64) -> Verdict {
    let ring = attack(device, |ring| {
        let addr = place(ring);
        ring.set(0, Part::into(addr, 4096));
        ring.set(1, Part::into(addr, 64));
        ring.offer(1);
        ring.offer(0);
        ring.offer(1);
    })?;
    ring.offer(1);
    device.notify(device.target.queue());
    Ok(())
}

fn buffer_over_used_ring(device: &Device) -> Verdict {
    over(device, |ring| ring.used)
}

fn buffer_over_table(device: &Device) -> Verdict {
    over(device, |ring| ring.table)
}

fn buffer_over_available(device: &Device) -> Verdict {
    over(device, |ring| ring.avail)
}

fn available_flags_of_garbage(device: &Device) -> Verdict {
    may_break(device, |ring| {
        poke(ring.avail, u16::MAX);
        ring.set(0, Part::into(DATA, 64));
        ring.offer(0);
    })
}

/// With VIRTIO_F_EVENT_IDX (2.7.10): wishes that no index ever meets.
fn event_index_of_garbage(device: &Device) -> Verdict {
    device.start_with(F_VERSION_1 | F_EVENT_IDX)?;
    let queue = device.target.queue();
    let ring = device.ring(queue);
    for wish in [u16::MAX, 0x8000, 0, 1] {
        poke(ring.avail + 4 + u64::from(ring.size) * 2, wish);
        poke(ring.used + 4 + u64::from(ring.size) * 8, wish);
        ring.set(0, Part::into(DATA, 64));
        ring.offer(0);
        device.notify(queue);
    }
    Ok(())
}

/// Every byte of the queue's memory is one and the same.
fn rings_of_garbage(device: &Device) -> Verdict {
    for byte in [0xff, 0x01, 0x03, 0x40, 0x80, 0xaa] {
        attack(device, |ring| fill(ring.table, byte, 0xc000))?;
        device.notify(device.target.queue());
    }
    Ok(())
}
