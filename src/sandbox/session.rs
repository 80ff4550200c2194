//! The streams of a further command between the caller's descriptors and its pipes, terminal or sockets: one thread each. Other than the
//! sandbox's own streams they have an end while the sandbox lives on, whoever still holds their other ends.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// Stack of a thread that only moves bytes.
const STACK: usize = 64 << 10;

/// What a terminal in its usual mode takes as the end of input (`VEOF`, Ctrl-D).
const END_OF_INPUT: u8 = 4;

/// What the command's side does at the end of the caller's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// A pipe or socket: it closes.
    Close,
    /// A terminal: the end is typed.
    Type,
}

/// The threads of one further command. Dropping it stops them; what has not been moved then is lost.
#[derive(Debug)]
pub(super) struct SessionStreams {
    input: Option<JoinHandle<()>>,
    output: Vec<JoinHandle<()>>,
    /// Readable once the command has ended.
    ended: Arc<OwnedFd>,
    /// Readable once nobody wants the bytes any more.
    stop: Arc<OwnedFd>,
    linger: Duration,
}

impl SessionStreams {
    /// Threads that are yet to come. After the command's end, output is moved until there is none for `linger`.
    pub(super) fn new(linger: Duration) -> io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC).map(Arc::new);
        Ok(Self { input: None, output: Vec::new(), ended: event()?, stop: event()?, linger })
    }

    /// Moves what the caller gives to the command.
    pub(super) fn input(&mut self, from: OwnedFd, to: OwnedFd, end: InputEnd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&to, true)?;
        let (ended, stop) = (Arc::clone(&self.ended), Arc::clone(&self.stop));
        self.input = Some(thread("session-in", move || carry_in(&from, &to, end, [&ended, &stop]))?);
        Ok(())
    }

    /// Moves what the command writes to the caller.
    pub(super) fn output(&mut self, from: OwnedFd, to: OwnedFd) -> io::Result<()> {
        let (ended, stop, linger) = (Arc::clone(&self.ended), Arc::clone(&self.stop), self.linger);
        self.output.push(thread("session-out", move || carry_out(from, to, [&ended, &stop], linger))?);
        Ok(())
    }

    /// Call it when the command has ended. Waits until what it wrote is with the caller.
    pub(super) fn finish(&mut self) {
        ring(&self.ended);
        for thread in self.output.drain(..).chain(self.input.take()) {
            let _ = thread.join();
        }
    }
}

impl Drop for SessionStreams {
    fn drop(&mut self) {
        // Not joined: one may wait in a write to a caller who does not read.
        ring(&self.stop);
    }
}

fn ring(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
}

fn carry_in(from: &OwnedFd, to: &OwnedFd, end: InputEnd, over: [&OwnedFd; 2]) {
    let mut buffer = vec![0; CHUNK];
    loop {
        // A reader that is gone shows as an error on the writing side, also while there is nothing to write.
        if !ready([(from, PollFlags::IN), (to, PollFlags::empty())], over) {
            return;
        }
        let count = match rustix::io::read(from, &mut buffer) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(_) => 0,
        };
        let bytes = match (count, end) {
            (0, InputEnd::Type) => &[END_OF_INPUT][..],
            _ => buffer.get(..count).unwrap_or_default(),
        };
        if !put_all(to, bytes, over) {
            return;
        }
        if count == 0 {
            // A socket that others share for output closes in this direction only.
            let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
            return;
        }
    }
}

/// Writes all, or says that it is no use any more.
fn put_all(to: &OwnedFd, mut bytes: &[u8], over: [&OwnedFd; 2]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if ready([(to, PollFlags::OUT), (to, PollFlags::OUT)], over) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Waits for either; false once it is over, or when the second is broken.
fn ready(what: [(&OwnedFd, PollFlags); 2], over: [&OwnedFd; 2]) -> bool {
    loop {
        let [first, second] = what.map(|(fd, flags)| PollFd::new(fd, flags));
        let [ended, stop] = over.map(|fd| PollFd::new(fd, PollFlags::IN));
        let mut watched = [first, second, ended, stop];
        match poll(&mut watched, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return false,
        }
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if watched[2..].iter().any(|fd| !fd.revents().is_empty()) || watched[1].revents().intersects(broken) {
            return false;
        }
        if !watched[0].revents().is_empty() {
            return true;
        }
    }
}

/// When the caller takes no more, the command's side closes: its next write fails, as it would outside.
fn carry_out(from: OwnedFd, to: OwnedFd, [ended, stop]: [&OwnedFd; 2], linger: Duration) {
    let (mut from, mut to) = (File::from(from), File::from(to));
    let mut buffer = vec![0; CHUNK];
    let mut has_ended = false;
    loop {
        let mut watched =
            [PollFd::new(&from, PollFlags::IN), PollFd::new(stop, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        let watched = watched.get_mut(..if has_ended { 2 } else { 3 }).unwrap_or_default();
        let patience = has_ended.then(|| Timespec::try_from(linger).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 }));
        match poll(watched, patience.as_ref()) {
            Ok(0) => return,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let set: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        if set.get(1) == Some(&true) {
            return;
        }
        has_ended |= set.get(2) == Some(&true);
        if set.first() != Some(&true) {
            continue;
        }
        match from.read(&mut buffer) {
            Ok(count @ 1..) if write_all(&mut to, buffer.get(..count).unwrap_or(&[])).is_ok() => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            // The end; a terminal that nobody uses any more says EIO.
            _ => return,
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

    fn pipe() -> (File, OwnedFd) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        (File::from(read), write)
    }

    #[test]
    fn output_ends_with_the_command_though_others_hold_the_pipe() {
        let mut streams = SessionStreams::new(Duration::ZERO).unwrap();
        let ((command_read, command_write), (mut caller_read, caller_write)) = (pipe(), pipe());
        streams.output(command_read.into(), caller_write).unwrap();
        let mut left_behind = File::from(command_write);
        left_behind.write_all(&[7; 60_000]).unwrap();
        streams.finish();
        let mut got = Vec::new();
        caller_read.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 60_000);
        assert!(left_behind.write_all(b"later").is_err(), "its reader is gone");
    }

    #[test]
    fn lingering_waits_for_what_is_on_its_way_but_not_for_ever() {
        let mut streams = SessionStreams::new(Duration::from_millis(300)).unwrap();
        let ((command_read, command_write), (mut caller_read, caller_write)) = (pipe(), pipe());
        streams.output(command_read.into(), caller_write).unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut write = File::from(command_write);
            write.write_all(b"late").unwrap();
            write
        });
        streams.finish();
        let _held = late.join().unwrap();
        let mut got = String::new();
        caller_read.read_to_string(&mut got).unwrap();
        assert_eq!(got, "late");
    }

    #[test]
    fn input_ends_with_the_caller_the_reader_and_the_command() {
        for end in 0..3 {
            let mut streams = SessionStreams::new(Duration::ZERO).unwrap();
            let ((caller_read, caller_write), (mut command_read, command_write)) = (pipe(), pipe());
            streams.input(caller_read.into(), command_write, InputEnd::Close).unwrap();
            let mut caller = Some(File::from(caller_write));
            caller.as_mut().unwrap().write_all(b"abc").unwrap();
            let mut got = [0; 3];
            command_read.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"abc");
            match end {
                0 => {
                    drop(caller.take());
                    assert_eq!(command_read.read(&mut got).unwrap(), 0, "the end of the input is told");
                }
                1 => drop(command_read),
                _ => {}
            }
            streams.finish();
        }
    }

    #[test]
    fn a_full_pipe_does_not_keep_the_input_thread() {
        let mut streams = SessionStreams::new(Duration::ZERO).unwrap();
        let ((caller_read, caller_write), (_command_read, command_write)) = (pipe(), pipe());
        streams.input(caller_read.into(), command_write, InputEnd::Close).unwrap();
        let writer = std::thread::spawn(move || {
            let _ = File::from(caller_write).write_all(&[1; 300_000]);
        });
        std::thread::sleep(Duration::from_millis(50));
        streams.finish();
        writer.join().unwrap();
    }
}
