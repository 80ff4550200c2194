//! Network device (virtio 1.2, 5.1): one queue each way, frames to and from a descriptor that the caller has opened.
//!
//! ```text
//! transmit queue -- header, frame --> copied once, header checked --> Backend (stream socket or tap)
//! receive queue  <-- one frame over one or more buffers ------------- Backend
//! ```
//!
//! Neither side buffers more than one frame for the other: a back end that is full stops the transmit queue, a driver without receive
//! buffers stops the reading. A rate does the same: a frame that has to wait stays where it is, in the driver's queue or with the host, and a
//! timer goes on. Nothing is lost by any of them. What a frame says is nobody's business here; what its header asks for is checked against what was agreed.

mod backend;
mod bucket;
mod checksum;
mod features;
mod header;
mod pace;

use std::io;
use std::os::fd::OwnedFd;

use super::area::Area;
use super::device::{BUDGET, DeviceIo, Next, Sources, VirtioDevice, config_bytes};
use super::fault::GuestFault;
use super::queue::{Chain, LiveQueue, Progress, Room, Served};
use crate::spec::NetRate;
use crate::vmm::events::{Interest, Readiness};
use crate::vmm::memory::GuestRam;
use backend::{Backend, LONGEST, SHORTEST, Sent, Stream, Tap};
use header::{HEADER, Header};
use pace::{Pace, Way};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Numbers of the descriptors that it watches.
const FRAMES: u32 = 0;
const TIMER: u32 = 1;
/// Ethernet header and VLAN tag, which the MTU does not count.
const BESIDE_MTU: usize = 18;
/// Most buffers of one received frame: pages, and one more for each that begins and ends within.
const MOST_BUFFERS: usize = 64;

/// The longest MTU that a stream carries.
pub const LONGEST_MTU_OF_STREAM: u16 = 35_000;
/// The longest MTU of all: 64 KiB less an Ethernet header, in whole words.
pub const LONGEST_MTU: u16 = 65_520;
/// The shortest MTU: what IPv6 asks of a link (RFC 8200, 5).
pub const SHORTEST_MTU: u16 = 1280;

/// The network device.
#[derive(Debug)]
pub struct Net {
    backend: Backend,
    config: [u8; 12],
    /// Where a frame is copied to before anything looks at it.
    outgoing: Vec<u8>,
    sources: Sources,
    watched: Option<Interest>,
    /// Its rate, if it has one.
    pace: Option<Pace>,
}

impl Net {
    /// Over a connected unix stream socket.
    pub fn over_stream(socket: OwnedFd, mac: [u8; 6], mtu: u16, sources: Sources) -> Self {
        let longest = usize::from(mtu.min(LONGEST_MTU_OF_STREAM)).saturating_add(BESIDE_MTU);
        Self::new(Backend::Stream(Stream::new(socket, longest)), mac, mtu, sources)
    }

    /// Over a tap.
    ///
    /// # Errors
    /// If the descriptor is no tap.
    pub fn over_tap(tap: OwnedFd, mac: [u8; 6], mtu: u16, sources: Sources) -> io::Result<Self> {
        Ok(Self::new(Backend::Tap(Tap::new(tap)?), mac, mtu, sources))
    }

    fn new(backend: Backend, mac: [u8; 6], mtu: u16, sources: Sources) -> Self {
        // struct virtio_net_config: u8 mac[6], le16 status, le16 max_virtqueue_pairs, le16 mtu (5.1.4).
        let mut config = [0; 12];
        for (to, from) in config.iter_mut().zip(mac.iter().chain(&[1, 0, 1, 0]).chain(&mtu.to_le_bytes())) {
            *to = *from;
        }
        Self { backend, config, outgoing: Vec::new(), sources, watched: None, pace: None }
    }

    /// With this rate in each direction.
    ///
    /// # Errors
    /// If there is no timer.
    pub fn limited(mut self, rate: NetRate) -> io::Result<Self> {
        let pace = Pace::new(rate)?;
        self.sources.watch(pace.timer(), TIMER, Interest::INPUT)?;
        self.pace = Some(pace);
        Ok(self)
    }

    /// Takes the guest's frames. True beside the progress if the back end is full.
    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<(Progress, bool), GuestFault> {
        let (counters, features) = (io.counters, io.features);
        let mut full = false;
        let Some(Some(queue)) = io.queues.get_mut(usize::from(TRANSMIT)) else { return Ok((Progress::Drained, full)) };
        let progress = queue.serve(io.ram, BUDGET, |chain| {
            // A frame of which a part is gone is finished first.
            if !self.backend.flush() {
                full = true;
                return Ok(Served::Later);
            }
            let length = usize::try_from(chain.readable.len()).unwrap_or(usize::MAX).saturating_sub(HEADER);
            if self.pace.as_mut().is_some_and(|pace| !pace.admits(Way::Out, length)) {
                return Ok(Served::Later);
            }
            match self.take(chain, features)? {
                Sent::Full => {
                    full = true;
                    return Ok(Served::Later);
                }
                Sent::Dropped => counters.refused.add(),
                Sent::Yes => self.pace.iter_mut().for_each(|pace| pace.spend(Way::Out, length)),
            }
            counters.served.add();
            Ok(Served::Done(0))
        });
        io.notify(TRANSMIT)?;
        Ok((progress?, full))
    }

    /// One frame of the guest's.
    fn take(&mut self, mut chain: Chain<'_>, features: u64) -> Result<Sent, GuestFault> {
        let mut bytes = [0; HEADER];
        if chain.readable.take_front(HEADER as u64).read(&mut bytes) != HEADER {
            return Err(GuestFault::Incomplete("packet header"));
        }
        let header = Header::parse(&bytes);
        let length = usize::try_from(chain.readable.len()).unwrap_or(usize::MAX);
        if !(SHORTEST..=LONGEST).contains(&length) || !header.keeps(features, length) {
            return Ok(Sent::Dropped);
        }
        self.outgoing.resize(length, 0);
        let copied = chain.readable.read(&mut self.outgoing);
        self.outgoing.truncate(copied);
        if let (Backend::Stream(_), true, Some((start, at))) =
            (&self.backend, header.needs_checksum(), header.checksum_at())
        {
            checksum::complete(&mut self.outgoing, start, at);
        }
        Ok(self.backend.send(&header.for_tap(), &self.outgoing))
    }

    /// Gives the guest the frames that are there.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, GuestFault> {
        let verified = io.features & features::GUEST_CSUM != 0;
        let most = if io.features & features::MRG_RXBUF != 0 { MOST_BUFFERS } else { 1 };
        let Some(Some(queue)) = io.queues.get_mut(usize::from(RECEIVE)) else { return Ok(Progress::Drained) };
        let mut left = BUDGET;
        let mut used = false;
        let progress = loop {
            if left == 0 {
                break Progress::Budget;
            }
            left = left.saturating_sub(1);
            let Some((header, frame)) = self.backend.frame(verified) else { break Progress::Drained };
            let length = frame.len();
            if self.pace.as_mut().is_some_and(|pace| !pace.admits(Way::In, length)) {
                break Progress::Blocked;
            }
            match put(queue, io.ram, (header, frame), most)? {
                Put::Given => {
                    io.counters.served.add();
                    self.pace.iter_mut().for_each(|pace| pace.spend(Way::In, length));
                    used = true;
                }
                Put::NoRoom => io.counters.refused.add(),
                Put::Wait => break Progress::Blocked,
            }
            self.backend.next();
        };
        if used {
            io.notify(RECEIVE)?;
        }
        Ok(progress)
    }

    /// Watches the descriptor for this from now on. Watching anew begins with an event for what is there already.
    fn watch(&mut self, interest: Option<Interest>) {
        if self.watched == interest {
            return;
        }
        if self.watched.take().is_some() {
            self.sources.forget(self.backend.fd());
        }
        self.watched = interest.filter(|interest| self.sources.watch(&self.backend.fd(), FRAMES, *interest).is_ok());
    }

    /// Takes and gives until neither goes on.
    fn pump(&mut self, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        self.pace.iter_mut().for_each(Pace::begin);
        let received = self.receive(io)?;
        let (transmitted, full) = self.transmit(io)?;
        self.pace.iter_mut().for_each(|pace| pace.end(&io.counters.delayed));
        let flushed = self.backend.flush();
        self.watch(match (self.backend.is_gone(), flushed && !full) {
            (true, _) => None,
            (false, true) => Some(Interest::INPUT),
            (false, false) => Some(Interest::STREAM),
        });
        Ok(match (transmitted, received) {
            (Progress::Budget, _) => Next::Again(TRANSMIT),
            (_, Progress::Budget) => Next::Again(RECEIVE),
            _ => Next::Wait,
        })
    }
}

/// What became of a received frame.
enum Put {
    Given,
    /// The driver's buffers cannot hold it.
    NoRoom,
    /// The driver will notify when it has offered more buffers.
    Wait,
}

/// Writes a frame behind its header over as many buffers as it takes.
fn put(
    queue: &mut LiveQueue,
    ram: &GuestRam,
    (mut header, frame): ([u8; HEADER], &[u8]),
    most: usize,
) -> Result<Put, GuestFault> {
    let want = (HEADER as u64).saturating_add(frame.len() as u64);
    let chains = match queue.take_room(ram, want, most)? {
        Room::Taken(chains) => chains,
        Room::NotYet => return Ok(Put::Wait),
        Room::TooSmall => return Ok(Put::NoRoom),
    };
    header::set_buffers(&mut header, u16::try_from(chains.len()).unwrap_or(u16::MAX));
    let mut used = Vec::with_capacity(chains.len());
    let (mut first, mut rest) = (&header[..], frame);
    for chain in chains {
        let mut area: Area<'_> = chain.writable;
        let mut written = 0;
        for part in [&mut first, &mut rest] {
            let count = area.take_front(part.len() as u64).write(part);
            *part = part.get(count..).unwrap_or(&[]);
            written = u32::try_from(count).unwrap_or(0).saturating_add(written);
        }
        used.push((chain.head, written));
    }
    queue.give_back_together(ram, &used)?;
    Ok(Put::Given)
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        self.backend.features()
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Receive, transmit.
        &[256, 256]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, io: &mut DeviceIo<'_>) -> Result<(), GuestFault> {
        self.backend.agree(io.features);
        self.watch(Some(Interest::INPUT));
        Ok(())
    }

    fn kick(&mut self, _queue: u16, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        self.pump(io)
    }

    fn ready(&mut self, source: u32, _readiness: Readiness, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        if source == TIMER {
            self.pace.iter_mut().for_each(Pace::forget);
        }
        self.pump(io)
    }

    fn reset(&mut self) {
        self.watch(None);
        self.pace.iter_mut().for_each(Pace::forget);
    }
}

#[cfg(test)]
mod tests;
