//! Sandboxes of the roster from the command line: finding them, and starting keepers that go on in the background.
//!
//! ```text
//! duplex run -d, start ...                    duplex keeper
//!   | -- Orders (stdin), lock (descriptor) ---> |
//!   | <--- Word: Listening, Started, Ended ---- | (stdout)
//!   x                                           | goes on
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::fail::{Failure, failed};
use super::output::{note, say};
use super::{Context, engine};
use crate::image::Reference;
use crate::keeper::{Keeper, KeeperError, Report, confine};
use crate::sandbox::roster::{Entry, Roster, RosterError, Seen};
use crate::sandbox::snapshots::sweep_forks;
use crate::spec::{Exit, Installation, Outcome, SandboxId, SandboxSpec};
use crate::sys::spawn::ChildSetup;
use crate::volume::Volumes;

/// The hidden verb of the process of one keeper.
pub(crate) const VERB: &str = "keeper";

/// Longest orders in bytes: a definition is on disk, so these are paths.
const ORDERS: u64 = 256 << 10;

/// What a keeper is told.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    installation: Installation,
    id: SandboxId,
    /// Number of the inherited descriptor that holds the sandbox's lock.
    lock: i32,
    after_attach: bool,
}

/// What a keeper tells, one JSON text a line, until its sandbox has started or never will.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Word {
    /// Clients can connect.
    Listening,
    /// The command has been executed.
    Started,
    /// It has not been.
    Ended(Outcome),
    /// There is no sandbox: the error and its causes.
    Failed(Vec<String>),
}

/// Why no keeper can be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepingError {
    /// The program does not run.
    #[error("Cannot start a keeper for the sandbox")]
    Spawn(#[source] io::Error),
    /// It has gone.
    #[error("The sandbox's keeper ended without a word: its last ones may be in {0}")]
    Silent(String),
    /// It says why.
    #[error("{text}")]
    Reported {
        /// What it says.
        text: String,
        /// The cause.
        #[source]
        cause: Option<Box<KeepingError>>,
    },
}

/// The words of a keeper that has been started.
#[derive(Debug)]
pub(crate) struct Words {
    from: BufReader<PipeReader>,
    log: String,
}

/// The roster, with what the dead have left cleared.
pub(crate) fn roster(context: &Context) -> Result<Roster, RosterError> {
    let roster = Roster::open(&context.installation.state)?;
    for failure in roster.repair()? {
        note(failed(failure).render().trim_end());
    }
    if let Err(failure) = Volumes::of(&context.installation.store).sweep() {
        note(failed(failure).render().trim_end());
    }
    if let Err(failure) = sweep_forks(&context.installation.state) {
        note(failed(failure).render().trim_end());
    }
    Ok(roster)
}

/// Does something for each of these sandboxes. One that fails does not keep the others; the exit code tells.
pub(crate) fn each(
    roster: &Roster,
    words: &[String],
    mut act: impl FnMut(&Seen) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut code = 0;
    for word in words {
        let done = roster.find(word).and_then(|id| roster.see(&id)).map_err(failed).and_then(|seen| act(&seen));
        if let Err(failure) = done {
            say(failure.render().trim_end());
            code = failure.code as u8;
        }
    }
    Ok(code)
}

/// Starts a keeper for a sandbox that this process holds; it holds it from then on.
pub(crate) fn spawn(context: &Context, entry: Entry, after_attach: bool) -> Result<Words, KeepingError> {
    let spawned = || {
        let lock = entry.lock_to_hand_on()?;
        let orders = Orders {
            installation: context.installation.clone(),
            id: entry.definition.spec.id.clone(),
            lock: lock.as_raw_fd(),
            after_attach,
        };
        let (from, words) = io::pipe()?;
        let log = entry.path().join("keeper.log");
        let last_words = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&context.installation.duplex);
        command.arg(VERB).arg(entry.definition.spec.id.as_str()).current_dir("/");
        command.stdin(Stdio::piped()).stdout(words).stderr(last_words);
        let setup = ChildSetup { keep: vec![lock], session: true, expendable: false, ..ChildSetup::default() };
        let mut child = setup.apply(&mut command).spawn()?;
        // With this its descriptors here are closed: its end is the end of its words.
        drop(command);
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&serde_json::to_vec(&orders).map_err(io::Error::other)?)?;
        Ok(Words { from: BufReader::new(from), log: log.display().to_string() })
    };
    let words = spawned().map_err(KeepingError::Spawn);
    // The keeper has the lock now, or nobody.
    drop(entry);
    words
}

impl Words {
    /// The next word.
    pub(crate) fn next(&mut self) -> Result<Word, KeepingError> {
        let mut line = String::new();
        let silent = || KeepingError::Silent(self.log.clone());
        match self.from.read_line(&mut line) {
            Ok(1..) => {}
            _ => return Err(silent()),
        }
        match serde_json::from_str(&line).map_err(|_| silent())? {
            Word::Failed(causes) => Err(KeepingError::reported(causes)),
            word => Ok(word),
        }
    }

    /// Waits until the command runs; `Err` of the outcome if it never will.
    pub(crate) fn until_started(mut self) -> Result<Result<(), Outcome>, KeepingError> {
        loop {
            match self.next()? {
                Word::Started => return Ok(Ok(())),
                Word::Ended(outcome) => return Ok(Err(outcome)),
                Word::Listening | Word::Failed(_) => {}
            }
        }
    }
}

impl KeepingError {
    fn reported(causes: Vec<String>) -> Self {
        let chain = causes.into_iter().rev().fold(None, |cause, text| Some(Box::new(Self::Reported { text, cause })));
        chain.map_or_else(|| Self::Silent(String::new()), |error| *error)
    }
}

/// `duplex keeper`: keeps one sandbox to its end.
pub(crate) fn main() -> u8 {
    let mut out = io::stdout();
    let mut tell = |word: &Word| {
        // Whoever started us may have gone; the sandbox does not mind.
        let _ = serde_json::to_string(word).map(|text| writeln!(out, "{text}").and_then(|()| out.flush()));
    };
    match keep(&mut tell) {
        Ok(()) => 0,
        Err(error) => {
            let causes = std::iter::successors(Some(&*error as &dyn std::error::Error), |e| e.source());
            tell(&Word::Failed(causes.map(ToString::to_string).collect()));
            1
        }
    }
}

fn keep(tell: &mut dyn FnMut(&Word)) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut text = Vec::new();
    io::stdin().take(ORDERS).read_to_end(&mut text)?;
    let orders: Orders = serde_json::from_slice(&text)?;
    let lock = crate::sys::fd::take(orders.lock)?;
    let roster = Roster::open(&orders.installation.state)?;
    let entry = roster.adopt(&orders.id, lock)?;
    let spec = entry.definition.spec.clone();
    let prepared = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let store = engine::store(&orders.installation)?;
        // By its digest: the name may mean another image by now.
        let image = store.resolve(&spec.image.to_string().parse::<Reference>()?)?;
        let lease = store.hold(&image)?;
        Ok((engine::backend(&orders.installation, &spec, &image), lease))
    };
    let (backend, _lease) = match prepared() {
        Ok(prepared) => prepared,
        Err(error) => {
            Keeper::give_up(entry, &*error)?;
            return Err(error);
        }
    };
    confine(spec.isolation)?;
    let keeper = Keeper::new(entry)?;
    let keeper = if orders.after_attach { keeper.after_attach() } else { keeper };
    let ended = keeper.run(&*backend, &mut |report| match report {
        Report::Listening => tell(&Word::Listening),
        Report::Started => {
            tell(&Word::Started);
            quieten();
        }
    })?;
    if !ended.started {
        tell(&Word::Ended(ended.outcome));
    }
    for trouble in ended.troubles {
        say(failed(trouble).render().trim_end());
    }
    Ok(())
}

/// Lets go of the pipe to whoever started us: who reads it to its end is not to wait for the sandbox.
fn quieten() {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// What the exit code alone does not tell.
pub(crate) fn tell(outcome: &Outcome, spec: &SandboxSpec) {
    if let Some(reason) = &outcome.reason {
        note(reason);
    }
    if outcome.oom && outcome.reason.is_none() {
        let limit = spec.limits.memory.map_or_else(String::new, |m| format!(" (limit: {m})"));
        note(&format!("a process was killed for want of memory{limit}; --memory gives more"));
    }
    if outcome.exit == Exit::SandboxFailed && outcome.reason.is_none() {
        note("the sandbox ended around its command");
    }
}

/// Says what went wrong beside the result.
pub(crate) fn mention(troubles: Vec<KeeperError>) {
    for trouble in troubles {
        note(failed(trouble).render().trim_end());
    }
}
