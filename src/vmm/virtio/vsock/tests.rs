//! Streams by the specification's driver.

use std::io::{Read, Write};
use std::net::Shutdown;

use super::super::driver::{Buffer, Driver};
use super::*;

const GUEST: u64 = 3;

struct Guest {
    driver: Driver,
    waiting: WaitingStreams,
    /// Addresses of receive buffers, by head.
    buffers: BTreeMap<u32, u64>,
    /// Of the one connection that most tests have.
    received: u32,
    sent: u32,
    host_space: u32,
    host_forwarded: u32,
}

const SPACE: u32 = 64 << 10;

impl Guest {
    fn new() -> Self {
        let waiting = WaitingStreams::default();
        let table = waiting.clone();
        let driver = Driver::ready(0, move |sources| Vsock::new(GUEST, table, sources));
        Self { driver, waiting, buffers: BTreeMap::new(), received: 0, sent: 0, host_space: 0, host_forwarded: 0 }
    }

    fn with_receive_buffers(count: usize, len: u32) -> Self {
        let mut guest = Self::new();
        (0..count).for_each(|_| guest.give_buffer(len));
        guest
    }

    fn give_buffer(&mut self, len: u32) {
        let (head, places) = self.driver.send(usize::from(RECEIVE), &[Buffer::In(len)]);
        self.buffers.insert(u32::from(head), places[0]);
    }

    /// A stream that waits for this port. Returns the host user's end.
    fn stream(&self, port: u32) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        self.waiting.add(port, far.into()).unwrap();
        near.set_nonblocking(true).unwrap();
        near
    }

    fn header(&self, op: Op, len: u32) -> Header {
        Header {
            src_cid: GUEST,
            dst_cid: HOST_CID,
            src_port: 99,
            dst_port: 1024,
            len,
            kind: STREAM,
            op: Some(op),
            flags: 0,
            buf_alloc: SPACE,
            fwd_cnt: self.received,
        }
    }

    fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        let bytes = header.encode();
        self.driver.send(usize::from(TRANSMIT), &[Buffer::Out(&bytes), Buffer::Out(payload)]);
    }

    fn send(&mut self, op: Op) {
        self.send_raw(&self.header(op, 0), &[]);
    }

    fn send_data(&mut self, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        self.send_raw(&self.header(Op::Data, len), payload);
        self.sent = self.sent.wrapping_add(len);
    }

    fn shut_down(&mut self, flags: u32) {
        self.send_raw(&Header { flags, ..self.header(Op::Shutdown, 0) }, &[]);
    }

    /// The next packet from the host; its buffer is gone.
    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.driver.take_used(usize::from(RECEIVE))?;
        let addr = self.buffers.remove(&head).unwrap();
        let bytes = self.driver.bytes(addr, usize::try_from(len).unwrap());
        let header = Header::parse(bytes[..HEADER].try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, GUEST, STREAM));
        assert_eq!(usize::try_from(header.len).unwrap(), bytes.len() - HEADER);
        if header.op == Some(Op::Data) {
            self.received = self.received.wrapping_add(header.len);
        }
        (self.host_space, self.host_forwarded) = (header.buf_alloc, header.fwd_cnt);
        Some((header, bytes[HEADER..].to_vec()))
    }

    fn take_op(&mut self) -> Option<Op> {
        self.take().map(|(header, _)| header.op.unwrap())
    }

    fn connect(&mut self) -> UnixStream {
        let stream = self.stream(1024);
        self.send(Op::Request);
        assert_eq!(self.take_op(), Some(Op::Response));
        stream
    }
}

fn everything(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Ends with "would block".
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn configuration_is_the_context_id() {
    let guest = Guest::new();
    assert_eq!([guest.driver.read(0x100), guest.driver.read(0x104)], [3, 0]);
}

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::with_receive_buffers(8, 4096);
    let mut host = guest.connect();
    guest.send_data(b"to the host");
    assert_eq!(everything(&mut host), b"to the host");
    host.write_all(b"to the guest").unwrap();
    guest.driver.poll();
    let (header, bytes) = guest.take().unwrap();
    assert_eq!((header.op, &bytes[..]), (Some(Op::Data), &b"to the guest"[..]));
    assert_eq!((header.src_port, header.dst_port, header.fwd_cnt), (1024, 99, 11));
    assert!(guest.take().is_none());
}

#[test]
fn a_port_without_a_stream_is_refused() {
    let mut guest = Guest::with_receive_buffers(4, 4096);
    guest.send(Op::Request);
    assert_eq!(guest.take_op(), Some(Op::Reset));
    let _first = guest.connect();
    guest.send_raw(&Header { src_port: 100, ..guest.header(Op::Request, 0) }, &[]);
    assert_eq!(guest.take_op(), Some(Op::Reset), "a stream is taken once");
}

#[test]
fn packets_on_no_connection_are_answered_with_a_reset() {
    let mut guest = Guest::with_receive_buffers(8, 4096);
    let _waiting = guest.stream(1024);
    for op in [Op::Response, Op::Data, Op::CreditUpdate, Op::CreditRequest, Op::Shutdown] {
        guest.send(op);
        assert_eq!(guest.take_op(), Some(Op::Reset), "{op:?}");
    }
    guest.send(Op::Reset);
    assert!(guest.take().is_none(), "a reset is not answered");
    guest.send_raw(&Header { kind: 2, ..guest.header(Op::Request, 0) }, &[]);
    assert_eq!(guest.take_op(), Some(Op::Reset), "only streams");
    assert!(guest.waiting.take(1024).is_some(), "none of this took the stream");
}

#[test]
fn foreign_addresses_are_dropped() {
    let mut guest = Guest::with_receive_buffers(4, 4096);
    let _waiting = guest.stream(1024);
    guest.send_raw(&Header { src_cid: 4, ..guest.header(Op::Request, 0) }, &[]);
    guest.send_raw(&Header { dst_cid: 5, ..guest.header(Op::Request, 0) }, &[]);
    assert!(guest.take().is_none());
    assert!(guest.waiting.take(1024).is_some());
}

#[test]
fn the_guests_close_delivers_everything_first() {
    let mut guest = Guest::with_receive_buffers(8, 4096);
    let mut host = guest.connect();
    guest.send_data(b"last words");
    guest.shut_down(packet::SHUTDOWN_SEND | packet::SHUTDOWN_RECEIVE);
    assert_eq!(guest.take_op(), Some(Op::Reset), "answered at once");
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"last words");
}

#[test]
fn half_closed_streams_go_on_the_other_way() {
    let mut guest = Guest::with_receive_buffers(8, 4096);
    let mut host = guest.connect();
    guest.shut_down(packet::SHUTDOWN_SEND);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the host sees the end");
    host.write_all(b"still").unwrap();
    guest.driver.poll();
    assert_eq!(guest.take().unwrap().1, b"still");
    host.shutdown(Shutdown::Write).unwrap();
    guest.driver.poll();
    let (header, _) = guest.take().unwrap();
    assert_eq!((header.op, header.flags), (Some(Op::Shutdown), packet::SHUTDOWN_SEND));
    assert_eq!(guest.take_op(), Some(Op::Reset), "both directions are closed");
}

#[test]
fn the_hosts_end_is_told_behind_its_data() {
    let mut guest = Guest::with_receive_buffers(8, 4096);
    let mut host = guest.connect();
    host.write_all(b"bye").unwrap();
    drop(host);
    guest.driver.poll();
    assert_eq!(guest.take().unwrap().1, b"bye");
    let (header, _) = guest.take().unwrap();
    assert_eq!((header.op, header.flags), (Some(Op::Shutdown), packet::SHUTDOWN_SEND));
    guest.send_data(b"nobody hears this");
    let (header, _) = guest.take().unwrap();
    assert_eq!(header.op, Some(Op::Shutdown));
    assert_eq!(header.flags, packet::SHUTDOWN_SEND | packet::SHUTDOWN_RECEIVE);
    guest.shut_down(3);
    assert_eq!(guest.take_op(), Some(Op::Reset));
}

#[test]
fn a_full_host_makes_the_guest_wait_for_credit() {
    let mut guest = Guest::with_receive_buffers(64, 64);
    let mut host = guest.connect();
    let mut expected = Vec::new();
    // A stream that takes nothing more: its socket buffer and ours are full.
    while guest.host_space - (guest.sent - guest.host_forwarded) >= 4096 {
        let data = vec![u8::try_from(guest.sent / 4096 % 256).unwrap(); 4096];
        guest.send_data(&data);
        expected.extend(data);
        while guest.take().is_some() {}
        assert!(expected.len() < 4 << 20, "credit has an end");
    }
    assert!(guest.driver.device.undelivered() > u64::from(BUFFER) / 2);
    let mut got = Vec::new();
    while got.len() < expected.len() {
        got.extend(everything(&mut host));
        guest.driver.poll();
    }
    assert!(got == expected);
    assert_eq!(guest.driver.device.undelivered(), 0);
    while guest.take().is_some() {}
    let unknown = guest.sent - guest.host_forwarded;
    assert!(unknown < BUFFER / 2, "credit comes back without being asked for: {unknown} bytes");
}

#[test]
fn more_than_its_credit_ends_a_connection() {
    let mut guest = Guest::with_receive_buffers(8, 4096);
    let host = guest.connect();
    let data = vec![1; 65536];
    // Nobody reads: the socket's buffer fills, then ours.
    for _ in 0..40 {
        guest.send_data(&data);
        if let Some(Op::Reset) = guest.take_op() {
            drop(host);
            assert_eq!(guest.driver.device.undelivered(), 0);
            return;
        }
        guest.give_buffer(4096);
    }
    panic!("40 x 64 KiB were taken on a credit of {BUFFER}");
}

#[test]
fn the_host_waits_for_the_guests_credit() {
    let mut guest = Guest::with_receive_buffers(64, 8192);
    let mut host = guest.connect();
    let data: Vec<u8> = (0..100_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut written = 0;
    let mut got = Vec::new();
    for turn in 0.. {
        assert!(turn < 1000, "no progress at {} bytes", got.len());
        written += host.write(&data[written..]).unwrap_or(0);
        guest.driver.poll();
        while let Some((header, bytes)) = guest.take() {
            assert_eq!(header.op, Some(Op::Data));
            got.extend(bytes);
        }
        assert!(got.len() <= usize::try_from(SPACE).unwrap() || turn > 20, "never more than the credit at once");
        if turn == 20 {
            assert_eq!(got.len(), usize::try_from(SPACE).unwrap(), "exactly the credit, until the guest gives more");
        }
        if turn >= 20 {
            guest.send(Op::CreditUpdate);
        }
        if got.len() == data.len() {
            break;
        }
    }
    assert!(got == data);
}

#[test]
fn what_has_no_buffer_waits() {
    let mut guest = Guest::new();
    let mut host = guest.stream(1024);
    guest.send(Op::Request);
    host.write_all(b"early").unwrap();
    guest.driver.poll();
    assert!(guest.take().is_none());
    guest.give_buffer(4096);
    assert_eq!(guest.take_op(), Some(Op::Response));
    guest.give_buffer(4096);
    assert_eq!(guest.take().unwrap().1, b"early");
}

#[test]
fn refusals_are_bounded_and_none_is_lost() {
    let mut guest = Guest::new();
    for port in 0..200 {
        guest.send_raw(&Header { src_port: port, ..guest.header(Op::Request, 0) }, &[]);
        while guest.driver.take_used(usize::from(TRANSMIT)).is_some() {}
    }
    let mut ports = Vec::new();
    for _ in 0..200 {
        guest.give_buffer(64);
        guest.driver.kick(usize::from(TRANSMIT));
        while let Some((header, _)) = guest.take() {
            assert_eq!(header.op, Some(Op::Reset));
            ports.push(header.dst_port);
        }
    }
    // The queue holds 128 chains of two descriptors less than what was sent beyond the limit: none of the first ones is lost.
    assert_eq!(ports[..MOST_REFUSALS], (0..128).collect::<Vec<u32>>());
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::with_receive_buffers(100, 64);
    let _streams: Vec<_> = (0..70).map(|_| guest.stream(1024)).collect();
    let mut ops = Vec::new();
    for port in 0..70 {
        guest.send_raw(&Header { src_port: port, ..guest.header(Op::Request, 0) }, &[]);
        ops.push(guest.take_op().unwrap());
    }
    assert_eq!(ops.iter().filter(|op| **op == Op::Response).count(), MOST_CONNECTIONS);
    assert!(ops[MOST_CONNECTIONS..].iter().all(|op| *op == Op::Reset));
}

#[test]
fn several_streams_share_the_buffers() {
    let mut guest = Guest::with_receive_buffers(2, 64);
    let mut hosts: Vec<_> = (0..2).map(|_| guest.stream(1024)).collect();
    for port in 0..2 {
        guest.send_raw(&Header { src_port: port, ..guest.header(Op::Request, 0) }, &[]);
        guest.take();
    }
    hosts.iter_mut().for_each(|host| host.write_all(&[7; 1000]).unwrap());
    guest.driver.poll();
    let mut turns = Vec::new();
    for _ in 0..6 {
        guest.give_buffer(64);
        turns.push(guest.take().unwrap().0.dst_port);
    }
    assert_eq!(turns.iter().filter(|port| **port == 0).count(), 3, "{turns:?}");
}

#[test]
fn wrong_operations_end_a_connection() {
    for number in [1_u16, 2, 0, 77] {
        let mut guest = Guest::with_receive_buffers(4, 4096);
        let mut host = guest.connect();
        let mut bytes = guest.header(Op::Data, 0).encode();
        bytes[30..32].copy_from_slice(&number.to_le_bytes());
        guest.driver.send(usize::from(TRANSMIT), &[Buffer::Out(&bytes)]);
        assert_eq!(guest.take_op(), Some(Op::Reset), "operation {number}");
        assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the host's end is closed");
    }
}

#[test]
fn broken_packets_need_a_reset() {
    let mut guest = Guest::with_receive_buffers(1, 4096);
    guest.driver.send(usize::from(TRANSMIT), &[Buffer::Out(&[0; 43])]);
    assert!(guest.driver.needs_reset(), "half a header");
    let mut guest = Guest::with_receive_buffers(1, 4096);
    guest.send_raw(&guest.header(Op::Data, 100), b"short");
    assert!(guest.driver.needs_reset(), "less payload than announced");
    let mut guest = Guest::with_receive_buffers(1, 43);
    guest.send(Op::Request);
    assert!(guest.driver.needs_reset(), "no place for a header");
}

#[test]
fn a_reset_closes_the_streams() {
    let mut guest = Guest::with_receive_buffers(4, 4096);
    let mut host = guest.connect();
    guest.driver.write(0x070, 0);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    drop(host);
    guest.driver.poll();
}

#[test]
fn streams_of_sessions_are_for_the_guests_root() {
    let mut guest = Guest::with_receive_buffers(4, 4096);
    let _stream = guest.stream(port::SESSIONS + 1);
    let request = |src_port| Header { src_port, dst_port: port::SESSIONS + 1, ..guest.header(Op::Request, 0) };
    let (other, root) = (request(port::PRIVILEGED), request(port::PRIVILEGED - 1));
    guest.send_raw(&other, &[]);
    assert_eq!(guest.take_op(), Some(Op::Reset));
    guest.send_raw(&root, &[]);
    assert_eq!(guest.take_op(), Some(Op::Response), "the stream still waits for root");
}
