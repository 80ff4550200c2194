//! How many idle sandboxes there could be, and what each costs, beside an earlier sweep.
//!
//! A sweep is one measurement, so its ratios have no interval: what the first holds is a sum of one moment, what each further one adds is
//! a mean over all of them.

use super::{Change, judged};
use crate::compare::density::{Stopped, Sweep};
use crate::compare::record::{ArmRecord, Record};
use crate::compare::stats::Ratio;

/// The figures, in the order of tables. The last is better when it is more.
pub(super) const FIGURES: [(&str, &str); 3] = [
    ("density.first_bytes", "memory of the first of many"),
    ("density.further_bytes", "memory of each further one"),
    ("density.instances", "idle sandboxes reached"),
];

/// What became of the figures that both sweeps of an arm have.
pub(super) fn changes(arm: &ArmRecord, then: &ArmRecord, allowed: f64) -> Vec<Change> {
    let (Some(now), Some(then)) = (&arm.density, &then.density) else { return Vec::new() };
    let [first, further, instances] = FIGURES.map(|(name, _)| name);
    let size = |sweep: &Sweep| sweep.figures.first_bytes.map(float);
    let each = |sweep: &Sweep| sweep.figures.further_bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(float);
    let sizes = [(first, size(now), size(then)), (further, each(now), each(then))];
    let mut found: Vec<Change> = sizes
        .into_iter()
        .filter_map(|(name, now, then)| Some(judged(arm, name, exact(now?, then?)?, true, allowed)))
        .collect();
    found.extend(reached(arm, (now, then), instances, allowed));
    found
}

/// How many were reached. Fewer is worse, so the rule is asked for then over now, and told is now over then as everywhere.
fn reached(arm: &ArmRecord, (now, then): (&Sweep, &Sweep), figure: &str, allowed: f64) -> Option<Change> {
    if limits(now) != limits(then) {
        return None;
    }
    let ratio = exact(float(live(now)), float(live(then)))?;
    // A host that had less to give holds fewer, whatever they cost.
    let fuller = now.stopped == Stopped::Reserve && now.available_before_bytes < then.available_before_bytes;
    let fewer = if live(now) == 0 { f64::INFINITY } else { 1.0 / ratio.ratio };
    let worse = Ratio { ratio: fewer, low: fewer, high: fewer, ..ratio };
    let fate = judged(arm, figure, worse, !fuller || fewer <= 1.0, allowed).fate;
    Some(Change { arm: arm.arm.name.clone(), figure: figure.to_owned(), ratio, fate })
}

/// What only one of the two has, and sweeps that went by other rules, in sentences.
pub(super) fn unequal(now: &Record, then: &Record) -> Vec<String> {
    let pairs = now.arms.iter().filter_map(|arm| Some((arm, then.arms.iter().find(|a| a.arm.name == arm.arm.name)?)));
    let said = pairs.filter_map(|(arm, earlier)| {
        let name = &arm.arm.name;
        let alone = |which| {
            format!("Only the {which} result has idle sandboxes of {name} (--density): they are compared with nothing.")
        };
        match (&arm.density, &earlier.density) {
            (None, Some(_)) => Some(alone("earlier")),
            (Some(_), None) => Some(alone("new")),
            (Some(now), Some(then)) => differ(name, now, then),
            (None, None) => None,
        }
    });
    said.collect()
}

fn differ(name: &str, now: &Sweep, then: &Sweep) -> Option<String> {
    if limits(now) != limits(then) {
        let words = |sweep: &Sweep| {
            let Sweep { most, reserve_bytes, ping_limit_ms, .. } = sweep;
            format!("{most}, a reserve of {reserve_bytes} bytes and answers within {ping_limit_ms} ms")
        };
        return Some(format!(
            "The idle sandboxes of {name} had other limits: {} then, {} now. How many were reached is not compared.",
            words(then),
            words(now)
        ));
    }
    let lost = [(now.figures.first_bytes, then.figures.first_bytes, "the first")];
    let further = |sweep: &Sweep| sweep.figures.further_bytes.and_then(|bytes| u64::try_from(bytes).ok());
    let lost = lost.into_iter().chain([(further(now), further(then), "each further one")]);
    let missing: Vec<&str> =
        lost.filter(|(now, then, _)| now.is_none() != then.is_none()).map(|(_, _, what)| what).collect();
    let what = missing.join(" and of ");
    (!missing.is_empty())
        .then(|| format!("Only one of the results has the memory of {what} of {name}'s idle sandboxes."))
}

/// The rules of a sweep.
fn limits(sweep: &Sweep) -> (u32, u64, f64) {
    (sweep.most, sweep.reserve_bytes, sweep.ping_limit_ms)
}

/// How many lived together.
fn live(sweep: &Sweep) -> u64 {
    sweep.steps.last().map_or(0, |step| step.instances.into())
}

/// A ratio of two single values; none over nothing.
fn exact(now: f64, then: f64) -> Option<Ratio> {
    let ratio = now / then;
    (then > 0.0).then_some(Ratio { ratio, low: ratio, high: ratio, confidence: 1.0 })
}

#[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
fn float(value: u64) -> f64 {
    value as f64
}
