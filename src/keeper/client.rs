//! The client's end of a keeper's socket.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wire::{Frame, Opening, Reply, Request, VERSION, receive, send};
use crate::sandbox::roster::CONTROL;
use crate::spec::{MachineSize, Outcome, ProcessEntry, ProcessSpec, Stats, Transfer, Usage};

/// How long a keeper that has just been born may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a keeper may take to answer what it can answer at once.
const ANSWER: Duration = Duration::from_secs(30);

/// How long a further command may take to be executed.
const EXECUTION: Duration = Duration::from_secs(90);

/// Why a keeper did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no keeper: the sandbox does not run.
    #[error("It is not running")]
    NotRunning,
    /// The socket fails.
    #[error("Its keeper does not answer")]
    Socket(#[source] io::Error),
    /// The keeper says why.
    #[error("{text}")]
    Refused {
        /// What it says.
        text: String,
        /// Its causes.
        #[source]
        cause: Option<Box<ClientError>>,
    },
    /// The keeper answers something else.
    #[error("Its keeper gave an answer that does not belong here")]
    Unexpected,
}

impl ClientError {
    fn refused(causes: Vec<String>) -> Self {
        let chain = causes.into_iter().rev().fold(None, |cause, text| Some(Box::new(Self::Refused { text, cause })));
        chain.map_or(Self::Unexpected, |error| *error)
    }
}

/// Whether the sandbox of this roster folder has a keeper that lives.
pub fn runs(folder: &Path) -> bool {
    crate::sandbox::roster::is_owned(folder)
}

/// Asks the keeper of the sandbox in this roster folder; waits for the answer as long as that takes.
///
/// # Errors
/// [`ClientError::NotRunning`] if nobody listens there, or what the keeper says.
pub fn ask(folder: &Path, request: Request) -> Result<Reply, ClientError> {
    let endless = matches!(request, Request::Wait | Request::Stop { .. } | Request::Save { .. });
    let mut stream = connect(folder)?;
    let patience = if matches!(request, Request::Exec { .. }) { EXECUTION } else { ANSWER };
    stream.set_read_timeout((!endless).then_some(patience)).map_err(ClientError::Socket)?;
    open(&mut stream, request)
}

/// Asks for something that is done or not.
///
/// # Errors
/// As [`ask`].
pub fn order(folder: &Path, request: Request) -> Result<(), ClientError> {
    match ask(folder, request)? {
        Reply::Done | Reply::Ended(_) => Ok(()),
        _ => Err(ClientError::Unexpected),
    }
}

/// Waits until the command has ended; `None` if the keeper does not know how.
///
/// # Errors
/// As [`ask`].
pub fn wait(folder: &Path) -> Result<Option<Outcome>, ClientError> {
    match ask(folder, Request::Wait)? {
        Reply::Ended(outcome) => Ok(Some(outcome)),
        Reply::Done => Ok(None),
        _ => Err(ClientError::Unexpected),
    }
}

/// What the sandbox uses now.
///
/// # Errors
/// As [`ask`].
pub fn usage(folder: &Path) -> Result<Usage, ClientError> {
    match ask(folder, Request::Usage)? {
        Reply::Usage(usage) => Ok(usage),
        _ => Err(ClientError::Unexpected),
    }
}

/// Attaches: from now on output comes from the stream that is the answer, and input may go there.
///
/// # Errors
/// As [`ask`].
pub fn attach(folder: &Path, stdin: bool) -> Result<UnixStream, ClientError> {
    let mut stream = connect(folder)?;
    stream.set_read_timeout(Some(ANSWER)).map_err(ClientError::Socket)?;
    match open(&mut stream, Request::Attach { stdin })? {
        Reply::Done => {}
        _ => return Err(ClientError::Unexpected),
    }
    stream.set_read_timeout(None).map_err(ClientError::Socket)?;
    Ok(stream)
}

/// Runs a further command. From now on its output comes from the stream that is the answer, and its input may go there.
///
/// # Errors
/// As [`ask`].
pub fn exec(folder: &Path, process: &ProcessSpec) -> Result<UnixStream, ClientError> {
    begin(folder, Request::Exec { process: Box::new(process.clone()), detach: false })
}

/// Copies files. From now on a tar stream comes from the stream that is the answer, or goes there.
///
/// # Errors
/// As [`ask`].
pub fn copy(folder: &Path, transfer: &Transfer) -> Result<UnixStream, ClientError> {
    begin(folder, Request::Copy(transfer.clone()))
}

fn begin(folder: &Path, request: Request) -> Result<UnixStream, ClientError> {
    let mut stream = connect(folder)?;
    stream.set_read_timeout(Some(EXECUTION)).map_err(ClientError::Socket)?;
    match open(&mut stream, request)? {
        Reply::Done => {}
        _ => return Err(ClientError::Unexpected),
    }
    stream.set_read_timeout(None).map_err(ClientError::Socket)?;
    Ok(stream)
}

/// Runs a further command without its streams. How it ended, if it was not executed.
///
/// # Errors
/// As [`ask`].
pub fn exec_detached(folder: &Path, process: &ProcessSpec) -> Result<Option<Outcome>, ClientError> {
    match ask(folder, Request::Exec { process: Box::new(process.clone()), detach: true })? {
        Reply::Done => Ok(None),
        Reply::Ended(outcome) => Ok(Some(outcome)),
        _ => Err(ClientError::Unexpected),
    }
}

/// Its processes.
///
/// # Errors
/// As [`ask`].
pub fn processes(folder: &Path) -> Result<Vec<ProcessEntry>, ClientError> {
    match ask(folder, Request::Processes)? {
        Reply::Processes(entries) => Ok(entries),
        _ => Err(ClientError::Unexpected),
    }
}

/// What it uses, from both sides of its walls.
///
/// # Errors
/// As [`ask`].
pub fn stats(folder: &Path) -> Result<Stats, ClientError> {
    match ask(folder, Request::Stats)? {
        Reply::Stats(stats) => Ok(*stats),
        _ => Err(ClientError::Unexpected),
    }
}

/// Writes its machine, and copies of these disks of its volumes, to files that are there and empty. The size of the machine.
///
/// # Errors
/// As [`ask`].
pub fn save(folder: &Path, machine: PathBuf, disks: Vec<(PathBuf, PathBuf)>) -> Result<MachineSize, ClientError> {
    match ask(folder, Request::Save { machine, disks })? {
        Reply::Saved(size) => Ok(size),
        _ => Err(ClientError::Unexpected),
    }
}

fn open(stream: &mut UnixStream, request: Request) -> Result<Reply, ClientError> {
    send(stream, &Opening { version: VERSION, request }).map_err(ClientError::Socket)?;
    match receive::<Reply>(stream) {
        Ok(Frame::Message(Reply::Failed(causes))) => Err(ClientError::refused(causes)),
        Ok(Frame::Message(reply)) => Ok(reply),
        Ok(Frame::Bytes(..)) => Err(ClientError::Unexpected),
        Err(error) => Err(ClientError::Socket(error)),
    }
}

/// Connects to the keeper. One that has the sandbox but does not listen yet is waited for.
fn connect(folder: &Path) -> Result<UnixStream, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_connect(folder) {
            Ok(stream) => return Ok(stream),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                if !runs(folder) {
                    return Err(ClientError::NotRunning);
                }
                if Instant::now() > deadline {
                    return Err(ClientError::Socket(e));
                }
            }
            Err(e) => return Err(ClientError::Socket(e)),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn try_connect(folder: &Path) -> io::Result<UnixStream> {
    let open = std::fs::File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{CONTROL}", open.as_raw_fd()))
}
