use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{JoinHandle, spawn};
use std::time::Instant;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg};
use vm_memory::{Bytes, GuestAddress};

use super::super::driver::{Buffer, Driver};
use super::super::queue::Rings;
use super::*;
use crate::vmm::memory::reserve_shared;

/// All that a good back end offers.
const GOOD: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
const SOON: Duration = Duration::from_millis(300);
const LATER: Duration = Duration::from_secs(60);

/// A message as it came: request, flags, payload, descriptors.
struct Heard {
    request: u32,
    flags: u32,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Heard {
    fn number(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.payload[at..at + 8].try_into().unwrap())
    }
}

/// The other end of the protocol, written from the book.
struct FarEnd {
    socket: UnixStream,
    features: u64,
    protocol: u64,
    acknowledgement: u64,
}

impl FarEnd {
    fn hear(&mut self) -> Option<Heard> {
        let mut header = [0; 12];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = rustix::net::RecvFlags::WAITALL;
        let pieces = &mut [io::IoSliceMut::new(&mut header)];
        if recvmsg(&self.socket, pieces, &mut ancillary, flags).ok()?.bytes < 12 {
            return None;
        }
        let messages = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds = messages.flatten().collect();
        let [request, flags, size] = [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
        let mut payload = vec![0; usize::try_from(size).unwrap()];
        self.socket.read_exact(&mut payload).ok()?;
        Some(Heard { request, flags, payload, fds })
    }

    fn say(&mut self, request: u32, number: u64) {
        let mut bytes = [request, 5, 8].map(u32::to_ne_bytes).concat();
        bytes.extend(number.to_ne_bytes());
        self.socket.write_all(&bytes).unwrap();
    }

    /// Answers as a good one does, up to the message that `until` names, which is returned unanswered.
    fn serve(&mut self, until: u32) -> Option<Heard> {
        loop {
            let heard = self.hear()?;
            if heard.request == until {
                return Some(heard);
            }
            match heard.request {
                1 => self.say(1, self.features),
                15 => self.say(15, self.protocol),
                11 => self.say(11, heard.number(0) & 0xffff_ffff),
                _ if heard.flags & 8 != 0 => self.say(heard.request, self.acknowledgement),
                _ => {}
            }
        }
    }
}

/// A socket to a back end that does this.
fn far_end<T: Send + 'static>(act: impl FnOnce(FarEnd) -> T + Send + 'static) -> (OwnedFd, JoinHandle<T>) {
    let (near, far) = UnixStream::pair().unwrap();
    let far = FarEnd { socket: far, features: GOOD, protocol: 1 << 3, acknowledgement: 0 };
    (near.into(), spawn(move || act(far)))
}

/// The device of a driver that has set it up, with this back end.
fn ready<T: Send + 'static>(act: impl FnOnce(FarEnd) -> T + Send + 'static) -> (Driver, JoinHandle<T>) {
    let (socket, thread) = far_end(act);
    let ram = Arc::new(reserve_shared(4).unwrap());
    let mut driver = Driver::over(ram.clone(), |sources| {
        Fs::with_patience("a share", socket, &ram, &sources, (LATER, SOON)).unwrap()
    });
    driver.initialise(F_INDIRECT_DESC);
    (driver, thread)
}

#[test]
fn a_request_goes_through_the_back_end_and_back() {
    // Takes queue 1, answers one request in shared memory, and gives the queue back when it is asked to.
    let (mut driver, thread) = ready(|mut far| {
        let mut table = far.serve(5).unwrap();
        let memory = std::fs::File::from(table.fds.remove(0));
        assert_eq!((table.payload[0], table.number(8), table.number(16), table.number(32)), (1, 0, 4 << 20, 0));
        far.say(5, 0);
        let features = far.serve(2).unwrap().number(0);
        let mut of_second = |request| loop {
            let heard = far.serve(request).unwrap();
            if heard.payload[0] == 1 {
                return heard;
            }
        };
        let size = of_second(8).number(0) >> 32;
        let place = of_second(9);
        let rings = Rings { size: 0, table: place.number(8), used: place.number(16), avail: place.number(24) };
        let call = of_second(13).fds.remove(0);
        let kick = of_second(12).fds.remove(0);
        use std::os::unix::fs::FileExt;
        rustix::event::poll(&mut [rustix::event::PollFd::new(&kick, rustix::event::PollFlags::IN)], None).unwrap();
        let mut head = [0; 2];
        memory.read_exact_at(&mut head, rings.avail + 4).unwrap();
        memory.write_all_at(&[head[0], head[1], 0, 0, 7, 0, 0, 0], rings.used + 4).unwrap();
        memory.write_all_at(&[1, 0], rings.used + 2).unwrap();
        rustix::io::write(&call, &1_u64.to_ne_bytes()).unwrap();
        far.serve(99);
        (features, size)
    });
    let mut bytes = [0xff; 44];
    driver.device.read(0x100, &mut bytes);
    assert_eq!(&bytes[..8], b"a share\0");
    assert_eq!(bytes[32..], [0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(driver.read(0x008), 26);
    let (head, _) = driver.send(1, &[Buffer::Out(b"request"), Buffer::In(16)]);
    let deadline = Instant::now() + LATER;
    while driver.interrupts() == 0 && Instant::now() < deadline {
        driver.poll();
    }
    assert_eq!(driver.take_used(1), Some((u32::from(head), 7)));
    driver.write(0x070, 0);
    assert_eq!(driver.read(0x070), 0);
    driver.initialise(0);
    assert!(!driver.needs_reset(), "both queues were given back, and are lent again");
    assert_eq!(driver.device.take_loss(), None);
    drop(driver);
    assert_eq!(thread.join().unwrap(), (1 << 32 | 1 << 30 | 1 << 28, 1024));
}

/// How meeting this back end fails.
fn meeting<T: Send + 'static>(act: impl FnOnce(FarEnd) -> T + Send + 'static) -> String {
    let (socket, _thread) = far_end(act);
    let poller = Arc::new(crate::vmm::events::Poller::new().unwrap());
    let sources = Sources::new(poller, 0);
    let made = Fs::with_patience("share", socket, &reserve_shared(4).unwrap(), &sources, (SOON, SOON));
    made.unwrap_err().to_string()
}

#[test]
fn a_hostile_back_end_is_refused_in_words_and_in_time() {
    let lacks = |features, protocol| {
        meeting(move |far| FarEnd { features, protocol, ..far }.serve(0));
        meeting(move |far| FarEnd { features, protocol, ..far }.serve(0))
    };
    assert!(lacks(GOOD & !(1 << 32), 8).contains("VIRTIO_F_VERSION_1"));
    assert!(lacks(GOOD & !(1 << 29), 8).contains("VIRTIO_F_EVENT_IDX"));
    assert!(lacks(GOOD & !(1 << 30), 8).contains("VHOST_USER_F_PROTOCOL_FEATURES"));
    assert!(lacks(GOOD, 7).contains("REPLY_ACK"));
    assert!(meeting(|far| FarEnd { acknowledgement: 1, ..far }.serve(0)).contains("refuses request 5"));
    assert!(meeting(drop).contains("closed its end"));
    let silent = |far: FarEnd| std::thread::sleep(SOON * 4 + far.socket.take_error().map_or(SOON, |_| SOON));
    assert!(meeting(silent).contains("not answered"));
    let raw = |bytes: &'static [u8]| {
        meeting(move |mut far| {
            far.socket.write_all(bytes).unwrap();
            far.serve(0)
        })
    };
    let answer = |request: u8, flags: u8, size: u8| -> &'static [u8] {
        Box::leak(Box::new([request, 0, 0, 0, flags, 0, 0, 0, size, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]))
    };
    assert!(raw(answer(2, 5, 8)).contains("another request"));
    assert!(raw(answer(1, 1, 8)).contains("not marked"));
    assert!(raw(answer(1, 5, 200)).contains("size"));
    // A part of an answer, and then nothing.
    let half = |mut far: FarEnd| {
        far.socket.write_all(&[1, 0, 0, 0, 5, 0]).unwrap();
        std::thread::sleep(SOON * 4);
    };
    assert!(meeting(half).contains("not answered"));
}

/// The driver's view when the back end is lost: a reset is asked for, once told, and nothing hangs.
fn must_be_lost(driver: &mut Driver, words: &str) {
    let deadline = Instant::now() + LATER;
    while !driver.needs_reset() && Instant::now() < deadline {
        driver.poll();
    }
    assert!(driver.needs_reset() && driver.interrupts() > 0);
    let loss = driver.device.take_loss().unwrap();
    assert!(loss.contains("'a share'") && loss.contains(words), "{loss}");
    assert_eq!(driver.device.take_loss(), None, "it is told once");
    assert_eq!(driver.device.counters().faults.get(), 0, "the guest did nothing wrong");
    driver.kick(1);
    driver.initialise(0);
    assert!(driver.needs_reset(), "it does not come back");
}

#[test]
fn a_back_end_that_ends_is_told() {
    let (mut driver, thread) = ready(|mut far| {
        far.serve(18);
        far.serve(18);
    });
    thread.join().unwrap();
    must_be_lost(&mut driver, "closed its end");
}

#[test]
fn a_back_end_that_speaks_unasked_is_told() {
    let (mut driver, _thread) = ready(|mut far| {
        far.serve(18);
        far.serve(18);
        far.say(1, 1);
        far.serve(0);
    });
    must_be_lost(&mut driver, "without being asked");
}

#[test]
fn a_back_end_that_is_gone_at_the_start_is_told() {
    let (socket, thread) = far_end(|mut far| {
        far.serve(5);
        far.say(5, 0);
    });
    let ram = Arc::new(reserve_shared(4).unwrap());
    let mut driver = Driver::over(ram.clone(), |sources| {
        Fs::with_patience("a share", socket, &ram, &sources, (LATER, SOON)).unwrap()
    });
    thread.join().unwrap();
    driver.initialise(0);
    must_be_lost(&mut driver, "closed its end");
}

#[test]
fn a_back_end_that_does_not_let_go_is_told() {
    for wrong in [false, true] {
        let (driver, _thread) = ready(move |mut far| {
            far.serve(11);
            if wrong {
                far.say(11, 77);
            }
            far.serve(0);
        });
        driver.write(0x070, 0);
        assert_eq!(driver.read(0x070), 0, "the driver goes on");
        let loss = driver.device.take_loss().unwrap();
        assert!(loss.contains(if wrong { "about ring 77" } else { "not answered" }), "{loss}");
    }
}

#[test]
fn queues_that_are_not_set_up_stay_here() {
    let (socket, thread) = far_end(|mut far| {
        let mut enabled = 0;
        while far.serve(18).is_some() {
            enabled += 1;
        }
        enabled
    });
    let ram = Arc::new(reserve_shared(4).unwrap());
    let mut driver = Driver::over(ram.clone(), |sources| {
        Fs::with_patience("a share", socket, &ram, &sources, (LATER, SOON)).unwrap()
    });
    driver.rings.truncate(1);
    driver.initialise(0);
    driver.ram.write_obj(0_u8, GuestAddress(0)).unwrap();
    driver.kick(1);
    drop(driver);
    assert_eq!(thread.join().unwrap(), 1);
}
