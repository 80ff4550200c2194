//! The chain walker against an oracle, and the work budget.

use proptest::prelude::*;

use super::super::driver::{Buffer, Driver, NEXT, WRITE};
use super::super::rng::Rng;
use super::*;

const MEMORY: u64 = 4 << 20;

#[derive(Clone, Copy, Debug)]
struct Raw {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Mostly descriptors as a good driver writes them, some of each kind of bad one.
fn raw() -> impl Strategy<Value = Raw> {
    let addr = prop_oneof![8 => 0..MEMORY, 1 => MEMORY - 64..MEMORY + 64, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0..5000_u32, 1 => any::<u32>()];
    let flags =
        prop_oneof![6 => Just(NEXT), 4 => Just(0), 4 => Just(NEXT | WRITE), 3 => Just(WRITE), 1 => any::<u16>()];
    let next = prop_oneof![9 => 0..8_u16, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| Raw { addr, len, flags, next })
}

/// Address and length of each piece.
type Pieces = Vec<(u64, u32)>;

/// The rules of 2.7, restated: the (readable, writable) pieces of a chain, or that it is bad.
fn oracle(table: &[Raw], head: u16) -> Option<(Pieces, Pieces)> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut total = 0_u64;
    let mut index = head;
    for _ in 0..table.len() {
        let raw = table.get(usize::from(index))?;
        total += u64::from(raw.len);
        let end = raw.addr.checked_add(u64::from(raw.len))?;
        if raw.flags & 4 != 0 || total > u64::from(u32::MAX) || (raw.len > 0 && end > MEMORY) {
            return None;
        }
        let area = if raw.flags & WRITE != 0 { &mut writable } else { &mut readable };
        if raw.len > 0 {
            area.push((raw.addr, raw.len));
        }
        if raw.flags & WRITE == 0 && !writable.is_empty() {
            return None;
        }
        if raw.flags & NEXT == 0 {
            return Some((readable, writable));
        }
        index = raw.next;
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn walks_as_the_rules_say(table in prop::collection::vec(raw(), 8), head in prop_oneof![9 => 0..8_u16, 1 => any::<u16>()]) {
        let mut driver = Driver::new(|_| Rng);
        driver.rings[0] = super::super::driver::Ring::at(0x1_0000, 8);
        let ring = driver.rings[0];
        let setup = QueueSetup { max: 8, size: 8, ready: true, table: ring.table, avail: ring.avail, used: ring.used };
        let mut queue = setup.freeze(0, false, &driver.ram).unwrap().unwrap();
        for (index, raw) in (0..).zip(&table) {
            driver.descriptor(0, index, (raw.addr, raw.len), raw.flags, raw.next);
        }
        driver.offer(0, head);
        let walked = queue.next(&driver.ram);
        match (oracle(&table, head), walked) {
            (Some((readable, writable)), Ok(Some(chain))) => {
                let sum = |pieces: &[(u64, u32)]| pieces.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
                prop_assert_eq!(chain.head, head);
                prop_assert_eq!(chain.readable.len(), sum(&readable));
                prop_assert_eq!(chain.writable.len(), sum(&writable));
                prop_assert_eq!(chain.readable.pieces().len(), readable.len());
            }
            (None, Err(_)) => {
                // Consumed, and given back if it can be.
                prop_assert_eq!(driver.take_used(0), (head < 8).then_some((u32::from(head), 0)));
            }
            (expected, walked) => prop_assert!(false, "expected {:?}, walked {:?}", expected, walked),
        }
        prop_assert!(queue.next(&driver.ram).unwrap().is_none(), "nothing is looked at twice");
    }
}

#[test]
fn the_budget_is_kept_and_nothing_is_lost() {
    let mut driver = Driver::new(|_| Rng);
    let ring = driver.rings[0];
    let setup = QueueSetup { max: 64, size: 64, ready: true, table: ring.table, avail: ring.avail, used: ring.used };
    let mut queue = setup.freeze(0, false, &driver.ram).unwrap().unwrap();
    for _ in 0..10 {
        driver.add(0, &[Buffer::In(1)]);
    }
    let ram = driver.ram.clone();
    let mut served = 0_u32;
    let mut turn = |queue: &mut LiveQueue, budget| {
        queue.serve(&ram, budget, |_| {
            served += 1;
            Ok(if served == 9 { Served::Later } else { Served::Done(0) })
        })
    };
    assert_eq!(turn(&mut queue, 4), Ok(Progress::Budget));
    assert_eq!(turn(&mut queue, 100), Ok(Progress::Blocked), "the ninth is not done");
    assert_eq!(turn(&mut queue, 100), Ok(Progress::Drained));
    assert_eq!(served, 11, "the ninth came again");
    assert_eq!(std::iter::from_fn(|| driver.take_used(0)).count(), 10);
}

#[test]
fn long_chains_take_more_of_the_budget() {
    let mut driver = Driver::new(|_| Rng);
    let ring = driver.rings[0];
    let setup = QueueSetup { max: 64, size: 64, ready: true, table: ring.table, avail: ring.avail, used: ring.used };
    let mut queue = setup.freeze(0, false, &driver.ram).unwrap().unwrap();
    let addr = driver.allocate(1 << 20);
    driver.descriptor(0, 0, (addr, 1 << 20), 0, 0);
    (0..10).for_each(|_| driver.offer(0, 0));
    let mut served = 0;
    let progress = queue.serve(&driver.ram, 20, |_| {
        served += 1;
        Ok(Served::Done(0))
    });
    assert_eq!((progress, served), (Ok(Progress::Budget), 4), "1 MiB is as much as four chains, and itself");
    let progress = queue.serve(&driver.ram, 20, |_| Ok(Served::Partly));
    assert_eq!(progress, Ok(Progress::Budget));
    let progress = queue.serve(&driver.ram, 100, |_| {
        served += 1;
        Ok(Served::Done(0))
    });
    assert_eq!((progress, served), (Ok(Progress::Drained), 10), "what was done partly came again");
}

#[test]
fn a_fault_in_a_request_gives_the_chain_back() {
    let mut driver = Driver::new(|_| Rng);
    let ring = driver.rings[0];
    let setup = QueueSetup { max: 64, size: 64, ready: true, table: ring.table, avail: ring.avail, used: ring.used };
    let mut queue = setup.freeze(0, false, &driver.ram).unwrap().unwrap();
    driver.add(0, &[Buffer::In(1)]);
    let fault = queue.serve(&driver.ram, 9, |_| Err(GuestFault::Incomplete("header")));
    assert_eq!(fault, Err(GuestFault::Incomplete("header")));
    assert_eq!(driver.take_used(0), Some((0, 0)));
}
