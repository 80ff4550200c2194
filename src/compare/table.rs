//! The record for people, at most 100 columns wide.

use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::baseline::{Against, label, summary};
use super::break_even::break_even;
use super::density::words::{ROWS, cells, sentences, swept};
use super::probes::Reached;
use super::reach::words::{meaning, not_measured, rows};
use super::record::{ArmRecord, Comparison, MEMORY, Record};
use super::stats::Spread;
use super::words::{
    LAB, bytes, command, known, memory_label, milliseconds, nanoseconds, phase_label, probes_in_words, sentence, times,
    warning, why_so_many,
};
use crate::spec::Phase;

/// Widest line.
pub(super) const WIDTH: u16 = 100;

/// The record as text: what it is, what is not equal, one table per arm beside the baseline, and a sentence each.
pub fn table(record: &Record, against: Option<&Against>) -> String {
    let mut text = head(record);
    let Some((base, others)) = record.arms.split_first() else { return text };
    for arm in others {
        let _ = writeln!(text, "\n{}", figures(record, base, arm));
    }
    text.push('\n');
    for arm in others {
        let sentences = [Some(sentence(record, base, arm)), break_even(record, base, arm)];
        for line in sentences.into_iter().flatten().flat_map(|sentence| wrapped(&sentence, "")) {
            let _ = writeln!(text, "{line}");
        }
    }
    text.push_str(&walls(&record.arms));
    text.push_str(&reach(&record.arms));
    text.push_str(&density(record));
    if let Some(against) = against {
        text.push_str(&beside(against));
    }
    text
}

/// What the walls of the arms let through: how many probes of each kind, and which reached the host.
fn walls(arms: &[ArmRecord]) -> String {
    let mut text = String::new();
    let Some(first) = arms.first().filter(|arm| !arm.probes.is_empty()) else { return text };
    text.push('\n');
    for line in wrapped(&probes_in_words(first.probes.len()), "") {
        let _ = writeln!(text, "{line}");
    }
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(std::iter::once("").chain(arms.iter().map(|arm| arm.arm.name.as_str())));
    for reached in [Reached::Reachable, Reached::Contained, Reached::Blocked] {
        let count = |arm: &ArmRecord| arm.probes.iter().filter(|p| p.reached == reached).count().to_string();
        table.add_row(std::iter::once(reached.words().to_owned()).chain(arms.iter().map(count)));
    }
    let of = |arm: &ArmRecord, name: &str| arm.probes.iter().find(|p| p.name == name).map(|p| p.reached);
    for probe in &first.probes {
        if arms.iter().any(|arm| of(arm, &probe.name) == Some(Reached::Reachable)) {
            let cells = arms.iter().map(|arm| of(arm, &probe.name).map_or("-", Reached::words).to_owned());
            table.add_row(std::iter::once(format!("  {}", probe.name)).chain(cells));
        }
    }
    let _ = writeln!(text, "{table}");
    text
}

/// What the arms reach of the host.
fn reach(arms: &[ArmRecord]) -> String {
    let (mut text, rows) = (String::new(), rows(arms));
    if rows.is_empty() {
        return text;
    }
    text.push('\n');
    for line in wrapped(&meaning(arms), "") {
        let _ = writeln!(text, "{line}");
    }
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(std::iter::once("").chain(arms.iter().map(|arm| arm.arm.name.as_str())));
    for row in rows {
        table.add_row(std::iter::once(row.name).chain(row.cells));
    }
    let _ = writeln!(text, "{table}");
    for line in not_measured(arms).iter().flat_map(|line| wrapped(line, "    ")) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// What idle sandboxes of the arms cost, and how many there could be.
fn density(record: &Record) -> String {
    let mut text = String::new();
    let swept = swept(&record.arms);
    if swept.is_empty() {
        return text;
    }
    text.push_str("\nDensity: idle sandboxes of the embedded image's cat, one after another.\n");
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(std::iter::once("").chain(swept.iter().map(|(arm, _)| arm.arm.name.as_str())));
    let columns: Vec<_> = swept.iter().map(|(_, sweep)| cells(sweep)).collect();
    for (row, name) in ROWS.iter().enumerate() {
        table.add_row(std::iter::once(*name).chain(columns.iter().map(|column| column[row].as_str())));
    }
    for column in 1..=swept.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let _ = writeln!(text, "{table}");
    for line in sentences(record).iter().flat_map(|sentence| wrapped(sentence, "")) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// What became of an earlier result: what regressed and what cannot be told, by name.
fn beside(against: &Against) -> String {
    let mut text = String::from("\n");
    let lines = std::iter::once(summary(against)).chain(against.unequal.iter().map(|line| format!("  - {line}")));
    for line in lines.flat_map(|line| wrapped(&line, "    ")) {
        let _ = writeln!(text, "{line}");
    }
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    let unit = against.relative_to.as_ref().map_or_else(String::new, |arm| format!(" (times over {arm}'s)"));
    table.set_header(["arm", "figure", &format!("now over then{unit}"), ""]);
    for c in &against.changes {
        let ratio = format!("{} [{}, {}]", times(c.ratio.ratio), times(c.ratio.low), times(c.ratio.high));
        table.add_row([c.arm.as_str(), label(&c.figure), ratio.as_str(), c.fate.words()]);
    }
    let _ = writeln!(text, "{table}");
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
        say(LAB, "");
    }
    if let Some(warning) = warning(record) {
        say(&warning, "");
    }
    let command = command(record, 60);
    say(&format!("Image    {} ({}): {command}", record.image.reference, record.image.digest.short()), "         ");
    let host = &record.host;
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
    if let Some(why) = why_so_many(rounds) {
        say(&format!("         {why}"), "         ");
    }
    if !record.unequal.is_empty() {
        say("Not equal:", "");
        record.unequal.iter().for_each(|line| say(&format!("  - {line}"), "    "));
    }
    text
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
            row(&format!("  {}", phase_label(phase)), [of(base), of(arm)], milliseconds, &figure);
        }
    }
    for program in x.measured_ns.keys() {
        let of = |arm: &ArmRecord| arm.summary.measured_ns.get(program).copied();
        let unit = record.units.get(program).map_or("", String::as_str);
        row(&format!("{program}, per {unit}"), [of(base), of(arm)], nanoseconds, &format!("measured_ns.{program}"));
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
}
