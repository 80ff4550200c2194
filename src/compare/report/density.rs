//! What idle sandboxes cost, over how many there are.

use maud::{Markup, html};

use super::ReportError;
use super::figures::{MEBIBYTE, arms_key, figure, mebibytes};
use super::ink::Ink;
use super::plot::{self, Line};
use super::tables::float;
use crate::compare::density::words::{METHOD, ROWS, cells, sentences, signed, swept};
use crate::compare::density::{Crowded, Sweep};
use crate::compare::record::{ArmRecord, Record};
use crate::compare::words::{bytes, milliseconds};

/// The sweeps, if there are any.
pub(super) fn density(record: &Record) -> Result<Markup, ReportError> {
    let swept = swept(&record.arms);
    if swept.is_empty() {
        return Ok(html! {});
    }
    let memory = lines(record, |_, step| Some(float(step.memory_bytes?) / MEBIBYTE));
    let fall = lines(record, |sweep, step| {
        Some((float(sweep.available_before_bytes?) - float(step.available_bytes?)) / MEBIBYTE)
    });
    let along = "idle sandboxes that live";
    let of_all = "Memory of all sandboxes of an arm: a line that is flatter is a further sandbox that costs less.";
    let of_host = "By how much MemAvailable of the host has fallen since before the first.";
    Ok(html! {
        section #density {
            h2 { "How many fit" }
            @for sentence in sentences(record) { p { (sentence) } }
            (arms_key(record))
            @if !memory.is_empty() {
                (figure("the memory of idle sandboxes", plot::lines(&memory, along, ("memory of all", mebibytes)), of_all)?)
            }
            @if !fall.is_empty() {
                (figure("the fall of MemAvailable", plot::lines(&fall, along, ("fall of MemAvailable", mebibytes)), of_host)?)
            }
            (figures(&swept))
            details {
                summary { "Every step" }
                (steps(&swept))
            }
            p .faint { (METHOD) }
        }
    })
}

fn lines(record: &Record, value: fn(&Sweep, &Crowded) -> Option<f64>) -> Vec<Line> {
    let of = |sweep: &Sweep| {
        sweep.steps.iter().filter_map(|step| Some((step.instances, value(sweep, step)?))).collect::<Vec<_>>()
    };
    let arms = record.arms.iter().enumerate();
    let lines = arms.filter_map(|(at, arm)| Some(Line { ink: Ink::of_arm(at), points: of(arm.density.as_ref()?) }));
    lines.filter(|line| !line.points.is_empty()).collect()
}

fn figures(swept: &[(&ArmRecord, &Sweep)]) -> Markup {
    let columns: Vec<_> = swept.iter().map(|(_, sweep)| cells(sweep)).collect();
    html! {
        div .wide { table #crowds {
            thead { tr { th {} @for (arm, _) in swept { th { (arm.arm.name) } } } }
            tbody { @for (row, name) in ROWS.iter().enumerate() {
                tr { td { (name) } @for column in &columns { td { (column[row]) } } }
            } }
        } }
    }
}

fn steps(swept: &[(&ArmRecord, &Sweep)]) -> Markup {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let fall = |sweep: &Sweep, step: &Crowded| {
        let (before, now) = (i128::from(sweep.available_before_bytes?), i128::from(step.available_bytes?));
        i64::try_from(before - now).ok().map(signed)
    };
    html! {
        div .wide { table #crowd-steps {
            thead { tr { @for head in ["arm", "live", "memory of all", "fall of MemAvailable", "pings", "median", "worst"] { th { (head) } } } }
            @for (arm, sweep) in swept { tbody { @for step in &sweep.steps { tr {
                td { (arm.arm.name) } td { (step.instances) }
                td { (known(step.memory_bytes.map(|size| bytes(float(size))))) }
                td { (known(fall(sweep, step))) }
                td { (step.pings_ms.len()) }
                td { (known(step.ping_median_ms.map(milliseconds))) }
                td { (known(step.ping_worst_ms.map(milliseconds))) }
            } } } }
        } }
    }
}
