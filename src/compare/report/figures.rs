//! The page's sections with drawings: what is drawn, its key, its words.

use maud::{Markup, PreEscaped, html};

use super::ReportError;
use super::ink::Ink;
use super::plot::{self, Axis, Bar, Interval, Plotted, Samples};
use super::tables;
use crate::compare::record::{ArmRecord, MEMORY, Record, Run};
use crate::compare::words::{bytes, figure_label, memory_label, milliseconds, phase_label};
use crate::spec::Phase;

/// Sizes are drawn in these, so that the numbers of an axis are round.
pub(super) const MEBIBYTE: f64 = 1_048_576.0;

/// So many of them, in words.
pub(super) fn mebibytes(count: f64) -> String {
    bytes(count * MEBIBYTE)
}

/// A drawing with its words.
pub(super) fn figure(what: &'static str, plotted: Plotted, words: &str) -> Result<Markup, ReportError> {
    let svg = plotted.map_err(|source| ReportError::Plot { what, source })?;
    Ok(html! {
        figure role="group" aria-label=(what) {
            div .wide { (PreEscaped(svg)) }
            figcaption { (words) }
        }
    })
}

fn key(items: impl IntoIterator<Item = (Ink, String)>) -> Markup {
    html! {
        ul .key {
            @for (ink, name) in items {
                li { i data-ink=(ink.light()) style=(format!("background:{}", ink.light())) {} (name) }
            }
        }
    }
}

/// The arms' starts side by side, phase by phase.
pub(super) fn starts(record: &Record) -> Result<Markup, ReportError> {
    let phases: Vec<(usize, Phase)> = Phase::ALL
        .iter()
        .enumerate()
        .map(|(at, (phase, _))| (at, *phase))
        .filter(|(_, phase)| record.arms.iter().any(|a| a.summary.phases_ms.contains_key(phase.name())))
        .collect();
    let of = |arm: &ArmRecord, phase: Phase| arm.summary.phases_ms.get(phase.name()).map(|s| s.median);
    let bars: Vec<Bar> = record
        .arms
        .iter()
        .map(|arm| Bar {
            name: arm.arm.name.clone(),
            parts: phases.iter().filter_map(|(at, p)| Some((Ink::of_part(*at), of(arm, *p)?))).collect(),
            note: arm.summary.total_ms.map_or_else(String::new, |s| milliseconds(s.median)),
        })
        .collect();
    let axis = Axis { title: "time since the exec of duplex run", show: milliseconds };
    let words = "Medians of the phases, one behind the other; behind the bar the median of whole runs.";
    Ok(html! {
        section #starts {
            h2 { "Where a run's time goes" }
            (key(phases.iter().map(|(at, p)| (Ink::of_part(*at), phase_label(*p).to_owned()))))
            (figure("the phases of a run", plot::bars(&bars, axis), words)?)
            (tables::phases(record, &phases))
        }
    })
}

fn samples_of(record: &Record, figure: &str) -> Vec<Samples> {
    let values = |arm: &ArmRecord, warmup: bool| {
        let runs = arm.runs.iter().filter(|r| r.warmup == warmup);
        runs.filter_map(|r: &Run| Some((r.round, r.figure(figure)?))).collect::<Vec<_>>()
    };
    let all = record.arms.iter().enumerate().map(|(at, arm)| Samples {
        name: arm.arm.name.clone(),
        ink: Ink::of_arm(at),
        counted: values(arm, false),
        warmup: values(arm, true),
    });
    all.filter(|samples| !samples.counted.is_empty()).collect()
}

/// How the samples lie, and whether they drift.
pub(super) fn samples(record: &Record) -> Result<Markup, ReportError> {
    let words = "Each dot is a run. The box holds the middle half, the line is the median; a ring is a run far from the others, and it counts like all.";
    let drift = "The same runs by round: rings are rounds to warm up, which do not count.";
    let mut parts = Vec::new();
    for (name, title) in [("first_byte_ms", "time to the first byte"), ("total_ms", "time to the end")] {
        let arms = samples_of(record, name);
        if arms.is_empty() {
            continue;
        }
        let axis = Axis { title, show: milliseconds };
        parts.push(html! {
            h3 { "To the " (if name == "total_ms" { "end" } else { "first byte" }) }
            (figure("all samples of an arm", plot::strips(&arms, axis), words)?)
            (figure("all samples by round", plot::by_round(&arms, title, milliseconds), drift)?)
        });
    }
    Ok(html! {
        section #samples {
            h2 { "Every sample" }
            (arms_key(record))
            @for part in &parts { (part) }
            (tables::quantiles(record))
        }
    })
}

/// The colour of each arm.
pub(super) fn arms_key(record: &Record) -> Markup {
    key(record.arms.iter().enumerate().map(|(at, arm)| (Ink::of_arm(at), arm.arm.name.clone())))
}

/// What the measuring programs said: their ratios, then the times.
pub(super) fn programs(record: &Record) -> Result<Markup, ReportError> {
    let Some((base, others)) = record.arms.split_first() else { return Ok(html! {}) };
    if base.summary.measured_ns.is_empty() {
        return Ok(html! {});
    }
    let rows = intervals(record, |figure| figure.starts_with("measured_ns."));
    let words = "Each program does the same work in every arm and times it by the sandbox's own clock; more is slower.";
    Ok(html! {
        section #programs-measured {
            h2 { "The programs that measure, beside " (base.arm.name) }
            (arms_key(record))
            (figure("the measuring programs", plot::intervals(&rows), words)?)
            (tables::measured(record, base, others))
        }
    })
}

/// All other ratios with their intervals.
pub(super) fn ratios(record: &Record) -> Result<Markup, ReportError> {
    let rows = intervals(record, |figure| !figure.starts_with("measured_ns."));
    let words = "A dot is the ratio of the medians, the line its 99 % interval. An interval that holds 1 shows no difference, or is too wide to tell.";
    Ok(html! {
        section #ratios {
            h2 { "Beside " (record.arms.first().map_or("", |a| a.arm.name.as_str())) ", figure by figure" }
            (arms_key(record))
            (figure("the ratios with their intervals", plot::intervals(&rows), words)?)
        }
    })
}

/// The comparisons of these figures.
fn intervals(record: &Record, wanted: fn(&str) -> bool) -> Vec<Interval> {
    let place = |name: &str| record.arms.iter().position(|a| a.arm.name == name).unwrap_or(0);
    let mut figures: Vec<&str> = Vec::new();
    for compared in record.comparisons.iter().filter(|c| wanted(&c.figure)) {
        if !figures.contains(&compared.figure.as_str()) {
            figures.push(&compared.figure);
        }
    }
    figures
        .iter()
        .flat_map(|figure| record.comparisons.iter().filter(move |c| c.figure == **figure))
        .map(|c| Interval {
            name: format!("{}: {}", c.arm, figure_label(&c.figure)),
            ink: Ink::of_arm(place(&c.arm)),
            ratio: c.ratio.ratio,
            low: c.ratio.low,
            high: c.ratio.high,
            note: c.verdict.words().to_owned(),
        })
        .collect()
}

/// Memory of the host, by kind.
pub(super) fn memory(record: &Record) -> Result<Markup, ReportError> {
    let mut bars = Vec::new();
    for kind in MEMORY {
        for (at, arm) in record.arms.iter().enumerate() {
            if let Some(spread) = arm.summary.memory_bytes.get(kind) {
                bars.push(Bar {
                    name: format!("{}: {}", arm.arm.name, memory_label(kind).trim_start_matches("memory, ")),
                    parts: vec![(Ink::of_arm(at), spread.median / MEBIBYTE)],
                    note: bytes(spread.median),
                });
            }
        }
    }
    if bars.is_empty() {
        return Ok(html! {});
    }
    let words = "idle: a sandbox that waits for input. highest: the highest sample while the command ran. cgroup peak: the kernel's own count of the sandbox's cgroup, page cache included.";
    let axis = Axis { title: "memory of the host", show: mebibytes };
    Ok(html! {
        section #memory {
            h2 { "Memory that it costs the host" }
            (figure("memory", plot::bars(&bars, axis), words)?)
        }
    })
}

/// Bytes on disk, by part.
pub(super) fn disk(record: &Record) -> Result<Markup, ReportError> {
    let mut names: Vec<&String> = record.arms.iter().flat_map(|a| a.disk_bytes.keys()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Ok(html! {});
    }
    let bars: Vec<Bar> = record
        .arms
        .iter()
        .map(|arm| Bar {
            name: arm.arm.name.clone(),
            parts: names
                .iter()
                .enumerate()
                .filter_map(|(at, name)| {
                    Some((Ink::of_part(at), tables::float(*arm.disk_bytes.get(*name)?) / MEBIBYTE))
                })
                .collect(),
            note: bytes(tables::float(arm.summary.disk_bytes)),
        })
        .collect();
    let axis = Axis { title: "bytes on disk", show: mebibytes };
    Ok(html! {
        section #disk {
            h2 { "What it needs on disk" }
            (key(names.iter().enumerate().map(|(at, name)| (Ink::of_part(at), (*name).clone()))))
            (figure("bytes on disk", plot::bars(&bars, axis), "Beside duplex itself. All sandboxes of an image share these.")?)
        }
    })
}
