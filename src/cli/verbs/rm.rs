//! `duplex rm`, `prune` and `rename`.

use std::io::{BufRead, Write};

use crate::cli::args::{PruneArgs, RenameArgs, RmArgs};
use crate::cli::fail::{Failure, failed};
use crate::cli::filter::{Filters, OF_PRUNE};
use crate::cli::keeping::roster;
use crate::cli::output::{print, say};
use crate::cli::verbs::stop::VerbError;
use crate::cli::{Context, place};
use crate::keeper::client::{self, ClientError};
use crate::keeper::wire::Request;
use crate::sandbox::microvm::remove_templates;
use crate::sandbox::roster::{Roster, RosterError, Seen};
use crate::spec::{SandboxId, Status};

/// Why a sandbox stays.
#[derive(Debug, thiserror::Error)]
enum RmError {
    /// It is alive.
    #[error("Sandbox {name} ({id}) is {status}: stop it first, or remove it with --force")]
    Runs { id: SandboxId, name: String, status: &'static str },
    /// It does not end.
    #[error("Sandbox {0} does not end")]
    Stays(SandboxId, #[source] ClientError),
}

/// Removes sandboxes. One that cannot go does not keep the others.
pub(crate) fn rm(context: &Context, args: &RmArgs) -> Result<u8, Failure> {
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, &args.sandboxes, false)? {
        return Ok(code);
    }
    let mut code = 0;
    for word in &args.sandboxes {
        match remove(&roster, word, args) {
            Ok(()) => print(&format!("{word}\n"))?,
            Err(failure) => {
                say(failure.render().trim_end());
                code = failure.code as u8;
            }
        }
    }
    Ok(code)
}

fn remove(roster: &Roster, word: &str, args: &RmArgs) -> Result<(), Failure> {
    let force = args.force;
    let id = match roster.find(word) {
        Err(RosterError::Unknown(_)) if force => return Ok(()),
        found => found.map_err(failed)?,
    };
    let seen = match roster.see(&id) {
        Err(RosterError::Damaged { .. } | RosterError::Version { .. }) if force => {
            return roster.remove_damaged(&id).map_err(failed);
        }
        seen => seen.map_err(failed)?,
    };
    if seen.standing.status.is_live() || client::runs(&seen.path) {
        if !force {
            let (name, status) = (seen.standing.name, seen.standing.status.word());
            return Err(failed(RmError::Runs { id, name, status }));
        }
        match client::order(&seen.path, Request::Stop { signal: Some(9), timeout_s: Some(0) }) {
            Ok(()) | Err(ClientError::NotRunning | ClientError::Socket(_)) => {}
            Err(error) => return Err(failed(RmError::Stays(id, error))),
        }
        // A keeper that was killed meanwhile has left what a repair clears.
        roster.repair().map_err(failed)?;
    }
    match roster.take(&id) {
        Ok(entry) if args.volumes => entry.remove_with_volumes().map_err(failed),
        Ok(entry) => entry.remove().map_err(failed),
        Err(RosterError::Unknown(_)) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes all that have ended or never started, and, unless it is about some of them, the templates of machines.
pub(crate) fn prune(context: &Context, args: &PruneArgs) -> Result<u8, Failure> {
    let filters = Filters::parse(&args.filter, OF_PRUNE).map_err(failed)?;
    let roster = roster(context).map_err(failed)?;
    let (all, failures) = roster.list().map_err(failed)?;
    if let Some(code) = place::follow_all(context, all.is_empty(), !args.force)? {
        return Ok(code);
    }
    if !args.force && !confirmed("WARNING! This will remove all sandboxes that do not run.")? {
        return Ok(0);
    }
    let done = |seen: &&Seen| matches!(seen.standing.status, Status::Exited | Status::Created);
    let mut removed = String::new();
    for seen in all.iter().filter(done).filter(|seen| filters.match_(seen)) {
        let id = &seen.definition.spec.id;
        match roster.try_take(id) {
            // What another command works on is not done.
            Ok(None) | Err(RosterError::Unknown(_)) => {}
            Ok(Some(entry)) if entry.standing.status.is_live() => {}
            Ok(Some(entry)) => {
                entry.remove().map_err(failed)?;
                removed.push_str(&format!("{id}\n"));
            }
            Err(error) => say(failed(error).render().trim_end()),
        }
    }
    failures.into_iter().for_each(|error| say(failed(error).render().trim_end()));
    if args.filter.is_empty() {
        remove_templates(&context.installation.state).map_err(failed)?;
    }
    print(&if removed.is_empty() { removed } else { format!("Deleted Sandboxes:\n{removed}") })?;
    Ok(0)
}

/// Asks whether to go on.
pub(super) fn confirmed(warning: &str) -> Result<bool, Failure> {
    print(&format!("{warning}\nAre you sure you want to continue? [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    std::io::stdout().flush().map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Gives a sandbox another name.
pub(crate) fn rename(context: &Context, args: &RenameArgs) -> Result<u8, Failure> {
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.sandbox), false)? {
        return Ok(code);
    }
    let id = roster.find(&args.sandbox).map_err(failed)?;
    let seen = roster.see(&id).map_err(failed)?;
    match client::order(&seen.path, Request::Rename(args.name.clone())) {
        Ok(()) => Ok(0),
        Err(ClientError::NotRunning) => {
            roster.take(&id).and_then(|mut entry| entry.rename(&args.name)).map_err(failed)?;
            Ok(0)
        }
        Err(error) => Err(VerbError::of("rename", &seen)(error)),
    }
}
