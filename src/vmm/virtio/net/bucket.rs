//! Token bucket: so many bytes a second on the average, and after a pause a burst at once. Pure: the caller says what time it is.
//!
//! ```text
//!            |<------------- depth: the time of a burst ------------->|
//! -----------+------------------------+-------------------------------+----> time
//!           now                    full_at                        at most here after a frame
//! ```
//!
//! The bucket is one moment: when it will be full again. What is missing until then has been spent; a frame moves the moment on by its own time.

use crate::spec::NetRate;

const SECOND: u64 = 1_000_000_000;

/// One direction's bucket. Times are nanoseconds of one clock that does not go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Bytes a second, never 0.
    rate: u64,
    /// Nanoseconds in which an empty one fills.
    depth: u64,
    full_at: u64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: NetRate) -> Self {
        let bytes = u64::from(rate.bytes()).max(1);
        let mut bucket = Self { rate: bytes, depth: 0, full_at: 0 };
        bucket.depth = bucket.time(rate.burst().into());
        bucket
    }

    /// How long this many bytes take, rounded up.
    fn time(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(SECOND).div_ceil(self.rate)
    }

    /// Whether a frame may pass. A frame longer than a burst may when the bucket is full.
    ///
    /// # Errors
    /// The moment from which it may, which is later than `now`.
    pub(super) fn admits(&self, bytes: usize, now: u64) -> Result<(), u64> {
        let cost = self.time(bytes as u64).min(self.depth);
        let from = self.full_at.saturating_add(cost).saturating_sub(self.depth);
        if from <= now { Ok(()) } else { Err(from) }
    }

    /// A frame has passed.
    pub(super) fn spend(&mut self, bytes: usize, now: u64) {
        self.full_at = self.full_at.max(now).saturating_add(self.time(bytes as u64));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(text: &str) -> NetRate {
        text.parse().unwrap()
    }

    #[test]
    fn a_pause_gives_a_burst_and_no_more() {
        let rate = rate("8mbit");
        let mut bucket = Bucket::new(rate);
        let mut burst = |now| {
            let mut passed = 0_u64;
            while bucket.admits(100, now).is_ok() {
                bucket.spend(100, now);
                passed += 100;
            }
            passed
        };
        let most = u64::from(rate.burst());
        for now in [SECOND, 2 * SECOND, 100 * SECOND] {
            assert!((most - 100..=most).contains(&burst(now)), "at {now}");
            assert_eq!(burst(now), 0);
        }
    }

    #[test]
    fn who_waits_until_the_moment_passes_then() {
        let mut bucket = Bucket::new(rate("8mbit"));
        let now = SECOND;
        bucket.spend(65_000, now);
        let until = bucket.admits(1500, now).unwrap_err();
        assert_eq!(until, now + (65_000 + 1500 - 65_600) * 1000);
        assert!(bucket.admits(1500, until - 1).is_err() && bucket.admits(1500, until).is_ok());
        assert!(bucket.admits(600, now).is_ok(), "a shorter one finds room");
    }

    #[test]
    fn a_frame_longer_than_a_burst_waits_for_a_full_bucket() {
        let mut bucket = Bucket::new(NetRate::LEAST);
        let now = 100 * SECOND;
        assert!(bucket.admits(usize::MAX, now).is_ok());
        bucket.spend(1_000_000, now);
        assert_eq!(bucket.admits(usize::MAX, now), Err(now + 125 * SECOND));
        assert!(bucket.admits(1_000_000, now + 125 * SECOND).is_ok());
        let mut endless = Bucket::new(NetRate::MOST);
        endless.spend(usize::MAX, u64::MAX);
        assert!(endless.admits(1, u64::MAX).is_ok(), "the end of time is no panic");
    }

    proptest! {
        /// Whatever frames come whenever: never more than the rate and one burst, and never less than the rate while some wait.
        #[test]
        fn the_average_is_the_rate(
            bits in NetRate::LEAST.bits()..1_000_000_000,
            frames in proptest::collection::vec((14..65_553_usize, 0..50_000_000_u64), 1..200),
        ) {
            let rate = rate(&format!("{bits}bit"));
            let mut bucket = Bucket::new(rate);
            let (start, mut now, mut passed, mut waited) = (SECOND, SECOND, 0_u64, 0_u64);
            for (bytes, pause) in frames {
                now += pause;
                if let Err(until) = bucket.admits(bytes, now) {
                    prop_assert!(until > now);
                    prop_assert!(bucket.admits(bytes, until - 1).is_err());
                    waited += until - now;
                    now = until;
                }
                prop_assert!(bucket.admits(bytes, now).is_ok());
                bucket.spend(bytes, now);
                passed += bytes as u64;
                let allowed = u128::from(now - start) * u128::from(rate.bytes()) / u128::from(SECOND);
                prop_assert!(u128::from(passed) <= allowed + u128::from(rate.burst()) + 1);
            }
            let needed = u128::from(passed) * u128::from(SECOND) / u128::from(rate.bytes());
            prop_assert!(u128::from(waited) <= needed + 1000, "it waited longer than all bytes take");
        }
    }
}
