//! This process's terminal or streams, connected to a sandbox of another process.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;

use super::signals::Proxy;
use super::terminal;
use crate::keeper::client::{self, ClientError};
use crate::keeper::wire::{Frame, Reply, Request, Stream, receive, send, send_bytes};
use crate::sandbox::{Remote, SandboxError};
use crate::spec::{Isolation, Outcome, ProcessSpec, SandboxId, TerminalSize};

/// How long the end of a process may take.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Detach keys that mean nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "Detach keys '{0}' are not single characters or ctrl-a to ctrl-z, ctrl-@, ctrl-[, ctrl-\\, ctrl-], ctrl-^, ctrl-_, with commas between"
)]
pub(crate) struct KeysError(String);

/// Why an attachment ended badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The keeper.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Streams, terminal or signals of this process.
    #[error("Cannot use this process's own streams")]
    Streams(#[source] io::Error),
    /// The keeper left.
    #[error("The sandbox's keeper is gone: 'duplex ps -a' tells what became of the sandbox")]
    Lost,
    /// The keeper lives, and does not wait any longer.
    #[error(
        "The sandbox goes on without this connection, since nobody has read the output here: 'duplex logs' has that of the sandbox's own command"
    )]
    LeftBehind,
}

impl AttachError {
    /// Why a connection to the keeper of this folder has ended without a word.
    fn of_silence(folder: &Path) -> Self {
        // A keeper that was killed has its lock for a moment longer than its connections.
        let deadline = Instant::now() + LAST_MOMENT;
        while client::runs(folder) {
            if Instant::now() > deadline {
                return Self::LeftBehind;
            }
            thread::sleep(Duration::from_millis(5));
        }
        Self::Lost
    }
}

/// How an attachment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// With the command.
    Ended(Outcome),
    /// By the detach keys; the command goes on.
    Detached,
}

/// What is to be connected.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// The sandbox.
    pub(crate) id: SandboxId,
    /// Kind of its walls.
    pub(crate) isolation: Isolation,
    /// Its folder on the roster.
    pub(crate) folder: PathBuf,
    /// Standard input too.
    pub(crate) stdin: bool,
    /// The command has a terminal.
    pub(crate) terminal: bool,
    /// The keys that leave it.
    pub(crate) keys: Vec<u8>,
    /// Signals are the command's.
    pub(crate) proxy: bool,
}

/// Bytes of the keys that `--detach-keys` names; none is no keys.
pub(crate) fn keys(text: &str) -> Result<Vec<u8>, KeysError> {
    let refuse = || KeysError(text.to_owned());
    let key = |word: &str| match word.as_bytes() {
        [plain] => Some(*plain),
        [b'c', b't', b'r', b'l', b'-', letter] => match letter.to_ascii_lowercase() {
            lower @ b'a'..=b'z' => Some(lower - b'a' + 1),
            b'@' => Some(0),
            other @ b'['..=b'_' => Some(other - b'@'),
            _ => None,
        },
        _ => None,
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(|word| key(word).ok_or_else(refuse)).collect()
}

/// Connects, and carries until the command ends or the keys are typed.
pub(crate) fn attach(wish: &Wish) -> Result<Left, AttachError> {
    let remote = Distant { id: wish.id.clone(), isolation: wish.isolation, folder: wish.folder.clone() };
    let proxy = if wish.proxy { Some(Proxy::new(wish.terminal).map_err(AttachError::Streams)?) } else { None };
    let stream = client::attach(&wish.folder, wish.stdin)?;
    let proxy = proxy.map(|proxy| proxy.pass_to(Box::new(remote)));
    if let Some(size) = terminal::size().filter(|_| wish.terminal) {
        client::order(&wish.folder, Request::Resize(size))?;
    }
    let raw = wish.stdin && wish.terminal && terminal::stdin_is_terminal();
    let raw = if raw { Some(terminal::Raw::enter().map_err(AttachError::Streams)?) } else { None };
    let detached = Arc::new(AtomicBool::new(false));
    if wish.stdin {
        let to = Mutex::new(stream.try_clone().map_err(AttachError::Streams)?);
        let (detached, typed) = (Arc::clone(&detached), Typed::new(if raw.is_some() { &wish.keys } else { &[] }));
        // It ends with its input, or with this process: a read of a terminal cannot be called off.
        thread::spawn(move || carry_in(&to, typed, &detached));
    }
    let outcome = carry_out(stream);
    drop(raw);
    if let Some(proxy) = proxy {
        proxy.close();
    }
    match outcome {
        Some(outcome) => Ok(Left::Ended(outcome)),
        None if detached.load(Ordering::SeqCst) => Ok(Left::Detached),
        None => Err(AttachError::of_silence(&wish.folder)),
    }
}

/// A further command that is to be run and connected.
#[derive(Clone, Debug)]
pub(crate) struct Further {
    /// The sandbox's folder on the roster.
    pub(crate) folder: PathBuf,
    /// The command.
    pub(crate) process: ProcessSpec,
    /// The keys that leave its terminal.
    pub(crate) keys: Vec<u8>,
}

/// Runs a further command and carries until it ends or the keys are typed. Signals to this process are its own, as with Docker; only the
/// terminal's size is passed on.
pub(crate) fn exec(further: &Further) -> Result<Left, AttachError> {
    let process = &further.process;
    let terminal = process.terminal.is_some();
    let window = terminal.then(|| Signals::new([SIGWINCH])).transpose().map_err(AttachError::Streams)?;
    let stream = client::exec(&further.folder, process)?;
    let raw = process.stdin && terminal && terminal::stdin_is_terminal();
    let raw = if raw { Some(terminal::Raw::enter().map_err(AttachError::Streams)?) } else { None };
    let to = Arc::new(Mutex::new(stream.try_clone().map_err(AttachError::Streams)?));
    if let Some(mut window) = window {
        let to = Arc::clone(&to);
        thread::spawn(move || {
            for _ in window.forever() {
                let resized = terminal::size().map(|size| send(&mut *lock(&to), &Request::Resize(size)));
                if resized.is_some_and(|sent| sent.is_err()) {
                    return;
                }
            }
        });
    }
    let detached = Arc::new(AtomicBool::new(false));
    if process.stdin {
        let (detached, typed) = (Arc::clone(&detached), Typed::new(if raw.is_some() { &further.keys } else { &[] }));
        // It ends with its input, or with this process: a read of a terminal cannot be called off.
        thread::spawn(move || carry_in(&to, typed, &detached));
    }
    let outcome = carry_out(stream);
    drop(raw);
    match outcome {
        Some(outcome) => Ok(Left::Ended(outcome)),
        None if detached.load(Ordering::SeqCst) => Ok(Left::Detached),
        None => Err(AttachError::of_silence(&further.folder)),
    }
}

/// A lock whose holder panicked while writing a frame belongs to a connection that is lost in any case.
fn lock(stream: &Mutex<UnixStream>) -> MutexGuard<'_, UnixStream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Input to the keeper, until its end or the detach keys.
fn carry_in(to: &Mutex<UnixStream>, mut typed: Typed, detached: &AtomicBool) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = match io::stdin().lock().read(&mut buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        let (pass, leave) = typed.take(bytes);
        if leave {
            detached.store(true, Ordering::SeqCst);
            let _ = lock(to).shutdown(std::net::Shutdown::Both);
            return;
        }
        if (count == 0 || !pass.is_empty()) && send_bytes(&mut *lock(to), Stream::Output, &pass).is_err() {
            return;
        }
        if count == 0 {
            return;
        }
    }
}

/// Output from the keeper, until the command's end or the connection's. Output that nobody reads is thrown away.
fn carry_out(mut from: UnixStream) -> Option<Outcome> {
    loop {
        match receive::<Reply>(&mut from).ok()? {
            Frame::Bytes(Stream::Output, bytes) => {
                let mut out = io::stdout().lock();
                let _ = out.write_all(&bytes).and_then(|()| out.flush());
            }
            Frame::Bytes(Stream::Error, bytes) => {
                let _ = io::stderr().lock().write_all(&bytes);
            }
            Frame::Message(Reply::Ended(outcome)) => return Some(outcome),
            Frame::Message(_) => {}
        }
    }
}

/// Watches what is typed for the detach keys. What may be their beginning is held back until it is known.
#[derive(Debug)]
struct Typed {
    keys: Vec<u8>,
    held: usize,
}

impl Typed {
    fn new(keys: &[u8]) -> Self {
        Self { keys: keys.to_vec(), held: 0 }
    }

    /// What of these bytes, and of those held back, is the command's; and whether the keys are complete.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.held) != Some(byte) {
                pass.extend(self.keys.get(..self.held).unwrap_or_default());
                self.held = 0;
            }
            if self.keys.get(self.held) == Some(byte) {
                self.held += 1;
            } else {
                pass.push(*byte);
            }
            if !self.keys.is_empty() && self.held == self.keys.len() {
                return (pass, true);
            }
        }
        (pass, false)
    }
}

/// Reaches a sandbox through its keeper.
struct Distant {
    id: SandboxId,
    isolation: Isolation,
    folder: PathBuf,
}

impl Distant {
    fn order(&self, operation: &'static str, request: Request) -> Result<(), SandboxError> {
        client::order(&self.folder, request).map_err(|source| SandboxError {
            operation,
            isolation: self.isolation,
            id: self.id.clone(),
            source: Box::new(source),
        })
    }
}

impl Remote for Distant {
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        self.order("signal", Request::Signal(signal))
    }

    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        self.order("resize the terminal of", Request::Resize(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_dockers_names() {
        assert_eq!(keys("ctrl-p,ctrl-q").unwrap(), [16, 17]);
        assert_eq!(keys("a,ctrl-@,ctrl-[,ctrl-_,ctrl-Z").unwrap(), [b'a', 0, 27, 31, 26]);
        assert!(keys("").unwrap().is_empty());
        for bad in ["ctrl-", "ab", "ctrl-1", "a,,b", "alt-x"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn typed_keys_leave_and_all_else_passes() {
        let run = |pieces: &[&[u8]]| {
            let mut typed = Typed::new(&[16, 17]);
            let mut passed = Vec::new();
            for piece in pieces {
                let (pass, leave) = typed.take(piece);
                passed.extend(pass);
                if leave {
                    return (passed, true);
                }
            }
            (passed, false)
        };
        assert_eq!(run(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(run(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(run(&[b"a\x10", b"b"]), (b"a\x10b".to_vec(), false));
        assert_eq!(run(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(run(&[b"\x11\x10x"]), (b"\x11\x10x".to_vec(), false));
        let mut none = Typed::new(&[]);
        assert_eq!(none.take(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
