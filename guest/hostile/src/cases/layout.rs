//! Queues laid out where and how none can be (virtio 1.2, 2.7 and 4.2.3.2), and changed when nobody may (4.2.2.2), on each device alike.

use super::{Case, named};
use crate::virtio::{Device, F_VERSION_1, NEEDS_RESET, Ring, register as reg};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    table_outside_memory,
    available_outside_memory,
    used_outside_memory,
    table_over_the_end,
    available_over_the_end,
    used_over_the_end,
    table_wraps,
    available_wraps,
    used_wraps,
    rings_in_the_hole,
    rings_in_a_device,
    rings_in_the_apic,
    table_unaligned,
    available_unaligned,
    used_unaligned,
    rings_at_zero,
    size_zero,
    size_of_no_power,
    size_over_the_most,
    size_over_16_bits,
    size_of_all_ones,
    no_queue_ready,
    ready_with_any_number,
    ready_on_and_off,
    queue_that_is_none,
    addresses_change_when_live,
    size_changes_when_live,
    unready_when_live,
    addresses_change_when_ready,
    laid_out_before_features,
];

/// DRIVER_OK with a queue like this: the device must ask for a reset, and do nothing when notified.
fn refused(device: &Device, change: impl FnOnce(&mut Ring)) -> Verdict {
    let queue = device.target.queue();
    device.negotiate(F_VERSION_1);
    let mut ring = device.ring(queue);
    ring.clear();
    change(&mut ring);
    device.lay(queue, &ring);
    device.set_status(15);
    device.expect_broken()?;
    device.notify(queue);
    device.expect_broken()
}

fn table_outside_memory(device: &Device) -> Verdict {
    refused(device, |ring| ring.table = 0x7000_0000)
}

fn available_outside_memory(device: &Device) -> Verdict {
    refused(device, |ring| ring.avail = 0x7000_0000)
}

fn used_outside_memory(device: &Device) -> Verdict {
    refused(device, |ring| ring.used = 0x7000_0000)
}

fn table_over_the_end(device: &Device) -> Verdict {
    refused(device, |ring| ring.table = device.memory_end - 16)
}

fn available_over_the_end(device: &Device) -> Verdict {
    refused(device, |ring| ring.avail = device.memory_end - 2)
}

fn used_over_the_end(device: &Device) -> Verdict {
    refused(device, |ring| ring.used = device.memory_end - 4)
}

fn table_wraps(device: &Device) -> Verdict {
    refused(device, |ring| ring.table = u64::MAX - 15)
}

fn available_wraps(device: &Device) -> Verdict {
    refused(device, |ring| ring.avail = u64::MAX - 1)
}

fn used_wraps(device: &Device) -> Verdict {
    refused(device, |ring| ring.used = u64::MAX - 3)
}

fn rings_in_the_hole(device: &Device) -> Verdict {
    refused(device, |ring| *ring = Ring::at(0xc000_0000, 0).with_size(ring.size))
}

fn rings_in_a_device(device: &Device) -> Verdict {
    refused(device, |ring| {
        *ring = Ring { table: device.base, avail: device.base + 0x100, used: device.base + 0x200, ..*ring }
    })
}

fn rings_in_the_apic(device: &Device) -> Verdict {
    refused(device, |ring| *ring = Ring { table: 0xfee0_0000, avail: 0xfee0_0400, used: 0xfee0_0800, ..*ring })
}

fn table_unaligned(device: &Device) -> Verdict {
    refused(device, |ring| ring.table += 8)
}

fn available_unaligned(device: &Device) -> Verdict {
    refused(device, |ring| ring.avail += 1)
}

fn used_unaligned(device: &Device) -> Verdict {
    refused(device, |ring| ring.used += 2)
}

/// Address 0 is memory. The device may refuse it or use it.
fn rings_at_zero(device: &Device) -> Verdict {
    let queue = device.target.queue();
    for part in 0..3 {
        device.negotiate(F_VERSION_1);
        let mut ring = device.ring(queue);
        ring.clear();
        match part {
            0 => ring.table = 0,
            1 => ring.avail = 0,
            _ => ring.used = 0,
        }
        device.lay(queue, &ring);
        device.set_status(15);
        device.notify(queue);
        let status = device.status() & !NEEDS_RESET;
        ensure(status == 15, "the status is none", status.into())?;
    }
    Ok(())
}

fn size_zero(device: &Device) -> Verdict {
    refused(device, |ring| ring.size = 0)
}

fn size_of_no_power(device: &Device) -> Verdict {
    refused(device, |ring| ring.size = 3)
}

fn size_over_the_most(device: &Device) -> Verdict {
    let most = device.most(device.target.queue());
    refused(device, |ring| ring.size = most * 2)
}

fn size_over_16_bits(device: &Device) -> Verdict {
    refused(device, |ring| ring.size = 0x1_0000 + 64)
}

fn size_of_all_ones(device: &Device) -> Verdict {
    refused(device, |ring| ring.size = u32::MAX)
}

/// A driver need not use a queue; notifications of it mean nothing.
fn no_queue_ready(device: &Device) -> Verdict {
    device.negotiate(F_VERSION_1);
    device.go()?;
    (0..device.target.queues()).for_each(|queue| device.notify(queue));
    device.expect_live()
}

fn ready_with_any_number(device: &Device) -> Verdict {
    device.negotiate(F_VERSION_1);
    let queue = device.target.queue();
    device.lay(queue, &device.ring(queue));
    for value in [2, 3, 0x100, u32::MAX, 0x8000_0001] {
        device.write(reg::QUEUE_READY, value);
        let ready = device.read(reg::QUEUE_READY);
        ensure(ready <= 1, "ready is neither yes nor no", ready.into())?;
    }
    Ok(())
}

fn ready_on_and_off(device: &Device) -> Verdict {
    device.negotiate(F_VERSION_1);
    let queue = device.target.queue();
    for _ in 0..20 {
        device.lay(queue, &device.ring(queue));
        device.write(reg::QUEUE_READY, 0);
        let ready = device.read(reg::QUEUE_READY);
        ensure(ready == 0, "a queue stays ready", ready.into())?;
    }
    Ok(())
}

fn queue_that_is_none(device: &Device) -> Verdict {
    device.negotiate(F_VERSION_1);
    for queue in [device.target.queues(), 31, 32, 64, 0x100, u16::MAX] {
        device.lay(queue, &Ring::at(0x7000_0000, 64));
        ensure(device.most(queue) == 0, "a queue that is none has a size", device.most(queue).into())?;
        ensure(device.read(reg::QUEUE_READY) == 0, "a queue that is none is ready", queue.into())?;
    }
    device.write(reg::QUEUE, u32::MAX);
    device.write(reg::QUEUE_READY, 1);
    device.go()
}

/// Writes to a queue that is at work change nothing: the good request that follows at the old place is answered.
fn frozen(device: &Device, change: impl FnOnce(u16)) -> Verdict {
    device.start()?;
    let queue = device.target.queue();
    device.write(reg::QUEUE, queue.into());
    change(queue);
    let ring = device.ring(queue);
    ring.set(0, crate::virtio::Part::out(crate::sys::DATA, 1));
    ring.set(1, crate::virtio::Part::out(crate::sys::DATA, u32::MAX));
    ring.offer(1);
    device.notify(queue);
    // The bad descriptor is in the old ring: whoever looked elsewhere would not have seen it.
    device.expect_broken()
}

fn addresses_change_when_live(device: &Device) -> Verdict {
    frozen(device, |_| {
        for offset in [reg::TABLE, reg::AVAIL, reg::USED] {
            device.write(offset, 0x230_0000);
            device.write(offset + 4, 0);
        }
    })
}

fn size_changes_when_live(device: &Device) -> Verdict {
    frozen(device, |_| [0, 1, 0x8000, u32::MAX].into_iter().for_each(|size| device.write(reg::QUEUE_SIZE, size)))
}

fn unready_when_live(device: &Device) -> Verdict {
    frozen(device, |_| device.write(reg::QUEUE_READY, 0))
}

fn addresses_change_when_ready(device: &Device) -> Verdict {
    device.negotiate(F_VERSION_1);
    let queue = device.target.queue();
    let ring = device.ring(queue);
    ring.clear();
    device.lay(queue, &ring);
    device.write(reg::TABLE, 0x7000_0000);
    device.write(reg::QUEUE_SIZE, 3);
    device.go()
}

fn laid_out_before_features(device: &Device) -> Verdict {
    device.reset();
    let queue = device.target.queue();
    for status in [0, 1, 3] {
        device.set_status(status);
        device.lay(queue, &Ring::at(0x7000_0000, 64));
        ensure(device.read(reg::QUEUE_READY) == 0, "a queue is ready before its features", status.into())?;
    }
    Ok(())
}
