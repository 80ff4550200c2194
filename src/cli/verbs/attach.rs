//! `duplex attach`.

use crate::cli::args::AttachArgs;
use crate::cli::attached::{self, Left, Wish};
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::keeping::{roster, tell};
use crate::cli::{Context, place};

/// Connects this process's streams to a sandbox that runs; exits as its command does.
pub(crate) fn attach(context: &Context, args: &AttachArgs) -> Result<u8, Failure> {
    let keys = attached::keys(&args.detach_keys).map_err(failed)?;
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.sandbox), !args.no_stdin)? {
        return Ok(code);
    }
    let id = roster.find(&args.sandbox).map_err(failed)?;
    let seen = roster.see(&id).map_err(failed)?;
    let spec = &seen.definition.spec;
    let wish = Wish {
        id,
        isolation: spec.isolation,
        folder: seen.path.clone(),
        stdin: spec.process.stdin && !args.no_stdin,
        terminal: spec.process.terminal.is_some(),
        keys,
        proxy: args.sig_proxy,
    };
    match attached::attach(&wish).map_err(failed)? {
        Left::Ended(outcome) => {
            tell(&outcome, spec);
            Ok(outcome.exit.code())
        }
        Left::Detached => Ok(Code::Done as u8),
    }
}
