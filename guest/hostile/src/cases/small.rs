//! Console, entropy device and balloon (virtio 1.2, 5.3 to 5.5).

use super::{Case, named};
use crate::health::request;
use crate::sys::{DATA, fill, peek, poke};
use crate::virtio::{Device, F_VERSION_1, Part};
use crate::{Verdict, ensure};

pub(crate) const CONSOLE: &[Case] =
    named![nothing_to_say, every_byte, a_mebibyte_in_one, a_ring_full, what_is_to_be_written, input_of_garbage];

pub(crate) const RNG: &[Case] =
    named![no_room, all_of_memory, nothing_but_to_read, a_byte_at_a_time, never_more_than_told];

pub(crate) const BALLOON: &[Case] = named![
    pages_outside_memory,
    pages_of_all_ones,
    one_page_again_and_again,
    pages_of_odd_length,
    pages_of_no_bytes,
    its_own_rings,
    more_pages_than_are_read,
    pages_to_be_written,
    pages_never_taken,
    reports_of_all_memory,
    reports_to_be_read,
    reports_of_odd_bytes,
    reports_on_every_queue,
    reports_without_the_feature,
];

/// VIRTIO_BALLOON_F_PAGE_REPORTING.
const F_REPORTING: u64 = 1 << 5;

fn nothing_to_say(device: &Device) -> Verdict {
    device.start()?;
    (0..50).try_for_each(|_| request(device, &[Part::out(DATA, 0)]).map(drop))
}

fn every_byte(device: &Device) -> Verdict {
    device.start()?;
    (0..=u8::MAX).for_each(|byte| poke(DATA + u64::from(byte), byte));
    request(device, &[Part::out(DATA, 256)]).map(drop)
}

fn a_mebibyte_in_one(device: &Device) -> Verdict {
    device.start()?;
    fill(DATA, b'.', 0x10_0000);
    request(device, &[Part::out(DATA, 0x10_0000)]).map(drop)
}

fn a_ring_full(device: &Device) -> Verdict {
    device.start()?;
    fill(DATA, b',', 4096);
    let ring = device.ring(1);
    ring.set(0, Part::out(DATA, 4096));
    let size = ring.size as u16;
    for round in 1..=5 {
        (0..size).for_each(|_| ring.offer(0));
        device.notify(1);
        device.expect_used(&ring, size * round)?;
    }
    Ok(())
}

fn what_is_to_be_written(device: &Device) -> Verdict {
    device.start()?;
    fill(DATA, 0x5a, 4096);
    request(device, &[Part::into(DATA, 4096)])?;
    ensure((0..4096).all(|at| peek::<u8>(DATA + at) == 0x5a), "the console writes to memory", 0)
}

/// The receive queue's buffers are never looked at.
fn input_of_garbage(device: &Device) -> Verdict {
    device.start()?;
    let ring = device.ring(0);
    fill(ring.table, 0xff, 1024);
    ring.set_avail_index(0x8000);
    (0..20).for_each(|_| device.notify(0));
    Ok(())
}

fn no_room(device: &Device) -> Verdict {
    device.start()?;
    let written = request(device, &[Part::into(DATA, 0)])?;
    ensure(written == 0, "bytes without room", written.into())
}

fn all_of_memory(device: &Device) -> Verdict {
    device.start()?;
    let len = (device.memory_end - 0x300_0000) as u32;
    let written = request(device, &[Part::into(0x300_0000, len)])?;
    ensure(written > 0 && written <= len, "nothing comes", written.into())
}

fn nothing_but_to_read(device: &Device) -> Verdict {
    device.start()?;
    fill(DATA, 0x5a, 4096);
    let written = request(device, &[Part::out(DATA, 4096)])?;
    ensure(written == 0 && peek::<u8>(DATA) == 0x5a, "written where it may not", written.into())
}

fn a_byte_at_a_time(device: &Device) -> Verdict {
    device.start()?;
    let ring = device.ring(0);
    ring.set(0, Part::into(DATA, 1));
    let size = ring.size as u16;
    for round in 1..=10 {
        (0..size).for_each(|_| ring.offer(0));
        device.notify(0);
        device.expect_used(&ring, size * round)?;
    }
    Ok(())
}

fn never_more_than_told(device: &Device) -> Verdict {
    device.start()?;
    fill(DATA, 0, 0x4000);
    let written = request(device, &[Part::into(DATA, 0x4000)])?;
    let behind = (u64::from(written)..0x4000).all(|at| peek::<u8>(DATA + at) == 0);
    ensure(behind, "more is written than is told", written.into())
}

/// These page numbers, on the inflate queue or the deflate queue.
fn pages(device: &Device, queue: u16, numbers: impl Iterator<Item = u32>, cut: u32) -> Verdict {
    device.start()?;
    let mut len = 0;
    for number in numbers {
        poke(DATA + u64::from(len), number);
        len += 4;
    }
    let ring = device.ring(queue);
    ring.set(0, Part::out(DATA, len - cut));
    ring.offer(0);
    device.notify(queue);
    device.expect_used(&ring, 1)
}

fn pages_outside_memory(device: &Device) -> Verdict {
    let end = (device.memory_end >> 12) as u32;
    pages(device, 0, (end..end + 64).chain([0xd_0000, 0xf_ee00, 0x10_0000, 0xf_ffff]), 0)
}

fn pages_of_all_ones(device: &Device) -> Verdict {
    pages(device, 0, [u32::MAX, u32::MAX - 1, 1 << 31].into_iter().cycle().take(900), 0)
}

fn one_page_again_and_again(device: &Device) -> Verdict {
    let page = ((DATA + 0x40_0000) >> 12) as u32;
    pages(device, 0, core::iter::repeat_n(page, 1000), 0)
}

fn pages_of_odd_length(device: &Device) -> Verdict {
    let page = ((DATA + 0x40_0000) >> 12) as u32;
    (0..4).try_for_each(|cut| pages(device, 0, page..page + 3, cut))
}

fn pages_of_no_bytes(device: &Device) -> Verdict {
    pages(device, 0, 1..2, 4)
}

/// The rings are at work while they are taken: they are empty then.
fn its_own_rings(device: &Device) -> Verdict {
    device.start()?;
    let ring = device.ring(0);
    for (place, addr) in (0..).zip([ring.table, ring.avail, ring.used]) {
        poke(DATA + place * 4, (addr >> 12) as u32);
    }
    ring.set(0, Part::out(DATA, 12));
    ring.offer(0);
    device.notify(0);
    device.notify(0);
    ensure(peek::<u64>(ring.table) == 0, "a page that was given is still there", peek(ring.table))
}

fn more_pages_than_are_read(device: &Device) -> Verdict {
    let page = ((DATA + 0x40_0000) >> 12) as u32;
    pages(device, 0, (page..page + 500).cycle().take(0x4_0000), 0)
}

fn pages_to_be_written(device: &Device) -> Verdict {
    device.start()?;
    request(device, &[Part::into(DATA, 4096)]).map(drop)
}

fn pages_never_taken(device: &Device) -> Verdict {
    pages(device, 1, (0..1000).map(|number| number * 0x1_0001), 0)
}

/// What is reported is given back to the host: all but what the program lives in.
fn report(device: &Device, queue: u16, part: Part, features: u64) -> Verdict {
    device.start_with(F_VERSION_1 | features)?;
    let ring = device.ring(queue);
    ring.set(0, part);
    ring.offer(0);
    device.notify(queue);
    device.expect_used(&ring, 1)
}

fn reports_of_all_memory(device: &Device) -> Verdict {
    let from = 0x280_0000;
    fill(from, 7, 0x1000);
    for _ in 0..10 {
        report(device, 4, Part::into(from, (device.memory_end - from) as u32), F_REPORTING)?;
    }
    ensure(peek::<u8>(from) == 0, "what was reported is still there", peek::<u8>(from).into())
}

fn reports_to_be_read(device: &Device) -> Verdict {
    let from = 0x280_0000;
    fill(from, 7, 0x1000);
    report(device, 4, Part::out(from, 0x1000), F_REPORTING)?;
    ensure(peek::<u8>(from) == 7, "given back though it was not to be written", 0)
}

fn reports_of_odd_bytes(device: &Device) -> Verdict {
    let from = 0x280_0000;
    for (addr, len) in [(from + 1, 4096), (from + 4095, 2), (from + 1, 4094), (from, 1), (from + 4095, 8193)] {
        report(device, 4, Part::into(addr, len), F_REPORTING)?;
    }
    Ok(())
}

fn reports_on_every_queue(device: &Device) -> Verdict {
    (2..5).try_for_each(|queue| report(device, queue, Part::into(0x280_0000, 0x2000), F_REPORTING))
}

fn reports_without_the_feature(device: &Device) -> Verdict {
    (2..5).try_for_each(|queue| report(device, queue, Part::into(0x280_0000, 0x2000), 0))
}
