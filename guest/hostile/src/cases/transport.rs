//! Registers of the MMIO transport in every wrong order, width and value (virtio 1.2, 2.1, 3.1 and 4.2), on each device alike.

use super::{Case, named};
use crate::sys::{DATA, peek, poke};
use crate::virtio::{Device, F_EVENT_IDX, F_VERSION_1, FAILED, LIVE, NEEDS_RESET, Part, STEPS, register as reg};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    every_status_first,
    every_order_of_steps,
    every_status_when_live,
    a_step_back,
    driver_ok_without_features_ok,
    driver_ok_after_a_refusal,
    gave_up_and_goes_on,
    asks_for_its_own_reset,
    unknown_features,
    no_version_1,
    features_too_late,
    features_of_pages_that_are_none,
    notified_before_it_is_ready,
    notified_for_every_queue,
    notified_for_nothing,
    reset_with_requests_waiting,
    reset_with_requests_served,
    reset_a_hundred_times,
    started_twenty_times,
    broken_and_notified,
    interrupts_acknowledged_that_are_none,
    read_only_registers_written,
    registers_read_in_every_width,
    registers_written_in_every_width,
    registers_written_when_live,
    configuration_read_in_every_width,
    configuration_written,
    accesses_over_the_end,
    shared_memory_that_is_none,
];

fn is_live(device: &Device) -> bool {
    device.status() & 4 != 0
}

fn every_status_first(device: &Device) -> Verdict {
    for value in 1..=u32::from(u8::MAX) {
        device.reset();
        device.set_status(value);
        ensure(!is_live(device), "live at the first step", value.into())?;
    }
    for value in [0x100, 0xffff_ff00, u32::MAX, 0x8000_0000] {
        device.reset();
        device.set_status(value);
        ensure(!is_live(device), "live by garbage", value.into())?;
    }
    Ok(())
}

/// Four writes of the four steps, in each of the 256 ways. Only the right one leads anywhere, and only with features.
fn every_order_of_steps(device: &Device) -> Verdict {
    for way in 0..256_usize {
        device.reset();
        for place in 0..4 {
            device.set_status(STEPS.get(way >> (place * 2) & 3).copied().unwrap_or(0));
        }
        ensure(!is_live(device), "live without VERSION_1", way as u64)?;
    }
    Ok(())
}

fn every_status_when_live(device: &Device) -> Verdict {
    for value in 1..=u32::from(u8::MAX) {
        device.start()?;
        device.set_status(value);
        let status = device.status();
        let good = if value & FAILED != 0 { status & FAILED != 0 } else { status == LIVE };
        ensure(good, "another status than it can be", u64::from(value) << 32 | u64::from(status))?;
    }
    Ok(())
}

fn a_step_back(device: &Device) -> Verdict {
    device.start()?;
    for value in [1, 3, 11, 7, 9] {
        device.set_status(value);
        ensure(device.status() == LIVE, "a bit of the status is taken back", device.status().into())?;
    }
    Ok(())
}

fn driver_ok_without_features_ok(device: &Device) -> Verdict {
    device.reset();
    for value in [1, 3, 7, 15] {
        device.set_status(value);
    }
    device.notify(device.target.queue());
    ensure(!is_live(device), "live without FEATURES_OK", device.status().into())
}

fn driver_ok_after_a_refusal(device: &Device) -> Verdict {
    let agreed = device.negotiate(u64::MAX);
    ensure(!agreed, "features are agreed that nobody offers", device.status().into())?;
    device.set_status(15);
    device.notify(device.target.queue());
    ensure(!is_live(device), "live with features refused", device.status().into())
}

fn gave_up_and_goes_on(device: &Device) -> Verdict {
    device.start()?;
    device.set_status(FAILED | LIVE);
    let ring = device.ring(device.target.queue());
    ring.set(0, Part::into(DATA, 64));
    ring.offer(0);
    device.notify(device.target.queue());
    for value in [1, 3, 11, 15] {
        device.set_status(value);
    }
    ensure(device.status() & FAILED != 0, "up again without a reset", device.status().into())
}

fn asks_for_its_own_reset(device: &Device) -> Verdict {
    device.start()?;
    device.set_status(LIVE | NEEDS_RESET);
    device.set_status(NEEDS_RESET);
    device.expect_live()
}

fn unknown_features(device: &Device) -> Verdict {
    let offered = device.offered();
    for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
        let agreed = device.negotiate(F_VERSION_1 | 1 << bit);
        ensure(!agreed, "a feature is agreed that nobody offers", bit)?;
    }
    Ok(())
}

fn no_version_1(device: &Device) -> Verdict {
    for features in [0, F_EVENT_IDX, device.offered() & !F_VERSION_1] {
        ensure(!device.negotiate(features), "features are agreed without VERSION_1", features)?;
    }
    Ok(())
}

fn features_too_late(device: &Device) -> Verdict {
    device.start()?;
    for page in [0, 1] {
        device.write(reg::DRIVER_FEATURES_PAGE, page);
        device.write(reg::DRIVER_FEATURES, u32::MAX);
        device.write(reg::DRIVER_FEATURES, 0);
    }
    device.expect_live()
}

fn features_of_pages_that_are_none(device: &Device) -> Verdict {
    for page in [2, 3, 31, 32, 63, 0x8000_0000, u32::MAX] {
        device.write(reg::DEVICE_FEATURES_PAGE, page);
        let offered = device.read(reg::DEVICE_FEATURES);
        ensure(offered == 0, "features beyond the last", offered.into())?;
        device.reset();
        device.set_status(1);
        device.set_status(3);
        device.write(reg::DRIVER_FEATURES_PAGE, page);
        device.write(reg::DRIVER_FEATURES, u32::MAX);
        device.set_status(11);
        ensure(device.status() != 11, "agreed", page.into())?;
    }
    Ok(())
}

fn notified_before_it_is_ready(device: &Device) -> Verdict {
    device.reset();
    let queue = device.target.queue();
    device.notify(queue);
    for status in [1, 3] {
        device.set_status(status);
        device.notify(queue);
    }
    device.negotiate(F_VERSION_1);
    let ring = device.ring(queue);
    ring.clear();
    device.lay(queue, &ring);
    ring.set(0, Part::into(DATA, 64));
    ring.offer(0);
    (0..50).for_each(|_| device.notify(queue));
    ensure(ring.used_index() == 0, "served before DRIVER_OK", ring.used_index().into())
}

fn notified_for_every_queue(device: &Device) -> Verdict {
    device.start()?;
    (0..=0x40_u32).for_each(|queue| device.write(reg::NOTIFY, queue));
    for queue in [0x100, 0x1_0000, 0x1_0001, 0x8000_0000, u32::MAX] {
        device.write(reg::NOTIFY, queue);
    }
    device.expect_live()
}

fn notified_for_nothing(device: &Device) -> Verdict {
    device.start()?;
    (0..500).for_each(|_| device.notify(device.target.queue()));
    device.expect_live()
}

/// Requests are in the queue when the device is reset: none of them may come back.
fn reset_with_requests_waiting(device: &Device) -> Verdict {
    device.start()?;
    let queue = device.target.queue();
    let ring = device.ring(queue);
    (0..ring.size as u16).for_each(|index| {
        ring.set(index, Part::into(DATA, 64));
        ring.offer(index);
    });
    device.reset();
    (0..4).for_each(|_| device.notify(queue));
    ensure(ring.used_index() == 0, "served behind a reset", ring.used_index().into())
}

fn reset_with_requests_served(device: &Device) -> Verdict {
    for _ in 0..10 {
        device.start()?;
        let queue = device.target.queue();
        let ring = device.ring(queue);
        (0..ring.size as u16).for_each(|index| {
            ring.set(index, Part::out(DATA, 64));
            ring.offer(index);
        });
        device.notify(queue);
        device.reset();
        let status = device.status();
        ensure(status == 0, "not reset", status.into())?;
    }
    Ok(())
}

fn reset_a_hundred_times(device: &Device) -> Verdict {
    (0..100).for_each(|_| device.reset());
    ensure(device.status() == 0, "not reset", device.status().into())
}

fn started_twenty_times(device: &Device) -> Verdict {
    for _ in 0..20 {
        device.start()?;
    }
    device.expect_live()
}

fn broken_and_notified(device: &Device) -> Verdict {
    device.start()?;
    let queue = device.target.queue();
    device.ring(queue).set_avail_index(0x8000);
    (0..100).for_each(|_| device.notify(queue));
    device.expect_broken()?;
    device.set_status(15);
    device.set_status(11);
    device.expect_broken()
}

fn interrupts_acknowledged_that_are_none(device: &Device) -> Verdict {
    device.start()?;
    for value in [u32::MAX, 0, 0xffff_fffc, 3, 0x8000_0000] {
        device.write(reg::ACKNOWLEDGE, value);
    }
    let pending = device.read(reg::INTERRUPTS);
    ensure(pending == 0, "an interrupt is pending", pending.into())
}

fn read_only_registers_written(device: &Device) -> Verdict {
    let constant = |device: &Device| [0x000, 0x004, 0x008, 0x00c, 0x0fc].map(|offset| device.read(offset));
    let before = constant(device);
    for offset in [0x000, 0x004, 0x008, 0x00c, 0x010, 0x034, 0x060, 0x0b0, 0x0b4, 0x0b8, 0x0bc, 0x0fc] {
        for value in [0, u32::MAX, 0x5555_5555] {
            device.write(offset, value);
        }
    }
    ensure(constant(device) == before, "a constant changes", device.read(reg::MAGIC).into())
}

fn registers_read_in_every_width(device: &Device) -> Verdict {
    for offset in 0..reg::CONFIG {
        let at = device.base + offset;
        let _: (u8, u16, u32, u64) = (peek(at), peek(at), peek(at), peek(at));
    }
    Ok(())
}

/// All but the status, by which it would be known.
fn write_everywhere(device: &Device, value: u64) {
    for offset in 0..reg::CONFIG {
        let at = device.base + offset;
        poke(at, value as u8);
        poke(at, value as u16);
        if offset != reg::STATUS {
            poke(at, value as u32);
        }
        poke(at, value);
    }
}

fn registers_written_in_every_width(device: &Device) -> Verdict {
    device.reset();
    for value in [u64::MAX, 0x0101_0101_0101_0101] {
        write_everywhere(device, value);
    }
    Ok(())
}

/// Aligned words reach a register, and none but QueueNotify and InterruptACK has a meaning now.
fn registers_written_when_live(device: &Device) -> Verdict {
    device.start()?;
    for offset in (0..reg::CONFIG).step_by(4).filter(|offset| *offset != reg::STATUS) {
        for value in [0, 1, u32::MAX] {
            device.write(offset, value);
        }
    }
    for offset in [reg::STATUS + 1, reg::STATUS + 2] {
        poke(device.base + offset, 0_u16);
        poke(device.base + offset, 0_u8);
    }
    device.expect_live()
}

/// Offsets of the configuration space: all of the first bytes, and some up to the window's end.
fn configuration() -> impl Iterator<Item = u64> {
    (reg::CONFIG..reg::CONFIG + 0x48).chain((reg::CONFIG + 0x48..0xff8).step_by(0x3d))
}

fn configuration_read_in_every_width(device: &Device) -> Verdict {
    for offset in configuration() {
        let at = device.base + offset;
        let _: (u8, u16, u32, u64) = (peek(at), peek(at), peek(at), peek(at));
    }
    Ok(())
}

fn configuration_written(device: &Device) -> Verdict {
    device.start()?;
    let before: u64 = peek(device.base + reg::CONFIG);
    for offset in configuration() {
        let at = device.base + offset;
        poke(at, u8::MAX);
        poke(at, u16::MAX);
        poke(at, u32::MAX);
        poke(at, u64::MAX);
    }
    let after: u64 = peek(device.base + reg::CONFIG);
    ensure(before == after, "the configuration changes", after)?;
    device.expect_live()
}

/// From the last bytes of the window into whatever is behind it, and from before it into its first.
fn accesses_over_the_end(device: &Device) -> Verdict {
    for offset in 0xff9..0x1000 {
        let at = device.base + offset;
        let _: (u16, u32, u64) = (peek(at), peek(at), peek(at));
        let value: u64 = peek(device.base - 8 + (offset - 0xff8));
        let _ = value;
    }
    Ok(())
}

fn shared_memory_that_is_none(device: &Device) -> Verdict {
    for region in [0, 1, 255, u32::MAX] {
        device.write(0x0ac, region);
        let words = [0x0b0, 0x0b4, 0x0b8, 0x0bc].map(|offset| device.read(offset));
        ensure(words == [u32::MAX; 4], "a region that is none", region.into())?;
    }
    Ok(())
}
