//! Requests to disks (virtio 1.2, 5.2.6).

use super::{Case, named};
use crate::health::{MARK, block, block_header, request};
use crate::sys::{DATA, fill, peek, poke};
use crate::virtio::{Device, Part, register as reg};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    header_missing,
    header_too_short,
    header_in_sixteen_parts,
    header_to_be_written,
    status_missing,
    status_of_no_bytes,
    status_within_data,
    nothing_but_a_status,
    sector_behind_the_last,
    sector_of_all_ones,
    sector_whose_offset_wraps,
    data_over_the_last_sector,
    data_of_no_bytes,
    data_of_odd_length,
    data_of_every_wrong_length,
    data_of_the_whole_memory,
    unknown_types,
    types_with_the_old_barrier,
    identity_of_one_byte,
    identity_of_no_bytes,
    identity_of_many_bytes,
    flush_with_data,
    reads_of_one_buffer_by_all,
    reads_over_its_own_rings,
    data_over_its_own_header,
    status_over_its_own_header,
    discard_of_garbage,
    zeroes_unasked,
    secure_erase_unasked,
    writes_by_the_wrong_way,
];

/// What only a disk that can be written does.
pub(crate) const SPACE: &[Case] = named![
    discard_beyond_the_end,
    discard_that_wraps,
    discard_of_nothing,
    discard_with_unknown_flags,
    discard_of_half_a_range,
    discard_of_two_ranges,
    discard_of_the_whole_disk,
    write_beyond_the_end,
    write_of_all_of_memory,
    flush_again_and_again,
];

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const STATUS: Part = Part::into(DATA + 0x100, 1);
const BUFFER: u64 = DATA + 0x1000;

/// A chain without what it must have.
fn incomplete(device: &Device, parts: &[Part]) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    let ring = device.ring(0);
    ring.chain(0, parts);
    ring.offer(0);
    device.notify(0);
    device.expect_broken()
}

/// A request that is answered by an error.
fn refused(device: &Device, kind: u32, sector: u64, data: Part) -> Verdict {
    device.start()?;
    let status = block(device, kind, sector, data)?;
    ensure(status == 1 || status == 2, "a bad request is done", status.into())
}

fn sectors(device: &Device) -> u64 {
    peek(device.base + reg::CONFIG)
}

fn header_missing(device: &Device) -> Verdict {
    incomplete(device, &[STATUS])
}

fn header_too_short(device: &Device) -> Verdict {
    incomplete(device, &[Part::out(DATA, 15), STATUS])
}

/// The driver may cut a request where it likes (2.7.4.1).
fn header_in_sixteen_parts(device: &Device) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    fill(BUFFER, 0, 512);
    let mut parts = [STATUS; 18];
    for (place, at) in parts.iter_mut().take(16).zip(DATA..) {
        *place = Part::out(at, 1);
    }
    parts[16] = Part::into(BUFFER, 512);
    let written = request(device, &parts)?;
    ensure(written == 513 && peek::<u64>(BUFFER) == MARK, "a request in parts fails", written.into())
}

fn header_to_be_written(device: &Device) -> Verdict {
    incomplete(device, &[Part::into(DATA, 16), Part::into(BUFFER, 512), STATUS])
}

fn status_missing(device: &Device) -> Verdict {
    incomplete(device, &[Part::out(DATA, 16)])
}

fn status_of_no_bytes(device: &Device) -> Verdict {
    incomplete(device, &[Part::out(DATA, 16), Part::into(DATA + 0x100, 0)])
}

/// The last byte that the device may write is the status, wherever it lies.
fn status_within_data(device: &Device) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    let written = request(device, &[Part::out(DATA, 16), Part::into(BUFFER, 513)])?;
    ensure(written == 513, "not whole", written.into())
}

fn nothing_but_a_status(device: &Device) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    request(device, &[Part::out(DATA, 16), STATUS])?;
    let status: u8 = peek(DATA + 0x100);
    ensure(status != 0, "a read of nothing is done", status.into())
}

fn sector_behind_the_last(device: &Device) -> Verdict {
    refused(device, IN, sectors(device), Part::into(BUFFER, 512))
}

fn sector_of_all_ones(device: &Device) -> Verdict {
    refused(device, IN, u64::MAX, Part::into(BUFFER, 512))?;
    refused(device, OUT, u64::MAX, Part::out(BUFFER, 512))
}

fn sector_whose_offset_wraps(device: &Device) -> Verdict {
    for sector in [1 << 55, (1 << 55) + 1, (1 << 55) - 1, 1 << 63] {
        refused(device, IN, sector, Part::into(BUFFER, 1024))?;
        refused(device, OUT, sector, Part::out(BUFFER, 1024))?;
    }
    Ok(())
}

fn data_over_the_last_sector(device: &Device) -> Verdict {
    refused(device, IN, sectors(device) - 1, Part::into(BUFFER, 1024))
}

fn data_of_no_bytes(device: &Device) -> Verdict {
    refused(device, IN, 0, Part::into(BUFFER, 0))?;
    refused(device, OUT, 0, Part::out(BUFFER, 0))
}

fn data_of_odd_length(device: &Device) -> Verdict {
    refused(device, IN, 0, Part::into(BUFFER, 511))?;
    refused(device, OUT, 0, Part::out(BUFFER, 513))
}

fn data_of_every_wrong_length(device: &Device) -> Verdict {
    for len in (1..1024).filter(|len| len % 512 != 0).step_by(37) {
        refused(device, IN, 0, Part::into(BUFFER, len))?;
    }
    Ok(())
}

/// Longer than any request may be, and behind the disk's end.
fn data_of_the_whole_memory(device: &Device) -> Verdict {
    let len = (device.memory_end - 0x300_0000) as u32 & !511;
    refused(device, IN, 0, Part::into(0x300_0000, len))
}

fn unknown_types(device: &Device) -> Verdict {
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 15, 16, 100, 0xffff, 0x7fff_ffff, u32::MAX] {
        refused(device, kind, 0, Part::into(BUFFER, 512))?;
        refused(device, kind, 0, Part::out(BUFFER, 512))?;
    }
    Ok(())
}

/// VIRTIO_BLK_T_BARRIER of the drafts, in the type's highest bit.
fn types_with_the_old_barrier(device: &Device) -> Verdict {
    for kind in [IN, OUT, FLUSH, GET_ID] {
        refused(device, kind | 1 << 31, 0, Part::into(BUFFER, 512))?;
    }
    Ok(())
}

/// How many bytes of its identity the device writes into so many.
fn identity(device: &Device, len: u32) -> Result<u32, crate::Trouble> {
    device.start()?;
    fill(BUFFER, 0xee, 0x1000);
    block_header(GET_ID, 0);
    let written = request(device, &[Part::out(DATA, 16), Part::into(BUFFER, len), STATUS])?;
    let behind: u8 = peek(BUFFER + u64::from(len));
    ensure(behind == 0xee, "written behind the buffer", behind.into())?;
    Ok(written)
}

fn identity_of_one_byte(device: &Device) -> Verdict {
    let written = identity(device, 1)?;
    ensure(written <= 2, "more than there was room for", written.into())
}

fn identity_of_no_bytes(device: &Device) -> Verdict {
    let written = identity(device, 0)?;
    ensure(written <= 1, "more than there was room for", written.into())
}

fn identity_of_many_bytes(device: &Device) -> Verdict {
    let written = identity(device, 0x800)?;
    ensure(written == 21, "an identity has 20 bytes", written.into())
}

fn flush_with_data(device: &Device) -> Verdict {
    device.start()?;
    for data in [Part::out(BUFFER, 4096), Part::into(BUFFER, 4096)] {
        block(device, FLUSH, u64::MAX, data)?;
    }
    Ok(())
}

/// The whole ring full of requests for one and the same buffer.
fn reads_of_one_buffer_by_all(device: &Device) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    let ring = device.ring(0);
    let count = ring.size as u16 / 2;
    ring.chain(0, &[Part::out(DATA, 16), Part::into(BUFFER, 4096), STATUS]);
    (0..count).for_each(|_| ring.offer(0));
    device.notify(0);
    device.expect_used(&ring, count)
}

/// The disk's bytes over the rings while they are at work.
fn reads_over_its_own_rings(device: &Device) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    let ring = device.ring(0);
    for addr in [ring.table, ring.avail, ring.used] {
        device.start()?;
        ring.chain(0, &[Part::out(DATA, 16), Part::into(addr & !511, 1024), STATUS]);
        ring.chain(3, &[Part::out(DATA, 16), Part::into(BUFFER, 512), STATUS]);
        ring.offer(0);
        ring.offer(3);
        device.notify(0);
        device.notify(0);
    }
    Ok(())
}

fn data_over_its_own_header(device: &Device) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    request(device, &[Part::out(DATA, 16), Part::into(DATA, 512), STATUS]).map(drop)
}

fn status_over_its_own_header(device: &Device) -> Verdict {
    device.start()?;
    block_header(IN, 0);
    request(device, &[Part::out(DATA, 16), Part::into(BUFFER, 512), Part::into(DATA, 1)]).map(drop)
}

/// A discard of this range. Returns the status.
fn discard(device: &Device, sector: u64, count: u32, flags: u32, len: u32) -> Result<u8, crate::Trouble> {
    device.start()?;
    for range in 0..2 {
        poke(BUFFER + range * 16, sector);
        poke(BUFFER + range * 16 + 8, count);
        poke(BUFFER + range * 16 + 12, flags);
    }
    block(device, DISCARD, 0, Part::out(BUFFER, len))
}

fn discard_of_garbage(device: &Device) -> Verdict {
    fill(BUFFER, 0xa5, 4096);
    for len in [0, 1, 15, 16, 17, 4096] {
        refused(device, DISCARD, u64::MAX, Part::out(BUFFER, len))?;
    }
    refused(device, DISCARD, 0, Part::into(BUFFER, 16))
}

/// VIRTIO_BLK_T_WRITE_ZEROES (13) and SECURE_ERASE (14) are not offered.
fn zeroes_unasked(device: &Device) -> Verdict {
    fill(BUFFER, 0, 16);
    refused(device, 13, 0, Part::out(BUFFER, 16))
}

fn secure_erase_unasked(device: &Device) -> Verdict {
    fill(BUFFER, 0, 16);
    refused(device, 14, 0, Part::out(BUFFER, 16))
}

/// A read into what may only be read, and a write from what is to be written.
fn writes_by_the_wrong_way(device: &Device) -> Verdict {
    refused(device, IN, 0, Part::out(BUFFER, 512))?;
    refused(device, OUT, 0, Part::into(BUFFER, 512))
}

fn bad_discard(device: &Device, sector: u64, count: u32, flags: u32, len: u32) -> Verdict {
    let status = discard(device, sector, count, flags, len)?;
    ensure(status != 0, "a bad discard is done", status.into())
}

fn discard_beyond_the_end(device: &Device) -> Verdict {
    bad_discard(device, sectors(device), 8, 0, 16)?;
    bad_discard(device, sectors(device) - 8, 16, 0, 16)
}

fn discard_that_wraps(device: &Device) -> Verdict {
    for sector in [u64::MAX, 1 << 55, u64::MAX / 512, (1 << 55) - 1] {
        bad_discard(device, sector, u32::MAX, 0, 16)?;
    }
    Ok(())
}

fn discard_of_nothing(device: &Device) -> Verdict {
    bad_discard(device, 0, 0, 0, 16)
}

fn discard_with_unknown_flags(device: &Device) -> Verdict {
    for flags in [1, 2, 0x8000_0000, u32::MAX] {
        bad_discard(device, 0, 8, flags, 16)?;
    }
    Ok(())
}

fn discard_of_half_a_range(device: &Device) -> Verdict {
    bad_discard(device, 0, 8, 0, 8)
}

fn discard_of_two_ranges(device: &Device) -> Verdict {
    bad_discard(device, 0, 8, 0, 32)
}

/// That is a driver's right.
fn discard_of_the_whole_disk(device: &Device) -> Verdict {
    let count = sectors(device) as u32;
    let status = discard(device, 0, count, 0, 16)?;
    ensure(status == 0 || status == 2, "a good discard fails", status.into())?;
    // Others read the mark there.
    fill(BUFFER, 0, 512);
    poke(BUFFER, MARK);
    block(device, OUT, 0, Part::out(BUFFER, 512)).map(drop)
}

fn write_beyond_the_end(device: &Device) -> Verdict {
    refused(device, OUT, sectors(device), Part::out(BUFFER, 512))?;
    refused(device, OUT, sectors(device) - 1, Part::out(BUFFER, 1024))
}

fn write_of_all_of_memory(device: &Device) -> Verdict {
    let len = device.memory_end as u32 & !511;
    refused(device, OUT, 0, Part::out(0, len))
}

fn flush_again_and_again(device: &Device) -> Verdict {
    device.start()?;
    block_header(FLUSH, 0);
    let ring = device.ring(0);
    ring.chain(0, &[Part::out(DATA, 16), STATUS]);
    let count = ring.size as u16;
    (0..count).for_each(|_| ring.offer(0));
    device.notify(0);
    device.expect_used(&ring, count)
}
