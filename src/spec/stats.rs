//! What a sandbox uses and what runs in it, at one moment.

use serde::{Deserialize, Serialize};

pub use duplex_wire::{Counters, ProcessEntry};

/// What a sandbox uses, seen from both sides of its walls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// What its processes use: for a microVM as its own kernel counts. `None` while it cannot be asked.
    pub inside: Option<Counters>,
    /// What it costs this host, its machine included. For a container the same as `inside`.
    pub host: Counters,
}
