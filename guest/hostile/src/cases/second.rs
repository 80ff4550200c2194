//! Two processors at once. The second one does as it is told by a word in memory.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Case, named};
use crate::health::{block, block_header};
use crate::sys::{self, DATA, poke, wait};
use crate::virtio::{Device, Part, register as reg};
use crate::{Verdict, ensure};

pub(crate) const CASES: &[Case] = named![
    both_notify_one_queue,
    one_resets_while_one_notifies,
    one_changes_descriptors_while_they_are_walked,
    one_changes_the_header_while_it_is_read,
    one_changes_the_index_while_it_is_read,
    one_lays_out_while_one_starts,
    both_write_every_register,
    both_print,
    one_floods_the_other_with_interrupts,
    one_stops_and_starts_the_other,
];

/// What the second processor does; 0 is nothing.
static TASK: AtomicU64 = AtomicU64::new(0);
/// The device it does it to.
static BASE: AtomicU64 = AtomicU64::new(0);
/// How often it has come round.
static TURNS: AtomicU64 = AtomicU64::new(0);

const NOTIFY: u64 = 1;
const CHANGE_DESCRIPTORS: u64 = 2;
const CHANGE_HEADER: u64 = 3;
const CHANGE_INDEX: u64 = 4;
const START: u64 = 5;
const REGISTERS: u64 = 6;
const PRINT: u64 = 7;
const INTERRUPTS: u64 = 8;
const HALT: u64 = 9;

/// What both print: nothing that is taken for a line of the report.
const SERIAL: u16 = 0x3f8;

extern "C" fn second() -> ! {
    loop {
        let base = BASE.load(Ordering::SeqCst);
        let turn = TURNS.fetch_add(1, Ordering::SeqCst);
        let ring = sys::RINGS;
        match TASK.load(Ordering::SeqCst) {
            NOTIFY => poke(base + reg::NOTIFY, 0_u32),
            CHANGE_DESCRIPTORS => {
                let wrong = turn.is_multiple_of(2);
                poke(ring + 16, if wrong { 0x7000_0000_u64 } else { DATA + 0x1000 });
                poke(ring + 24, if wrong { u32::MAX } else { 512 });
                poke(ring + 30, if wrong { 0xfff0_u16 } else { 2 });
            }
            CHANGE_HEADER => {
                poke(DATA, turn as u32 % 12);
                poke(DATA + 8, if turn.is_multiple_of(3) { u64::MAX } else { 0 });
            }
            CHANGE_INDEX => poke(ring + 0x4002, turn as u16),
            START => [0_u32, 1, 3, 11, 15].into_iter().for_each(|status| poke(base + reg::STATUS, status)),
            REGISTERS => {
                for offset in (0x10..0x100).step_by(4).filter(|offset| *offset != reg::STATUS) {
                    poke(base + offset, turn as u32);
                }
            }
            PRINT => sys::out8(SERIAL, b'~'),
            INTERRUPTS => {
                poke(0xfee0_0310_u64, 0_u32);
                poke(0xfee0_0300_u64, 0x80_u32);
            }
            HALT => sys::halt(),
            _ => wait(100),
        }
    }
}

/// The second processor does nothing any more.
pub(crate) fn end() {
    TASK.store(HALT, Ordering::SeqCst);
}

/// Calls the second processor: INIT, and twice where to begin (Intel SDM volume 3, 9.4.4.1).
fn call() {
    let page = u32::from(sys::place_second(second));
    poke(0xfee0_00f0_u64, 0x1ff_u32);
    for command in [0x4500, 0x4600 | page, 0x4600 | page] {
        poke(0xfee0_0310_u64, 1_u32 << 24);
        poke(0xfee0_0300_u64, command);
        wait(10_000);
    }
}

/// Waits until it has come round so often again.
fn turns(count: u64) -> Verdict {
    let from = TURNS.load(Ordering::SeqCst);
    for _ in 0..20_000_000_u64 {
        if TURNS.load(Ordering::SeqCst) >= from + count {
            return Ok(());
        }
        wait(50);
    }
    Err(crate::Trouble("the second processor does not run", from))
}

/// It does this to the device while this processor does something, so many times.
fn race(device: &Device, task: u64, times: u32, mut act: impl FnMut() -> Verdict) -> Verdict {
    if TURNS.load(Ordering::SeqCst) == 0 {
        call();
    }
    turns(2)?;
    device.start()?;
    BASE.store(device.base, Ordering::SeqCst);
    TASK.store(task, Ordering::SeqCst);
    let done = (0..times).try_for_each(|_| act());
    TASK.store(0, Ordering::SeqCst);
    turns(2)?;
    done
}

/// Offers reads, whatever has become of the ring meanwhile.
fn read(device: &Device) {
    let ring = device.ring(0);
    block_header(0, 0);
    ring.chain(0, &[Part::out(DATA, 16), Part::into(DATA + 0x1000, 512), Part::into(DATA + 0x100, 1)]);
    ring.offer(0);
    device.notify(0);
}

fn both_notify_one_queue(device: &Device) -> Verdict {
    race(device, NOTIFY, 100, || block(device, 0, 0, Part::into(DATA + 0x1000, 512)).map(drop))
}

fn one_resets_while_one_notifies(device: &Device) -> Verdict {
    race(device, NOTIFY, 50, || {
        device.start()?;
        read(device);
        device.reset();
        ensure(device.status() == 0, "not reset", device.status().into())
    })
}

/// Reads for as long as the device goes on; then it is started again.
fn read_and_restart(device: &Device) -> Verdict {
    if device.status() != 15 {
        device.start()?;
    }
    (0..20).for_each(|_| read(device));
    Ok(())
}

fn one_changes_descriptors_while_they_are_walked(device: &Device) -> Verdict {
    race(device, CHANGE_DESCRIPTORS, 50, || read_and_restart(device))
}

fn one_changes_the_header_while_it_is_read(device: &Device) -> Verdict {
    race(device, CHANGE_HEADER, 50, || read_and_restart(device))
}

fn one_changes_the_index_while_it_is_read(device: &Device) -> Verdict {
    race(device, CHANGE_INDEX, 50, || read_and_restart(device))
}

fn one_lays_out_while_one_starts(device: &Device) -> Verdict {
    race(device, START, 100, || {
        let ring = device.ring(0);
        device.negotiate(crate::virtio::F_VERSION_1);
        device.lay(0, &ring);
        device.set_status(15);
        device.notify(0);
        Ok(())
    })
}

fn both_write_every_register(device: &Device) -> Verdict {
    race(device, REGISTERS, 20, || {
        for offset in (0x10..0x100).step_by(4) {
            device.write(offset, offset as u32);
        }
        Ok(())
    })
}

fn both_print(device: &Device) -> Verdict {
    race(device, PRINT, 500, || {
        sys::out8(SERIAL, b'^');
        Ok(())
    })
}

fn one_floods_the_other_with_interrupts(device: &Device) -> Verdict {
    race(device, INTERRUPTS, 100, || {
        sys::sleep_once();
        block(device, 0, 0, Part::into(DATA + 0x1000, 512)).map(drop)
    })
}

fn one_stops_and_starts_the_other(device: &Device) -> Verdict {
    race(device, NOTIFY, 10, || {
        call();
        turns(2)
    })
}
