//! `duplex start`.

use crate::cli::args::StartArgs;
use crate::cli::attached::{self, KeysError, Left, Wish};
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::keeping::{self, Word, each, tell};
use crate::cli::output::print;
use crate::cli::{Context, place};
use crate::keeper::client;
use crate::sandbox::roster::{Entry, Roster, Seen};
use crate::sandbox::snapshots::{Host, Snapshots};
use crate::spec::{Outcome, SandboxSpec};

/// Why sandboxes are not started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// One terminal for several commands.
    #[error("Only one sandbox can be started with --attach or --interactive")]
    Several,
    /// The command was not executed.
    #[error("{0}")]
    NotExecuted(String),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Starts sandboxes that do not run; with `--attach`, exits as the command does.
pub(crate) fn start(context: &Context, args: &StartArgs) -> Result<u8, Failure> {
    let attach = args.attach || args.interactive;
    if attach && args.sandboxes.len() > 1 {
        return Err(failed(StartError::Several));
    }
    let keys = attached::keys(&args.detach_keys).map_err(|e| failed(StartError::Keys(e)))?;
    let roster = keeping::roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, &args.sandboxes, args.interactive)? {
        return Ok(code);
    }
    if !attach {
        let mut words = args.sandboxes.iter();
        return each(&roster, &args.sandboxes, |seen| {
            started(context, &roster, seen)?;
            print(&format!("{}\n", words.next().map_or("", String::as_str)))
        });
    }
    let mut ended = None;
    let code = each(&roster, &args.sandboxes, |seen| {
        ended = Some(connected(context, &roster, seen, args.interactive, &keys)?);
        Ok(())
    })?;
    Ok(ended.unwrap_or(code))
}

/// Starts one in the background. One that runs is left alone.
pub(crate) fn started(context: &Context, roster: &Roster, seen: &Seen) -> Result<(), Failure> {
    let spec = &seen.definition.spec;
    if seen.standing.status.is_live() && client::runs(&seen.path) {
        return Ok(());
    }
    let entry = taken(context, roster, spec)?;
    let words = keeping::spawn(context, entry, false).map_err(failed)?;
    words.until_started().map_err(failed)?.map_err(|outcome| not_executed(&outcome))
}

/// Takes hold of one that does not run, and sees to its volumes.
fn taken(context: &Context, roster: &Roster, spec: &SandboxSpec) -> Result<Entry, Failure> {
    let mut entry = roster.take(&spec.id).map_err(failed)?;
    let installation = &context.installation;
    let checked = Snapshots::of(&installation.store).check_again(spec, || Host::here(installation));
    checked.map_err(failed)?;
    super::run::volumes(&entry.definition).map_err(failed)?;
    entry.at_work().map_err(failed)?;
    Ok(entry)
}

fn not_executed(outcome: &Outcome) -> Failure {
    let reason = outcome.reason.clone().unwrap_or_else(|| format!("The command ended with {}", outcome.exit.code()));
    failed(StartError::NotExecuted(reason))
}

fn connected(context: &Context, roster: &Roster, seen: &Seen, stdin: bool, keys: &[u8]) -> Result<u8, Failure> {
    let spec = &seen.definition.spec;
    if !(seen.standing.status.is_live() && client::runs(&seen.path)) {
        let entry = taken(context, roster, spec)?;
        let mut words = keeping::spawn(context, entry, true).map_err(failed)?;
        while words.next().map_err(failed)? != Word::Listening {}
    }
    let wish = Wish {
        id: spec.id.clone(),
        isolation: spec.isolation,
        folder: seen.path.clone(),
        stdin: stdin && spec.process.stdin,
        terminal: spec.process.terminal.is_some(),
        keys: keys.to_vec(),
        proxy: true,
    };
    match attached::attach(&wish).map_err(failed)? {
        Left::Ended(outcome) => {
            tell(&outcome, spec);
            Ok(outcome.exit.code())
        }
        Left::Detached => Ok(Code::Done as u8),
    }
}
