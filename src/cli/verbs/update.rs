//! `duplex update`.

use super::stop::VerbError;
use crate::cli::args::UpdateArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::{each, roster};
use crate::cli::meaning::limit_change;
use crate::cli::output::print;
use crate::cli::{Context, place};
use crate::keeper::client::{self, ClientError};
use crate::keeper::wire::Request;
use crate::spec::LimitChange;

/// Nothing is to be changed.
#[derive(Debug, thiserror::Error)]
#[error("Nothing is to be changed: name a limit, such as --memory 1g or --cpus 2")]
struct NoLimit;

/// Changes the limits of sandboxes: of those that run at once, of the others when they start.
pub(crate) fn update(context: &Context, args: &UpdateArgs) -> Result<u8, Failure> {
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, &args.sandboxes, false)? {
        return Ok(code);
    }
    each(&roster, &args.sandboxes, |seen| {
        let change = limit_change(&args.limits, seen.definition.spec.isolation).map_err(failed)?;
        if change == LimitChange::default() {
            return Err(failed(NoLimit));
        }
        match client::order(&seen.path, Request::Change(change)) {
            Ok(()) => {}
            Err(ClientError::NotRunning) => {
                let mut entry = roster.take(&seen.definition.spec.id).map_err(failed)?;
                entry.change_limits(&change);
                entry.save().map_err(failed)?;
            }
            Err(error) => return Err(VerbError::of("change the limits of", seen)(error)),
        }
        print(&format!("{}\n", seen.standing.name))
    })
}
