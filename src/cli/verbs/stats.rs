//! `duplex stats`.

use std::io::IsTerminal;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::stop::VerbError;
use crate::cli::args::StatsArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::{each, roster};
use crate::cli::output::{columns, print, size};
use crate::cli::template::Form;
use crate::cli::{Context, place};
use crate::keeper::client;
use crate::sandbox::roster::{Roster, Seen};
use crate::spec::{Counters, Isolation, SandboxId, Stats};

/// Time between two looks: processor time is told of the time between them.
const PERIOD: Duration = Duration::from_secs(1);

/// What cannot be measured.
const UNKNOWN: &str = "--";

/// One look at one sandbox.
struct Look {
    seen: Seen,
    at: Instant,
    stats: Stats,
}

/// One sandbox; the names are those of Docker's templates. What its machine costs this host has names of its own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    isolation: Isolation,
    #[serde(rename = "CPUPerc")]
    cpu_perc: String,
    mem_usage: String,
    mem_perc: String,
    #[serde(rename = "NetIO")]
    net_io: String,
    #[serde(rename = "BlockIO")]
    block_io: String,
    #[serde(rename = "PIDs")]
    pids: String,
    #[serde(rename = "HostCPUPerc")]
    host_cpu_perc: String,
    host_mem: String,
}

/// Shows what sandboxes use: once, or until it is interrupted.
pub(crate) fn stats(context: &Context, args: &StatsArgs) -> Result<u8, Failure> {
    let form = Form::parse(&args.format).map_err(failed)?;
    let roster = roster(context).map_err(failed)?;
    let followed = if args.sandboxes.is_empty() {
        let (all, _) = roster.list().map_err(failed)?;
        place::follow_all(context, all.is_empty(), false)?
    } else {
        place::follow(context, &roster, &args.sandboxes, false)?
    };
    if let Some(code) = followed {
        return Ok(code);
    }
    let clear = !args.no_stream && std::io::stdout().is_terminal();
    let (mut code, mut before) = look(&roster, &args.sandboxes)?;
    loop {
        sleep(PERIOD);
        let (failed_now, now) = look(&roster, &args.sandboxes)?;
        code = code.max(failed_now);
        let lines: Vec<Line> =
            now.iter().map(|look| line(look, earlier(&before, &look.seen.definition.spec.id))).collect();
        if clear {
            // Home, and nothing below.
            print("\x1b[H\x1b[J")?;
        }
        form.show(&lines, table)?;
        if args.no_stream || (now.is_empty() && !args.sandboxes.is_empty()) {
            return Ok(code);
        }
        before = now;
    }
}

fn earlier<'a>(looks: &'a [Look], id: &SandboxId) -> Option<&'a Look> {
    looks.iter().find(|look| look.seen.definition.spec.id == *id)
}

/// Looks at those that are named, or at all that run: one that ends meanwhile is passed over then.
fn look(roster: &Roster, words: &[String]) -> Result<(u8, Vec<Look>), Failure> {
    let mut looks = Vec::new();
    if words.is_empty() {
        let (all, _) = roster.list().map_err(failed)?;
        for seen in all.into_iter().filter(|seen| seen.standing.status.is_live()) {
            if let Ok(stats) = client::stats(&seen.path) {
                looks.push(Look { seen, at: Instant::now(), stats });
            }
        }
        return Ok((0, looks));
    }
    let code = each(roster, words, |seen| {
        let stats = client::stats(&seen.path).map_err(VerbError::of("measure", seen))?;
        let seen = roster.see(&seen.definition.spec.id).map_err(failed)?;
        looks.push(Look { seen, at: Instant::now(), stats });
        Ok(())
    })?;
    Ok((code, looks))
}

fn line(look: &Look, before: Option<&Look>) -> Line {
    let (definition, stats) = (&look.seen.definition, &look.stats);
    let inside = stats.inside.unwrap_or_default();
    let busy = |of: fn(&Stats) -> Option<Counters>| {
        let before = before?;
        let (was, is) = (of(&before.stats)?.cpu_usec?, of(stats)?.cpu_usec?);
        let time = look.at.saturating_duration_since(before.at);
        percent(is.saturating_sub(was), u64::try_from(time.as_micros()).ok()?)
    };
    let limit = inside.memory_limit_bytes;
    let both = |a: Option<u64>, b: Option<u64>| format!("{} / {}", known(a), known(b));
    let told = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    Line {
        id: definition.spec.id.to_string(),
        name: look.seen.standing.name.clone(),
        isolation: definition.spec.isolation,
        cpu_perc: told(busy(|stats| stats.inside)),
        mem_usage: both(inside.memory_bytes, limit),
        mem_perc: told(inside.memory_bytes.zip(limit).and_then(|(used, limit)| percent(used, limit))),
        net_io: both(inside.net_received_bytes, inside.net_sent_bytes),
        block_io: both(inside.block_read_bytes, inside.block_written_bytes),
        pids: told(inside.pids.map(|pids| pids.to_string())),
        host_cpu_perc: told(busy(|stats| Some(stats.host))),
        host_mem: known(stats.host.memory_bytes),
    }
}

fn known(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| UNKNOWN.to_owned(), size)
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn percent(part: u64, whole: u64) -> Option<String> {
    (whole > 0).then(|| format!("{:.2}%", part as f64 * 100.0 / whole as f64))
}

fn table(lines: &[Line]) -> String {
    let header = [
        "SANDBOX ID",
        "NAME",
        "ISOLATION",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "NET I/O",
        "BLOCK I/O",
        "PIDS",
        "HOST CPU %",
        "HOST MEM",
    ];
    let rows = lines.iter().map(|line| {
        [
            line.id.clone(),
            line.name.clone(),
            line.isolation.to_string(),
            line.cpu_perc.clone(),
            line.mem_usage.clone(),
            line.mem_perc.clone(),
            line.net_io.clone(),
            line.block_io.clone(),
            line.pids.clone(),
            line.host_cpu_perc.clone(),
            line.host_mem.clone(),
        ]
    });
    columns(header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_percents_and_unknowns_are_told() {
        assert_eq!(percent(1, 3).unwrap(), "33.33%");
        assert_eq!(percent(250, 100).unwrap(), "250.00%");
        assert_eq!(percent(1, 0), None);
        assert_eq!(known(None), "--");
        assert_eq!(known(Some(1500)), "1.5kB");
    }
}
