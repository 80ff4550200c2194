//! The command's standard streams between the caller's descriptors and the monitor's sockets: one thread each, blocking.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// How long the guest may keep still on an output that it does not close, once it has said that its command has ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Most bytes of output that may come after that. What is then under way is in the monitor's buffer and the sockets': less than 1 MiB.
const MOST_LAST_WORDS: usize = 8 << 20;

/// Stack of a thread that only moves bytes.
const STACK: usize = 64 << 10;

/// The threads of one sandbox.
#[derive(Debug)]
pub(super) struct Pumps {
    input: Option<JoinHandle<()>>,
    output: Vec<JoinHandle<()>>,
    stop: OwnedFd,
    /// Readable once the command has ended.
    ended: OwnedFd,
}

impl Pumps {
    /// Threads that are yet to come.
    pub(super) fn new() -> io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC);
        Ok(Self { input: None, output: Vec::new(), stop: event()?, ended: event()? })
    }

    /// Moves what the caller gives to the command, until either ends it.
    pub(super) fn input(&mut self, from: OwnedFd, to: UnixStream) -> io::Result<()> {
        let stop = self.stop.try_clone()?;
        self.input = Some(thread("duplex-stdin", move || to_command(&File::from(from), &to, &stop))?);
        Ok(())
    }

    /// Moves what the command writes to the caller, until either ends it.
    pub(super) fn output(&mut self, from: UnixStream, to: OwnedFd) -> io::Result<()> {
        let ended = self.ended.try_clone()?;
        self.output.push(thread("duplex-output", move || to_caller(from, File::from(to), &ended, LAST_WORDS))?);
        Ok(())
    }

    /// The command has ended, or its machine: waits until all that it wrote is with the caller, however long that takes to read. Ends once the
    /// guest has closed its ends, and if it does not, once it has been still for [`LAST_WORDS`] or has said too much.
    pub(super) fn flush(&mut self) {
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
        for thread in self.output.drain(..) {
            let _ = thread.join();
        }
    }

    /// Ends the input's thread, which may wait for a person to type. The caller's descriptor is closed.
    pub(super) fn stop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.input.take() {
            let _ = thread.join();
        }
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
}

/// Waits for bytes of the caller, for the guest to close its end, or for the stop.
fn to_command(mut from: &File, mut to: &UnixStream, stop: &OwnedFd) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut fds =
            [PollFd::new(&from, PollFlags::IN), PollFd::new(to, PollFlags::RDHUP), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        let [bytes, closed, stopped] = fds.map(|fd| !fd.revents().is_empty());
        if closed || stopped {
            return;
        }
        if !bytes {
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if to.write_all(buffer.get(..count).unwrap_or(&[])).is_err() {
                    return;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// When the caller takes no more, the socket closes: the guest's next write fails, as it would on the host.
fn to_caller(mut from: UnixStream, mut to: File, ended: &OwnedFd, patience: Duration) {
    let mut buffer = vec![0; CHUNK];
    let mut left = None;
    loop {
        if left.is_none() && one_is_ready(&[&from, ended], None) && one_is_ready(&[ended], Some(Duration::ZERO)) {
            left = Some(MOST_LAST_WORDS);
        }
        if left.is_some() && !one_is_ready(&[&from], Some(patience)) {
            tracing::warn!("the guest said that its command had ended, and did not close its output");
            return;
        }
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if let Some(left) = &mut left {
                    *left = left.saturating_sub(count);
                }
                if left == Some(0) {
                    tracing::warn!("the guest said that its command had ended, and went on with its output");
                    return;
                }
                if write_all(&mut to, buffer.get(..count).unwrap_or(&[])).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Waits until one of these can be read. False if the time is over before.
fn one_is_ready(which: &[&dyn AsFd], patience: Option<Duration>) -> bool {
    let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
    let mut fds: Vec<PollFd<'_>> = which.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, timeout.as_ref()) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            // The read tells.
            Err(_) => return true,
        }
    }
}

/// Writes all, also to a descriptor that its owner has made non-blocking.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or(&[]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&to.as_fd(), PollFlags::OUT)], None);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_ends_with_the_caller_the_guest_or_the_stop() {
        for end in 0..3 {
            let (read, write) = rustix::pipe::pipe().unwrap();
            let (ours, mut guest) = UnixStream::pair().unwrap();
            let mut pumps = Pumps::new().unwrap();
            pumps.input(read, ours).unwrap();
            let mut write = Some(File::from(write));
            write.as_mut().unwrap().write_all(b"abc").unwrap();
            let mut got = [0; 3];
            guest.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"abc");
            match end {
                0 => {
                    drop(write.take());
                    assert_eq!(guest.read(&mut got).unwrap(), 0, "the end of the input is told");
                }
                1 => drop(guest),
                _ => {}
            }
            pumps.stop();
        }
    }

    #[test]
    fn output_arrives_whole_and_a_gone_reader_closes_the_socket() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut pumps = Pumps::new().unwrap();
        pumps.output(ours, write).unwrap();
        guest.write_all(&[7; 1000]).unwrap();
        let mut got = vec![0; 1000];
        let mut read = File::from(read);
        read.read_exact(&mut got).unwrap();
        assert!(got.iter().all(|b| *b == 7));
        drop(read);
        while guest.write_all(&[7; 1000]).is_ok() {}
        pumps.flush();
    }

    /// An output that nobody closes, and one that never ends: neither keeps the caller for ever.
    #[test]
    fn a_guest_that_does_not_close_its_output_is_not_waited_for() {
        for talks in [false, true] {
            let (ours, mut guest) = UnixStream::pair().unwrap();
            let ended = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
            let sink = tempfile::tempfile().unwrap();
            let to = sink.try_clone().unwrap();
            let body = move || to_caller(ours, to, &ended, Duration::from_millis(50));
            let thread = std::thread::spawn(body);
            guest.write_all(b"last words").unwrap();
            while talks && guest.write_all(&[7; 10_000]).is_ok() {}
            thread.join().unwrap();
            let kept = sink.metadata().unwrap().len();
            assert!((10..=MOST_LAST_WORDS as u64).contains(&kept), "{kept}");
        }
    }
}
