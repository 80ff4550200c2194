//! The transport against the specification's driver.

use super::super::driver::{Buffer, Driver, INDIRECT, NEXT, WRITE};
use super::super::rng::Rng;
use super::*;
use vm_memory::{Bytes, GuestAddress};

fn driver() -> Driver {
    Driver::ready(0, |_| Rng)
}

#[test]
fn identity_and_features_are_told() {
    let driver = Driver::new(|_| Rng);
    assert_eq!([driver.read(0), driver.read(4), driver.read(8)], [MAGIC, 2, 4]);
    driver.write(0x014, 1);
    assert_eq!(driver.read(0x010), 1, "VERSION_1");
    driver.write(0x014, 0);
    assert_eq!(u64::from(driver.read(0x010)), F_EVENT_IDX);
    driver.write(0x014, 7);
    assert_eq!(driver.read(0x010), 0);
    assert_eq!(driver.read(0x034), 64);
    driver.write(0x030, 1);
    assert_eq!(driver.read(0x034), 0, "a queue that does not exist");
    assert_eq!(driver.read(0x0b0), u32::MAX, "no shared memory");
}

#[test]
fn a_request_is_served_and_interrupts() {
    let mut driver = driver();
    let (head, places) = driver.send(0, &[Buffer::In(64)]);
    assert_eq!(driver.take_used(0), Some((u32::from(head), 64)));
    assert_ne!(driver.bytes(places[0], 64), [0; 64]);
    assert_eq!((driver.interrupts(), driver.read(0x060)), (1, 1));
    driver.write(0x064, 1);
    assert_eq!(driver.read(0x060), 0);
    assert_eq!(driver.device.counters().served.get(), 1);
}

#[test]
fn event_index_silences_interrupts_that_nobody_wants() {
    let mut driver = Driver::ready(F_EVENT_IDX, |_| Rng);
    // used_event: interrupt when the third chain is given back.
    let ring = driver.rings[0];
    driver.ram.write_obj(2_u16, GuestAddress(ring.avail + 4 + u64::from(ring.size) * 2)).unwrap();
    for n in 1..=4 {
        driver.send(0, &[Buffer::In(8)]);
        assert_eq!(driver.interrupts(), u32::from(n >= 3));
    }
}

#[test]
fn features_never_offered_are_not_agreed() {
    for features in [0, F_VERSION_1 | 1 << 28, F_VERSION_1 | 1 << 40] {
        let driver = Driver::new(|_| Rng);
        driver.write(0x070, 1);
        driver.write(0x070, 3);
        driver.accept(features);
        driver.write(0x070, 11);
        assert_eq!(driver.read(0x070), 3, "FEATURES_OK stays clear");
        driver.write(0x070, 15);
        assert_eq!(driver.read(0x070), 3);
    }
}

#[test]
fn steps_out_of_order_change_nothing() {
    let driver = Driver::new(|_| Rng);
    for status in [2, 3, 15, 11, 8] {
        driver.write(0x070, status);
        assert_eq!(driver.read(0x070), 0);
    }
    driver.write(0x038, 8);
    driver.write(0x044, 1);
    assert_eq!(driver.read(0x044), 0, "no queue before FEATURES_OK");
    driver.kick(0);
    assert_eq!(driver.device.counters().strays.get(), 8);
}

#[test]
fn the_layout_is_frozen_when_live() {
    let mut driver = driver();
    for (register, value) in [(0x038, 2), (0x044, 0), (0x080, 0x6_0000), (0x090, 0), (0x0a4, 9), (0x020, 0)] {
        driver.write(register, value);
    }
    assert_eq!(driver.read(0x044), 1);
    for _ in 0..100 {
        driver.send(0, &[Buffer::In(8)]);
        assert!(driver.take_used(0).is_some());
    }
    assert!(!driver.needs_reset());
}

#[test]
fn a_queue_that_is_ready_keeps_its_registers() {
    let driver = Driver::new(|_| Rng);
    driver.write(0x070, 1);
    driver.write(0x070, 3);
    driver.accept(F_VERSION_1);
    driver.write(0x070, 11);
    driver.lay_out(0);
    driver.write(0x080, 0xffff_fff0);
    driver.write(0x070, 15);
    assert_eq!(driver.read(0x070), 15, "the write to a ready queue's table was ignored");
}

#[test]
fn impossible_layouts_need_a_reset() {
    let break_it: [fn(&mut Driver); 6] = [
        |d| d.rings[0].size = 3,
        |d| d.rings[0].size = 128,
        |d| d.rings[0].table += 1,
        |d| d.rings[0].avail = u64::MAX - 7,
        |d| d.rings[0].used = (4 << 20) - 4,
        |d| d.rings[0].avail = 0,
    ];
    for change in break_it {
        let mut driver = Driver::new(|_| Rng);
        change(&mut driver);
        driver.initialise(0);
        assert!(driver.needs_reset());
        assert_eq!(driver.read(0x060), CONFIG_CHANGE);
        driver.kick(0);
        driver.write(0x070, 0);
        assert_eq!((driver.read(0x070), driver.read(0x060)), (0, 0), "a reset mends it");
        driver.rings[0] = super::super::driver::Ring::at(0x1_0000, 64);
        driver.initialise(0);
        driver.send(0, &[Buffer::In(8)]);
        assert!(driver.take_used(0).is_some());
    }
}

/// What is broken, and how.
type Breach = (&'static str, fn(&mut Driver));

/// Each breaks one rule of chains; the device must ask for a reset, once, and go on after it.
#[test]
fn broken_chains_need_a_reset_and_are_consumed() {
    let break_it: [Breach; 9] = [
        ("head beyond the table", |d| d.offer(0, 64)),
        ("head far beyond the table", |d| d.offer(0, u16::MAX)),
        ("next beyond the table", |d| {
            d.descriptor(0, 0, (0x10_0000, 8), WRITE | NEXT, 64);
            d.offer(0, 0);
        }),
        ("a loop", |d| {
            d.descriptor(0, 0, (0x10_0000, 8), WRITE | NEXT, 0);
            d.offer(0, 0);
        }),
        ("an indirect table", |d| {
            d.descriptor(0, 0, (0x10_0000, 16), INDIRECT, 0);
            d.offer(0, 0);
        }),
        ("a buffer outside memory", |d| {
            d.descriptor(0, 0, (4 << 20, 8), WRITE, 0);
            d.offer(0, 0);
        }),
        ("a buffer that wraps around", |d| {
            d.descriptor(0, 0, (u64::MAX - 3, 8), WRITE, 0);
            d.offer(0, 0);
        }),
        ("readable behind writable", |d| {
            d.descriptor(0, 0, (0x10_0000, 8), WRITE | NEXT, 1);
            d.descriptor(0, 1, (0x10_0000, 8), 0, 0);
            d.offer(0, 0);
        }),
        ("an index far ahead", |d| {
            d.ram.write_obj(65_u16, GuestAddress(d.rings[0].avail + 2)).unwrap();
        }),
    ];
    for (what, change) in break_it {
        let mut driver = driver();
        change(&mut driver);
        driver.kick(0);
        assert!(driver.needs_reset(), "{what}");
        assert_eq!(driver.device.counters().faults.get(), 1, "{what}");
        driver.kick(0);
        assert_eq!(driver.device.counters().faults.get(), 1, "{what}: not looked at again");
        driver.write(0x070, 0);
        driver.ram.write_obj(0_u16, GuestAddress(driver.rings[0].avail + 2)).unwrap();
        driver.ram.write_obj(0_u16, GuestAddress(driver.rings[0].used + 2)).unwrap();
        driver.initialise(0);
        driver.send(0, &[Buffer::In(8)]);
        assert!(driver.take_used(0).is_some(), "{what}: works after the reset");
    }
}

#[test]
fn rings_whose_memory_is_fine_survive_any_content() {
    let mut driver = driver();
    let ring = driver.rings[0];
    for addr in (ring.table..ring.used).step_by(8) {
        driver.ram.write_obj(0x5a5a_5a5a_5a5a_5a5a_u64, GuestAddress(addr)).unwrap();
    }
    driver.kick(0);
    assert!(driver.needs_reset());
    assert!(driver.take_used(0).is_none() || driver.device.counters().faults.get() == 1);
}

#[test]
fn odd_accesses_are_counted_and_do_nothing() {
    let driver = Driver::new(|_| Rng);
    driver.device.read(0, &mut [0; 2]);
    driver.device.read(0, &mut [0; 8]);
    driver.device.write(0x070, &[1]);
    driver.device.write(0x0f0, &[0; 4]);
    driver.device.write(0x100, &[0; 4]);
    driver.kick(0);
    assert_eq!(driver.read(0x008 + 1), 0);
    assert_eq!(driver.device.counters().strays.get(), 7);
}

#[test]
fn a_failed_driver_can_start_again() {
    let mut driver = driver();
    driver.write(0x070, 0x80 | 15);
    assert_eq!(driver.read(0x070), 0x80);
    driver.ram.write_obj(0_u16, GuestAddress(driver.rings[0].used + 2)).unwrap();
    driver.ram.write_obj(0_u16, GuestAddress(driver.rings[0].avail + 2)).unwrap();
    driver.initialise(0);
    driver.send(0, &[Buffer::In(1)]);
    assert_eq!(driver.take_used(0), Some((0, 1)));
}
