//! Docker's rules for the command and its environment.

use super::{ImageDefaults, MeaningError};

/// `PATH` where the image sets none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program and its arguments: an entrypoint of the user's drops the image's command too; words behind the image replace
/// the image's command.
pub(crate) fn command(entrypoint: Option<&str>, words: &[String], image: &ImageDefaults) -> Option<Vec<String>> {
    let (entrypoint, cmd): (Vec<String>, &[String]) = match entrypoint {
        Some("") => (Vec::new(), words),
        Some(program) => (vec![program.to_owned()], words),
        None if words.is_empty() => (image.entrypoint.clone(), &image.cmd),
        None => (image.entrypoint.clone(), words),
    };
    let args: Vec<String> = entrypoint.into_iter().chain(cmd.iter().cloned()).collect();
    args.first().is_some_and(|program| !program.is_empty()).then_some(args)
}

/// Where the variables come from, in rising precedence after the defaults.
#[allow(missing_debug_implementations, reason = "a closure is in it")]
pub(crate) struct Variables<'a> {
    /// The image's `Env`.
    pub image: &'a [String],
    /// Contents of `--env-file`s with their names.
    pub files: &'a [(String, String)],
    /// `-e` flags.
    pub flags: &'a [String],
    /// The caller's variables.
    pub caller: &'a dyn Fn(&str) -> Option<String>,
    /// Value of `HOSTNAME`.
    pub hostname: &'a str,
    /// Set `TERM`.
    pub terminal: bool,
}

/// `NAME=value` list with each name once. A name without '=' takes the caller's value; if the caller has none, the variable is
/// taken away, the image's included.
pub(crate) fn environment(from: &Variables<'_>) -> Result<Vec<String>, MeaningError> {
    let mut env = Env::default();
    env.set(PATH);
    env.set(&format!("HOSTNAME={}", from.hostname));
    if from.terminal {
        env.set("TERM=xterm");
    }
    for entry in from.image {
        env.set(entry);
    }
    for (file, text) in from.files {
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let name = line.split('=').next().unwrap_or_default();
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(MeaningError::EnvFile { file: file.clone(), line: at + 1, text: line.to_owned() });
            }
            env.apply(line, from.caller);
        }
    }
    for entry in from.flags {
        if entry.is_empty() || entry.starts_with('=') {
            return Err(MeaningError::Variable(entry.clone()));
        }
        env.apply(entry, from.caller);
    }
    Ok(env.0)
}

/// An environment in the making: order of first appearance is kept.
#[derive(Default)]
struct Env(Vec<String>);

impl Env {
    fn place(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|e| e.split('=').next() == Some(name))
    }

    fn set(&mut self, entry: &str) {
        let Some((name, _)) = entry.split_once('=') else { return };
        match self.place(name).and_then(|at| self.0.get_mut(at)) {
            Some(place) => entry.clone_into(place),
            None => self.0.push(entry.to_owned()),
        }
    }

    fn apply(&mut self, entry: &str, caller: &dyn Fn(&str) -> Option<String>) {
        if entry.contains('=') {
            self.set(entry);
        } else if let Some(value) = caller(entry) {
            self.set(&format!("{entry}={value}"));
        } else if let Some(at) = self.place(entry) {
            self.0.remove(at);
        }
    }
}
