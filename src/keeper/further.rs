//! Further commands in a keeper's sandbox, one client each, and the verbs that stop and look at it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};

use super::hub::{Attached, lock};
use super::serve::{Shared, causes, put};
use super::wire::{Frame, Reply, Request, Stream, receive, send, send_bytes};
use crate::sandbox::roster::Entry;
use crate::sandbox::{Exec, Inside, Refusal, Remote, SandboxError, Stdio};
use crate::spec::{Exit, LimitChange, Outcome, ProcessSpec, Restart, Status, Transfer};
use crate::volume::sparse;

/// The signal that nothing can refuse.
const SIGKILL: u8 = 9;

/// How long the end of the sandbox may come after that of a command that ended with it.
pub(super) const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

impl Shared {
    fn inside(&self) -> Result<Arc<dyn Inside>, Reply> {
        let inside = self.lock().inside.clone();
        inside.ok_or_else(|| Reply::Failed(vec![Refusal::NotRunning.to_string()]))
    }

    /// Asks something of what is inside.
    pub(super) fn ask(&self, ask: impl FnOnce(&dyn Inside) -> Result<Reply, SandboxError>) -> Reply {
        match self.inside() {
            Ok(inside) => ask(&*inside).unwrap_or_else(|error| Reply::Failed(causes(&error))),
            Err(refused) => refused,
        }
    }

    /// Stops it, or lets it go on, and notes that where `ps` finds it.
    pub(super) fn set_paused(&self, paused: bool) -> Reply {
        self.ask(|inside| {
            if paused {
                // Before it is so: a health check that finds it paused does not count.
                let was = self.change(|now| std::mem::replace(&mut now.paused, true));
                inside.pause().inspect_err(|_| self.change(|now| now.paused = was))?;
            } else {
                inside.unpause()?;
                self.change(|now| now.paused = false);
            }
            if let Some(entry) = lock(&self.entry).as_mut() {
                entry.standing.status = if paused { Status::Paused } else { Status::Running };
                if paused {
                    entry.standing.unchecked();
                }
                // It is what it is even where that cannot be noted.
                let _ = entry.save();
            }
            Ok(Reply::Done)
        })
    }

    /// Changes its limits, and notes them where the next start and `inspect` find them.
    pub(super) fn change_limits(&self, change: &LimitChange) -> Reply {
        let limits = lock(&self.entry).as_ref().map(Entry::limits).unwrap_or_default();
        self.ask(|inside| {
            inside.change(&limits.completed(change))?;
            let Some(entry) = &mut *lock(&self.entry) else { return Ok(Reply::Done) };
            entry.change_limits(change);
            // They hold; that the next start will not know them is to be told.
            Ok(entry.save().map_or_else(|error| Reply::Failed(causes(&error)), |()| Reply::Done))
        })
    }

    /// Writes its machine and the disks of its volumes to files.
    pub(super) fn save(&self, machine: &Path, disks: &[(PathBuf, PathBuf)]) -> Reply {
        self.ask(|inside| {
            let failed = |words: String| Ok(Reply::Failed(vec![words]));
            let Some(saving) = inside.saving() else {
                return failed(
                    "Only a microVM of Duplex's monitor can be saved: a container's processes are part of the host's kernel".into(),
                );
            };
            let write = |path: &Path| File::options().write(true).open(path);
            let copy = || disks.iter().try_for_each(|(from, to)| sparse::copy(&File::open(from)?, &write(to)?));
            match write(machine) {
                Ok(file) => saving.save(&file, &copy).map(Reply::Saved),
                Err(error) => failed(format!("Cannot write {}: {error}", machine.display())),
            }
        })
    }

    /// Has another restart policy from its next end on.
    pub(super) fn change_restart(&self, restart: Restart) -> Reply {
        let Some(entry) = &mut *lock(&self.entry) else { return Reply::Failed(vec![Refusal::NotRunning.to_string()]) };
        entry.standing.restart = Some(restart);
        // It holds; that the next start will not know it is to be told.
        entry.save().map_or_else(|error| Reply::Failed(causes(&error)), |()| Reply::Done)
    }

    /// The end of a further command. By SIGKILL it may have ended with its sandbox, which is not to be guessed from a number.
    fn explained(&self, end: Outcome) -> Outcome {
        let killed = end.exit == Exit::Signal(SIGKILL) && end.reason.is_none();
        if !killed || self.until(Some(LAST_MOMENT), |now| now.inside.is_none().then_some(())).is_none() {
            return end;
        }
        let reason =
            "the sandbox ended, and this command with it: 'duplex ps -a' tells how, if it was not to be removed";
        Outcome { reason: Some(reason.to_owned()), ..end }
    }

    /// A paused command takes no signal but SIGKILL: it goes on with the signal, as in Docker.
    pub(super) fn wake(&self) {
        if lock(&self.entry).as_ref().is_some_and(|entry| entry.standing.status == Status::Paused) {
            let _ = self.set_paused(false);
        }
    }
}

/// Runs a further command for a client, to its end even if the client goes before.
pub(super) fn exec(mut stream: UnixStream, shared: &Shared, process: &ProcessSpec, detach: bool) -> io::Result<()> {
    let inside = match shared.inside() {
        Ok(inside) => inside,
        Err(refused) => return send(&mut stream, &refused),
    };
    let (stdio, ours) = if detach { nowhere()? } else { pipes(process.stdin)? };
    let mut exec = match inside.exec(process, stdio) {
        Ok(exec) => exec,
        Err(error) => return send(&mut stream, &Reply::Failed(causes(&error))),
    };
    let Some(ours) = ours else { return detached(stream, &mut *exec) };
    send(&mut stream, &Reply::Done)?;
    let client = Attached::new(stream.try_clone()?)?;
    carry(shared, &stream, client, exec, ours, false)
}

/// Copies files for a client, as long as it is there.
pub(super) fn copy(mut stream: UnixStream, shared: &Shared, transfer: &Transfer) -> io::Result<()> {
    let inside = match shared.inside() {
        Ok(inside) => inside,
        Err(refused) => return send(&mut stream, &refused),
    };
    let takes_in = matches!(transfer, Transfer::In { .. });
    let (stdio, ours) = pipes(takes_in)?;
    let copy = match inside.copy(transfer, stdio) {
        Ok(copy) => copy,
        Err(error) => return send(&mut stream, &Reply::Failed(causes(&error))),
    };
    let Some(ours) = ours else { return Ok(()) };
    send(&mut stream, &Reply::Done)?;
    let client = Attached::patient(stream.try_clone()?)?;
    // One that takes in ends with its input, and in order: it leaves no half file.
    carry(shared, &stream, client, copy, ours, !takes_in)
}

/// Carries what it reads and writes, to its end. `bound`: it ends with the client.
fn carry(
    shared: &Shared,
    stream: &UnixStream,
    client: Attached,
    mut exec: Box<dyn Exec>,
    ours: Ours,
    bound: bool,
) -> io::Result<()> {
    stream.set_read_timeout(None)?;
    let client = Arc::new(client);
    let pumps = [pump(ours.stdout, Stream::Output, &client)?, pump(ours.stderr, Stream::Error, &client)?];
    let (ear, remote) = (stream.try_clone()?, exec.remote());
    let input = Mutex::new(ours.stdin);
    let ear = move || {
        listen_to(ear, &*remote, &input);
        if bound {
            let _ = remote.signal(SIGKILL);
        }
    };
    Builder::new().name("exec-ear".into()).stack_size(CHUNK).spawn(ear)?;
    let outcome = exec.wait();
    for pump in pumps {
        let _ = pump.join();
    }
    let last = outcome.map_or_else(|error| Reply::Failed(causes(&error)), |end| Reply::Ended(shared.explained(end)));
    // A client that has gone has no answer coming.
    let _ = client.with(|to| send(to, &last));
    stream.shutdown(std::net::Shutdown::Both)
}

/// Tells the client that it runs, or why not, and keeps it to its end.
fn detached(mut stream: UnixStream, exec: &mut dyn Exec) -> io::Result<()> {
    let refused = exec.ended().filter(|outcome| outcome.reason.is_some());
    let told = send(&mut stream, &refused.map_or(Reply::Done, Reply::Ended));
    drop(stream);
    let _ = exec.wait();
    told
}

/// Our ends of a further command's streams.
struct Ours {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn pipes(stdin: bool) -> io::Result<(Stdio, Option<Ours>)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
    let (stdin, our_stdin) = if stdin { pipe().map(|(read, write)| (Some(read), Some(write)))? } else { (None, None) };
    let ours = Ours { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr };
    Ok((Stdio { stdin, stdout, stderr }, Some(ours)))
}

fn nowhere() -> io::Result<(Stdio, Option<Ours>)> {
    let null = || File::options().write(true).open("/dev/null").map(OwnedFd::from);
    Ok((Stdio { stdin: None, stdout: null()?, stderr: null()? }, None))
}

/// Moves output to the client. When it has gone or takes nothing, output is thrown away: the command goes on.
fn pump(from: OwnedFd, stream: Stream, client: &Arc<Attached>) -> io::Result<JoinHandle<()>> {
    let mut client = Some(Arc::clone(client));
    let body = move || {
        let (mut from, mut buffer) = (File::from(from), vec![0; CHUNK]);
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if let Some(to) = &client
                        && to.with(|to| send_bytes(to, stream, bytes)).is_err()
                    {
                        // Part of a frame may be on its way: the connection is worth nothing any more.
                        let _ = to.with(|to| to.shutdown(std::net::Shutdown::Both));
                        client = None;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    };
    Builder::new().name("exec-output".into()).stack_size(CHUNK).spawn(body)
}

/// Takes what the client sends, until it goes: its input ends then.
fn listen_to(mut stream: UnixStream, remote: &dyn Remote, input: &Mutex<Option<OwnedFd>>) {
    loop {
        match receive::<Request>(&mut stream) {
            Ok(Frame::Message(Request::Signal(signal))) => drop(remote.signal(signal)),
            Ok(Frame::Message(Request::Resize(size))) => drop(remote.resize(size)),
            Ok(Frame::Bytes(Stream::Output, bytes)) => {
                let mut input = lock(input);
                let broken = input.as_ref().is_some_and(|to| put(to.as_fd(), &bytes).is_err());
                if bytes.is_empty() || broken {
                    *input = None;
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
