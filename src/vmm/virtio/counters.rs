//! What a device did, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one device since it was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Chains served, well or with an error status.
    pub served: Count,
    /// Chains answered with an error status.
    pub refused: Count,
    /// Broken rules ([`super::fault::GuestFault`]).
    pub faults: Count,
    /// Waits that a rate has caused.
    pub delayed: Count,
    /// Register accesses of a wrong width, place or time.
    pub strays: Count,
}

/// A number that only grows, shared between threads.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
