//! `duplex top`.

use super::stop::VerbError;
use crate::cli::args::TopArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::roster;
use crate::cli::output::{columns, print};
use crate::cli::time::plain;
use crate::cli::{Context, place};
use crate::keeper::client;
use crate::spec::ProcessEntry;
use crate::sys::clock::realtime_ns;

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;

/// Lists the processes of a sandbox, numbered as they are inside.
pub(crate) fn top(context: &Context, args: &TopArgs) -> Result<u8, Failure> {
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.sandbox), false)? {
        return Ok(code);
    }
    let id = roster.find(&args.sandbox).map_err(failed)?;
    let seen = roster.see(&id).map_err(failed)?;
    let entries = client::processes(&seen.path).map_err(VerbError::of("list the processes of", &seen))?;
    print(&table(&entries, realtime_ns()))?;
    Ok(0)
}

/// The columns of `ps -ef`, which Docker prints.
fn table(entries: &[ProcessEntry], now: u64) -> String {
    let rows = entries.iter().map(|entry| {
        let seconds = entry.cpu_ms / 1000;
        let started = plain(now.saturating_sub(entry.age_ms.saturating_mul(MS)));
        let share = entry.cpu_ms.saturating_mul(100).checked_div(entry.age_ms).unwrap_or(0);
        [
            if entry.user == 0 { "root".to_owned() } else { entry.user.to_string() },
            entry.pid.to_string(),
            entry.parent.to_string(),
            share.min(99).to_string(),
            started.get(11..16).unwrap_or("?").to_owned(),
            entry.terminal.map_or_else(|| "?".to_owned(), |number| format!("pts/{number}")),
            format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
            entry.command.clone(),
        ]
    });
    columns(["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_line_of_ps() {
        let entry = ProcessEntry {
            pid: 7,
            parent: 1,
            user: 1000,
            cpu_ms: 3_725_000,
            age_ms: 7_450_000,
            terminal: Some(0),
            command: "sh -c x".into(),
        };
        let text = table(&[entry], 1_700_000_000 * 1_000_000_000);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        assert_eq!(lines[1], ["1000", "7", "1", "50", "20:09", "pts/0", "01:02:05", "sh", "-c", "x"]);
    }
}
