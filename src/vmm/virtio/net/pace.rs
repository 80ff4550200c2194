//! The rate of one device: a bucket for each direction, and the timer that goes on with what waits for them.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};

use super::bucket::Bucket;
use crate::spec::NetRate;
use crate::sys::clock::monotonic_ns;
use crate::vmm::virtio::counters::Count;

const SECOND: u64 = 1_000_000_000;

/// A direction, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

/// Both directions of one device. What was spent stays spent when the driver resets the device.
#[derive(Debug)]
pub(super) struct Pace {
    outgoing: Bucket,
    incoming: Bucket,
    timer: OwnedFd,
    /// The clock at the begin of this turn.
    now: u64,
    /// The earliest moment at which what waits may go on.
    until: Option<u64>,
    /// What the timer is set to.
    set: Option<u64>,
}

impl Pace {
    /// With full buckets.
    ///
    /// # Errors
    /// What `timerfd_create` gave.
    pub(super) fn new(rate: NetRate) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let full = Bucket::new(rate);
        Ok(Self { outgoing: full, incoming: full, timer, now: 0, until: None, set: None })
    }

    /// What becomes readable when something may go on. It need not be read: setting it anew clears it.
    pub(super) fn timer(&self) -> &OwnedFd {
        &self.timer
    }

    /// A turn of the device begins: nothing is known to wait.
    pub(super) fn begin(&mut self) {
        self.now = monotonic_ns();
        self.until = None;
    }

    /// Whether a frame may pass now; if not, the turn's end sets the timer for it.
    pub(super) fn admits(&mut self, way: Way, bytes: usize) -> bool {
        let now = self.now;
        match self.bucket(way).admits(bytes, now) {
            Ok(()) => true,
            Err(from) => {
                self.until = Some(self.until.map_or(from, |until| until.min(from)));
                false
            }
        }
    }

    /// A frame has passed.
    pub(super) fn spend(&mut self, way: Way, bytes: usize) {
        let now = self.now;
        self.bucket(way).spend(bytes, now);
    }

    /// A turn ends: the timer is set if something waits.
    pub(super) fn end(&mut self, delayed: &Count) {
        let Some(until) = self.until.filter(|until| self.set != Some(*until)) else { return };
        delayed.add();
        // 0 would stop it.
        let wait = until.saturating_sub(self.now).max(1);
        let time = Timespec {
            tv_sec: i64::try_from(wait / SECOND).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(wait % SECOND).unwrap_or(0),
        };
        let value = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: time };
        // Fails only for a time that is none.
        self.set = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value).is_ok().then_some(until);
    }

    /// The timer has fired, or nothing waits any more.
    pub(super) fn forget(&mut self) {
        self.set = None;
    }

    fn bucket(&mut self, way: Way) -> &mut Bucket {
        match way {
            Way::Out => &mut self.outgoing,
            Way::In => &mut self.incoming,
        }
    }
}
