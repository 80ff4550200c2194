//! The page from the answer down to the raw data.

use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{ReportError, density, figures, ink, reach, tables, walls};
use crate::compare::baseline::{Against, summary};
use crate::compare::break_even::break_even;
use crate::compare::record::{ArmRecord, Record};
use crate::compare::words::{LAB, bytes, command, known, sentence, warning, why_so_many};

const STYLE: &str = include_str!("style.css");
/// Nothing is fetched and nothing runs, whatever slipped into the page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The whole page.
pub(super) fn page(record: &Record, against: Option<&Against>) -> Result<String, ReportError> {
    let json = serde_json::to_string(record).map_err(ReportError::Json)?;
    let title = format!("{}: {}", record.image.reference, command(record, 80));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                // Or the browser asks a server for one.
                link rel="icon" href="data:,";
                title { "duplex compare: " (title) }
                style { (PreEscaped(STYLE)) "@media screen and (prefers-color-scheme: dark) {\n" (PreEscaped(ink::dark_rules())) "}" }
            }
            body {
                header { (head(record, &title)) }
                main {
                    (answer(record, against))
                    (figures::programs(record)?)
                    (figures::starts(record)?)
                    (figures::samples(record)?)
                    (figures::ratios(record)?)
                    (figures::memory(record)?)
                    (density::density(record)?)
                    (figures::disk(record)?)
                    (walls::walls(&record.arms))
                    (reach::reach(&record.arms))
                    (method(record))
                    (tables::host(record))
                    (raw(record, &json))
                }
            }
        }
    };
    Ok(page.into_string())
}

fn head(record: &Record, title: &str) -> Markup {
    let when = i64::try_from(record.began_unix_s).ok().and_then(|s| DateTime::<Utc>::from_timestamp(s, 0));
    html! {
        p .faint { "duplex compare" @if let Some(when) = when { ", " (when.format("%Y-%m-%d %H:%M UTC")) } }
        h1 { (title) }
        @if record.host.lab { p .lab { (LAB) } }
        @if let Some(warning) = warning(record) { p .lab { (warning) } }
        p .faint {
            "On " (known(&record.host.cpu_model)) ", Linux " (known(&record.host.kernel)) ", KVM: " (record.host.kvm) ". "
            (record.rounds.timed) " timed rounds, every arm with " (bytes(tables::float(record.limits.memory_bytes))) " and "
            (record.limits.cpus) " CPU."
        }
    }
}

/// What the comparison says, before anything else.
fn answer(record: &Record, against: Option<&Against>) -> Markup {
    let Some((base, others)) = record.arms.split_first() else { return html! {} };
    let sentences = |arm: &ArmRecord| [Some(sentence(record, base, arm)), break_even(record, base, arm)];
    html! {
        section #answer .answer {
            @if let Some(against) = against { p { strong { (summary(against)) } } }
            @for arm in others {
                p { @for line in sentences(arm).into_iter().flatten() { (line) " " } }
            }
        }
        (tables::verdicts(record, base, others))
        @if let Some(against) = against { (tables::against(against)) }
    }
}

fn method(record: &Record) -> Markup {
    let rounds = &record.rounds;
    html! {
        section #method {
            h2 { "How it was measured" }
            p {
                "Image " code { (record.image.reference) } " with manifest " code { (record.image.digest.to_string()) } ", the same for every arm; command "
                code { (command(record, 2000)) } ". In each round every arm ran once, in a random order of its own (seed " (record.seed) "): "
                (rounds.warmup) " rounds to warm up, which are kept and not counted, " (rounds.timed) " timed ones" @if let Some(why) = why_so_many(rounds) { " (" (why) ")" } ", and " (rounds.memory)
                " apart from them for memory. All arms had to give the same output and the same exit code."
            }
            p {
                "Times are taken outside the sandbox, from the exec of " code { "duplex run" } ". Memory is the proportional set size of every process that the sandbox needs, "
                "with tmpfs and kernel memory of its cgroup; the host's page cache is not counted. A ratio is the arm's median over that of the first arm; "
                "its interval holds 99 % of 4000 bootstrap resamples of whole rounds. An arm is " em { "slower" } " or " em { "faster" } " when its interval leaves out 1, "
                "there is " em { "no difference seen" } " when a narrow interval holds 1, and a wide one " em { "cannot tell" } "."
            }
            @if !record.unequal.is_empty() {
                h3 { "What is not equal between the arms" }
                ul { @for line in &record.unequal { li { (line) } } }
            }
            (tables::controls(record))
            p .faint {
                "Duplex " (record.duplex.version) @if let Some(revision) = &record.duplex.revision { ", revision " (revision) } ", layout " (record.schema) "."
            }
        }
    }
}

fn raw(record: &Record, json: &str) -> Markup {
    html! {
        section #raw {
            h2 { "Raw data" }
            p .faint { "All of the above comes from these samples; none was left out." }
            @for arm in &record.arms {
                details {
                    summary { "All samples of " (arm.arm.name) " (" (arm.runs.len()) " timed, " (arm.memory_runs.len()) " for memory)" }
                    (tables::runs(arm))
                }
            }
            details {
                summary { "The whole result as JSON" }
                pre #json { (json) }
            }
        }
    }
}
