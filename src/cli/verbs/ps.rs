//! `duplex ps`.

use serde::Serialize;

use crate::cli::args::PsArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::filter::{Filters, OF_PS};
use crate::cli::keeping::roster;
use crate::cli::output::{columns, note, print};
use crate::cli::template::Form;
use crate::cli::time::{plain, span};
use crate::cli::{Context, place, ports};
use crate::sandbox::roster::Seen;
use crate::spec::{HealthStatus, Isolation, Standing, Status};
use crate::sys::clock::realtime_ns;

/// Longest command in the table, in characters.
const COMMAND: usize = 20;

/// One sandbox; the names are those of Docker's templates.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    isolation: Isolation,
    command: String,
    created_at: String,
    running_for: String,
    status: String,
    state: &'static str,
    ports: String,
    names: String,
    labels: String,
}

/// Lists sandboxes.
pub(crate) fn ps(context: &Context, args: &PsArgs) -> Result<u8, Failure> {
    let filters = Filters::parse(&args.filter, OF_PS).map_err(failed)?;
    let form = Form::parse(&args.format).map_err(failed)?;
    let (all, failures) = roster(context).and_then(|roster| roster.list()).map_err(failed)?;
    if let Some(code) = place::follow_all(context, all.is_empty(), false)? {
        return Ok(code);
    }
    let last = if args.latest { Some(1) } else { args.last };
    let ended_too = args.all || last.is_some() || filters.ask_for_status();
    let meant = |seen: &&Seen| (ended_too || seen.standing.status.is_live()) && filters.match_(seen);
    let now = realtime_ns();
    let lines: Vec<Line> =
        all.iter().filter(meant).take(last.unwrap_or(usize::MAX)).map(|seen| line(seen, now, args.no_trunc)).collect();
    if args.quiet {
        print(&lines.iter().map(|line| format!("{}\n", line.id)).collect::<String>())?;
    } else {
        form.show(&lines, table)?;
    }
    for failure in failures {
        note(failed(failure).render().trim_end());
    }
    Ok(0)
}

fn line(seen: &Seen, now: u64, whole: bool) -> Line {
    let (definition, standing) = (&seen.definition, &seen.standing);
    let command = definition.spec.process.args.join(" ");
    let command = if whole || command.chars().count() <= COMMAND {
        command
    } else {
        command.chars().take(COMMAND - 1).chain(['…']).collect()
    };
    let labels: Vec<String> = definition.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Line {
        id: definition.spec.id.to_string(),
        image: definition.spec.reference.clone(),
        isolation: definition.spec.isolation,
        command: format!("\"{}\"", command.escape_debug()),
        created_at: plain(definition.created_at_ns),
        running_for: format!("{} ago", span(now.saturating_sub(definition.created_at_ns))),
        status: status(standing, now),
        state: standing.status.word(),
        ports: standing.network.as_ref().map(|network| ports::line(&network.ports)).unwrap_or_default(),
        names: standing.name.clone(),
        labels: labels.join(","),
    }
}

/// As Docker words it.
pub(crate) fn status(standing: &Standing, now: u64) -> String {
    let since = |at: Option<u64>| span(now.saturating_sub(at.unwrap_or(now)));
    let code = standing.outcome.as_ref().map_or(0, |outcome| outcome.exit.code());
    match standing.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let health = match standing.health {
                None => "",
                Some(HealthStatus::Starting) => " (health: starting)",
                Some(HealthStatus::Healthy) => " (healthy)",
                Some(HealthStatus::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{health}", since(standing.started_at_ns))
        }
        Status::Paused => format!("Up {} (Paused)", since(standing.started_at_ns)),
        Status::Restarting => format!("Restarting ({code}) {} ago", since(standing.finished_at_ns)),
        Status::Exited => format!("Exited ({code}) {} ago", since(standing.finished_at_ns)),
        Status::Removing => "Removal In Progress".to_owned(),
    }
}

fn table(lines: &[Line]) -> String {
    columns(
        ["SANDBOX ID", "IMAGE", "ISOLATION", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"],
        lines.iter().map(|line| {
            [
                line.id.clone(),
                line.image.clone(),
                line.isolation.to_string(),
                line.command.clone(),
                line.running_for.clone(),
                line.status.clone(),
                line.ports.clone(),
                line.names.clone(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Exit, Outcome};

    #[test]
    fn a_status_is_told_in_dockers_words() {
        let second = 1_000_000_000;
        let mut standing = Standing::new("x".into());
        assert_eq!(status(&standing, 0), "Created");
        standing.started_at_ns = Some(second);
        for (is, words) in [(Status::Running, "Up 4 seconds"), (Status::Paused, "Up 4 seconds (Paused)")] {
            standing.status = is;
            assert_eq!(status(&standing, 5 * second), words);
        }
        for (health, words) in [
            (HealthStatus::Starting, "Up 4 seconds (health: starting)"),
            (HealthStatus::Healthy, "Up 4 seconds (healthy)"),
            (HealthStatus::Unhealthy, "Up 4 seconds (unhealthy)"),
        ] {
            (standing.status, standing.health) = (Status::Running, Some(health));
            assert_eq!(status(&standing, 5 * second), words);
        }
        standing.status = Status::Paused;
        assert_eq!(status(&standing, 5 * second), "Up 4 seconds (Paused)");
        standing.finished_at_ns = Some(2 * second);
        standing.outcome = Some(Outcome { exit: Exit::Signal(9), oom: false, reason: None });
        for (is, words) in
            [(Status::Exited, "Exited (137) 3 seconds ago"), (Status::Restarting, "Restarting (137) 3 seconds ago")]
        {
            standing.status = is;
            assert_eq!(status(&standing, 5 * second), words);
        }
    }
}
