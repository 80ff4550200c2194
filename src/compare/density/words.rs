//! A sweep in words and cells, the same in every form of the result.

use super::{Stopped, Sweep};
use crate::compare::record::{ArmRecord, Record};
use crate::compare::words::{bytes, milliseconds};

/// What is measured, and what is not.
pub(in crate::compare) const METHOD: &str = "Idle sandboxes of the embedded image's cat start one after another and stay. At 1, 2, 4, 8 and so on, and at the last, \
    when their memory has become calm or after 5 s, are taken: their memory, all together, counted as for one that is idle, where what \
    several map is counted once; how far the host's MemAvailable has fallen since before the first, in which what no process maps \
    counts too, and what else went on on the host meanwhile, but not pages of files that could be dropped; and how long each takes to \
    answer a line through its standard input and output, one after another, three times over. Not measured: sandboxes that work, \
    networks, volumes, several starts at once, swap.";

/// The arms that were swept, if any was.
pub(in crate::compare) fn swept(arms: &[ArmRecord]) -> Vec<(&ArmRecord, &Sweep)> {
    arms.iter().filter_map(|arm| Some((arm, arm.density.as_ref()?))).collect()
}

/// What the rows of [`cells`] are.
pub(in crate::compare) const ROWS: [&str; 7] = [
    "idle sandboxes",
    "memory of the first",
    "memory of each further one",
    "MemAvailable, each",
    "ping with 1: median, worst",
    "ping with all: median, worst",
    "stopped by",
];

/// One arm's column.
pub(in crate::compare) fn cells(sweep: &Sweep) -> [String; 7] {
    let (first, last) = (sweep.steps.first(), sweep.steps.last());
    let ping = |step: Option<&super::Crowded>| {
        let step = step?;
        Some(format!("{}, {}", milliseconds(step.ping_median_ms?), milliseconds(step.ping_worst_ms?)))
    };
    [
        Some(last.map_or(0, |step| step.instances).to_string()),
        sweep.figures.first_bytes.map(|size| bytes(float(size))),
        sweep.figures.further_bytes.map(signed),
        sweep.figures.available_each_bytes.map(signed),
        ping(first.filter(|step| step.instances == 1)),
        ping(last),
        Some(rule(sweep)),
    ]
    .map(|cell| cell.unwrap_or_else(|| "-".to_owned()))
}

/// The rule that stopped it, with its limit.
fn rule(sweep: &Sweep) -> String {
    let live = sweep.steps.last().map_or(0, |step| step.instances);
    match sweep.stopped {
        Stopped::Most => format!("{} asked for", sweep.most),
        Stopped::Reserve => format!("reserve of {}", bytes(float(sweep.reserve_bytes))),
        Stopped::Ping => format!("ping over {}", milliseconds(sweep.ping_limit_ms)),
        Stopped::Start => format!("start {} failed", u64::from(live) + 1),
        Stopped::Silent => "no answer".to_owned(),
    }
}

/// What is to be told of these sweeps beside their figures, a sentence each: the extrapolation, and what went wrong.
pub(in crate::compare) fn sentences(record: &Record) -> Vec<String> {
    let swept = swept(&record.arms);
    let mut said = Vec::new();
    if swept.is_empty() {
        return said;
    }
    said.push(extrapolation(&swept));
    for (arm, sweep) in swept {
        let name = &arm.arm.name;
        let why = sweep.words.as_deref().map_or_else(String::new, |words| format!(": {words}"));
        match sweep.stopped {
            _ if sweep.steps.is_empty() => {
                said.push(format!("Left out: {name} has no idle sandbox here, {}{why}.", rule(sweep)))
            }
            Stopped::Start | Stopped::Silent => said.push(format!("{name} stopped, {}{why}.", rule(sweep))),
            _ => {}
        }
        if sweep.ended_badly > 0 {
            said.push(format!("Of {name}, {} did not end by themselves with exit code 0.", sweep.ended_badly));
        }
    }
    if record.host.lab {
        said.push("Pings of the lab are those of an emulated processor; its memory is counted as anywhere.".to_owned());
    }
    said
}

fn extrapolation(swept: &[(&ArmRecord, &Sweep)]) -> String {
    let (mut parts, mut unknown) = (Vec::new(), Vec::new());
    for (arm, sweep) in swept {
        let name = &arm.arm.name;
        match (sweep.figures.would_hold, sweep.figures.further_each(), sweep.available_before_bytes) {
            (Some(count), Some(each), Some(before)) => parts.push(format!(
                "{} idle sandboxes of {name} ({} at {} for each further one)",
                about(count),
                bytes(float(before.saturating_sub(sweep.reserve_bytes))),
                signed(each)
            )),
            _ => unknown.push(name.as_str()),
        }
    }
    let reserve = swept.first().map_or(0, |(_, sweep)| sweep.reserve_bytes);
    let mut said = String::new();
    if !parts.is_empty() {
        said = format!(
            "Extrapolated, not measured: less a reserve of {}, this host's memory would hold {}. Each further one is taken at what is \
            more of its memory and its part of MemAvailable; nothing but memory is considered.",
            bytes(float(reserve)),
            parts.join(", or ")
        );
    }
    if !unknown.is_empty() {
        let space = if said.is_empty() { "" } else { " " };
        said.push_str(&format!("{space}These figures cannot tell how many fit of {}.", unknown.join(", ")));
    }
    said
}

/// Two digits of a number, downwards: more are not known.
fn about(count: u64) -> String {
    let unit = 10_u64.pow(count.checked_ilog10().unwrap_or(0).saturating_sub(1));
    let down = count / unit * unit;
    if down == count { count.to_string() } else { format!("about {down}") }
}

/// A size that may be less than nothing.
pub(in crate::compare) fn signed(size: i64) -> String {
    format!("{}{}", if size < 0 { "-" } else { "" }, bytes(float(size.unsigned_abs())))
}

#[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
fn float(size: u64) -> f64 {
    size as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_more_digits_than_are_known() {
        assert_eq!([0, 7, 42, 120, 123, 98_765].map(about), ["0", "7", "42", "120", "about 120", "about 98000"]);
        assert_eq!([-3 * 1_048_576, 0, 4096].map(signed), ["-3.0 MiB", "0 B", "4 KiB"]);
    }
}
