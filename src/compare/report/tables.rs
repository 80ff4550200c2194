//! The page's tables.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use crate::compare::baseline::{Against, Fate, label};
use crate::compare::record::{ArmRecord, Record};
use crate::compare::verdict::Verdict;
use crate::compare::words::{bytes, figure_label, memory_label, milliseconds, nanoseconds, phase_label, times};
use crate::spec::Phase;

/// A count for arithmetic.
#[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

fn pill(verdict: Verdict) -> Markup {
    let class = match verdict {
        Verdict::Slower | Verdict::More => "verdict up",
        Verdict::Faster | Verdict::Less => "verdict down",
        Verdict::NoDifferenceSeen => "verdict none",
        Verdict::CannotTell => "verdict open",
    };
    html! { span class=(class) { (verdict.words()) } }
}

/// The figures that decide, with a verdict each.
pub(super) fn verdicts(record: &Record, base: &ArmRecord, others: &[ArmRecord]) -> Markup {
    let value = |arm: &ArmRecord, figure: &str| match figure.split_once('.') {
        Some((_, kind)) => arm.summary.memory_bytes.get(kind).map(|s| bytes(s.median)),
        None if figure == "total_ms" => arm.summary.total_ms.map(|s| milliseconds(s.median)),
        None => arm.summary.first_byte_ms.map(|s| milliseconds(s.median)),
    };
    let shown = |arm: &ArmRecord, figure: &str| value(arm, figure).unwrap_or_else(|| "-".to_owned());
    let find = |arm: &ArmRecord, figure: &str| {
        record.comparisons.iter().find(|c| c.arm == arm.arm.name && c.figure == figure).cloned()
    };
    let mut figures = vec!["first_byte_ms", "total_ms", "memory_bytes.idle", "memory_bytes.peak"];
    figures.retain(|figure| record.arms.iter().any(|arm| value(arm, figure).is_some()));
    html! {
        div .wide { table #verdicts {
            caption { "Medians, and their ratio to that of " (base.arm.name) " with its 99 % interval" }
            thead { tr { th {} th .words { "arm" } th { "median" } th { "ratio" } th {} } }
            @for figure in figures {
                tbody {
                    @for (at, arm) in std::iter::once(base).chain(others).enumerate() {
                        tr {
                            td { @if at == 0 { (figure_label(figure)) } }
                            td .words { (arm.arm.name) }
                            td { (shown(arm, figure)) }
                            @if let Some(c) = find(arm, figure) {
                                td { (times(c.ratio.ratio)) " [" (times(c.ratio.low)) ", " (times(c.ratio.high)) "]" }
                                td .words { (pill(c.verdict)) }
                            } @else { td {} td {} }
                        }
                    }
                }
            }
        } }
    }
}

/// What became of an earlier result.
pub(super) fn against(against: &Against) -> Markup {
    let when = i64::try_from(against.began_unix_s).ok().and_then(|s| DateTime::<Utc>::from_timestamp(s, 0));
    let class = |fate| match fate {
        Fate::Regressed => "verdict up",
        Fate::Held => "verdict none",
        Fate::CannotTell => "verdict open",
    };
    html! {
        section #baseline {
            h2 { "Beside the earlier result" @if let Some(when) = when { " of " (when.format("%Y-%m-%d %H:%M UTC")) } }
            @if let Some(arm) = &against.relative_to { p { "Made in the lab: times are those of an arm divided by those of " (arm) ", then and now." } }
            ul { @for line in &against.unequal { li { (line) } } }
            div .wide { table #changes {
                thead { tr { th { "arm" } th .words { "figure" } th { "now over then" } th {} } }
                tbody { @for c in &against.changes { tr {
                    td { (c.arm) } td .words { (label(&c.figure)) }
                    td { (times(c.ratio.ratio)) " [" (times(c.ratio.low)) ", " (times(c.ratio.high)) "]" }
                    td .words { span class=(class(c.fate)) { (c.fate.words()) } }
                } } }
            } }
        }
    }
}

/// Phases by arm.
pub(super) fn phases(record: &Record, phases: &[(usize, Phase)]) -> Markup {
    html! {
        div .wide { table {
            thead { tr { th { "phase" } @for arm in &record.arms { th { (arm.arm.name) } } } }
            tbody {
                @for (_, phase) in phases {
                    tr {
                        td { (phase_label(*phase)) }
                        @for arm in &record.arms {
                            td { @match arm.summary.phases_ms.get(phase.name()) { Some(s) => (milliseconds(s.median)), None => "-" } }
                        }
                    }
                }
            }
        } }
    }
}

/// Where the samples lie, in numbers.
pub(super) fn quantiles(record: &Record) -> Markup {
    let rows = record.arms.iter().flat_map(|arm| {
        [("first_byte_ms", arm.summary.first_byte_ms), ("total_ms", arm.summary.total_ms)]
            .into_iter()
            .filter_map(move |(figure, spread)| Some((arm, figure, spread?)))
    });
    html! {
        div .wide { table #quantiles {
            thead { tr { @for head in ["", "runs", "least", "quarter", "median", "three quarters", "90 %", "99 %", "most", "far off"] { th { (head) } } } }
            tbody {
                @for (arm, figure, s) in rows {
                    tr {
                        td { (arm.arm.name) ", " (figure_label(figure)) }
                        td { (s.n) }
                        @for value in [s.min, s.q1, s.median, s.q3, s.p90, s.p99, s.max] { td { (milliseconds(value)) } }
                        td { (s.outliers) }
                    }
                }
            }
        } }
    }
}

/// What the measuring programs said, by arm.
pub(super) fn measured(record: &Record, base: &ArmRecord, others: &[ArmRecord]) -> Markup {
    let find = |arm: &ArmRecord, name: &str| {
        record.comparisons.iter().find(|c| c.arm == arm.arm.name && c.figure.strip_prefix("measured_ns.") == Some(name))
    };
    let value = |arm: &ArmRecord, name: &str| {
        arm.summary.measured_ns.get(name).map_or(String::new(), |s| nanoseconds(s.median))
    };
    html! {
        div .wide { table #programs {
            thead { tr {
                th { "program" } th .words { "per" } th { (base.arm.name) }
                @for arm in others { th { (arm.arm.name) } th { "ratio" } th {} }
            } }
            tbody { @for name in base.summary.measured_ns.keys() { tr {
                td { (name) } td .words { (record.units.get(name).map_or("", String::as_str)) } td { (value(base, name)) }
                @for arm in others {
                    td { (value(arm, name)) }
                    @if let Some(c) = find(arm, name) { td { (times(c.ratio.ratio)) } td .words { (pill(c.verdict)) } } @else { td {} td {} }
                }
            } } }
        } }
    }
}

/// The proofs that settings took effect.
pub(super) fn controls(record: &Record) -> Markup {
    html! {
        h3 { "Proofs that each arm is what it says" }
        div .wide { table #controls {
            thead { tr { th { "arm" } th .words { "what" } th .words { "must be" } th .words { "is" } } }
            tbody {
                @for arm in &record.arms { @for control in &arm.controls {
                    tr { td { (arm.arm.name) } td .words { (control.name) } td .long { (control.expected) } td .long { (control.found) } }
                } }
            }
        } }
    }
}

/// Facts that decide how fast things are here.
pub(super) fn host(record: &Record) -> Markup {
    let host = &record.host;
    let text = |value: &Option<String>| value.clone();
    let facts: [(&str, Option<String>); 11] = [
        ("processor", text(&host.cpu_model)),
        ("processors", Some(host.cpus.to_string())),
        ("memory", host.memory_bytes.map(|b| bytes(float(b)))),
        ("system", text(&host.os)),
        ("kernel", text(&host.kernel)),
        ("KVM", Some(host.kvm.clone())),
        ("is itself a virtual machine", host.hypervisor.map(|yes| if yes { "yes" } else { "no" }.to_owned())),
        ("cgroup", host.cgroup.map(|v| format!("v{v}"))),
        ("clock source", text(&host.clocksource)),
        ("transparent huge pages", text(&host.huge_pages)),
        ("load when it began", host.load_1m.map(|l| format!("{l:.2}"))),
    ];
    html! {
        section #host {
            h2 { "The host" }
            div .wide { table {
                tbody {
                    @for (name, value) in facts { @if let Some(value) = value { tr { td { (name) } td .long { (value) } } } }
                    @for (name, value) in &host.mitigations { tr { td { "mitigation: " (name) } td .long { (value) } } }
                }
            } }
        }
    }
}

/// All runs of an arm.
pub(super) fn runs(arm: &ArmRecord) -> Markup {
    let phases: Vec<Phase> = Phase::ALL
        .iter()
        .map(|p| p.0)
        .filter(|p| arm.runs.iter().any(|r| r.phases_ms.contains_key(p.name())))
        .collect();
    let ms = |value: Option<&f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    html! {
        div .wide { table {
            caption { "Milliseconds" }
            thead { tr {
                th { "round" } th { "first byte" } th { "end" }
                @for phase in &phases { th { (phase_label(*phase)) } }
                th { "exit code" }
            } }
            tbody { @for run in &arm.runs { tr {
                td { (run.round + 1) @if run.warmup { " (warm-up)" } }
                td { (ms(run.first_byte_ms.as_ref())) } td { (ms(Some(&run.total_ms))) }
                @for phase in &phases { td { (ms(run.phases_ms.get(phase.name()))) } }
                td { (run.exit_code) }
            } } }
        } }
        @if !arm.summary.measured_ns.is_empty() {
            div .wide { table {
                caption { "Nanoseconds for one of what each program counts" }
                thead { tr { th { "round" } @for name in arm.summary.measured_ns.keys() { th { (name) } } } }
                tbody { @for run in &arm.runs { tr {
                    td { (run.round + 1) @if run.warmup { " (warm-up)" } }
                    @for name in arm.summary.measured_ns.keys() { td { (ms(run.measured_ns.get(name))) } }
                } } }
            } }
        }
        @if !arm.memory_runs.is_empty() {
            div .wide { table {
                caption { "Bytes" }
                thead { tr { th { "round" } @for kind in crate::compare::record::MEMORY { th { (memory_label(kind)) } } } }
                tbody { @for run in &arm.memory_runs { tr {
                    td { (run.round + 1) }
                    @for kind in crate::compare::record::MEMORY {
                        td { @match run.memory_bytes.get(kind) { Some(bytes) => (bytes), None => "-" } }
                    }
                } } }
            } }
        }
    }
}
