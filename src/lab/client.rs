//! Starting, finding and stopping the lab.

use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::frame::{Body, Frame, FrameError};
use super::keeper::{self, Says};
use super::message::{Control, PROTOCOL};
use super::{Places, Settings, Status, kernel};
use crate::doctor::{MissingTool, install, missing_for_lab};
use crate::sys::spawn::ChildSetup;

/// Longest wait for a lab that another process starts (a slow download is part of it).
const ANOTHERS_START: Duration = Duration::from_secs(900);

/// Longest wait for a lab that stops: it ends its commands, writes back and powers off.
const STOP: Duration = Duration::from_secs(60);

/// Why the lab could not be started, reached or stopped.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Programs are not installed.
    #[error("No QEMU for the lab: this machine lacks {}. {}", names(.0), install(.0.iter().map(|t| t.package)))]
    Missing(Vec<MissingTool>),
    /// The caller is in a lab.
    #[error("This is the lab already, and a lab holds no other")]
    Inside,
    /// The caller is not root.
    #[error("The lab needs root: it serves this machine's files as their owners. Run it with sudo")]
    NotRoot,
    /// The keeper could not be started.
    #[error("{program}: the lab's keeper could not be started")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The keeper gave up.
    #[error("The lab could not be started")]
    Failed(#[source] Reported),
    /// The keeper ended without a word.
    #[error("The lab's keeper ended without a word; {log} may say more")]
    Silent {
        /// What QEMU and the file servers said.
        log: PathBuf,
    },
    /// Another process started a lab that did not come up.
    #[error("Another process holds {state} to start a lab, and has not finished within {} s. 'duplex lab stop' ends it", ANOTHERS_START.as_secs())]
    Stuck {
        /// The state folder.
        state: PathBuf,
    },
    /// The lab that runs speaks another version of the protocol.
    #[error(
        "The lab that runs was started by another version of duplex (protocol {theirs}, ours is {PROTOCOL}). 'duplex lab stop' ends it"
    )]
    OtherVersion {
        /// Its version.
        theirs: u16,
    },
    /// The channel to the keeper broke.
    #[error("The lab's keeper could not be understood")]
    Channel(#[from] FrameError),
    /// The state folder cannot be used.
    #[error("{path}: the lab's state cannot be used")]
    State {
        /// The folder, or a socket in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn names(tools: &[MissingTool]) -> String {
    tools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// An error that another process met, with its causes.
#[derive(Debug)]
pub struct Reported {
    message: String,
    cause: Option<Box<Reported>>,
}

impl Reported {
    fn from_chain(causes: Vec<String>) -> Self {
        let chain =
            causes.into_iter().rev().fold(None, |cause, message| Some(Self { message, cause: cause.map(Box::new) }));
        chain.unwrap_or_else(|| Self { message: "No reason was given".to_owned(), cause: None })
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Reported {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

/// A lab that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// This call started it; otherwise it was there.
    pub fresh: bool,
    /// What it is.
    pub status: Status,
}

/// Starts the lab, or finds the one that runs. `tell` gets a line for each step that takes time.
///
/// # Errors
/// See [`LabError`].
pub fn start(settings: &Settings, tell: &mut dyn FnMut(&str)) -> Result<Started, LabError> {
    let deadline = Instant::now() + ANOTHERS_START;
    let mut fresh = false;
    let mut told = false;
    loop {
        if let Some(status) = status(&settings.places)? {
            return Ok(Started { fresh, status });
        }
        if super::inside() {
            return Err(LabError::Inside);
        }
        if !is_root() {
            return Err(LabError::NotRoot);
        }
        let missing = missing_for_lab(&settings.search, kernel::find(&settings.places.kernel).is_none());
        if !missing.is_empty() {
            return Err(LabError::Missing(missing));
        }
        match begin(settings, tell)? {
            Says::Ready => fresh = true,
            Says::Failed(causes) => return Err(LabError::Failed(Reported::from_chain(causes))),
            Says::Busy | Says::Step(_) => {
                if Instant::now() > deadline {
                    return Err(LabError::Stuck { state: settings.places.state.clone() });
                }
                if !std::mem::replace(&mut told, true) {
                    tell("another process starts or stops the lab; waiting for it");
                }
                thread::sleep(Duration::from_millis(300));
            }
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Starts a keeper and follows it to its verdict.
fn begin(settings: &Settings, tell: &mut dyn FnMut(&str)) -> Result<Says, LabError> {
    let spawn = |source| LabError::Spawn { program: settings.program.clone(), source };
    let words = keeper::words(settings).map_err(|e| spawn(e.into()))?;
    let mut command = Command::new(&settings.program);
    command.args(words).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(keeper::nowhere().map_err(spawn)?);
    // Its own session: neither the terminal's signals nor this process's end reach it.
    ChildSetup { session: true, ..ChildSetup::default() }.apply(&mut command);
    let mut child = command.spawn().map_err(spawn)?;
    let said = child.stdout.take().map(BufReader::new);
    reap(child);
    for line in said.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Says::Step(step)) => tell(&step),
            Ok(verdict) => return Ok(verdict),
            Err(_) => {}
        }
    }
    Err(LabError::Silent { log: settings.places.log() })
}

/// A keeper may end before its starter: somebody must take its exit status.
fn reap(mut child: Child) {
    thread::spawn(move || {
        let _ = child.wait();
    });
}

/// A connection to the keeper past the greeting, or `None` if no lab takes commands.
pub(super) fn connect(places: &Places) -> Result<Option<UnixStream>, LabError> {
    let path = places.socket();
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        // Root's lab is root's alone.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !is_root() => return Err(LabError::NotRoot),
        Err(source) => return Err(LabError::State { path, source }),
    };
    let greeting =
        Frame::control(0, Control::Hello(PROTOCOL)).write(&mut stream).and_then(|()| Frame::read(&mut stream));
    match greeting.map(|frame| frame.body) {
        Ok(Body::Control(Control::Hello(PROTOCOL))) => Ok(Some(stream)),
        Ok(Body::Control(Control::Hello(theirs))) => Err(LabError::OtherVersion { theirs }),
        Ok(_) => Err(LabError::OtherVersion { theirs: 0 }),
        // The keeper ended in this moment.
        Err(FrameError::Closed | FrameError::Io(_)) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// The lab that runs, or `None`.
///
/// # Errors
/// See [`LabError`].
pub fn status(places: &Places) -> Result<Option<Status>, LabError> {
    let Some(mut stream) = connect(places)? else { return Ok(None) };
    Frame::control(0, Control::StatusWanted).write(&mut stream)?;
    match Frame::read(&mut stream) {
        Ok(Frame { body: Body::Control(Control::Status(status)), .. }) => Ok(Some(status)),
        Ok(_) => Err(LabError::OtherVersion { theirs: 0 }),
        Err(FrameError::Closed | FrameError::Io(_)) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Stops the lab, or what is left of a crashed one, and waits until nothing of it is there. `false` if there was none.
///
/// # Errors
/// [`LabError::State`] if its files cannot be reached.
pub fn stop(places: &Places) -> Result<bool, LabError> {
    let state = |source| LabError::State { path: places.state.clone(), source };
    if !places.state.is_dir() {
        return Ok(false);
    }
    let mut found = false;
    let deadline = Instant::now() + STOP;
    loop {
        let keeper = places.recorded().into_iter().find(|p| p.what == "keeper" && p.open().is_some());
        if let Some(keeper) = keeper {
            found = true;
            if !keeper.end(Signal::TERM, STOP) {
                keeper.end(Signal::KILL, Duration::from_secs(5));
            }
        }
        let lock = match places.lock() {
            // The keeper's last act: the folder is gone, and with it all of the lab.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            other => other.map_err(state)?,
        };
        if let Some(lock) = lock {
            found |= places.recorded().iter().any(|p| p.open().is_some());
            places.clear(false);
            places.remove_lock();
            drop(lock);
            return Ok(found);
        }
        // A keeper that is about to start or to end holds the lock without being on record.
        if Instant::now() > deadline {
            return Err(LabError::Stuck { state: places.state.clone() });
        }
        thread::sleep(Duration::from_millis(100));
    }
}
