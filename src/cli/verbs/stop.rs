//! `duplex stop`, `restart`, `kill`, `pause`, `unpause` and `wait`.

use crate::cli::args::{KillArgs, PauseArgs, StopArgs, WaitArgs};
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::{each, roster};
use crate::cli::meaning::signal;
use crate::cli::output::print;
use crate::cli::{Context, place};
use crate::keeper::client::{self, ClientError};
use crate::keeper::wire::Request;
use crate::sandbox::roster::{Roster, RosterError, Seen};
use crate::spec::SandboxId;

/// Why a verb cannot do what it should to a sandbox.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {verb} sandbox {id}")]
pub(crate) struct VerbError {
    /// The verb.
    pub(crate) verb: &'static str,
    /// The sandbox.
    pub(crate) id: SandboxId,
    /// Why.
    #[source]
    pub(crate) source: ClientError,
}

impl VerbError {
    /// For `map_err`.
    pub(crate) fn of(verb: &'static str, seen: &Seen) -> impl FnOnce(ClientError) -> Failure {
        let id = seen.definition.spec.id.clone();
        move |source| failed(Self { verb, id, source })
    }
}

/// Asks sandboxes to end and waits until they have. Those that do not run are left alone.
pub(crate) fn stop(context: &Context, args: &StopArgs) -> Result<u8, Failure> {
    let request = request(args)?;
    named(context, &args.sandboxes, |_, seen| stopped(seen, request.clone()))
}

/// Stops them and starts them again.
pub(crate) fn restart(context: &Context, args: &StopArgs) -> Result<u8, Failure> {
    let request = request(args)?;
    named(context, &args.sandboxes, |roster, seen| {
        stopped(seen, request.clone())?;
        let seen = roster.see(&seen.definition.spec.id).map_err(failed)?;
        super::start::started(context, roster, &seen)
    })
}

fn request(args: &StopArgs) -> Result<Request, Failure> {
    let signal = args.signal.as_deref().map(signal).transpose().map_err(failed)?;
    Ok(Request::Stop { signal, timeout_s: args.time })
}

fn stopped(seen: &Seen, request: Request) -> Result<(), Failure> {
    match client::order(&seen.path, request) {
        Ok(()) | Err(ClientError::NotRunning) => Ok(()),
        Err(error) => Err(VerbError::of("stop", seen)(error)),
    }
}

/// Sends sandboxes a signal.
pub(crate) fn kill(context: &Context, args: &KillArgs) -> Result<u8, Failure> {
    let number = signal(&args.signal).map_err(failed)?;
    named(context, &args.sandboxes, |_, seen| {
        client::order(&seen.path, Request::Signal(number)).map_err(VerbError::of("kill", seen))
    })
}

/// Stops all their processes where they are.
pub(crate) fn pause(context: &Context, args: &PauseArgs) -> Result<u8, Failure> {
    named(context, &args.sandboxes, |_, seen| {
        client::order(&seen.path, Request::Pause).map_err(VerbError::of("pause", seen))
    })
}

/// Lets them go on.
pub(crate) fn unpause(context: &Context, args: &PauseArgs) -> Result<u8, Failure> {
    named(context, &args.sandboxes, |_, seen| {
        client::order(&seen.path, Request::Unpause).map_err(VerbError::of("unpause", seen))
    })
}

/// Does it for each, and prints the word by which it was named.
pub(super) fn named(
    context: &Context,
    words: &[String],
    mut act: impl FnMut(&Roster, &Seen) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, words, false)? {
        return Ok(code);
    }
    let mut code = 0;
    for word in words {
        let done = each(&roster, std::slice::from_ref(word), |seen| {
            act(&roster, seen)?;
            print(&format!("{word}\n"))
        })?;
        code = code.max(done);
    }
    Ok(code)
}

/// Waits for the end of each and prints its exit code.
pub(crate) fn wait(context: &Context, args: &WaitArgs) -> Result<u8, Failure> {
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, &args.sandboxes, false)? {
        return Ok(code);
    }
    each(&roster, &args.sandboxes, |seen| {
        let code = match client::wait(&seen.path) {
            Ok(Some(outcome)) => outcome.exit.code(),
            // It has ended, now or long ago, or its keeper was killed: what it left tells.
            Ok(None) | Err(ClientError::NotRunning | ClientError::Socket(_)) => last_code(&roster, seen)?,
            Err(error) => return Err(VerbError::of("wait for", seen)(error)),
        };
        print(&format!("{code}\n"))
    })
}

fn last_code(roster: &Roster, seen: &Seen) -> Result<u8, Failure> {
    roster.repair().map_err(failed)?;
    match roster.see(&seen.definition.spec.id) {
        Ok(now) => Ok(now.standing.outcome.map_or(0, |outcome| outcome.exit.code())),
        // Removed at its end without an answer: it was killed with its keeper.
        Err(RosterError::Unknown(_)) => Ok(125),
        Err(error) => Err(failed(error)),
    }
}
