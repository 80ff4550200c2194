//! `duplex fork`.

use super::snapshot::saved;
use crate::cli::Context;
use crate::cli::args::ForkArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::{self, Words, tell};
use crate::cli::output::{note, print, say};
use crate::cli::place::{self, Needs, Place};
use crate::sandbox::roster::{Roster, RosterError};
use crate::sandbox::snapshots::{Draft, Host, Origin, SnapshotError, Snapshots, check_savable, forked};
use crate::spec::{Definition, MachineSize, NetworkMode, Publish, SandboxId, SandboxSpec};
use crate::volume::{Volumes, Wanted};

/// Why nothing is forked.
#[derive(Debug, thiserror::Error)]
enum ForkError {
    /// Neither a sandbox nor a snapshot.
    #[error("There is neither a sandbox nor a snapshot '{0}'")]
    Unknown(String),
    /// It has no network that could have them published.
    #[error("Option -p is for sandboxes with --net user, which '{0}' does not have")]
    NoNetwork(String),
}

/// A machine to go on from.
struct Source {
    definition: Definition,
    size: MachineSize,
    origin: Origin,
    /// Kept until all have gone on.
    _draft: Option<Draft>,
}

/// Makes sandboxes that go on from another's machine, and prints their ids.
pub(crate) fn fork(context: &Context, args: &ForkArgs) -> Result<u8, Failure> {
    let publish =
        args.publish.iter().map(|text| Publish::parse(text)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let publish: Vec<Publish> = publish.into_iter().flatten().collect();
    let roster = keeping::roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.source), false)? {
        return Ok(code);
    }
    let needs = Needs::of_fork();
    if let Place::Lab(reason) = place::decide(context, &needs)? {
        return place::go(context, &needs, reason);
    }
    let source = source(context, &roster, &args.source)?;
    if !publish.is_empty() && source.definition.spec.network.mode != NetworkMode::User {
        return Err(failed(ForkError::NoNetwork(args.source.clone())));
    }
    let mut started = Vec::new();
    for number in 1..=args.number {
        match begin(context, &roster, &source, (args, number, &publish)) {
            Ok(begun) => started.push(begun),
            // Those that have begun go on.
            Err(failure) => {
                let code = failure.code as u8;
                say(failure.render().trim_end());
                return finish(started).map(|_| code);
            }
        }
    }
    finish(started)
}

fn source(context: &Context, roster: &Roster, word: &str) -> Result<Source, Failure> {
    let installation = &context.installation;
    match roster.find(word) {
        Ok(id) => {
            let seen = roster.see(&id).map_err(failed)?;
            check_savable(&seen.definition.spec).map_err(failed)?;
            let draft = Draft::to_fork(&installation.state, &seen.definition.spec).map_err(failed)?;
            let origin = draft.origin();
            let (definition, size) = saved(context, &seen, &origin)?;
            Ok(Source { definition, size, origin, _draft: Some(draft) })
        }
        Err(RosterError::Unknown(_)) => {
            let snapshots = Snapshots::of(&installation.store);
            let record = snapshots.see(word).map_err(|e| match e {
                SnapshotError::Unknown(word) => failed(ForkError::Unknown(word)),
                other => failed(other),
            })?;
            let here = Host::here(installation).map_err(failed)?;
            let origin = snapshots.origin(&record, &here).map_err(failed)?;
            Ok(Source { definition: record.definition, size: record.size, origin, _draft: None })
        }
        Err(other) => Err(failed(other)),
    }
}

/// A sandbox whose keeper is at work.
struct Begun {
    spec: SandboxSpec,
    words: Words,
}

fn begin(
    context: &Context,
    roster: &Roster,
    source: &Source,
    (args, number, publish): (&ForkArgs, u16, &[Publish]),
) -> Result<Begun, Failure> {
    let mut id = [0; 6];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    let of = (&source.definition, source.size);
    let (mut definition, disks) = forked(of, &source.origin, SandboxId::from_bytes(id)).map_err(failed)?;
    definition.remove = args.rm;
    definition.spec.network.publish = publish.to_vec();
    let name = args.name.as_ref().map(|name| if args.number > 1 { format!("{name}-{number}") } else { name.clone() });
    let store = definition.store.clone().unwrap_or_else(|| context.installation.store.clone());
    let entry = roster.add(definition, name.as_deref(), true).map_err(failed)?;
    // In this order: what is on the roster is cleared by the next command, whatever happens to this one.
    for (name, disk) in disks {
        let wanted = Wanted { anonymous: true, content: Some(disk), ..Wanted::default() };
        if let Err(error) = Volumes::of(&store).create(&name, &wanted) {
            let _ = entry.remove_with_volumes();
            return Err(failed(error));
        }
    }
    let spec = entry.definition.spec.clone();
    let words = keeping::spawn(context, entry, false).map_err(failed)?;
    Ok(Begun { spec, words })
}

/// Waits until all have gone on; the code of one that has not.
fn finish(begun: Vec<Begun>) -> Result<u8, Failure> {
    let mut code = 0;
    for Begun { spec, words } in begun {
        match words.until_started() {
            Ok(Ok(())) => print(&format!("{}\n", spec.id))?,
            Ok(Err(outcome)) => {
                tell(&outcome, &spec);
                note(&format!("sandbox {} did not go on", spec.id));
                code = outcome.exit.code();
            }
            Err(error) => {
                let failure = failed(error);
                say(failure.render().trim_end());
                code = failure.code as u8;
            }
        }
    }
    Ok(code)
}
