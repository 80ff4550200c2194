//! The keeper's socket: one thread per client.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::further::{copy, exec};
use super::hub::{Attached, Hub, lock};
use super::wire::{Frame, Opening, Reply, Request, Stream, VERSION, receive, send};
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::roster::{CONTROL, Entry};
use crate::sandbox::{Inside, Remote, SandboxError};
use crate::spec::{Outcome, TerminalSize};

/// Most clients at once.
const MOST_CLIENTS: usize = 128;

/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a sandbox may take to end after SIGKILL.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// Signals that wait for the command to be there.
const MOST_EARLY: usize = 32;

const SIGKILL: u8 = 9;

/// What keeper, its threads and clients share.
pub(super) struct Shared {
    pub(super) now: Mutex<Now>,
    pub(super) changed: Condvar,
    pub(super) entry: Mutex<Option<Entry>>,
    pub(super) hub: Arc<Hub>,
    pub(super) stop_signal: u8,
    pub(super) stop_timeout_s: u32,
    pub(super) id: crate::spec::SandboxId,
}

/// The sandbox at this moment.
#[derive(Default)]
pub(super) struct Now {
    /// Reaches the command; `None` while there is none.
    pub(super) remote: Option<Arc<dyn Remote>>,
    /// Reaches what is beside it.
    pub(super) inside: Option<Arc<dyn Inside>>,
    /// It is stopped where it is.
    pub(super) paused: bool,
    /// Signals that came before it.
    pub(super) early: Vec<u8>,
    /// It is not to start (again).
    pub(super) stopped: bool,
    /// A client has attached.
    pub(super) attached: bool,
    /// Our end of its standard input.
    pub(super) input: Option<Arc<OwnedFd>>,
    /// How often its command has ended.
    pub(super) ends: u64,
    /// How it ended the last time.
    pub(super) outcome: Option<Outcome>,
    /// Nothing will change any more, and everything is on disk.
    pub(super) over: bool,
    /// It has ended and will start again.
    pub(super) restarting: bool,
    clients: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Now> {
        lock(&self.now)
    }

    /// Changes something and tells who waits.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Now) -> T) -> T {
        let answer = change(&mut self.lock());
        self.changed.notify_all();
        answer
    }

    /// Waits until `done` finds something, at most so long.
    pub(super) fn until<T>(&self, patience: Option<Duration>, done: impl Fn(&Now) -> Option<T>) -> Option<T> {
        let deadline = patience.map(|p| Instant::now() + p);
        let mut now = self.lock();
        loop {
            if let Some(found) = done(&now) {
                return Some(found);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            now = match left {
                Some(Duration::ZERO) => return None,
                Some(left) => self.changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(now).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Sends the command a signal, now or as soon as it is there. What ends it keeps it from starting again.
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        let remote = self.change(|now| {
            now.stopped |= signal == SIGKILL || signal == self.stop_signal;
            if now.remote.is_none() && !now.restarting && now.early.len() < MOST_EARLY {
                now.early.push(signal);
            }
            now.remote.clone()
        });
        remote.map_or(Ok(()), |remote| remote.signal(signal))?;
        if signal != SIGKILL {
            self.wake();
        }
        Ok(())
    }

    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        let remote = self.lock().remote.clone();
        remote.map_or(Ok(()), |remote| remote.resize(size))
    }

    /// Asks the command to end, then ends it; returns when everything is on disk.
    fn stop(&self, signal: Option<u8>, timeout_s: Option<u32>) -> Result<Reply, SandboxError> {
        self.change(|now| now.stopped = true);
        let signal = signal.unwrap_or(self.stop_signal);
        let sent = self.signal(signal);
        let grace = Duration::from_secs(u64::from(timeout_s.unwrap_or(self.stop_timeout_s)));
        if sent.is_err() || !self.ends_within(grace) {
            self.signal(SIGKILL)?;
        }
        let over = self.until(Some(LAST_PATIENCE), |now| now.over.then(|| now.outcome.clone()));
        Ok(match over {
            Some(Some(outcome)) => Reply::Ended(outcome),
            Some(None) => Reply::Done,
            None => Reply::Failed(vec![format!("It has not ended {} s after SIGKILL", LAST_PATIENCE.as_secs())]),
        })
    }

    fn ends_within(&self, time: Duration) -> bool {
        let ends = self.lock().ends;
        self.until(Some(time), |now| (now.over || now.ends > ends).then_some(())).is_some()
    }
}

/// Reaches the sandbox of a keeper from its own process, whichever of its starts it is at.
#[derive(Clone, Debug)]
pub struct Handle(pub(super) Arc<Shared>);

impl Remote for Handle {
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        self.0.signal(signal)
    }

    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        self.0.resize(size)
    }
}

/// Makes the socket in the entry's folder. By the folder's descriptor: a socket's path is short (108 bytes), a folder's need not be.
pub(super) fn listen(folder: &Path) -> io::Result<UnixListener> {
    let open = std::fs::File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{CONTROL}", open.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves clients until the process ends.
pub(super) fn serve(listener: UnixListener, shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Too many open files, most likely: others have to end first.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            welcome(stream, &shared);
        }
    };
    std::thread::Builder::new().name("control".into()).stack_size(128 << 10).spawn(accept).map(drop)
}

fn welcome(mut stream: UnixStream, shared: &Arc<Shared>) {
    let timeouts = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))
    };
    if timeouts().is_err() {
        return;
    }
    if shared.lock().clients >= MOST_CLIENTS {
        let _ = send(&mut stream, &Reply::Failed(vec![format!("{MOST_CLIENTS} clients are connected already")]));
        return;
    }
    shared.lock().clients += 1;
    let (client, counted) = (Arc::clone(shared), Arc::clone(shared));
    let body = move || {
        // A client that goes away, or says what is no message, has no answer coming.
        let _ = answer(stream, &client);
        client.change(|now| now.clients -= 1);
    };
    if std::thread::Builder::new().name("client".into()).stack_size(256 << 10).spawn(body).is_err() {
        counted.change(|now| now.clients -= 1);
    }
}

/// Waits until all clients have their answers, but not for those that do not take them.
pub(super) fn farewell(shared: &Shared) {
    let _ = shared.until(Some(Duration::from_secs(2)), |now| (now.clients == 0).then_some(()));
}

fn answer(mut stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let Frame::Message(opening) = receive::<Opening>(&mut stream)? else { return Ok(()) };
    if opening.version != VERSION {
        let words =
            format!("The sandbox's keeper speaks version {VERSION}, not {}: both must be one Duplex", opening.version);
        return send(&mut stream, &Reply::Failed(vec![words]));
    }
    let told = |done: Result<(), SandboxError>| done.map(|()| Reply::Done);
    let reply = match opening.request {
        Request::Attach { stdin } => return attach(stream, shared, stdin),
        Request::Exec { process, detach } => return exec(stream, shared, &process, detach),
        Request::Copy(transfer) => return copy(stream, shared, &transfer),
        Request::Pause => Ok(shared.set_paused(true)),
        Request::Unpause => Ok(shared.set_paused(false)),
        Request::Change(change) => Ok(shared.change_limits(&change)),
        Request::Restart(restart) => Ok(shared.change_restart(restart)),
        Request::Processes => Ok(shared.ask(|inside| inside.processes().map(Reply::Processes))),
        Request::Stats => Ok(shared.ask(|inside| inside.stats().map(|stats| Reply::Stats(Box::new(stats))))),
        Request::Save { machine, disks } => Ok(shared.save(&machine, &disks)),
        Request::Signal(signal) => told(shared.signal(signal)),
        Request::Resize(size) => told(shared.resize(size)),
        Request::Stop { signal, timeout_s } => shared.stop(signal, timeout_s),
        Request::Wait => Ok(wait(shared, &stream)),
        Request::Rename(name) => Ok(rename(shared, &name)),
        Request::Usage => Ok(Reply::Usage(Cgroup::of(&shared.id).usage())),
    };
    send(&mut stream, &reply.unwrap_or_else(|error| Reply::Failed(causes(&error))))
}

/// An error and its causes, outermost first.
pub(super) fn causes(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect()
}

/// Until the next end of the command. A client that has gone is not waited with.
fn wait(shared: &Shared, client: &UnixStream) -> Reply {
    let ends = shared.lock().ends;
    loop {
        // The last end counts when it is on disk: who waited may remove the sandbox.
        let again = |now: &Now| now.ends > ends && (now.restarting || now.remote.is_some());
        let ended = |now: &Now| (now.over || again(now)).then(|| now.outcome.clone());
        match shared.until(Some(Duration::from_secs(5)), ended) {
            Some(Some(outcome)) => return Reply::Ended(outcome),
            Some(None) => return Reply::Done,
            None if gone(client) => return Reply::Done,
            None => {}
        }
    }
}

fn gone(client: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(client, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

fn rename(shared: &Shared, name: &str) -> Reply {
    match lock(&shared.entry).as_mut().map(|entry| entry.rename(name)) {
        Some(Ok(())) => Reply::Done,
        Some(Err(error)) => Reply::Failed(causes(&error)),
        None => Reply::Failed(vec!["The sandbox is going away".to_owned()]),
    }
}

/// Serves an attached client until the sandbox ends or the client goes.
fn attach(mut stream: UnixStream, shared: &Arc<Shared>, stdin: bool) -> io::Result<()> {
    send(&mut stream, &Reply::Done)?;
    let client = Arc::new(Attached::new(stream.try_clone()?)?);
    shared.hub.attach(&client);
    shared.change(|now| now.attached = true);
    stream.set_read_timeout(None)?;
    let ear = {
        let shared = Arc::clone(shared);
        let stream = stream.try_clone()?;
        let body = move || listen_to(stream, &shared, stdin);
        std::thread::Builder::new().name("attached".into()).stack_size(256 << 10).spawn(body)?
    };
    let outcome = loop {
        let over = shared.until(Some(Duration::from_secs(5)), |now| now.over.then(|| now.outcome.clone()));
        if over.is_some() || ear.is_finished() {
            break over.flatten();
        }
    };
    shared.hub.detach(&client);
    if let Some(outcome) = outcome {
        client.with(|to| send(to, &Reply::Ended(outcome)))?;
    }
    stream.shutdown(std::net::Shutdown::Both)
}

/// Takes what an attached client sends, until it goes.
fn listen_to(mut stream: UnixStream, shared: &Shared, stdin: bool) {
    let once = lock(&shared.entry).as_ref().is_some_and(|entry| entry.definition.input_once);
    loop {
        match receive::<Request>(&mut stream) {
            Ok(Frame::Message(Request::Signal(signal))) => {
                let _ = shared.signal(signal);
            }
            Ok(Frame::Message(Request::Resize(size))) => {
                let _ = shared.resize(size);
            }
            Ok(Frame::Bytes(Stream::Output, bytes)) if stdin => {
                let input = shared.lock().input.clone();
                // An input that nobody reads any more is thrown away.
                let _ = input.map(|input| put(input.as_fd(), &bytes));
                if bytes.is_empty() && once {
                    shared.change(|now| now.input = None);
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Writes all.
pub(super) fn put(input: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(input, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
