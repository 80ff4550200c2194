//! Packets of the socket device (virtio 1.2, 5.10.6). On port 1024 the host has streams that nobody reads and on which a few bytes wait.

use super::{Case, named};
use crate::health::{CLOSED, Packet, VSOCK_HEADER, answer, receive_buffers, received, send};
use crate::sys::{DATA, fill, peek, ticks};
use crate::virtio::{Device, NEEDS_RESET, NEXT, Part, Ring};
use crate::{Trouble, Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    header_missing,
    header_too_short,
    header_in_44_parts,
    header_to_be_written,
    length_over_the_buffer,
    length_of_all_ones,
    bytes_behind_the_length,
    another_guests_address,
    another_hosts_address,
    unknown_kinds_of_stream,
    unknown_operations,
    data_on_no_connection,
    every_operation_on_no_connection,
    resets_of_nothing,
    requests_with_data,
    refusals_without_buffers,
    receive_buffer_too_short,
    receive_buffer_of_a_header,
    receive_buffer_to_be_read,
    receive_buffers_in_one_place,
    a_port_of_the_agent_from_a_user,
    requests_twice,
    answers_nobody_asked_for,
    unknown_operation_when_connected,
    another_kind_when_connected,
    no_credit_for_the_host,
    credit_that_shrinks,
    more_taken_than_was_sent,
    data_over_the_credit,
    data_after_the_end,
    every_flag_of_the_end,
    ended_again_and_again,
    credit_asked_for_without_end,
    more_connections_than_streams,
    connected_and_reset,
    events_of_garbage,
];

const TRANSMIT: u16 = 1;
/// The port on which the host has streams.
const OPEN: u32 = 1024;
/// A port of the agent's further commands (`guest/wire`).
const SESSION: u32 = 0x1_0000;
const PORT: u32 = 4000;

/// Operations (5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const END: u16 = 4;
const RW: u16 = 5;
const CREDIT_REQUEST: u16 = 7;

/// A chain that is no packet.
fn no_packet(device: &Device, parts: &[Part]) -> Verdict {
    device.start()?;
    Packet::new(REQUEST, PORT, CLOSED).write(DATA);
    let ring = device.ring(TRANSMIT);
    ring.chain(0, parts);
    ring.offer(0);
    device.notify(TRANSMIT);
    device.expect_broken()
}

/// A packet, and the operation by which it is answered; `None` if it is not.
fn answered(device: &Device, packet: &Packet, bytes: u32) -> Result<Option<u16>, Trouble> {
    device.start()?;
    let ring = receive_buffers(device, 8, 0x1000);
    send(device, packet, bytes)?;
    if ring.used_index() == 0 { Ok(None) } else { answer(device, &ring, 0, packet.from.1).map(Some) }
}

fn expect(device: &Device, packet: &Packet, bytes: u32, expected: Option<u16>) -> Verdict {
    let op = answered(device, packet, bytes)?;
    ensure(op == expected, "another answer than the specification's", op.unwrap_or(0).into())
}

/// Connects to the host. Returns the ring of receive buffers with the answer in it.
fn connect(device: &Device, request: &Packet) -> Result<Ring, Trouble> {
    device.start()?;
    let ring = receive_buffers(device, 32, 0x1000);
    send(device, request, 0)?;
    let op = answer(device, &ring, 0, request.from.1)?;
    ensure(op == RESPONSE, "no connection", op.into())?;
    Ok(ring)
}

/// Whether a packet with this operation came.
fn came(ring: &Ring, op: u16) -> bool {
    (0..ring.used_index()).any(|seen| peek::<u16>(received(ring, seen) + 30) == op)
}

/// The connection must end by an RST.
fn expect_reset(ring: &Ring) -> Verdict {
    ensure(came(ring, RST), "a broken rule goes unnoticed", ring.used_index().into())
}

fn header_missing(device: &Device) -> Verdict {
    no_packet(device, &[Part::out(DATA, 0)])
}

fn header_too_short(device: &Device) -> Verdict {
    no_packet(device, &[Part::out(DATA, VSOCK_HEADER - 1)])
}

fn header_in_44_parts(device: &Device) -> Verdict {
    device.start()?;
    let inbound = receive_buffers(device, 8, 0x1000);
    Packet::new(REQUEST, PORT, CLOSED).write(DATA);
    let ring = device.ring(TRANSMIT);
    let last = VSOCK_HEADER as u16 - 1;
    for index in 0..=last {
        let part = Part::out(DATA + u64::from(index), 1);
        ring.set(index, if index < last { part.with(NEXT, index + 1) } else { part });
    }
    ring.offer(0);
    device.notify(TRANSMIT);
    let op = answer(device, &inbound, 0, PORT)?;
    ensure(op == RST, "a packet in parts is not understood", op.into())
}

fn header_to_be_written(device: &Device) -> Verdict {
    no_packet(device, &[Part::into(DATA, 4096)])
}

fn lying_length(device: &Device, len: u32) -> Verdict {
    device.start()?;
    Packet { len, ..Packet::new(RW, PORT, OPEN) }.write(DATA);
    let ring = device.ring(TRANSMIT);
    ring.chain(0, &[Part::out(DATA, VSOCK_HEADER), Part::out(DATA + 0x1000, 4096)]);
    ring.offer(0);
    device.notify(TRANSMIT);
    device.expect_broken()
}

fn length_over_the_buffer(device: &Device) -> Verdict {
    lying_length(device, 4097)
}

fn length_of_all_ones(device: &Device) -> Verdict {
    lying_length(device, u32::MAX)
}

/// What is behind a packet's length is no part of it.
fn bytes_behind_the_length(device: &Device) -> Verdict {
    expect(device, &Packet::new(REQUEST, PORT, CLOSED), 0x8000, Some(RST))
}

fn another_guests_address(device: &Device) -> Verdict {
    for cid in [0, 1, 2, 4, u64::from(u32::MAX), 1 << 32 | 3, u64::MAX] {
        let packet = Packet { from: (cid, PORT), ..Packet::new(REQUEST, PORT, OPEN) };
        expect(device, &packet, 0, None)?;
    }
    Ok(())
}

fn another_hosts_address(device: &Device) -> Verdict {
    for cid in [0, 1, 3, 4, u64::from(u32::MAX), 1 << 32 | 2, u64::MAX] {
        let packet = Packet { to: (cid, OPEN), ..Packet::new(REQUEST, PORT, OPEN) };
        expect(device, &packet, 0, None)?;
    }
    Ok(())
}

fn unknown_kinds_of_stream(device: &Device) -> Verdict {
    for kind in [0, 2, 3, 0x100, u16::MAX] {
        expect(device, &Packet { kind, ..Packet::new(REQUEST, PORT, OPEN) }, 0, Some(RST))?;
    }
    Ok(())
}

fn unknown_operations(device: &Device) -> Verdict {
    for op in [0, 8, 9, 0x100, 0x7fff, u16::MAX] {
        expect(device, &Packet::new(op, PORT, OPEN), 0, Some(RST))?;
    }
    Ok(())
}

fn data_on_no_connection(device: &Device) -> Verdict {
    expect(device, &Packet { len: 4096, ..Packet::new(RW, PORT, OPEN) }, 4096, Some(RST))
}

fn every_operation_on_no_connection(device: &Device) -> Verdict {
    for op in [RESPONSE, END, RW, 6, CREDIT_REQUEST] {
        expect(device, &Packet { flags: u32::MAX, ..Packet::new(op, PORT, OPEN) }, 0, Some(RST))?;
    }
    Ok(())
}

/// An RST is never answered by another.
fn resets_of_nothing(device: &Device) -> Verdict {
    device.start()?;
    let ring = receive_buffers(device, 8, 0x1000);
    for port in 0..50 {
        send(device, &Packet::new(RST, port, OPEN), 0)?;
    }
    ensure(ring.used_index() == 0, "an RST is answered", ring.used_index().into())
}

fn requests_with_data(device: &Device) -> Verdict {
    expect(device, &Packet { len: 100, ..Packet::new(REQUEST, PORT, OPEN) }, 100, Some(RST))
}

/// More packets to nobody than the device keeps answers for, and no place for an answer. Then there is place.
fn refusals_without_buffers(device: &Device) -> Verdict {
    device.start()?;
    let ring = device.ring(TRANSMIT);
    Packet::new(REQUEST, PORT, CLOSED).write(DATA);
    ring.set(0, Part::out(DATA, VSOCK_HEADER));
    for _ in 0..6 {
        (0..32).for_each(|_| ring.offer(0));
        device.notify(TRANSMIT);
    }
    device.expect_live()?;
    let taken = ring.used_index();
    ensure(taken < 192, "answers are kept without end", taken.into())?;
    let inbound = receive_buffers(device, 64, 0x1000);
    device.notify(0);
    device.expect_used(&inbound, 64)
}

fn bad_receive_buffer(device: &Device, part: Part) -> Verdict {
    device.start()?;
    let ring = device.ring(0);
    ring.set(0, part);
    ring.offer(0);
    device.notify(0);
    Packet::new(REQUEST, PORT, CLOSED).write(DATA);
    let out = device.ring(TRANSMIT);
    out.chain(0, &[Part::out(DATA, VSOCK_HEADER)]);
    out.offer(0);
    device.notify(TRANSMIT);
    device.expect_broken()
}

fn receive_buffer_too_short(device: &Device) -> Verdict {
    bad_receive_buffer(device, Part::into(DATA + 0x1000, VSOCK_HEADER - 1))
}

fn receive_buffer_to_be_read(device: &Device) -> Verdict {
    bad_receive_buffer(device, Part::out(DATA + 0x1000, 4096))
}

/// There is room for words and none for data: data waits, for ever.
fn receive_buffer_of_a_header(device: &Device) -> Verdict {
    device.start()?;
    let ring = receive_buffers(device, 32, VSOCK_HEADER);
    send(device, &Packet::new(REQUEST, PORT, OPEN), 0)?;
    let op = answer(device, &ring, 0, PORT)?;
    ensure(op == RESPONSE, "no connection", op.into())?;
    (0..20).for_each(|_| device.notify(0));
    device.expect_live()
}

fn receive_buffers_in_one_place(device: &Device) -> Verdict {
    device.start()?;
    let ring = device.ring(0);
    ring.set(0, Part::into(DATA + 0x10_0000, 0x1000));
    (0..32).for_each(|_| ring.offer(0));
    for port in 0..16 {
        send(device, &Packet::new(REQUEST, port, CLOSED), 0)?;
    }
    ensure(ring.used_index() == 16, "answers are missing", ring.used_index().into())
}

fn a_port_of_the_agent_from_a_user(device: &Device) -> Verdict {
    for port in [SESSION, SESSION + 1, u32::MAX] {
        expect(device, &Packet::new(REQUEST, PORT, port), 0, Some(RST))?;
    }
    Ok(())
}

fn requests_twice(device: &Device) -> Verdict {
    let request = Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) };
    let ring = connect(device, &request)?;
    send(device, &request, 0)?;
    expect_reset(&ring)
}

/// A packet that no connection may carry ends it.
fn ends_the_connection(device: &Device, packet: &Packet, bytes: u32) -> Verdict {
    let ring = connect(device, &Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) })?;
    send(device, packet, bytes)?;
    expect_reset(&ring)
}

fn answers_nobody_asked_for(device: &Device) -> Verdict {
    ends_the_connection(device, &Packet::new(RESPONSE, PORT, OPEN), 0)
}

fn unknown_operation_when_connected(device: &Device) -> Verdict {
    ends_the_connection(device, &Packet::new(0x55, PORT, OPEN), 0)
}

/// It is not of this connection, which goes on or not.
fn another_kind_when_connected(device: &Device) -> Verdict {
    ends_the_connection(device, &Packet { kind: 2, ..Packet::new(RW, PORT, OPEN) }, 0)
}

fn no_credit_for_the_host(device: &Device) -> Verdict {
    let ring = connect(device, &Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) })?;
    (0..20).for_each(|_| device.notify(0));
    ensure(!came(&ring, RW), "data without credit", ring.used_index().into())
}

fn credit_that_shrinks(device: &Device) -> Verdict {
    connect(device, &Packet { space: u32::MAX, ..Packet::new(REQUEST, PORT, OPEN) })?;
    for space in [1, 0, u32::MAX, 0] {
        send(device, &Packet { space, ..Packet::new(6, PORT, OPEN) }, 0)?;
    }
    device.expect_live()
}

fn more_taken_than_was_sent(device: &Device) -> Verdict {
    let ring = connect(device, &Packet { space: 16, forwarded: 1 << 31, ..Packet::new(REQUEST, PORT, OPEN) })?;
    for forwarded in [u32::MAX, 1 << 31, 1, 0, 77] {
        send(device, &Packet { forwarded, space: 16, ..Packet::new(6, PORT, OPEN) }, 0)?;
    }
    (0..ring.used_index()).try_for_each(|seen| {
        let len: u32 = peek(received(&ring, seen) + 24);
        ensure(len <= 16, "more data than credit", len.into())
    })
}

/// Nobody reads on the host: its credit is used up, and then the guest goes on.
fn data_over_the_credit(device: &Device) -> Verdict {
    let ring = connect(device, &Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) })?;
    let packet = Packet { len: 0x1_0000, ..Packet::new(RW, PORT, OPEN) };
    for _ in 0..64 {
        if came(&ring, RST) {
            return Ok(());
        }
        send(device, &packet, 0x1_0000)?;
    }
    Err(Trouble("credit has no end", ring.used_index().into()))
}

fn data_after_the_end(device: &Device) -> Verdict {
    let ring = connect(device, &Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) })?;
    send(device, &Packet { flags: 2, ..Packet::new(END, PORT, OPEN) }, 0)?;
    send(device, &Packet { len: 10, ..Packet::new(RW, PORT, OPEN) }, 10)?;
    expect_reset(&ring)
}

fn every_flag_of_the_end(device: &Device) -> Verdict {
    let ring = connect(device, &Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) })?;
    for flags in [0, 4, 0xffff_fffc, 0x8000_0000] {
        send(device, &Packet { flags, ..Packet::new(END, PORT, OPEN) }, 0)?;
    }
    ensure(!came(&ring, RST), "ended by flags that mean nothing", ring.used_index().into())?;
    send(device, &Packet { flags: u32::MAX, ..Packet::new(END, PORT, OPEN) }, 0)?;
    expect_reset(&ring)
}

fn ended_again_and_again(device: &Device) -> Verdict {
    connect(device, &Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) })?;
    for flags in [1, 2, 3].into_iter().cycle().take(60) {
        let packet = Packet { flags, ..Packet::new(END, PORT, OPEN) };
        packet.write(DATA);
        let ring = device.ring(TRANSMIT);
        ring.chain(0, &[Part::out(DATA, VSOCK_HEADER)]);
        ring.offer(0);
        device.notify(TRANSMIT);
    }
    let status = device.status() & !NEEDS_RESET;
    ensure(status == 15, "the status is none", status.into())
}

/// Each asks for an answer; those that nobody has room for fall together.
fn credit_asked_for_without_end(device: &Device) -> Verdict {
    connect(device, &Packet { space: 0, ..Packet::new(REQUEST, PORT, OPEN) })?;
    for _ in 0..200 {
        send(device, &Packet { space: 0, ..Packet::new(CREDIT_REQUEST, PORT, OPEN) }, 0)?;
    }
    device.expect_live()
}

/// Every one is answered, one way or the other. The host has some streams left for the cases behind.
fn more_connections_than_streams(device: &Device) -> Verdict {
    device.start()?;
    let ring = receive_buffers(device, 64, VSOCK_HEADER);
    for port in 0..30 {
        send(device, &Packet { space: 0, ..Packet::new(REQUEST, 5000 + port, 1025) }, 0)?;
    }
    device.expect_used(&ring, 30)?;
    let refused = (0..30).filter(|seen| peek::<u16>(received(&ring, *seen) + 30) == RST).count();
    ensure(refused > 0, "more streams than there are", refused as u64)
}

fn connected_and_reset(device: &Device) -> Verdict {
    for _ in 0..5 {
        connect(device, &Packet::new(REQUEST, ticks() as u32, OPEN))?;
        device.reset();
    }
    Ok(())
}

/// The event queue's buffers are for the device alone.
fn events_of_garbage(device: &Device) -> Verdict {
    device.start()?;
    let ring = device.ring(2);
    fill(ring.table, 0xff, u64::from(ring.size) * 16);
    (0..ring.size as u16).for_each(|index| ring.offer(index));
    (0..20).for_each(|_| device.notify(2));
    device.expect_live()
}
