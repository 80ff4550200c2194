//! A good request to each kind of device, by which is told whether it still works.

use crate::sys::{DATA, fill, peek, poke, put, ticks, wait};
use crate::virtio::{Device, NEXT, Part, Ring, Target};
use crate::{Trouble, Verdict, ensure};

/// Sector 0 of the read-only disk as the host's half of the tests writes it.
pub(crate) const MARK: u64 = 0x6475_706c_6578_2121;
/// An experimental EtherType (IEEE 802, local experimental 1), in the frames that the other end sends back.
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes of the header before each frame, and before each packet of the socket device.
pub(crate) const NET_HEADER: u32 = 12;
pub(crate) const VSOCK_HEADER: u32 = 44;
/// A port on which the host has nothing.
pub(crate) const CLOSED: u32 = 9;
/// How often is looked for a frame from the other end.
const PATIENCE: u32 = 100_000;

/// Resets the device and asks it for something that it must do.
pub(crate) fn check(device: &Device) -> Verdict {
    device.start()?;
    match device.target {
        Target::Machine | Target::DiskRo => read_mark(device),
        Target::DiskRw => write_and_read(device),
        Target::Rng => random(device),
        Target::Balloon => deflate(device),
        Target::Console => print(device),
        Target::Net => exchange_frames(device),
        Target::Vsock => refused_connection(device),
        Target::Fs => open_session(device),
    }
}

/// One chain, given back.
pub(crate) fn request(device: &Device, parts: &[Part]) -> Result<u32, Trouble> {
    let queue = device.target.queue();
    let ring = device.ring(queue);
    let before = ring.used_index();
    ring.chain(0, parts);
    ring.offer(0);
    device.notify(queue);
    device.expect_used(&ring, before.wrapping_add(1))?;
    let (head, written) = ring.used_element(before);
    ensure(head == 0, "another chain comes back", head.into())?;
    Ok(written)
}

/// A block request with data from or to `DATA + 0x1000`. Returns the status byte.
pub(crate) fn block(device: &Device, kind: u32, sector: u64, data: Part) -> Result<u8, Trouble> {
    block_header(kind, sector);
    poke(DATA + 0x100, 0xee_u8);
    request(device, &[Part::out(DATA, 16), data, Part::into(DATA + 0x100, 1)])?;
    Ok(peek(DATA + 0x100))
}

/// The header of a block request, at `DATA`.
pub(crate) fn block_header(kind: u32, sector: u64) {
    poke(DATA, kind);
    poke(DATA + 4, 0_u32);
    poke(DATA + 8, sector);
}

fn read_mark(device: &Device) -> Verdict {
    fill(DATA + 0x1000, 0, 512);
    let status = block(device, 0, 0, Part::into(DATA + 0x1000, 512))?;
    ensure(status == 0, "a good read fails", status.into())?;
    let found: u64 = peek(DATA + 0x1000);
    ensure(found == MARK, "a read brings something else", found)
}

fn write_and_read(device: &Device) -> Verdict {
    let word = ticks();
    fill(DATA + 0x1000, 0x5a, 512);
    poke(DATA + 0x1000, word);
    let status = block(device, 1, 3, Part::out(DATA + 0x1000, 512))?;
    ensure(status == 0, "a good write fails", status.into())?;
    fill(DATA + 0x1000, 0, 512);
    let status = block(device, 0, 3, Part::into(DATA + 0x1000, 512))?;
    ensure(status == 0 && peek::<u64>(DATA + 0x1000) == word, "what was written does not come back", status.into())
}

fn random(device: &Device) -> Verdict {
    fill(DATA, 0, 64);
    let written = request(device, &[Part::into(DATA, 64)])?;
    let any = (0..8).any(|word| peek::<u64>(DATA + word * 8) != 0);
    ensure(written == 64 && any, "no randomness comes", written.into())
}

fn deflate(device: &Device) -> Verdict {
    let ring = device.ring(1);
    ring.chain(0, &[Part::out(DATA, 4)]);
    ring.offer(0);
    device.notify(1);
    device.expect_used(&ring, 1)
}

fn print(device: &Device) -> Verdict {
    put(DATA, b"[well]\n");
    request(device, &[Part::out(DATA, 7)]).map(drop)
}

/// Offers so many receive buffers of this length on queue 0, from descriptor 0 on.
pub(crate) fn receive_buffers(device: &Device, count: u16, len: u32) -> Ring {
    let ring = device.ring(0);
    for index in 0..count {
        let addr = DATA + 0x10_0000 + u64::from(index) * 0x1000;
        fill(addr, 0, 64);
        ring.set(index, Part::into(addr, len));
        ring.offer(index);
    }
    ring
}

/// Where a receive buffer is.
pub(crate) fn received(ring: &Ring, index: u16) -> u64 {
    DATA + 0x10_0000 + u64::from(ring.used_element(index).0) * 0x1000
}

/// A frame goes to the other end and comes back; frames of cases before may come first.
fn exchange_frames(device: &Device) -> Verdict {
    let inbound = receive_buffers(device, 64, 0x1000);
    device.notify(0);
    let nonce = ticks();
    net_frame(60, nonce);
    request(device, &[Part::out(DATA, NET_HEADER + 60)])?;
    let mut seen = 0;
    for _ in 0..PATIENCE {
        while seen != inbound.used_index() {
            let at = received(&inbound, seen);
            if peek::<u64>(at + u64::from(NET_HEADER) + 14) == nonce {
                return Ok(());
            }
            inbound.offer(inbound.used_element(seen).0 as u16);
            device.notify(0);
            seen = seen.wrapping_add(1);
        }
        device.expect_live()?;
        wait(100);
    }
    Err(Trouble("no frame comes back", seen.into()))
}

/// A frame of this length behind its header, at `DATA`.
pub(crate) fn net_frame(len: u64, nonce: u64) {
    fill(DATA, 0, u64::from(NET_HEADER) + len);
    let frame = DATA + u64::from(NET_HEADER);
    put(frame, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7]);
    put(frame + 12, &ETHER_TYPE);
    poke(frame + 14, nonce);
}

/// A packet of the socket device.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) from: (u64, u32),
    pub(crate) to: (u64, u32),
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) space: u32,
    pub(crate) forwarded: u32,
}

impl Packet {
    /// From the guest's port to the host's.
    pub(crate) fn new(op: u16, from: u32, to: u32) -> Self {
        Self { from: (3, from), to: (2, to), len: 0, kind: 1, op, flags: 0, space: 0x1_0000, forwarded: 0 }
    }

    /// Writes it to memory.
    pub(crate) fn write(&self, at: u64) {
        poke(at, self.from.0);
        poke(at + 8, self.to.0);
        poke(at + 16, self.from.1);
        poke(at + 20, self.to.1);
        poke(at + 24, self.len);
        poke(at + 28, self.kind);
        poke(at + 30, self.op);
        poke(at + 32, self.flags);
        poke(at + 36, self.space);
        poke(at + 40, self.forwarded);
    }
}

/// Sends a packet and so many bytes from `DATA + 0x1000` behind it.
pub(crate) fn send(device: &Device, packet: &Packet, bytes: u32) -> Verdict {
    packet.write(DATA);
    let header = Part::out(DATA, VSOCK_HEADER);
    let sent = if bytes == 0 {
        request(device, &[header])
    } else {
        request(device, &[header, Part::out(DATA + 0x1000, bytes)])
    };
    sent.map(drop)
}

/// What the socket device says of this guest's port: the operation.
pub(crate) fn answer(device: &Device, ring: &Ring, seen: u16, port: u32) -> Result<u16, Trouble> {
    if ring.used_index() == seen {
        device.expect_used(ring, seen.wrapping_add(1))?;
    }
    let at = received(ring, seen);
    ensure(peek::<u32>(at + 20) == port, "an answer to somebody else", peek::<u32>(at + 20).into())?;
    Ok(peek(at + 30))
}

/// REQUEST is 1, RST is 3.
fn refused_connection(device: &Device) -> Verdict {
    let ring = receive_buffers(device, 8, 0x1000);
    let port = ticks() as u32;
    send(device, &Packet::new(1, port, CLOSED), 0)?;
    let op = answer(device, &ring, 0, port)?;
    ensure(op == 3, "a closed port does not refuse", op.into())
}

/// FUSE_INIT (26), the only request that needs no other before.
fn open_session(device: &Device) -> Verdict {
    let words = [104, 26, 1, 0, 1, 0, 0, 0, 0, 0, 7, 31, 0x2_0000, 0];
    fill(DATA, 0, 0x400);
    (0..).zip(words).for_each(|(place, word): (u64, u32)| poke(DATA + place * 4, word));
    let parts = [Part::out(DATA, 40).with(NEXT, 1), Part::out(DATA + 40, 64), Part::into(DATA + 0x200, 80)];
    let written = request(device, &parts)?;
    let error: u32 = peek(DATA + 0x204);
    ensure(written >= 16 && error == 0, "no session opens", error.into())
}
