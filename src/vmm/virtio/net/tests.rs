//! Frames by the specification's driver, over a stream socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::device::{F_EVENT_IDX, F_VERSION_1};
use super::super::driver::{Buffer, Driver, WRITE};
use super::features::{CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MAC, MRG_RXBUF, MTU};
use super::*;

const MAC_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 7];
const AGREED: u64 = MAC | MTU | MRG_RXBUF | CSUM | GUEST_CSUM;

/// A driver with these features, and the host's end.
fn network(features: u64) -> (Driver, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let make = move |sources| Net::over_stream(near.into(), MAC_ADDRESS, 1500, sources);
    (Driver::ready(features, make), far)
}

/// The same at a rate.
fn limited(rate: &str) -> (Driver, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let rate = rate.parse().unwrap();
    let make = move |sources| Net::over_stream(near.into(), MAC_ADDRESS, 1500, sources).limited(rate).unwrap();
    (Driver::ready(AGREED, make), far)
}

fn receive(host: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    host.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
    host.read_exact(&mut frame).unwrap();
    frame
}

fn give(host: &mut UnixStream, frame: &[u8]) {
    host.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).unwrap();
    host.write_all(frame).unwrap();
}

fn frame(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n % 250).unwrap().wrapping_add(seed)).collect()
}

/// What the used elements of the receive queue say, put together: the header and the frame.
fn taken(driver: &mut Driver, places: &[(u16, u64)]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffers = 1;
    let mut seen = 0;
    while seen < buffers {
        let (head, written) = driver.take_used(0)?;
        let (_, at) = places.iter().find(|(h, _)| u32::from(*h) == head).unwrap();
        bytes.extend(driver.bytes(*at, written.try_into().unwrap()));
        if seen == 0 {
            buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
        }
        seen += 1;
    }
    let frame = bytes.split_off(HEADER);
    Some((bytes, frame))
}

fn offer(driver: &mut Driver, count: usize, size: u32) -> Vec<(u16, u64)> {
    (0..count).map(|_| driver.add(0, &[Buffer::In(size)])).map(|(head, places)| (head, places[0])).collect()
}

#[test]
fn the_device_says_what_it_is() {
    let (driver, _host) = network(AGREED);
    assert_eq!(driver.read(0x008), 1);
    let mut config = [0; 12];
    driver.device.read(0x100, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xdc, 5]);
    driver.write(0x014, 0);
    let offered = u64::from(driver.read(0x010));
    assert_eq!(offered & (HOST_TSO4 | GUEST_TSO4), 0, "a stream cuts no segments");
    assert_eq!(offered & AGREED, AGREED);
}

#[test]
fn frames_go_out_however_they_are_cut() {
    let (mut driver, mut host) = network(AGREED);
    let sent = frame(1, 1514);
    driver.send(1, &[Buffer::Out(&[0; 12]), Buffer::Out(&sent[..100]), Buffer::Out(&sent[100..])]);
    let whole: Vec<u8> = [0; 12].iter().chain(&sent).copied().collect();
    driver.send(1, &[Buffer::Out(&whole[..7]), Buffer::Out(&whole[7..])]);
    assert_eq!(receive(&mut host), sent);
    assert_eq!(receive(&mut host), sent);
    assert_eq!(std::iter::from_fn(|| driver.take_used(1)).count(), 2);
}

#[test]
fn a_partial_checksum_is_completed() {
    let (mut driver, mut host) = network(AGREED);
    let mut sent = frame(3, 60);
    sent[40..42].copy_from_slice(&[0, 0]);
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    driver.send(1, &[Buffer::Out(&header), Buffer::Out(&sent)]);
    let mut expected = sent.clone();
    checksum::complete(&mut expected, 34, 40);
    assert_ne!(expected, sent);
    assert_eq!(receive(&mut host), expected);
}

#[test]
fn what_was_not_agreed_or_does_not_fit_is_dropped_and_the_rest_goes_on() {
    let (mut driver, mut host) = network(AGREED & !CSUM);
    let good = frame(9, 100);
    for (header, length) in [
        ([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], 100), // a checksum that was not agreed
        ([0, 1, 0, 0, 200, 5, 0, 0, 0, 0, 0, 0], 100), // a segment
        ([0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 100), // nobody knows what
        ([0; 12], 13),                                // shorter than an Ethernet header
        ([0; 12], 1519),                              // longer than the MTU
        ([0; 12], 70_000),                            // longer than any packet
    ] {
        driver.send(1, &[Buffer::Out(&header), Buffer::Out(&frame(0, length))]);
    }
    driver.send(1, &[Buffer::Out(&[0; 12]), Buffer::Out(&good)]);
    assert_eq!(receive(&mut host), good);
    assert_eq!(std::iter::from_fn(|| driver.take_used(1)).count(), 7);
    assert_eq!(driver.device.counters().refused.get(), 6);
    assert!(!driver.needs_reset());
}

#[test]
fn a_chain_without_a_header_breaks_a_rule() {
    let (mut driver, _host) = network(AGREED);
    driver.send(1, &[Buffer::Out(&[0; 11])]);
    assert!(driver.needs_reset());
    driver.initialise(AGREED);
    assert!(!driver.needs_reset(), "and a reset mends it");
}

#[test]
fn frames_come_in_over_one_buffer_or_several() {
    let (mut driver, mut host) = network(AGREED);
    let places = offer(&mut driver, 20, 512);
    driver.kick(0);
    for (seed, length) in [(1, 60), (2, 1514), (3, 500), (4, 501)] {
        give(&mut host, &frame(seed, length));
        driver.poll();
        let (header, got) = taken(&mut driver, &places).unwrap();
        assert_eq!(got, frame(seed, length));
        assert_eq!(header[0], 2, "the checksum needs no verifying");
        assert_eq!(usize::from(header[10]), (length + 12).div_ceil(512));
    }
}

#[test]
fn a_driver_that_takes_no_hints_gets_none() {
    let (mut driver, mut host) = network(AGREED & !GUEST_CSUM & !MRG_RXBUF);
    let places = offer(&mut driver, 2, 200);
    driver.kick(0);
    give(&mut host, &frame(1, 400));
    give(&mut host, &frame(2, 100));
    driver.poll();
    let (header, got) = taken(&mut driver, &places).unwrap();
    assert_eq!((header, got), ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0].to_vec(), frame(2, 100)));
    assert_eq!(driver.device.counters().refused.get(), 1, "one buffer does not hold the first");
}

/// A driver that never moves its `used_event` hears of the first frame only.
#[test]
fn frames_wait_for_buffers_and_none_is_lost() {
    for (feature, interrupts) in [(0, 50), (F_EVENT_IDX, 1)] {
        let (mut driver, mut host) = network(AGREED | feature);
        for seed in 0..50 {
            give(&mut host, &frame(seed, 1000));
        }
        driver.poll();
        assert!(driver.take_used(0).is_none());
        let mut places = Vec::new();
        for seed in 0..50 {
            for _ in 0..3 {
                assert!(taken(&mut driver, &places).is_none());
                places.extend(offer(&mut driver, 1, 400));
                driver.kick(0);
            }
            let (_, got) = taken(&mut driver, &places).unwrap();
            assert_eq!(got, frame(seed, 1000));
        }
        assert_eq!(driver.interrupts(), interrupts);
    }
}

#[test]
fn a_full_socket_makes_the_guest_wait_and_loses_nothing() {
    let (mut driver, mut host) = network(AGREED);
    let sent = |n: u8| [vec![0; HEADER], frame(n, 1514)].concat();
    let mut done = 0;
    for n in 0..240_u8 {
        driver.send(1, &[Buffer::Out(&sent(n))]);
        done += std::iter::from_fn(|| driver.take_used(1)).count();
    }
    assert!((10..240).contains(&done), "{done} of 240 fit the socket");
    for n in 0..240_u8 {
        assert!(receive(&mut host) == frame(n, 1514), "frame {n}");
        driver.poll();
    }
    assert_eq!(done + std::iter::from_fn(|| driver.take_used(1)).count(), 240);
}

/// Frames of 90 KB at a megabyte a second, a burst of which passes at once: the rest takes 25 ms or more.
const FRAMES: u8 = 60;
const AT_ONCE: usize = 43;
const REST: Duration = Duration::from_millis(25);

#[test]
fn a_rate_holds_what_goes_out_and_loses_none_of_it() {
    let (mut driver, mut host) = limited("8mbit");
    let began = Instant::now();
    for seed in 0..FRAMES {
        driver.add(1, &[Buffer::Out(&[0; 12]), Buffer::Out(&frame(seed, 1514))]);
    }
    driver.kick(1);
    let mut done = std::iter::from_fn(|| driver.take_used(1)).count();
    assert!(done >= AT_ONCE);
    while done < FRAMES.into() {
        driver.poll();
        done += std::iter::from_fn(|| driver.take_used(1)).count();
        assert!(began.elapsed() < REST * 400, "it does not go on");
    }
    assert!(began.elapsed() >= REST, "{:?}", began.elapsed());
    (0..FRAMES).for_each(|seed| assert!(receive(&mut host) == frame(seed, 1514), "frame {seed}"));
    assert!(driver.device.counters().delayed.get() > 0 && driver.device.counters().refused.get() == 0);
}

#[test]
fn a_rate_holds_what_comes_in_and_loses_none_of_it() {
    let (mut driver, mut host) = limited("8mbit");
    let places = offer(&mut driver, FRAMES.into(), 2000);
    driver.kick(0);
    let began = Instant::now();
    (0..FRAMES).for_each(|seed| give(&mut host, &frame(seed, 1514)));
    for seed in 0..FRAMES {
        let got = loop {
            if let Some((_, got)) = taken(&mut driver, &places) {
                break got;
            }
            driver.poll();
            assert!(began.elapsed() < REST * 400, "it does not go on");
        };
        assert!(got == frame(seed, 1514), "frame {seed}");
    }
    assert!(began.elapsed() >= REST, "{:?}", began.elapsed());
    // The other direction has its own.
    driver.send(1, &[Buffer::Out(&[0; 12]), Buffer::Out(&frame(7, 1514))]);
    assert!(driver.take_used(1).is_some());
}

/// The lowest rate gives back a burst in 8 s.
#[test]
fn a_reset_gives_no_new_burst() {
    let (mut driver, _host) = limited("64kbit");
    let mut passed = || {
        let before = driver.device.counters().served.get();
        driver.initialise(AGREED);
        for seed in 0..FRAMES {
            driver.add(1, &[Buffer::Out(&[0; 12]), Buffer::Out(&frame(seed, 1514))]);
        }
        driver.kick(1);
        usize::try_from(driver.device.counters().served.get() - before).unwrap()
    };
    assert!(passed() >= AT_ONCE);
    assert!(passed() < AT_ONCE);
}

#[test]
fn a_peer_that_is_gone_or_babbles_takes_everything_and_gives_nothing() {
    for babble in [true, false] {
        let (mut driver, mut host) = network(AGREED);
        offer(&mut driver, 4, 2000);
        driver.kick(0);
        if babble {
            host.write_all(&[0xff; 100]).unwrap();
        } else {
            drop(host);
        }
        driver.poll();
        driver.poll();
        for _ in 0..300 {
            driver.send(1, &[Buffer::Out(&[0; 12]), Buffer::Out(&frame(0, 1000))]);
            assert!(driver.take_used(1).is_some());
        }
        assert!(driver.take_used(0).is_none() && !driver.needs_reset());
    }
}

#[test]
fn a_reset_between_keeps_the_stream_in_step() {
    let (mut driver, mut host) = network(AGREED);
    give(&mut host, &frame(1, 100));
    host.write_all(&60_u32.to_be_bytes()).unwrap();
    host.write_all(&frame(2, 30)).unwrap();
    driver.poll();
    driver.initialise(AGREED);
    let places = offer(&mut driver, 4, 2000);
    driver.kick(0);
    assert_eq!(taken(&mut driver, &places).unwrap().1, frame(1, 100));
    host.write_all(&frame(2, 60)[30..]).unwrap();
    driver.poll();
    assert_eq!(taken(&mut driver, &places).unwrap().1, frame(2, 60));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever a driver puts into its queues, the device answers or asks for a reset, and what reaches the host are whole frames.
    #[test]
    fn hostile_queues_do_no_harm(
        features in prop_oneof![Just(AGREED), any::<u64>().prop_map(|f| f & AGREED)],
        descriptors in proptest::collection::vec((0..(4_u64 << 20) + 4096, 0..70_000_u32, any::<bool>(), any::<bool>()), 1..12),
        headers in proptest::collection::vec(any::<[u8; 12]>(), 1..4),
        incoming in proptest::collection::vec(any::<u8>(), 0..200),
        queue in 0..2_usize,
    ) {
        let (mut driver, mut host) = network(features & !F_VERSION_1);
        for header in &headers {
            driver.send(1, &[Buffer::Out(header), Buffer::Out(&frame(0, 200))]);
        }
        for (index, (addr, len, write, next)) in (0_u16..).zip(&descriptors) {
            let flags = if *write { WRITE } else { 0 } | u16::from(*next);
            driver.descriptor(queue, index, (*addr, *len), flags, index + 1);
        }
        driver.offer(queue, 0);
        driver.kick(queue);
        host.write_all(&incoming).unwrap();
        give(&mut host, &frame(1, 300));
        driver.poll();
        driver.kick(0);
        host.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        let _ = host.read_to_end(&mut bytes);
        let mut rest = &bytes[..];
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
            prop_assert!((SHORTEST..=1518).contains(&length) && behind.len() >= length, "a frame of {length} bytes");
            rest = &behind[length..];
        }
        prop_assert!(rest.is_empty());
    }
}
