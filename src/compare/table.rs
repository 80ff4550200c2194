//! The record for people, at most 100 columns wide.

use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::record::{ArmRecord, Comparison, MEMORY, Record};
use super::stats::Spread;
use crate::spec::Phase;

/// Widest line.
pub(super) const WIDTH: u16 = 100;

/// The record as text: what it is, what is not equal, one table per arm beside the baseline, and a sentence each.
pub fn table(record: &Record) -> String {
    let mut text = head(record);
    let Some((base, others)) = record.arms.split_first() else { return text };
    for arm in others {
        let _ = writeln!(text, "\n{}", figures(record, base, arm));
    }
    text.push('\n');
    for arm in others {
        for line in wrapped(&sentence(record, base, arm), "") {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

fn head(record: &Record) -> String {
    let mut text = String::new();
    let mut say = |line: &str, indent: &str| {
        for line in wrapped(line, indent) {
            let _ = writeln!(text, "{line}");
        }
    };
    if record.host.lab {
        say("Measured in the lab, on emulated hardware: ratios mean something, absolute times do not.", "");
    }
    let command = if record.command.is_empty() { "the image's own command".to_owned() } else { shown(&record.command) };
    say(&format!("Image    {} ({}): {command}", record.image.reference, record.image.digest.short()), "         ");
    let host = &record.host;
    let known = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
    let facts = format!(
        "Host     {}, {} CPU{}, Linux {}, KVM: {}",
        known(&host.cpu_model),
        host.cpus,
        if host.cpus == 1 { "" } else { "s" },
        known(&host.kernel),
        host.kvm
    );
    say(&facts, "         ");
    let rounds = &record.rounds;
    let limits = format!("{} and {} CPU", bytes(record.limits.memory_bytes as f64), record.limits.cpus);
    say(
        &format!(
            "Rounds   {} timed after {} to warm up, {} for memory; random turns, seed {}; {limits} per arm",
            rounds.timed, rounds.warmup, rounds.memory, record.seed
        ),
        "         ",
    );
    if !record.unequal.is_empty() {
        say("Not equal:", "");
        record.unequal.iter().for_each(|line| say(&format!("  - {line}"), "    "));
    }
    text
}

fn shown(command: &[String]) -> String {
    let line = command.join(" ");
    if line.chars().count() > 60 { format!("{}...", line.chars().take(57).collect::<String>()) } else { line }
}

/// Breaks a line at spaces; lines behind the first begin with `indent`. A longer word is broken within.
fn wrapped(line: &str, indent: &str) -> Vec<String> {
    let width = usize::from(WIDTH);
    let mut lines = Vec::new();
    let mut current: Vec<char> = line.chars().collect();
    while current.len() > width {
        let blank = current.iter().take(width).rposition(|c| *c == ' ').filter(|at| *at > indent.len());
        let at = blank.unwrap_or(width);
        let rest: Vec<char> = current.split_off(at);
        lines.push(current.iter().collect());
        current = indent.chars().chain(rest.into_iter().skip(usize::from(blank.is_some()))).collect();
    }
    lines.push(current.iter().collect());
    lines
}

fn figures(record: &Record, base: &ArmRecord, arm: &ArmRecord) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(["", base.arm.name.as_str(), arm.arm.name.as_str(), "ratio [99 %]", "verdict"]);
    let find = |figure: &str| record.comparisons.iter().find(|c| c.arm == arm.arm.name && c.figure == figure);
    let mut row = |name: &str, values: [Option<Spread>; 2], show: fn(f64) -> String, figure: &str| {
        let [a, b] = values.map(|v| v.map_or_else(|| "-".to_owned(), |s| spread(&s, show)));
        let compared = find(figure);
        let ratio = compared.map_or_else(|| "-".to_owned(), ratio);
        table.add_row([name.to_owned(), a, b, ratio, compared.map_or("", |c| c.verdict.words()).to_owned()]);
    };
    let (x, y) = (&base.summary, &arm.summary);
    row("to first byte", [x.first_byte_ms, y.first_byte_ms], milliseconds, "first_byte_ms");
    row("to the end", [x.total_ms, y.total_ms], milliseconds, "total_ms");
    for (phase, _) in Phase::ALL {
        let of = |arm: &ArmRecord| arm.summary.phases_ms.get(phase.name()).copied();
        if of(base).or(of(arm)).is_some() {
            let figure = format!("phases_ms.{}", phase.name());
            row(&format!("  {}", label(phase)), [of(base), of(arm)], milliseconds, &figure);
        }
    }
    for kind in MEMORY {
        let of = |arm: &ArmRecord| arm.summary.memory_bytes.get(kind).copied();
        if of(base).or(of(arm)).is_some() {
            row(memory_label(kind), [of(base), of(arm)], bytes, &format!("memory_bytes.{kind}"));
        }
    }
    disk_rows(&mut table, base, arm);
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn disk_rows(table: &mut Table, base: &ArmRecord, arm: &ArmRecord) {
    let names: std::collections::BTreeSet<&String> = base.disk_bytes.keys().chain(arm.disk_bytes.keys()).collect();
    #[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
    let show = |value: Option<&u64>| value.map_or_else(|| "-".to_owned(), |v| bytes(*v as f64));
    for name in names {
        let cells = [base.disk_bytes.get(name), arm.disk_bytes.get(name)].map(show);
        let [a, b] = cells;
        table.add_row([format!("disk: {name}"), a, b, String::new(), String::new()]);
    }
}

fn label(phase: Phase) -> &'static str {
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

fn memory_label(kind: &str) -> &str {
    match kind {
        "idle" => "memory, idle",
        "peak" => "memory, highest",
        "cgroup_peak" => "memory, cgroup peak",
        other => other,
    }
}

fn spread(spread: &Spread, show: fn(f64) -> String) -> String {
    if spread.n == 1 { show(spread.median) } else { format!("{} ±{}", show(spread.median), amount(&show(spread.mad))) }
}

/// A quantity without its unit where that is the unit of times above a millisecond, which the quantity before it has shown.
fn amount(shown: &str) -> &str {
    shown.strip_suffix(" ms").unwrap_or(shown)
}

fn ratio(compared: &Comparison) -> String {
    let ratio = &compared.ratio;
    format!("{} [{}, {}]", times(ratio.ratio), times(ratio.low), times(ratio.high))
}

/// Two or three digits that matter.
fn times(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.2}"),
    }
}

fn milliseconds(ms: f64) -> String {
    match ms {
        v if v >= 10_000.0 => format!("{:.1} s", v / 1e3),
        v if v >= 100.0 => format!("{v:.0} ms"),
        v if v >= 1.0 => format!("{v:.1} ms"),
        v => format!("{v:.2} ms"),
    }
}

fn bytes(value: f64) -> String {
    match value {
        v if v >= 1024.0 * 1_048_576.0 => format!("{:.1} GiB", v / (1024.0 * 1_048_576.0)),
        v if v >= 100.0 * 1_048_576.0 => format!("{:.0} MiB", v / 1_048_576.0),
        v if v >= 1_048_576.0 => format!("{:.1} MiB", v / 1_048_576.0),
        v if v >= 1024.0 => format!("{:.0} KiB", v / 1024.0),
        v => format!("{v:.0} B"),
    }
}

fn sentence(record: &Record, base: &ArmRecord, arm: &ArmRecord) -> String {
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
    if parts.is_empty() {
        return String::new();
    }
    let place = if record.host.lab { "In this lab: " } else { "Here: " };
    format!("{place}{}.", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_never_exceed_the_width() {
        let line = "word ".repeat(50) + &"x".repeat(300);
        let lines = wrapped(&line, "    ");
        assert!(lines.iter().all(|l| l.chars().count() <= 100));
        assert!(lines[1].starts_with("    word"));
        let glued: String = lines.concat();
        assert_eq!(glued.matches('x').count(), 300);
    }

    #[test]
    fn quantities_have_units() {
        assert_eq!([0.25, 3.25, 250.4, 12_345.0].map(milliseconds), ["0.25 ms", "3.2 ms", "250 ms", "12.3 s"]);
        assert_eq!([512.0, 4096.0, 3.5 * 1048576.0].map(bytes), ["512 B", "4 KiB", "3.5 MiB"]);
    }
}
