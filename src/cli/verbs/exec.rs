//! `duplex exec`.

use std::path::PathBuf;

use super::stop::VerbError;
use crate::cli::args::ExecArgs;
use crate::cli::attached::{self, Further, Left};
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::keeping::{roster, tell};
use crate::cli::meaning::{self, Surroundings, further};
use crate::cli::{Context, environment, place, terminal};
use crate::keeper::client;

/// A file of variables cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read the file of variables {path}")]
struct EnvFileError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Runs a further command in a sandbox and exits as it does.
pub(crate) fn exec(context: &Context, args: &ExecArgs) -> Result<u8, Failure> {
    let keys = attached::keys(&args.process.detach_keys).map_err(failed)?;
    let stdin = args.process.interactive && !args.detach;
    if stdin && args.process.tty && !terminal::stdin_is_terminal() {
        return Err(failed(meaning::MeaningError::NotATerminal));
    }
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.sandbox), stdin)? {
        return Ok(code);
    }
    let id = roster.find(&args.sandbox).map_err(failed)?;
    let seen = roster.see(&id).map_err(failed)?;
    let spec = &seen.definition.spec;
    let read = |path: &PathBuf| match std::fs::read_to_string(path) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(source) => Err(failed(EnvFileError { path: path.clone(), source })),
    };
    let files = args.process.env_file.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let around = Surroundings {
        id: id.clone(),
        variable: &environment::variable,
        env_files: &files,
        profile: None,
        terminal: terminal::size(),
    };
    let process = further(args, spec, &around).map_err(failed)?;
    if args.detach {
        let ended = client::exec_detached(&seen.path, &process).map_err(VerbError::of("run a command in", &seen))?;
        return Ok(ended.map_or(Code::Done as u8, |outcome| {
            tell(&outcome, spec);
            outcome.exit.code()
        }));
    }
    let left = attached::exec(&Further { folder: seen.path.clone(), process, keys });
    match left.map_err(|error| failed(ExecError { id, source: error }))? {
        Left::Ended(outcome) => {
            tell(&outcome, spec);
            Ok(outcome.exit.code())
        }
        Left::Detached => Ok(Code::Done as u8),
    }
}

/// Why there is no further command.
#[derive(Debug, thiserror::Error)]
#[error("Cannot run a command in sandbox {id}")]
struct ExecError {
    id: crate::spec::SandboxId,
    #[source]
    source: attached::AttachError,
}
