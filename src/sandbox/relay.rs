//! Carries bytes between a sandbox's terminal and the streams of whoever runs it.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::Stdio;

/// What a terminal in its usual mode takes as the end of input (`VEOF`, Ctrl-D).
const END_OF_INPUT: u8 = 4;

/// Bytes moved at once.
const CHUNK: usize = 32 << 10;

/// Two threads at work. Dropping it stops the one that waits for input; output ends by itself when the terminal's last user is gone.
#[derive(Debug)]
pub(super) struct Relay {
    stop: Arc<OwnedFd>,
    output: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts carrying between a terminal's master side and these streams.
    pub(super) fn start(terminal: Arc<OwnedFd>, stdio: Stdio) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&terminal, true)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        if let Some(stdin) = stdio.stdin {
            let (terminal, stop) = (Arc::clone(&terminal), Arc::clone(&stop));
            spawn("terminal-in", move || carry_in(&stdin, &terminal, &stop))?;
        }
        let output = spawn("terminal-out", move || carry_out(&terminal, stdio.stdout))?;
        Ok(Self { stop, output: Some(output) })
    }

    /// Waits until the last byte of output is written. The sandbox's processes must have ended.
    pub(super) fn finish(&mut self) {
        if let Some(output) = self.output.take() {
            let _ = output.join();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(128 << 10).spawn(work)
}

fn carry_in(stdin: &OwnedFd, terminal: &OwnedFd, stop: &OwnedFd) {
    let mut bytes = vec![0; CHUNK];
    while ready(stdin, PollFlags::IN, stop) {
        let count = match rustix::io::read(stdin, &mut bytes) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(_) => 0,
        };
        let chunk = bytes.get(..count).unwrap_or_default();
        let put = if chunk.is_empty() { &[END_OF_INPUT][..] } else { chunk };
        if !put_all(terminal, put, stop) || count == 0 {
            return;
        }
    }
}

/// Writes all, or says that it is no use any more.
fn put_all(terminal: &OwnedFd, mut bytes: &[u8], stop: &OwnedFd) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(terminal, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if ready(terminal, PollFlags::OUT, stop) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Reads until the terminal has no user any more (EIO). Output that nobody takes is thrown away, so that the sandbox is not stuck on it.
fn carry_out(terminal: &OwnedFd, stdout: OwnedFd) {
    let mut stdout = Some(std::fs::File::from(stdout));
    let mut bytes = vec![0; CHUNK];
    loop {
        match rustix::io::read(terminal, &mut bytes) {
            Ok(0) => return,
            Ok(count) => {
                let chunk = bytes.get(..count).unwrap_or_default();
                if stdout.as_mut().is_some_and(|out| out.write_all(chunk).is_err()) {
                    stdout = None;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut watched = [PollFd::new(terminal, PollFlags::IN)];
                let _ = poll(&mut watched, None);
            }
            Err(_) => return,
        }
    }
}

/// Waits for a descriptor; false if we are to stop.
fn ready(what: impl AsFd, flags: PollFlags, stop: &OwnedFd) -> bool {
    loop {
        let mut watched = [PollFd::new(&what, flags), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(_) if !watched[1].revents().is_empty() => return false,
            Ok(_) if !watched[0].revents().is_empty() => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
