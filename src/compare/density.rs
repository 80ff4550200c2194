//! What the first and what each further idle sandbox costs the host, and how many it takes until something gives out.
//!
//! ```text
//! [before] -> add -> add -> ... -> add -> end of all
//!              |      |             |
//!          at 1, 2, 4, 8 ... and the last: memory of all, MemAvailable, pings to all
//! ```
//!
//! A rule that stops the sweep is a result and not a failure, that no further sandbox can be started too: it is what was looked for.

use std::error::Error;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::meters::MemorySample;
use super::runner::{Crowd, RunnerError};
use super::stats::{Spread, rounded};
use crate::spec::MIB;

pub(super) mod words;

/// Most characters that are kept of why a sandbox did not start or answer.
const WORDS: usize = 600;
/// Least memory that is left to the host, in bytes, however small it is.
const LEAST_RESERVE: u64 = 256 * MIB;

/// How far a sweep may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density {
    /// Most sandboxes of one arm.
    pub most: u32,
    /// Below so many bytes of MemAvailable no further one is started; if not given, a tenth of the host's memory or 256 MiB, whichever is more.
    pub reserve_bytes: Option<u64>,
    /// When an answer to a ping took longer than this, no further one is started.
    pub ping: Duration,
}

impl Density {
    /// What is left to a host with this much memory, in bytes.
    pub fn reserve(&self, host_bytes: Option<u64>) -> u64 {
        self.reserve_bytes.unwrap_or_else(|| LEAST_RESERVE.max(host_bytes.unwrap_or(0) / 10))
    }

    fn looks_at(&self, count: u32) -> bool {
        count.is_power_of_two() || count == self.most
    }
}

/// A whole sweep of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// Most sandboxes that were asked for.
    pub most: u32,
    /// What was to be left of the host's MemAvailable, in bytes.
    pub reserve_bytes: u64,
    /// How long an answer was allowed to take.
    pub ping_limit_ms: f64,
    /// MemAvailable before the first, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_before_bytes: Option<u64>,
    /// What was seen, from the first sandbox on.
    pub steps: Vec<Crowded>,
    /// Which rule stopped it.
    pub stopped: Stopped,
    /// Why the next did not start, or one did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
    /// How many did not end by themselves with exit code 0 when all were over.
    #[serde(default, skip_serializing_if = "nobody")]
    pub ended_badly: u32,
    /// Numbers about the steps.
    pub figures: Figures,
}

fn nobody(count: &u32) -> bool {
    *count == 0
}

/// So many idle sandboxes, looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crowded {
    /// How many live.
    pub instances: u32,
    /// Memory of all of them, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What that is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_parts: Option<MemorySample>,
    /// MemAvailable of the host, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Median of `pings_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ping_median_ms: Option<f64>,
    /// The longest of `pings_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ping_worst_ms: Option<f64>,
    /// How long the answers took, all to the first time, then all to the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pings_ms: Vec<f64>,
}

/// The rule that stopped a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// As many live as were asked for.
    Most,
    /// MemAvailable fell below the reserve.
    Reserve,
    /// An answer took longer than allowed.
    Ping,
    /// The next did not start.
    Start,
    /// One did not answer.
    Silent,
}

/// Numbers about a sweep; what was not measured is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Memory of the first, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_bytes: Option<u64>,
    /// By how much each further one raises that of all: from the first step to the last, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub further_bytes: Option<i64>,
    /// How much each takes of MemAvailable: from before the first to the last step, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_each_bytes: Option<i64>,
    /// How much each further one takes of MemAvailable: from the first step to the last, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_further_bytes: Option<i64>,
    /// How many the host's memory would hold above the reserve, worked out and not measured: after the first, each takes what is more of
    /// `further_bytes` and `available_further_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_hold: Option<u64>,
}

impl Figures {
    /// Of these steps.
    fn of(before: Option<u64>, reserve: u64, steps: &[Crowded]) -> Self {
        let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return Self::default() };
        let more = last.instances.saturating_sub(first.instances);
        let fall = |from: Option<u64>, to: Option<u64>, over| each(difference(from?, to?), over);
        let mut figures = Self {
            first_bytes: first.memory_bytes.filter(|_| first.instances == 1),
            further_bytes: fall(last.memory_bytes, first.memory_bytes, more),
            available_each_bytes: fall(before, last.available_bytes, last.instances),
            available_further_bytes: fall(first.available_bytes, last.available_bytes, more),
            would_hold: None,
        };
        figures.would_hold = figures.hold(before, reserve, (first, last));
        figures
    }

    /// See [`Figures::would_hold`].
    fn hold(&self, before: Option<u64>, reserve: u64, (first, last): (&Crowded, &Crowded)) -> Option<u64> {
        let further = u64::try_from(self.further_each()?).ok().filter(|bytes| *bytes > 0)?;
        let taken = before?.saturating_sub(first.available_bytes?).max(self.first_bytes?);
        let room = before?.saturating_sub(reserve).saturating_sub(taken);
        // What lived together fits, whatever else moved the host's memory meanwhile.
        Some((1 + room / further).max(u64::from(last.instances)))
    }

    /// What is more of the two ways to count a further one, in bytes.
    pub(super) fn further_each(&self) -> Option<i64> {
        Some(self.further_bytes?.max(self.available_further_bytes?))
    }
}

/// `a` less `b`, which may be less than nothing.
fn difference(a: u64, b: u64) -> i64 {
    let size = i64::try_from(a.abs_diff(b)).unwrap_or(i64::MAX);
    if a >= b { size } else { -size }
}

fn each(bytes: i64, over: u32) -> Option<i64> {
    bytes.checked_div(i64::from(over))
}

/// Adds sandboxes until a rule stops it. The caller ends them. It fails only when somebody asked for the end.
pub(super) fn sweep(
    limits: &Density,
    host_bytes: Option<u64>,
    crowd: &mut dyn Crowd,
    watch: &mut dyn FnMut(u32),
) -> Result<Sweep, RunnerError> {
    let reserve = limits.reserve(host_bytes);
    let before = crowd.settle()?.available_bytes;
    let mut steps: Vec<Crowded> = Vec::new();
    let mut words = None;
    let mut count = 0;
    let mut stopped = loop {
        if count >= limits.most {
            break Stopped::Most;
        }
        // What cannot be read is no reason to go on.
        if crowd.available().is_none_or(|bytes| bytes < reserve) {
            break Stopped::Reserve;
        }
        if let Err(error) = crowd.add() {
            words = Some(said(error)?);
            break Stopped::Start;
        }
        count += 1;
        if limits.looks_at(count)
            && let Some(why) = look(count, limits, crowd, &mut steps, &mut words)?
        {
            break why;
        }
        watch(count);
    };
    if steps.last().map_or(0, |step| step.instances) < count {
        let why = look(count, limits, crowd, &mut steps, &mut words)?;
        // That one is silent is worse than what ended the sweep; a slow answer is not.
        stopped = why.filter(|why| *why == Stopped::Silent && stopped != Stopped::Start).unwrap_or(stopped);
    }
    Ok(Sweep {
        most: limits.most,
        reserve_bytes: reserve,
        ping_limit_ms: milliseconds(limits.ping),
        available_before_bytes: before,
        figures: Figures::of(before, reserve, &steps),
        steps,
        stopped,
        words,
        ended_badly: 0,
    })
}

/// Looks at what lives; answers with the rule that this breaks.
fn look(
    count: u32,
    limits: &Density,
    crowd: &mut dyn Crowd,
    steps: &mut Vec<Crowded>,
    words: &mut Option<String>,
) -> Result<Option<Stopped>, RunnerError> {
    let look = crowd.settle()?;
    let (pings, mut broken) = match crowd.ping() {
        Ok(pings) => (pings, None),
        Err(error) => {
            let why = said(error)?;
            words.get_or_insert(why);
            (Vec::new(), Some(Stopped::Silent))
        }
    };
    if pings.iter().any(|ping| *ping > limits.ping) {
        broken = Some(Stopped::Ping);
    }
    let pings_ms: Vec<f64> = pings.into_iter().map(milliseconds).collect();
    let spread = Spread::of(&pings_ms);
    steps.push(Crowded {
        instances: count,
        memory_bytes: look.memory.map(|memory| memory.total()),
        memory_parts: look.memory,
        available_bytes: look.available_bytes,
        ping_median_ms: spread.map(|spread| spread.median),
        ping_worst_ms: spread.map(|spread| spread.max),
        pings_ms,
    });
    Ok(broken)
}

/// What a failure says, with its causes; that somebody asked for the end goes on as such.
fn said(error: RunnerError) -> Result<String, RunnerError> {
    if matches!(error, RunnerError::Interrupted) {
        return Err(error);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(line.chars().take(WORDS).collect())
}

fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1e3, 1e3)
}

#[cfg(test)]
pub(super) mod tests;
