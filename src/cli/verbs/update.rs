//! `duplex update`.

use super::stop::{VerbError, named};
use crate::cli::args::UpdateArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::meaning::{limit_change, swap_fits};
use crate::cli::{Context, swap};
use crate::keeper::client::{self, ClientError};
use crate::keeper::wire::Request;
use crate::sandbox::roster::{Entry, Roster, Seen};
use crate::spec::{LimitChange, Restart};

/// Why nothing is changed.
#[derive(Debug, thiserror::Error)]
enum UpdateError {
    /// Nothing is said.
    #[error("Nothing is to be changed: name a limit, such as --memory 1g or --cpus 2, or --restart POLICY")]
    Nothing,
    /// Gone at its end and there again.
    #[error(
        "Sandbox {0} is removed at its end (--rm), so it cannot start again: 'no' is the only restart policy that it can have"
    )]
    Removed(String),
}

/// Changes the limits of sandboxes and when they start again: of those that run at once, of the others when they start.
pub(crate) fn update(context: &Context, args: &UpdateArgs) -> Result<u8, Failure> {
    named(context, &args.sandboxes, |roster, seen| {
        let change = limit_change(&args.limits, seen.definition.spec.isolation).map_err(failed)?;
        if change == LimitChange::default() && args.restart.is_none() {
            return Err(failed(UpdateError::Nothing));
        }
        let limits = seen.limits().changed(&change);
        swap_fits(&limits).map_err(failed)?;
        if seen.definition.remove && args.restart.is_some_and(|restart| restart != Restart::No) {
            return Err(failed(UpdateError::Removed(seen.standing.name.clone())));
        }
        if change != LimitChange::default() {
            let note = |entry: &mut Entry| entry.change_limits(&change);
            ask(roster, seen, "change the limits of", Request::Change(change), note)?;
            if change.memory.is_some() || change.swap.is_some() {
                swap::remark(&limits, seen.definition.spec.isolation);
            }
        }
        if let Some(restart) = args.restart {
            let note = |entry: &mut Entry| entry.standing.restart = Some(restart);
            ask(roster, seen, "change the restart policy of", Request::Restart(restart), note)?;
        }
        Ok(())
    })
}

/// Asks the keeper of one that runs; what has none is changed here.
fn ask(
    roster: &Roster,
    seen: &Seen,
    verb: &'static str,
    request: Request,
    note: impl FnOnce(&mut Entry),
) -> Result<(), Failure> {
    match client::order(&seen.path, request) {
        Ok(()) => Ok(()),
        Err(ClientError::NotRunning) => {
            let mut entry = roster.take(&seen.definition.spec.id).map_err(failed)?;
            note(&mut entry);
            entry.save().map_err(failed)
        }
        Err(error) => Err(VerbError::of(verb, seen)(error)),
    }
}
