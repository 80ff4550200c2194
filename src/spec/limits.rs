//! Limits of a sandbox, in Docker's notation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;

/// What the host grants one sandbox. `None` is "as the isolation does by default": no limit for a container, the default
/// machine size for a microVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of the workload: the machine's size in a microVM, `memory.max` in a container.
    pub memory: Option<MemorySize>,
    /// Swap of a container whose memory is limited. A microVM has none, inside or on the host.
    #[serde(default)]
    pub swap: MemorySwap,
    /// Processor time: vCPUs (rounded up) and a quota in a microVM, a quota in a container.
    pub cpus: Option<Cpus>,
    /// Most processes and threads at once (`pids.max`).
    pub pids: Option<u32>,
    /// Share of processor time where others want it too, as Docker counts it: 2 to 262144, 1024 if not given.
    #[serde(default)]
    pub cpu_shares: Option<u32>,
}

/// What of a sandbox's limits is to be another. `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    /// Memory.
    pub memory: Option<MemorySize>,
    /// Swap.
    #[serde(default)]
    pub swap: Option<MemorySwap>,
    /// Processor time.
    pub cpus: Option<Cpus>,
    /// Most processes; 0 is no limit.
    pub pids: Option<u32>,
    /// Share of processor time.
    pub cpu_shares: Option<u32>,
}

impl Limits {
    /// With this change.
    #[must_use]
    pub fn changed(self, change: &LimitChange) -> Self {
        Self {
            memory: change.memory.or(self.memory),
            swap: change.swap.unwrap_or(self.swap),
            cpus: change.cpus.or(self.cpus),
            pids: change.pids.map_or(self.pids, |most| Some(most).filter(|most| *most > 0)),
            cpu_shares: change.cpu_shares.or(self.cpu_shares),
        }
    }

    /// The same change of these limits, with memory and swap both in it if one is: what the kernel limits is what one leaves of the other.
    #[must_use]
    pub fn completed(self, change: &LimitChange) -> LimitChange {
        if change.memory.is_none() && change.swap.is_none() {
            return *change;
        }
        let after = self.changed(change);
        LimitChange { memory: after.memory, swap: Some(after.swap), ..*change }
    }
}

/// A size in bytes. Parsed as Docker does: a number with an optional `b`, `k`, `m` or `g` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemorySize(pub u64);

/// How much memory and swap together may be used, in Docker's notation: a size, `-1`, or `0` for what is so if nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemorySwap {
    /// As much swap as memory.
    #[default]
    AsMuchAgain,
    /// So much of both together.
    Total(MemorySize),
    /// All swap that the host has.
    Unlimited,
}

/// Processors in thousandths: `1.5` is `Cpus(1500)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cpus(pub u32);

/// Why a text is not a limit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LimitsError {
    /// Not `<number>[b|k|m|g]`.
    #[error("Memory size '{0}' is not a number with an optional unit b, k, m or g (such as 512m)")]
    Memory(String),
    /// Neither that nor one of Docker's special numbers.
    #[error("Memory and swap '{0}' are neither a size such as 1g nor -1 for no limit of swap")]
    Swap(String),
    /// Not a decimal number of processors above zero with at most three digits behind the point.
    #[error("Number of CPUs '{0}' is not a number between 0.001 and 1024 (such as 1.5)")]
    Cpus(String),
}

impl MemorySize {
    /// Whole MiB, rounded up.
    pub fn mib_ceil(self) -> u64 {
        self.0.div_ceil(MIB)
    }
}

impl FromStr for MemorySize {
    type Err = LimitsError;

    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let refuse = || LimitsError::Memory(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let short = |l: &str| l.strip_suffix('b').filter(|rest| rest.ends_with(['k', 'm', 'g'])).map(str::to_owned);
        let lower = lower.strip_suffix("ib").map(str::to_owned).or_else(|| short(&lower)).unwrap_or(lower);
        let (number, shift) = match lower.as_bytes().last() {
            Some(b'b') => (&lower[..lower.len() - 1], 0),
            Some(b'k') => (&lower[..lower.len() - 1], 10),
            Some(b'm') => (&lower[..lower.len() - 1], 20),
            Some(b'g') => (&lower[..lower.len() - 1], 30),
            _ => (lower.as_str(), 0),
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse());
        }
        let value: u64 = number.parse().map_err(|_| refuse())?;
        value.checked_mul(1 << shift).filter(|v| *v > 0).map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= MIB { write!(f, "{} MiB", self.0 / MIB) } else { write!(f, "{} bytes", self.0) }
    }
}

impl MemorySwap {
    /// No swap at all.
    pub const NONE: Self = Self::Total(MemorySize(0));

    /// Most bytes of swap beside so much memory; `None` is no limit.
    pub fn beside(self, memory: MemorySize) -> Option<u64> {
        match self {
            Self::AsMuchAgain => Some(memory.0),
            Self::Total(total) => Some(total.0.saturating_sub(memory.0)),
            Self::Unlimited => None,
        }
    }
}

impl FromStr for MemorySwap {
    type Err = LimitsError;

    fn from_str(text: &str) -> Result<Self, LimitsError> {
        match text {
            "-1" => Ok(Self::Unlimited),
            "0" => Ok(Self::AsMuchAgain),
            size => size.parse().map(Self::Total).map_err(|_| LimitsError::Swap(text.to_owned())),
        }
    }
}

impl Cpus {
    /// Whole processors, rounded up.
    pub fn ceil(self) -> u32 {
        self.0.div_ceil(1000)
    }
}

impl FromStr for Cpus {
    type Err = LimitsError;

    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let refuse = || LimitsError::Cpus(text.to_owned());
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && part.is_empty()) || !digits(whole) || !digits(part) || part.len() > 3 || whole.len() > 4
        {
            return Err(refuse());
        }
        let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| refuse())? };
        let part: u32 = format!("{part:0<3}").parse().map_err(|_| refuse())?;
        let thousandths = whole * 1000 + part;
        if (1..=1_024_000).contains(&thousandths) { Ok(Self(thousandths)) } else { Err(refuse()) }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let before = Limits { memory: Some(MemorySize(MIB)), pids: Some(7), cpu_shares: Some(2), ..Limits::default() };
        assert_eq!(before.changed(&LimitChange::default()), before);
        let change = LimitChange { cpus: Some(Cpus(500)), pids: Some(0), ..LimitChange::default() };
        assert_eq!(before.changed(&change), Limits { cpus: Some(Cpus(500)), pids: None, ..before });
    }

    #[test]
    fn memory_sizes_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("512m", 512 * MIB),
            ("1g", 1 << 30),
            ("1GiB", 1 << 30),
            ("4096", 4096),
            ("64k", 65536),
            ("64kb", 65536),
            ("7b", 7),
        ] {
            assert_eq!(text.parse::<MemorySize>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "m", "-1m", "1.5g", "0", "99999999999999999999", "18446744073709551615g", "1t"] {
            assert!(bad.parse::<MemorySize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn swap_is_what_memory_leaves() {
        let memory = MemorySize(64 * MIB);
        for (text, swap) in [("0", Some(64 * MIB)), ("64m", Some(0)), ("96m", Some(32 * MIB)), ("-1", None)] {
            assert_eq!(text.parse::<MemorySwap>().unwrap().beside(memory), swap, "{text}");
        }
        for bad in ["", "-2", "x", "1.5g"] {
            assert!(bad.parse::<MemorySwap>().is_err(), "{bad}");
        }
        let before = Limits { memory: Some(memory), swap: MemorySwap::Unlimited, ..Limits::default() };
        let change = LimitChange { memory: Some(MemorySize(MIB)), ..LimitChange::default() };
        assert_eq!(before.completed(&change).swap, Some(MemorySwap::Unlimited));
        let change = LimitChange { swap: Some(MemorySwap::NONE), ..LimitChange::default() };
        assert_eq!(before.completed(&change), LimitChange { memory: Some(memory), ..change });
        let change = LimitChange { pids: Some(1), ..LimitChange::default() };
        assert_eq!(before.completed(&change), change);
    }

    #[test]
    fn cpus_are_thousandths() {
        for (text, value) in [("1", 1000), ("1.5", 1500), (".5", 500), ("0.001", 1), ("8", 8000)] {
            assert_eq!(text.parse::<Cpus>().unwrap().0, value, "{text}");
        }
        for bad in ["", ".", "0", "0.0", "1.2345", "-1", "9999", "1e3"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }
}
