//! The program in the place of the guest's agent: it says to the host what a script says, which whoever starts it writes into its file.
//!
//! | step | |
//! |---|---|
//! | `C` le32 port | connects to the host's port |
//! | `S` le16 length, bytes | sends them |
//! | `F` le32 count, le16 length, bytes | sends them so often; 0 is without end |
//! | `W` | waits until the host has sent something |
//! | `Z` | waits until the host sends no more |
//! | `E` | ends the connection in order |
//! | `R` | ends it at once |
//! | `P` byte | writes to the exit port |
//!
//! Behind the last step it halts.

use crate::health::{Packet, VSOCK_HEADER, receive_buffers, received, send};
use crate::sys::{self, DATA, peek, poke, ticks, wait};
use crate::virtio::{Bus, Device, EXIT_PORT, NEEDS_RESET, READY_PORT, Ring, Target, register};
use crate::{Trouble, Verdict, ensure};

/// What the script stands behind in the program's file.
pub const MARK: [u8; 16] = *b"duplex script 1:";
/// Most bytes of a script.
pub const LONGEST: usize = 16 << 10;

/// The mark, and place for a script.
#[used]
static SCRIPT: [[u8; 16]; 1 + LONGEST / 16] = {
    let mut place = [[0; 16]; 1 + LONGEST / 16];
    place[0] = MARK;
    place
};

/// Most bytes of a packet.
const PIECE: u32 = 4096;

/// Operations (virtio 1.2, 5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const END: u16 = 4;
const RW: u16 = 5;

/// The script, one byte after the other.
struct Script(u64);

impl Script {
    fn byte(&mut self) -> u8 {
        let byte = peek(self.0);
        self.0 += 1;
        byte
    }

    fn number(&mut self, bytes: u32) -> u32 {
        (0..bytes).fold(0, |number, place| number | u32::from(self.byte()) << (place * 8))
    }

    /// Where so many bytes are that are passed over.
    fn bytes(&mut self, count: u32) -> u64 {
        let at = self.0;
        self.0 += u64::from(count);
        at
    }
}

/// Whether there is a script.
pub(crate) fn is_asked_for() -> bool {
    peek::<u8>(begin()) != 0
}

fn begin() -> u64 {
    (&raw const SCRIPT).addr() as u64 + MARK.len() as u64
}

/// Plays the script.
pub(crate) fn play(bus: &Bus) -> Verdict {
    // The devices appear to an agent that is ready for them.
    sys::out8(READY_PORT, 0);
    let device = bus.device(Target::Vsock)?;
    device.start()?;
    let mut line = Line {
        device,
        cid: peek(device.base + register::CONFIG),
        inbound: receive_buffers(&device, 32, 0x1000),
        seen: 0,
        ports: (ticks() as u32 & 0xffff | 0x1_0000, 0),
        sent: 0,
        credit: (0, 0),
        heard: 0,
        last: 0,
    };
    let mut script = Script(begin());
    loop {
        match script.byte() {
            b'C' => line.connect(script.number(4))?,
            b'S' => {
                let len = script.number(2);
                line.send(script.bytes(len), len)?;
            }
            b'F' => {
                let (count, len) = (script.number(4), script.number(2));
                let at = script.bytes(len);
                let mut done = 0_u64;
                while count == 0 || done < count.into() {
                    line.send(at, len)?;
                    done += 1;
                }
            }
            b'W' => line.until(|line| line.heard > 0)?,
            b'Z' => line.until(|line| line.last == END || line.last == RST)?,
            b'E' => line.say(END, 3)?,
            b'R' => line.say(RST, 0)?,
            b'P' => sys::out8(EXIT_PORT, script.byte()),
            _ => return Ok(()),
        }
    }
}

/// A connection.
struct Line {
    device: Device,
    cid: u64,
    inbound: Ring,
    seen: u16,
    /// Ours and the host's.
    ports: (u32, u32),
    sent: u32,
    /// The host's whole buffer, and what it has taken from it.
    credit: (u32, u32),
    /// Bytes from the host.
    heard: u32,
    /// The last operation that came.
    last: u16,
}

impl Line {
    fn packet(&self, op: u16) -> Packet {
        Packet {
            from: (self.cid, self.ports.0),
            space: 1 << 30,
            forwarded: self.heard,
            ..Packet::new(op, self.ports.0, self.ports.1)
        }
    }

    fn connect(&mut self, port: u32) -> Verdict {
        self.ports = (self.ports.0 + 1, port);
        (self.sent, self.heard, self.last) = (0, 0, 0);
        self.say(REQUEST, 0)?;
        self.until(|line| line.last != 0)?;
        ensure(self.last == RESPONSE, "the host refuses", self.last.into())
    }

    fn say(&self, op: u16, flags: u32) -> Verdict {
        send(&self.device, &Packet { flags, ..self.packet(op) }, 0)
    }

    /// Sends memory, as the host has room for it.
    fn send(&mut self, from: u64, len: u32) -> Verdict {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(PIECE);
            self.until(|line| line.room() >= piece)?;
            (0..u64::from(piece)).for_each(|at| poke(DATA + 0x1000 + at, peek::<u8>(from + u64::from(done) + at)));
            send(&self.device, &Packet { len: piece, ..self.packet(RW) }, piece)?;
            self.sent = self.sent.wrapping_add(piece);
            done += piece;
        }
        Ok(())
    }

    fn room(&self) -> u32 {
        self.credit.0.saturating_sub(self.sent.wrapping_sub(self.credit.1))
    }

    /// Takes in what comes until this is so.
    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Verdict {
        loop {
            self.take_in();
            if done(self) {
                return Ok(());
            }
            if self.device.status() & NEEDS_RESET != 0 {
                return Err(Trouble("the device asks for a reset", self.last.into()));
            }
            wait(1000);
        }
    }

    fn take_in(&mut self) {
        while self.seen != self.inbound.used_index() {
            let at = received(&self.inbound, self.seen);
            let (head, written) = self.inbound.used_element(self.seen);
            self.seen = self.seen.wrapping_add(1);
            if peek::<u32>(at + 20) == self.ports.0 {
                self.last = peek(at + 30);
                self.credit = (peek(at + 36), peek(at + 40));
                self.heard = self.heard.wrapping_add(written.saturating_sub(VSOCK_HEADER));
            }
            self.inbound.offer(head as u16);
            self.device.notify(0);
        }
    }
}
