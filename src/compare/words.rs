//! Quantities and findings in words, the same in every form of the result.

use super::record::{ArmRecord, Ended, Record, Rounds};
use super::verdict::{LEAST_ROUNDS, Verdict};
use crate::spec::{Isolation, Phase};

/// What a result that was made in the lab says first.
pub(super) const LAB: &str = "Measured in the lab, on emulated hardware: ratios mean something, absolute times do not.";

/// What is to be said first of arms that isolate nothing, if there are any.
pub(super) fn warning(record: &Record) -> Option<String> {
    let plain = record.arms.iter().filter(|arm| arm.arm.isolation == Isolation::Process);
    let names: Vec<&str> = plain.map(|arm| arm.arm.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} isolates nothing, and is here to show what walls cost: run nothing so that is not trusted.",
            names.join(", ")
        )
    })
}

/// The command that the arms ran, cut to so many characters.
pub(super) fn command(record: &Record, most: usize) -> String {
    if record.command.is_empty() {
        return "the image's own command".to_owned();
    }
    let line = record.command.join(" ");
    if line.chars().count() > most { format!("{}...", line.chars().take(most - 3).collect::<String>()) } else { line }
}

/// A fact that the host may not have told.
pub(super) fn known(fact: &Option<String>) -> &str {
    fact.as_deref().unwrap_or("unknown")
}

/// What a phase goes to.
pub(super) fn phase_label(phase: Phase) -> &'static str {
    match phase {
        Phase::Process => "our process",
        Phase::Image => "image",
        Phase::Setup => "machine/namespaces",
        Phase::Kernel => "guest kernel",
        Phase::Launch => "mounts and exec",
        Phase::FirstByte => "first byte",
        Phase::Work => "work",
        Phase::Exit => "end and clean-up",
    }
}

/// What a kind of memory is.
pub(super) fn memory_label(kind: &str) -> &str {
    match kind {
        "idle" => "memory, idle",
        "peak" => "memory, highest",
        "cgroup_peak" => "memory, cgroup peak",
        other => other,
    }
}

/// What a figure of a comparison is.
pub(super) fn figure_label(figure: &str) -> &str {
    match figure.split_once('.') {
        Some(("phases_ms", name)) => Phase::ALL
            .iter()
            .map(|(phase, _)| *phase)
            .find(|p| p.name() == name)
            .map_or(name, |phase| phase_label(phase)),
        Some(("measured_ns", program)) => program,
        Some(("memory_bytes", kind)) => memory_label(kind),
        _ if figure == "first_byte_ms" => "to first byte",
        _ if figure == "total_ms" => "to the end",
        _ => figure,
    }
}

/// Two or three digits that matter.
pub(super) fn times(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.2}"),
    }
}

/// A length of time.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        v if v >= 10_000.0 => format!("{:.1} s", v / 1e3),
        v if v >= 100.0 => format!("{v:.0} ms"),
        v if v >= 1.0 => format!("{v:.1} ms"),
        v => format!("{v:.2} ms"),
    }
}

/// A length of time in nanoseconds.
pub(super) fn nanoseconds(ns: f64) -> String {
    match ns {
        v if v >= 1e6 => milliseconds(v / 1e6),
        v if v >= 100_000.0 => format!("{:.0} µs", v / 1e3),
        v if v >= 1000.0 => format!("{:.1} µs", v / 1e3),
        v if v >= 100.0 => format!("{v:.0} ns"),
        v => format!("{v:.1} ns"),
    }
}

/// Why there were so many rounds, where they were not counted beforehand, and what too few of them mean.
pub(super) fn why_so_many(rounds: &Rounds) -> Option<String> {
    if usize::try_from(rounds.timed).is_ok_and(|timed| timed < LEAST_ROUNDS) {
        return Some(format!("fewer than {LEAST_ROUNDS} timed rounds allow no verdict on a time"));
    }
    let precision = rounds.precision? * 100.0;
    Some(match rounds.ended {
        Ended::Precision => format!("until the intervals reached at most {precision} % to either side"),
        _ => format!(
            "the {} s allowed were over before the intervals reached at most {precision} % to either side",
            rounds.budget_s.unwrap_or(0)
        ),
    })
}

/// A size.
pub(super) fn bytes(value: f64) -> String {
    match value {
        v if v >= 1024.0 * 1_048_576.0 => format!("{:.1} GiB", v / (1024.0 * 1_048_576.0)),
        v if v >= 100.0 * 1_048_576.0 => format!("{:.0} MiB", v / 1_048_576.0),
        v if v >= 1_048_576.0 => format!("{:.1} MiB", v / 1_048_576.0),
        v if v >= 1024.0 => format!("{:.0} KiB", v / 1024.0),
        v => format!("{v:.0} B"),
    }
}

/// How the measuring programs came out in this arm, if there were any.
fn programs(record: &Record, arm: &ArmRecord) -> Option<String> {
    let name = |figure: &str| figure.strip_prefix("measured_ns.").map(str::to_owned);
    let all: Vec<_> = record
        .comparisons
        .iter()
        .filter(|c| c.arm == arm.arm.name)
        .filter_map(|c| Some((name(&c.figure)?, c.verdict, c.ratio.ratio)))
        .collect();
    let of = |verdict: Verdict| {
        let mut found: Vec<_> = all.iter().filter(|(_, v, _)| *v == verdict).collect();
        found.sort_by(|a, b| b.2.total_cmp(&a.2));
        let names: Vec<String> = found.iter().map(|(name, _, ratio)| format!("{name} {}", times(*ratio))).collect();
        if names.is_empty() { "in none".to_owned() } else { format!("in {} ({})", names.len(), names.join(", ")) }
    };
    let count = |verdict: Verdict| all.iter().filter(|(_, v, _)| *v == verdict).count();
    (!all.is_empty()).then(|| {
        format!(
            "of {} programs it is slower {}, faster {}, no difference is seen in {}, and {} cannot tell",
            all.len(),
            of(Verdict::Slower),
            of(Verdict::Faster),
            count(Verdict::NoDifferenceSeen),
            count(Verdict::CannotTell),
        )
    })
}

/// One arm beside the baseline, in a sentence.
pub(super) fn sentence(record: &Record, base: &ArmRecord, arm: &ArmRecord) -> String {
    let find = |figure: &str| record.comparisons.iter().find(|c| c.arm == arm.arm.name && c.figure == figure);
    let (a, b) = (&base.arm.name, &arm.arm.name);
    let mut parts = Vec::new();
    if let Some(start) = find("first_byte_ms").or_else(|| find("total_ms")) {
        let what = if start.figure == "first_byte_ms" { "starts" } else { "runs" };
        parts.push(match start.verdict.words() {
            "no difference seen" => format!("no difference seen in how fast {b} and {a} come up"),
            "cannot tell" => format!("these samples cannot tell whether {b} or {a} {what} faster"),
            verdict => format!("{b} {what} {verdict} than {a} ({} x its time)", times(start.ratio.ratio)),
        });
    }
    let memory = |arm: &ArmRecord| arm.summary.memory_bytes.get("idle").map(|s| s.median);
    if let (Some(x), Some(y)) = (memory(base), memory(arm)) {
        parts.push(format!("idle, {b} holds {} of the host's memory and {a} {}", bytes(y), bytes(x)));
    }
    parts.extend(programs(record, arm));
    if parts.is_empty() {
        return String::new();
    }
    let place = if record.host.lab { "In this lab: " } else { "Here: " };
    format!("{place}{}.", parts.join("; "))
}

/// What probes are, for so many of them.
pub(super) fn probes_in_words(count: usize) -> String {
    format!(
        "Walls: {count} probes, each the harmless first step of a known way out or something to be learnt of the host. \
        Reachable is what is the host's or its kernel's, contained what is the sandbox's own: of its own kernel in a \
        microVM. A step that is reachable is no way out by itself: it becomes one by a hole in the kernel behind it."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_units() {
        assert_eq!([0.25, 3.25, 250.4, 12_345.0].map(milliseconds), ["0.25 ms", "3.2 ms", "250 ms", "12.3 s"]);
        assert_eq!([512.0, 4096.0, 3.5 * 1048576.0].map(bytes), ["512 B", "4 KiB", "3.5 MiB"]);
    }

    #[test]
    fn too_few_rounds_are_told() {
        let rounds = |timed, precision| Rounds {
            timed,
            warmup: 1,
            memory: 0,
            ended: Ended::Rounds,
            precision,
            budget_s: Some(9),
        };
        let few = why_so_many(&rounds(4, None)).unwrap();
        assert_eq!(few, "fewer than 5 timed rounds allow no verdict on a time");
        assert_eq!(why_so_many(&rounds(4, Some(0.1))), Some(few), "whatever ended them");
        assert_eq!(why_so_many(&rounds(5, None)), None);
        assert!(why_so_many(&rounds(5, Some(0.1))).unwrap().contains("10 %"));
    }
}
