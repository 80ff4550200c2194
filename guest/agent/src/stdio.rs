//! The command's standard streams: pipes or a terminal inside, vsock streams to the host, a thread for each that moves the bytes.
//!
//! Pipes and not the vsock sockets themselves: a program that opens `/dev/stdout` again can open a pipe, and not a socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use duplex_wire::{Connected, port};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::line::{Line, Lines};
use crate::sys;
use crate::trouble::{Doing, Trouble};

/// Bytes moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Stack of a thread that only moves bytes.
const STACK: usize = 32 << 10;

/// The command's ends of its pipes.
pub(crate) struct ChildEnds {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The agent's ends.
pub(crate) enum AgentEnds {
    /// Of three pipes.
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    /// Of a terminal whose master the command's process has yet to send.
    Terminal { stdin: bool },
}

/// The streams to the host.
pub(crate) struct HostEnds {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

/// The command's streams, and the threads that move its output. Each ends when the last holder of the stream's other end is gone.
pub(crate) struct Output {
    lines: Lines,
    threads: Vec<JoinHandle<()>>,
}

/// Makes the pipes, unless the command has a terminal.
pub(crate) fn pipes(connected: Connected) -> Result<(Option<ChildEnds>, AgentEnds), Trouble> {
    if connected.terminal {
        return Ok((None, AgentEnds::Terminal { stdin: connected.stdin }));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".into());
    let (stdin_child, stdin) = if connected.stdin { pipe().map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
    let ((stdout, stdout_child), (stderr, stderr_child)) = (pipe()?, pipe()?);
    let child = ChildEnds { stdin: stdin_child, stdout: stdout_child, stderr: stderr_child };
    Ok((Some(child), AgentEnds::Pipes { stdin, stdout, stderr }))
}

impl HostEnds {
    /// Connects the streams that this process needs.
    pub(crate) fn connect(connected: Connected) -> Result<Self, Trouble> {
        let connect = |port| sys::vsock_connect(port).doing(|| format!("reach the host's port {port}"));
        Ok(Self {
            stdin: connected.stdin.then(|| connect(port::STDIN)).transpose()?,
            stdout: connect(port::STDOUT)?,
            stderr: (!connected.terminal).then(|| connect(port::STDERR)).transpose()?,
        })
    }
}

impl HostEnds {
    /// By port.
    pub(crate) fn by_port(self) -> impl Iterator<Item = (u32, File)> {
        let ends = [(port::STDIN, self.stdin), (port::STDOUT, Some(self.stdout)), (port::STDERR, self.stderr)];
        ends.into_iter().filter_map(|(port, end)| Some((port, File::from(end?))))
    }

    /// Connects the streams of a session on these ports.
    pub(crate) fn connect_session(connected: Connected, [stdin, stdout, stderr]: [u32; 3]) -> Result<Self, Trouble> {
        let connect = |port| sys::vsock_connect_privileged(port).doing(|| format!("reach the host's port {port}"));
        Ok(Self {
            stdin: connected.stdin.then(|| connect(stdin)).transpose()?,
            stdout: connect(stdout)?,
            stderr: (!connected.terminal).then(|| connect(stderr)).transpose()?,
        })
    }
}

/// The threads and streams of a session. Other than the command's, they end while the machine lives on: whatever the session's process left
/// behind must not keep them.
pub(crate) struct Streams {
    output: Vec<JoinHandle<()>>,
    /// Readable once the process has ended.
    ended: Arc<OwnedFd>,
    stdin: Option<OwnedFd>,
}

impl Streams {
    /// Call it when the process has ended: sends what it has written and closes all streams. Takes as long as the host does to read.
    pub(crate) fn finish(self) {
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
        if let Some(stdin) = &self.stdin {
            let _ = shutdown(stdin, Shutdown::Both);
        }
        for thread in self.output {
            let _ = thread.join();
        }
    }
}

impl AgentEnds {
    /// Starts to move a session's bytes. `terminal` is the master of its terminal, if it has one.
    pub(crate) fn connect_session(self, host: HostEnds, terminal: Option<&OwnedFd>) -> Result<Streams, Trouble> {
        let again = |fd: &OwnedFd| fd.try_clone().doing(|| "duplicate a stream".into());
        let ended = eventfd(0, EventfdFlags::CLOEXEC).map(Arc::new).doing(|| "make an event".into())?;
        let (input, outputs) = match (self, terminal) {
            (Self::Pipes { stdin, stdout, stderr }, _) => {
                (stdin, vec![(stdout, host.stdout)].into_iter().chain(host.stderr.map(|to| (stderr, to))).collect())
            }
            (Self::Terminal { stdin }, Some(master)) => {
                (stdin.then(|| again(master)).transpose()?, vec![(again(master)?, host.stdout)])
            }
            (Self::Terminal { .. }, None) => {
                return Err(Trouble::new("connect the terminal", "the session's process did not send it"));
            }
        };
        let stdin = host.stdin.as_ref().map(again).transpose()?;
        if let (Some(from), Some(to)) = (host.stdin, input) {
            match terminal {
                None => thread("session in", move || to_session(from, to))?,
                Some(_) => thread("session in", move || to_terminal_of_session(from, to))?,
            };
        }
        let outputs: Vec<(OwnedFd, OwnedFd)> = outputs;
        let start = |(from, to)| {
            let ended = Arc::clone(&ended);
            thread("session out", move || until_ended(from, to, &ended))
        };
        let output = outputs.into_iter().map(start).collect::<Result<_, _>>()?;
        Ok(Streams { output, ended, stdin })
    }

    /// Starts to move bytes. `terminal` is the master of the command's terminal, if it has one.
    pub(crate) fn connect(self, host: HostEnds, terminal: Option<&OwnedFd>) -> Result<Output, Trouble> {
        let lines = Lines::new(host.by_port());
        let line = |port| lines.line(port);
        let mut threads = Vec::new();
        match (self, terminal) {
            (Self::Pipes { stdin, stdout, stderr }, _) => {
                if let (Some(from), Some(to)) = (line(port::STDIN), stdin) {
                    thread("stdin", move || to_command(from, to))?;
                }
                for (name, from, port) in [("stdout", stdout, port::STDOUT), ("stderr", stderr, port::STDERR)] {
                    if let Some(to) = line(port) {
                        threads.push(thread(name, move || to_host(from, to))?);
                    }
                }
            }
            (Self::Terminal { stdin }, Some(master)) => {
                let again = |fd: &OwnedFd| fd.try_clone().doing(|| "duplicate the terminal".into());
                if let (true, Some(from)) = (stdin, line(port::STDIN)) {
                    let to = again(master)?;
                    thread("terminal in", move || to_terminal(from, to))?;
                }
                let from = again(master)?;
                if let Some(to) = line(port::STDOUT) {
                    threads.push(thread("terminal out", move || to_host(from, to))?);
                }
            }
            (Self::Terminal { .. }, None) => {
                return Err(Trouble::new("connect the terminal", "the command's process did not send it"));
            }
        }
        Ok(Output { lines, threads })
    }
}

impl Output {
    /// Waits until the last byte is with the host, or the host wants no more.
    pub(crate) fn flush(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }

    /// The command's streams.
    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }
}

pub(crate) fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Trouble> {
    Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body).doing(|| format!("start the {name} thread"))
}

/// The host's bytes go to the command. The command sees the end of its input when the host's has come; when it closes its input, the
/// host is told to send no more.
fn to_command(mut from: Line, to: OwnedFd) {
    move_in(&mut from, &mut File::from(to));
    let _ = shutdown(from.stream(), Shutdown::Both);
}

/// What a terminal in its usual mode takes as the end of input (`VEOF`, Ctrl-D).
const END_OF_INPUT: u8 = 4;

/// The host's bytes go to the terminal. Its output goes on when the input has ended.
fn to_terminal(mut from: Line, to: OwnedFd) {
    let mut to = File::from(to);
    move_in(&mut from, &mut to);
    let _ = to.write_all(&[END_OF_INPUT]);
    let _ = shutdown(from.stream(), Shutdown::Both);
}

/// The command's bytes go to the host. When the host wants no more, the command's next write fails, as it would on the host.
fn to_host(from: OwnedFd, mut to: Line) {
    move_out(&mut File::from(from), &mut to);
    // A machine that goes on elsewhere has another stream by now.
    while shutdown(to.stream(), Shutdown::Write).is_err() && to.another() {}
    // The host's end of the stream closes after it has read all. Keeping this end open until then keeps the kernel from dropping bytes.
    std::mem::forget(to);
}

/// Moves the host's bytes until either side ends.
fn move_in(from: &mut Line, to: &mut File) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.stream().read(&mut buffer) {
            Ok(count @ 1..) => {
                if to.write_all(buffer.get(..count).unwrap_or(&[])).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => {
                if !from.another() {
                    return;
                }
            }
        }
    }
}

/// Moves the command's bytes until either side ends. A terminal whose command has gone answers reads with EIO: that is its end.
fn move_out(from: &mut File, to: &mut Line) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count @ 1..) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            _ => return,
        };
        let mut rest = buffer.get(..count).unwrap_or(&[]);
        while !rest.is_empty() {
            match to.stream().write(rest) {
                Ok(count @ 1..) => rest = rest.get(count..).unwrap_or(&[]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    if !to.another() {
                        return;
                    }
                }
            }
        }
    }
}

/// As [`to_command`], for a session.
fn to_session(from: OwnedFd, to: OwnedFd) {
    let (mut from, mut to) = (File::from(from), File::from(to));
    copy(&mut from, &mut to);
    drop(to);
    let _ = shutdown(&from, Shutdown::Both);
}

/// As [`to_terminal`], for a session.
fn to_terminal_of_session(from: OwnedFd, to: OwnedFd) {
    let (mut from, mut to) = (File::from(from), File::from(to));
    copy(&mut from, &mut to);
    let _ = to.write_all(&[END_OF_INPUT]);
    let _ = shutdown(&from, Shutdown::Both);
}

/// As [`to_host`], and ends with the session's process: what it has written is moved, what others may still write is not waited for.
fn until_ended(from: OwnedFd, to: OwnedFd, ended: &OwnedFd) {
    let (mut source, mut sink) = (File::from(from), File::from(to));
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut fds = [PollFd::new(&source, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => break,
        }
        let [bytes, over] = fds.map(|fd| !fd.revents().is_empty());
        match (bytes, over) {
            (true, _) => match source.read(&mut buffer) {
                Ok(count @ 1..) if sink.write_all(buffer.get(..count).unwrap_or(&[])).is_ok() => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            },
            (false, true) => break,
            (false, false) => {}
        }
    }
    drop(source);
    let _ = shutdown(&sink, Shutdown::Write);
    // Closed here before the host's end has read all, the kernel might drop bytes: the host closes first.
    while let Ok(1..) = sink.read(&mut buffer) {}
}

/// Moves bytes until either side ends.
fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(buffer.get(..count).unwrap_or(&[])).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_and_ends_travel_both_ways() {
        let (child, agent) = pipes(Connected { stdin: true, terminal: false }).unwrap();
        let child = child.unwrap();
        let ((mut stdin, a), (mut stdout, b), (mut stderr, c)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let host = HostEnds { stdin: Some(a.into()), stdout: b.into(), stderr: Some(c.into()) };
        let output = agent.connect(host, None).unwrap();

        let echo = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            File::from(child.stdin.unwrap()).read_to_end(&mut bytes).unwrap();
            File::from(child.stdout).write_all(&bytes).unwrap();
            File::from(child.stderr).write_all(b"done").unwrap();
        });
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let writer = {
            let sent = sent.clone();
            std::thread::spawn(move || {
                stdin.write_all(&sent).unwrap();
                stdin.shutdown(std::net::Shutdown::Write).unwrap();
            })
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        stdout.read_to_end(&mut out).unwrap();
        stderr.read_to_end(&mut err).unwrap();
        output.flush();
        writer.join().unwrap();
        echo.join().unwrap();
        assert!(out == sent);
        assert_eq!(err, b"done");
    }

    #[test]
    fn a_command_whose_reader_is_gone_gets_epipe() {
        let (child, agent) = pipes(Connected::default()).unwrap();
        let child = child.unwrap();
        let ((stdout, b), (_stderr, c)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let host = HostEnds { stdin: None, stdout: b.into(), stderr: Some(c.into()) };
        let _output = agent.connect(host, None).unwrap();
        drop(stdout);
        let mut out = File::from(child.stdout);
        let error = loop {
            if let Err(e) = out.write_all(&[0; 4096]) {
                break e;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
