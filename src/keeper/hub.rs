//! Where a sandbox's output goes: its log, the streams of a `run` in the foreground, attached clients. One thread per stream reads what the
//! command writes and gives it to all; who does not read slows the command down, as a pipe would, and an attached client at most for
//! [`PATIENCE`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::log::Log;
use super::wire::{Stream, send_bytes};
use crate::sys::clock::realtime_ns;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// Stack of a thread that only moves bytes.
const STACK: usize = 128 << 10;

/// How long an attached client may take none of its bytes before it is left behind.
const PATIENCE: Duration = Duration::from_secs(30);

/// The streams of a `run` in the foreground.
#[derive(Debug, Default)]
pub struct Local {
    /// Read by the command.
    pub stdin: Option<OwnedFd>,
    /// Where its output goes.
    pub stdout: Option<OwnedFd>,
    /// Where its errors go.
    pub stderr: Option<OwnedFd>,
}

/// The outlets of one sandbox.
#[derive(Debug)]
pub(super) struct Hub {
    log: Mutex<Log>,
    clients: Mutex<Vec<Arc<Attached>>>,
}

/// A client that gets the output.
#[derive(Debug)]
pub(super) struct Attached(Mutex<UnixStream>);

impl Attached {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(Mutex::new(stream)))
    }

    /// One that is waited for as long as it lives: what it does not get is not to be missed.
    pub(super) fn patient(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(None)?;
        Ok(Self(Mutex::new(stream)))
    }

    /// Says something to the client, between two pieces of output.
    pub(super) fn with<T>(&self, say: impl FnOnce(&mut UnixStream) -> T) -> T {
        say(&mut lock(&self.0))
    }
}

impl Hub {
    pub(super) fn new(log: Log) -> Self {
        Self { log: Mutex::new(log), clients: Mutex::default() }
    }

    /// From now on this client gets the output.
    pub(super) fn attach(&self, client: &Arc<Attached>) {
        lock(&self.clients).push(Arc::clone(client));
    }

    /// From now on it does not.
    pub(super) fn detach(&self, client: &Arc<Attached>) {
        lock(&self.clients).retain(|c| !Arc::ptr_eq(c, client));
    }

    /// Moves what comes from `from` to all, until its end. When `local` takes no more, neither does this: the command's next write fails, as
    /// it would without a sandbox around it.
    pub(super) fn pump(
        self: &Arc<Self>,
        stream: Stream,
        from: OwnedFd,
        local: Option<OwnedFd>,
    ) -> io::Result<JoinHandle<()>> {
        let hub = Arc::clone(self);
        let name = if stream == Stream::Output { "output" } else { "error" };
        let body = move || hub.carry(stream, File::from(from), local.map(File::from));
        std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
    }

    fn carry(&self, stream: Stream, mut from: File, mut local: Option<File>) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let bytes = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let at_ns = realtime_ns();
            let gone = local.as_mut().is_some_and(|local| write_all(local, bytes).is_err());
            lock(&self.log).write(at_ns, stream, bytes);
            self.give(stream, bytes);
            if gone {
                return;
            }
        }
    }

    fn give(&self, stream: Stream, bytes: &[u8]) {
        let clients = lock(&self.clients).clone();
        for client in clients {
            if client.with(|to| send_bytes(to, stream, bytes)).is_err() {
                // Part of a frame may be on its way: the connection is worth nothing any more.
                let _ = client.with(|to| to.shutdown(std::net::Shutdown::Both));
                self.detach(&client);
            }
        }
    }
}

/// Writes all, also to a descriptor that its owner has made non-blocking.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&*to, PollFlags::OUT)], None);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What the locks protect is whole after every statement: a thread that panicked with one left nothing half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::wire::{Frame, Reply, receive};
    use crate::spec::LogLimits;

    #[test]
    fn output_reaches_log_foreground_and_clients() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Arc::new(Hub::new(Log::new(dir.path(), LogLimits::default())));
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut ours, local) = io::pipe().unwrap();
        let (mut theirs, client) = UnixStream::pair().unwrap();
        let (_deaf, gone) = UnixStream::pair().unwrap();
        let client = Arc::new(Attached::new(client).unwrap());
        hub.attach(&client);
        hub.attach(&Arc::new(Attached::new(gone).unwrap()));
        drop(_deaf);
        let pump = hub.pump(Stream::Error, read, Some(local.into())).unwrap();
        rustix::io::write(&write, b"words").unwrap();
        drop(write);
        pump.join().unwrap();
        assert_eq!(receive::<Reply>(&mut theirs).unwrap(), Frame::Bytes(Stream::Error, b"words".to_vec()));
        assert_eq!(lock(&hub.clients).len(), 1, "who is gone is forgotten");
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "words");
        assert_eq!(crate::keeper::log::Reader::new(dir.path()).count(), 1);
    }

    #[test]
    fn a_client_that_never_reads_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Arc::new(Hub::new(Log::new(dir.path(), LogLimits::default())));
        let (mut theirs, client) = UnixStream::pair().unwrap();
        let deaf = Attached::new(client).unwrap();
        deaf.with(|stream| stream.set_write_timeout(Some(Duration::from_millis(20)))).unwrap();
        hub.attach(&Arc::new(deaf));
        let (read, write) = rustix::pipe::pipe().unwrap();
        let pump = hub.pump(Stream::Output, read, None).unwrap();
        File::from(write).write_all(&vec![b'x'; 4 << 20]).unwrap();
        pump.join().unwrap();
        assert!(lock(&hub.clients).is_empty());
        let mut taken = Vec::new();
        theirs.read_to_end(&mut taken).unwrap();
        assert!(!taken.is_empty() && taken.len() < 4 << 20, "its connection ended at {} bytes", taken.len());
    }

    #[test]
    fn a_gone_foreground_closes_the_commands_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Arc::new(Hub::new(Log::new(dir.path(), LogLimits::default())));
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (ours, local) = io::pipe().unwrap();
        drop(ours);
        let pump = hub.pump(Stream::Output, read, Some(local.into())).unwrap();
        rustix::io::write(&write, b"words").unwrap();
        pump.join().unwrap();
        assert_eq!(rustix::io::write(&write, b"more"), Err(rustix::io::Errno::PIPE));
    }
}
