//! Socket device (virtio 1.2, 5.10): streams from the guest to unix sockets of the host.
//!
//! The monitor neither connects nor listens. It holds sockets that its caller connected, each for a port; a guest's connection to that port
//! takes one, a connection to any other port is refused. The host never opens a connection to the guest. Streams that come while programs of
//! the guest run (`duplex_wire::port::SESSIONS` and above) are for its root alone, whose connections come from ports below 1024.

mod connection;
mod packet;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use duplex_wire::port;
pub use waiting::{WaitingFull, WaitingStreams};

use super::area::Area;
use super::device::{BUDGET, DeviceIo, Next, Sources, VirtioDevice, config_bytes};
use super::fault::GuestFault;
use super::queue::{Chain, Progress, Served};
use crate::vmm::events::{Interest, Readiness};
use connection::{BUFFER, Connection, Filled};
use packet::{HEADER, HOST_CID, Header, Op, STREAM};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, le32 id of struct virtio_vsock_event (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];
/// Connections at once; each may hold [`BUFFER`] bytes.
const MOST_CONNECTIONS: usize = 64;
/// Refusals that wait for a receive buffer. When so many wait, the guest's packets wait too.
const MOST_REFUSALS: usize = 128;

/// Guest's port and host's port.
type Key = (u32, u32);

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    waiting: WaitingStreams,
    sources: Sources,
    connections: BTreeMap<Key, (u32, Connection<UnixStream>)>,
    /// Connections by the number under which their streams are watched.
    watched: BTreeMap<u32, Key>,
    next_source: u32,
    /// RST packets to peers that have no connection.
    refusals: VecDeque<Key>,
    /// The connection that is served first next time.
    turn: Key,
    /// The guest does not know yet that all its connections are over.
    lost_all: bool,
}

impl Vsock {
    /// For the guest with this context id; `waiting` is shared with whoever adds streams.
    pub fn new(cid: u64, waiting: WaitingStreams, sources: Sources) -> Self {
        Self {
            cid,
            waiting,
            sources,
            connections: BTreeMap::new(),
            watched: BTreeMap::new(),
            next_source: 0,
            refusals: VecDeque::new(),
            turn: (0, 0),
            lost_all: false,
        }
    }

    /// Takes the guest's packets.
    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, GuestFault> {
        let counters = io.counters;
        let Some(Some(queue)) = io.queues.get_mut(usize::from(TRANSMIT)) else { return Ok(Progress::Drained) };
        let progress = queue.serve(io.ram, BUDGET, |chain| {
            if self.refusals.len() >= MOST_REFUSALS {
                return Ok(Served::Later);
            }
            counters.served.add();
            self.packet(chain)?;
            Ok(Served::Done(0))
        });
        io.notify(TRANSMIT)?;
        progress
    }

    /// One packet from the guest.
    fn packet(&mut self, mut chain: Chain<'_>) -> Result<(), GuestFault> {
        let mut bytes = [0_u8; HEADER];
        if chain.readable.take_front(HEADER as u64).read(&mut bytes) != HEADER {
            return Err(GuestFault::Incomplete("packet header"));
        }
        let header = Header::parse(&bytes);
        if u64::from(header.len) > chain.readable.len() {
            return Err(GuestFault::Incomplete("payload"));
        }
        let payload = chain.readable.take_front(u64::from(header.len));
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            // Not ours to answer (5.10.6.1: a packet with a wrong source is dropped).
            return Ok(());
        }
        let key = (header.src_port, header.dst_port);
        match self.connections.get_mut(&key) {
            Some((_, connection)) if header.kind == STREAM => {
                connection.receive(&header, payload);
                self.bury(key);
            }
            _ => self.open(key, &header, &payload),
        }
        Ok(())
    }

    /// A packet on no connection: a request for one, or an error.
    fn open(&mut self, key: Key, header: &Header, payload: &Area<'_>) {
        if header.op == Some(Op::Reset) {
            return;
        }
        let wanted = header.op == Some(Op::Request) && header.kind == STREAM && payload.is_empty();
        let wanted = wanted && (header.dst_port < port::SESSIONS || header.src_port < port::PRIVILEGED);
        let room = self.connections.len() < MOST_CONNECTIONS && !self.connections.contains_key(&key);
        let stream = if wanted && room { self.waiting.take(header.dst_port) } else { None };
        let source = self.next_source;
        let watched = stream.filter(|s| self.sources.watch(s, source, Interest::STREAM).is_ok());
        match watched {
            Some(stream) => {
                self.next_source = source.wrapping_add(1);
                self.watched.insert(source, key);
                self.connections.insert(key, (source, Connection::accept(stream, header)));
            }
            None => self.refusals.push_back(key),
        }
    }

    /// Drops the connection if it is over.
    fn bury(&mut self, key: Key) {
        if self.connections.get(&key).is_some_and(|(_, c)| c.is_over())
            && let Some((source, connection)) = self.connections.remove(&key)
        {
            self.sources.forget(connection.stream().as_fd());
            self.watched.remove(&source);
        }
    }

    /// Tells the guest that all its connections are over, if they are.
    fn tell_loss(&mut self, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        let Some(Some(queue)) = io.queues.get_mut(usize::from(EVENT)) else { return Ok(Next::Wait) };
        queue.serve(io.ram, BUDGET, |mut chain| {
            if !std::mem::take(&mut self.lost_all) {
                return Ok(Served::Later);
            }
            let place = chain.writable.take_front(TRANSPORT_RESET.len() as u64);
            if place.write(&TRANSPORT_RESET) != TRANSPORT_RESET.len() {
                return Err(GuestFault::Incomplete("place for an event"));
            }
            Ok(Served::Done(EVENT_LEN))
        })?;
        io.notify(EVENT)?;
        Ok(Next::Wait)
    }

    /// Puts what there is to say into the guest's receive buffers.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, GuestFault> {
        if !self.has_something() {
            return Ok(Progress::Drained);
        }
        let counters = io.counters;
        let Some(Some(queue)) = io.queues.get_mut(usize::from(RECEIVE)) else { return Ok(Progress::Drained) };
        let mut used = false;
        let progress = queue.serve(io.ram, BUDGET, |chain| {
            let served = self.next_packet(chain.writable)?;
            if served != Served::Later {
                used = true;
                counters.served.add();
            }
            Ok(served)
        });
        if used {
            io.notify(RECEIVE)?;
        }
        progress
    }

    fn has_something(&self) -> bool {
        !self.refusals.is_empty() || self.connections.values().any(|(_, c)| c.has_something())
    }

    /// Writes one packet into a receive buffer, or leaves it for later if there is none to write.
    fn next_packet(&mut self, mut buffer: Area<'_>) -> Result<Served, GuestFault> {
        let place = buffer.take_front(HEADER as u64);
        if place.len() != HEADER as u64 {
            return Err(GuestFault::Incomplete("place for a packet header"));
        }
        if let Some((guest, host)) = self.refusals.pop_front() {
            place.write(&self.header((guest, host), Op::Reset).encode());
            return Ok(Served::Done(HEADER_LEN));
        }
        let order: Vec<Key> = (self.connections.range(self.turn..).map(|(k, _)| *k))
            .chain(self.connections.range(..self.turn).map(|(k, _)| *k))
            .collect();
        for key in order {
            if let Some(header) = self.say(key, &buffer) {
                place.write(&header.encode());
                self.turn = (key.0, key.1.wrapping_add(1));
                self.bury(key);
                return Ok(Served::Done(HEADER_LEN.saturating_add(header.len)));
            }
        }
        Ok(Served::Later)
    }

    /// What this connection says next, its data already in the buffer.
    fn say(&mut self, key: Key, buffer: &Area<'_>) -> Option<Header> {
        let mut header = self.header(key, Op::Data);
        let (_, connection) = self.connections.get_mut(&key)?;
        if !connection.has_something() {
            return None;
        }
        let word = connection.next_word().or_else(|| match connection.fill(buffer.clone()) {
            Filled::Bytes(count) => {
                header.len = count;
                Some((Op::Data, 0))
            }
            // The stream may just have ended, which is a word.
            Filled::Nothing => connection.next_word(),
        });
        let (op, flags) = word?;
        (header.op, header.flags) = (Some(op), flags);
        (header.buf_alloc, header.fwd_cnt) = connection.credit();
        Some(header)
    }

    fn header(&self, (guest, host): Key, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: host,
            dst_port: guest,
            len: 0,
            kind: STREAM,
            op: Some(op),
            flags: 0,
            buf_alloc: BUFFER,
            fwd_cnt: 0,
        }
    }

    /// Takes and gives until neither goes on.
    fn pump(&mut self, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        let mut transmitted = self.transmit(io)?;
        let received = self.receive(io)?;
        if transmitted == Progress::Blocked && self.refusals.len() < MOST_REFUSALS {
            transmitted = self.transmit(io)?;
        }
        Ok(match (transmitted, received) {
            (Progress::Budget, _) => Next::Again(TRANSMIT),
            (_, Progress::Budget) => Next::Again(RECEIVE),
            _ => Next::Wait,
        })
    }
}

/// [`HEADER`] as the used ring counts.
const HEADER_LEN: u32 = 44;
/// [`TRANSPORT_RESET`] as the used ring counts.
const EVENT_LEN: u32 = 4;

impl VirtioDevice for Vsock {
    fn kind(&self) -> u32 {
        19
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Receive, transmit, event.
        &[128, 128, 4]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn go_on(&mut self) {
        self.lost_all = true;
    }

    fn kick(&mut self, queue: u16, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        match queue {
            RECEIVE | TRANSMIT => self.pump(io),
            // Buffers for events: of all that happens to a guest the only one is that its connections are over.
            _ if self.lost_all => self.tell_loss(io),
            _ => Ok(Next::Wait),
        }
    }

    fn ready(&mut self, source: u32, readiness: Readiness, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        let Some(key) = self.watched.get(&source).copied() else { return Ok(Next::Wait) };
        if let Some((_, connection)) = self.connections.get_mut(&key) {
            connection.stream_ready(readiness.readable, readiness.writable);
        }
        self.bury(key);
        self.pump(io)
    }

    fn reset(&mut self) {
        for (_, (_, connection)) in std::mem::take(&mut self.connections) {
            self.sources.forget(connection.stream().as_fd());
        }
        self.watched.clear();
        self.refusals.clear();
    }

    fn undelivered(&self) -> u64 {
        self.connections.values().map(|(_, c)| c.undelivered()).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests;
