//! How `duplex run` is told of an arm that is a virtual environment of the host.

use std::path::Path;
use std::process::{Command, Stdio};

use super::super::plan::Arm;
use super::super::runner::RunnerError;
use super::super::venv::{Python, ask, variables, words as own_words};
use super::{EMBEDDED, Spawner};
use crate::spec::ProgramOf;

/// Adds what makes this environment's surroundings; answers with the words of the command there. Programs of the embedded image, which the host
/// has not, come out of the image, and need nothing else of it.
pub(super) fn enter(command: &mut Command, venv: &Path, image: &str, words: Vec<String>) -> Vec<String> {
    for variable in variables(venv) {
        command.arg("--env").arg(variable);
    }
    let environments = words.first().is_some_and(|program| Path::new(program).starts_with(venv));
    let whose = if image == EMBEDDED && !environments { ProgramOf::Image } else { ProgramOf::Host };
    command.arg("--host-root").arg(whose.to_string());
    match whose {
        ProgramOf::Image => words,
        ProgramOf::Host => {
            command.args(["--entrypoint", ""]);
            own_words(venv, &words)
        }
    }
}

/// The Python that answers in this arm, where some arm is a virtual environment; none where there is none, as in most images.
pub(super) fn python(spawner: &Spawner, arm: &Arm) -> Result<Option<Python>, RunnerError> {
    if spawner.plan.arms.iter().all(|arm| arm.venv.is_none()) {
        return Ok(None);
    }
    let mut command = spawner.command(arm, &[], &spawner.plan.reference, &ask(arm));
    let (_, child) = spawner.spawn(command.stdin(Stdio::null()))?;
    let (watched, _) = spawner.finish(child, false)?;
    let deed = &watched.deed;
    let answer = (deed.exit_code == 0).then(|| String::from_utf8_lossy(&deed.stdout.head).into_owned());
    Ok(answer.and_then(|text| Python::from_answer(&text)))
}
