//! The file system device, whose queues another process walks (virtio 1.2, 5.11). A file server that gives up is told by the monitor; here
//! are those cases that it must survive.

use super::{Case, named};
use crate::sys::{DATA, fill, peek, poke, wait};
use crate::virtio::{Device, F_VERSION_1, Part, register as reg};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    requests_of_garbage,
    requests_without_room,
    requests_of_unknown_kinds,
    reset_with_requests_under_way,
    started_ten_times,
    configuration_read,
    steps_in_every_order,
    notified_before_it_is_ready,
];

fn offer(device: &Device, parts: &[Part]) -> Verdict {
    let queue = device.target.queue();
    let ring = device.ring(queue);
    ring.chain(0, parts);
    ring.offer(0);
    device.notify(queue);
    device.expect_used(&ring, ring.avail_index())
}

/// A request of this kind: le32 length, le32 kind, le64 its own number, which is never 0.
fn header(kind: u32) {
    fill(DATA, 0, 4096);
    poke(DATA, 40_u32);
    poke(DATA + 4, kind);
    poke(DATA + 8, 77_u64);
}

fn requests_of_garbage(device: &Device) -> Verdict {
    device.start()?;
    fill(DATA, 0xa5, 4096);
    offer(device, &[Part::out(DATA, 40), Part::into(DATA + 0x1000, 4096)])
}

fn requests_without_room(device: &Device) -> Verdict {
    device.start()?;
    // FUSE_FORGET, which has no answer.
    header(2);
    offer(device, &[Part::out(DATA, 48)])
}

fn requests_of_unknown_kinds(device: &Device) -> Verdict {
    for kind in [0, 7, 0x1000, u32::MAX] {
        device.start()?;
        header(kind);
        offer(device, &[Part::out(DATA, 40), Part::into(DATA + 0x1000, 4096)])?;
    }
    Ok(())
}

fn reset_with_requests_under_way(device: &Device) -> Verdict {
    for _ in 0..5 {
        device.start()?;
        header(3);
        let queue = device.target.queue();
        let ring = device.ring(queue);
        ring.chain(0, &[Part::out(DATA, 40), Part::into(DATA + 0x1000, 4096)]);
        ring.offer(0);
        device.notify(queue);
        device.reset();
    }
    Ok(())
}

fn started_ten_times(device: &Device) -> Verdict {
    (0..10).try_for_each(|_| device.start())
}

fn configuration_read(device: &Device) -> Verdict {
    for offset in reg::CONFIG..reg::CONFIG + 0x48 {
        let at = device.base + offset;
        let _: (u8, u16, u32, u64) = (peek(at), peek(at), peek(at), peek(at));
        poke(at, u32::MAX);
    }
    Ok(())
}

fn steps_in_every_order(device: &Device) -> Verdict {
    for way in 0..64_usize {
        device.reset();
        for place in 0..3 {
            device.set_status([1, 3, 15, 11].get(way >> (place * 2) & 3).copied().unwrap_or(0));
        }
        let status = device.status();
        ensure(status & 4 == 0, "live without VERSION_1", status.into())?;
    }
    Ok(())
}

fn notified_before_it_is_ready(device: &Device) -> Verdict {
    device.negotiate(F_VERSION_1);
    (0..50).for_each(|_| device.notify(device.target.queue()));
    wait(1000);
    Ok(())
}
