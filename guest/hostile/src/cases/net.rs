//! Frames and their headers (virtio 1.2, 5.1.6). The other end sends back frames of one type, and drops all others.

use super::{Case, named};
use crate::health::{NET_HEADER, net_frame, receive_buffers, request};
use crate::sys::{DATA, fill, poke, wait};
use crate::virtio::{Device, F_VERSION_1, NEEDS_RESET, NEXT, Part};
use crate::{Trouble, Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    header_missing,
    header_too_short,
    header_in_twelve_parts,
    header_to_be_written,
    no_frame_behind_the_header,
    frames_of_every_short_length,
    frames_of_giants,
    frame_of_all_memory,
    checksum_unasked,
    checksum_behind_the_frame,
    checksum_of_all_ones,
    checksum_over_itself,
    every_kind_of_segments,
    segments_of_no_bytes,
    segments_without_a_checksum,
    header_of_garbage,
    floods_of_frames,
    receive_buffers_too_short,
    receive_buffers_of_no_bytes,
    receive_buffers_to_be_read,
    receive_buffers_in_one_place,
    receive_buffers_nowhere,
    receive_buffers_merged_of_single_bytes,
    no_receive_buffers,
    reset_with_frames_under_way,
];

const TRANSMIT: u16 = 1;
/// VIRTIO_NET_F_CSUM and VIRTIO_NET_F_MRG_RXBUF.
const F_CSUM: u64 = 1;
const F_MRG_RXBUF: u64 = 1 << 15;
/// How often is looked for what another thread of the monitor does.
const PATIENCE: u32 = 50_000;

fn incomplete(device: &Device, part: Part) -> Verdict {
    device.start()?;
    let ring = device.ring(TRANSMIT);
    ring.set(0, part);
    ring.offer(0);
    device.notify(TRANSMIT);
    device.expect_broken()
}

/// A frame that is not sent back, with this header. The device takes it, whatever it does with it.
fn takes(device: &Device, header: [u8; 12], len: u32) -> Verdict {
    net_frame(u64::from(len.min(0x8000)), 0);
    poke(DATA + u64::from(NET_HEADER) + 12, 0xb688_u16);
    crate::sys::put(DATA, &header);
    request(device, &[Part::out(DATA, NET_HEADER + len)]).map(drop)
}

fn header_missing(device: &Device) -> Verdict {
    incomplete(device, Part::out(DATA, 0))
}

fn header_too_short(device: &Device) -> Verdict {
    incomplete(device, Part::out(DATA, NET_HEADER - 1))
}

fn header_in_twelve_parts(device: &Device) -> Verdict {
    device.start()?;
    net_frame(60, 0);
    let mut parts = [Part::out(DATA + 12, 60); 13];
    for (place, at) in parts.iter_mut().take(12).zip(DATA..) {
        *place = Part::out(at, 1);
    }
    request(device, &parts).map(drop)
}

fn header_to_be_written(device: &Device) -> Verdict {
    incomplete(device, Part::into(DATA, 100))
}

fn no_frame_behind_the_header(device: &Device) -> Verdict {
    device.start()?;
    takes(device, [0; 12], 0)
}

fn frames_of_every_short_length(device: &Device) -> Verdict {
    device.start()?;
    (0..64).try_for_each(|len| takes(device, [0; 12], len))
}

fn frames_of_giants(device: &Device) -> Verdict {
    device.start()?;
    for len in [1519, 9019, 35_019, 36_001, 65_535, 65_536, 65_554, 65_555, 0x10_0000] {
        takes(device, [0; 12], len)?;
    }
    Ok(())
}

fn frame_of_all_memory(device: &Device) -> Verdict {
    device.start()?;
    let len = (device.memory_end - 0x300_0000) as u32;
    request(device, &[Part::out(0x300_0000, len)]).map(drop)
}

fn checksum_unasked(device: &Device) -> Verdict {
    device.start()?;
    takes(device, [1, 0, 0, 0, 0, 0, 14, 0, 6, 0, 0, 0], 100)
}

/// NEEDS_CSUM with this place of the covered bytes and of the checksum in them.
fn checksum(device: &Device, start: u16, offset: u16, len: u32) -> Verdict {
    let ([a, b], [c, d]) = (start.to_le_bytes(), offset.to_le_bytes());
    takes(device, [1, 0, 0, 0, 0, 0, a, b, c, d, 0, 0], len)
}

fn checksum_behind_the_frame(device: &Device) -> Verdict {
    device.start_with(F_VERSION_1 | F_CSUM)?;
    for (start, offset) in [(100, 0), (99, 0), (0, 99), (50, 49), (0, 100), (101, 0), (98, 1)] {
        checksum(device, start, offset, 100)?;
    }
    Ok(())
}

fn checksum_of_all_ones(device: &Device) -> Verdict {
    device.start_with(F_VERSION_1 | F_CSUM)?;
    for (start, offset) in [(u16::MAX, u16::MAX), (u16::MAX, 0), (0, u16::MAX), (0x8000, 0x8000), (1, u16::MAX)] {
        checksum(device, start, offset, 1000)?;
        checksum(device, start, offset, 30_000)?;
    }
    Ok(())
}

fn checksum_over_itself(device: &Device) -> Verdict {
    device.start_with(F_VERSION_1 | F_CSUM)?;
    (0..62).try_for_each(|start| checksum(device, start, 0, 63))
}

fn every_kind_of_segments(device: &Device) -> Verdict {
    for features in [F_VERSION_1, F_VERSION_1 | F_CSUM] {
        device.start_with(features)?;
        for kind in 0..=u8::MAX {
            takes(device, [1, kind, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0], 200)?;
        }
    }
    Ok(())
}

fn segments_of_no_bytes(device: &Device) -> Verdict {
    device.start_with(F_VERSION_1 | F_CSUM)?;
    for kind in [1, 4, 0x81, 0x84] {
        takes(device, [1, kind, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], 4000)?;
    }
    Ok(())
}

fn segments_without_a_checksum(device: &Device) -> Verdict {
    device.start_with(F_VERSION_1 | F_CSUM)?;
    takes(device, [0, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0], 4000)
}

fn header_of_garbage(device: &Device) -> Verdict {
    device.start_with(F_VERSION_1 | F_CSUM)?;
    for byte in [0xff, 0x80, 0x7f, 0x55, 2, 4] {
        takes(device, [byte; 12], 500)?;
    }
    Ok(())
}

fn floods_of_frames(device: &Device) -> Verdict {
    device.start()?;
    net_frame(1500, 0);
    poke(DATA + u64::from(NET_HEADER) + 12, 0xb688_u16);
    let ring = device.ring(TRANSMIT);
    ring.set(0, Part::out(DATA, NET_HEADER + 1500));
    let size = ring.size as u16;
    for round in 1..=20 {
        (0..size).for_each(|_| ring.offer(0));
        device.notify(TRANSMIT);
        device.expect_used(&ring, size * round)?;
    }
    Ok(())
}

/// A frame comes back into receive buffers like this, so many of them. True if the device does not want to go on.
fn comes_into(device: &Device, part: Part, count: u16, features: u64) -> Result<bool, Trouble> {
    device.start_with(F_VERSION_1 | features)?;
    let inbound = device.ring(0);
    for index in 0..count {
        inbound.set(index, part);
        inbound.offer(index);
    }
    device.notify(0);
    net_frame(200, 0);
    let ring = device.ring(TRANSMIT);
    ring.set(0, Part::out(DATA, NET_HEADER + 200));
    ring.offer(0);
    device.notify(TRANSMIT);
    for _ in 0..PATIENCE / 100 {
        if device.status() & NEEDS_RESET != 0 {
            return Ok(true);
        }
        if inbound.used_index() > 0 {
            break;
        }
        wait(1000);
    }
    Ok(false)
}

fn receive_buffers_too_short(device: &Device) -> Verdict {
    for len in [1, 11, 12, 13] {
        comes_into(device, Part::into(DATA + 0x2000, len), 8, 0)?;
    }
    Ok(())
}

fn receive_buffers_of_no_bytes(device: &Device) -> Verdict {
    comes_into(device, Part::into(DATA + 0x2000, 0), 64, F_MRG_RXBUF).map(drop)
}

fn receive_buffers_to_be_read(device: &Device) -> Verdict {
    comes_into(device, Part::out(DATA + 0x2000, 4096), 64, F_MRG_RXBUF).map(drop)
}

fn receive_buffers_in_one_place(device: &Device) -> Verdict {
    comes_into(device, Part::into(DATA + 0x2000, 64), 64, F_MRG_RXBUF).map(drop)
}

fn receive_buffers_nowhere(device: &Device) -> Verdict {
    let noticed = comes_into(device, Part::into(0x7000_0000, 4096), 8, 0)?;
    ensure(noticed, "a broken rule goes unnoticed", device.status().into())
}

fn receive_buffers_merged_of_single_bytes(device: &Device) -> Verdict {
    comes_into(device, Part::into(DATA + 0x2000, 1), 64, F_MRG_RXBUF).map(drop)?;
    comes_into(device, Part::into(DATA + 0x2000, 1).with(NEXT, 0), 64, F_MRG_RXBUF).map(drop)
}

fn no_receive_buffers(device: &Device) -> Verdict {
    let noticed = comes_into(device, Part::into(DATA, 1), 0, 0)?;
    ensure(!noticed, "asks for a reset for want of buffers", device.status().into())
}

fn reset_with_frames_under_way(device: &Device) -> Verdict {
    for _ in 0..5 {
        device.start()?;
        receive_buffers(device, 32, 0x1000);
        device.notify(0);
        net_frame(1000, 0);
        let ring = device.ring(TRANSMIT);
        ring.set(0, Part::out(DATA, NET_HEADER + 1000));
        (0..4).for_each(|_| ring.offer(0));
        device.notify(TRANSMIT);
        device.reset();
        fill(ring.table, 0xff, 64);
    }
    Ok(())
}
