//! The monitor's process: its birth, what it reports, its end. A compromised monitor is a hostile peer: packets are capped, its words
//! are cut and cleaned, and its end is known from its pidfd alone.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::machine::Machine;
use super::qemu;
use crate::spec::{MachineEvent, MachineExit, RequestToMonitor};
use crate::sys::birth::{Child, spawn};
use crate::sys::last_words::{self, LastWords};

/// Longest packet from the monitor.
const PACKET: usize = 64 << 10;

/// Longest text of a monitor that is shown, in bytes.
const LONGEST_TEXT: usize = 4096;

/// How a machine ended, as the host knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MachineEnd {
    /// The monitor's own last word.
    Said(MachineExit),
    /// It could not build or start the machine.
    Failed(Vec<String>),
    /// It ended without a last word: how, and what it wrote to its standard error.
    Died { how: String, stderr: String },
    /// Its own filter of system calls ended it.
    Stopped,
    /// The guest broke the rules and was ended.
    Outlawed(String),
    /// A share's file server was gone, and the machine was ended for it.
    ShareLost(String),
}

/// One monitor process.
#[derive(Debug)]
pub(super) struct Monitor {
    control: OwnedFd,
    stderr: LastWords,
    open: bool,
    is_qemu: bool,
}

/// The monitor's pidfd, shared with those who may kill it.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    process: Option<OwnedFd>,
    /// The control socket once more, for requests.
    control: Option<OwnedFd>,
    killed: bool,
}

impl Reach {
    fn with<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the monitor now, and whatever it will be if it is not born yet.
    pub(super) fn kill(&self) {
        self.with(|held| {
            held.killed = true;
            held.end();
        });
    }

    /// Ends the monitor without a wish of the user.
    pub(super) fn end(&self) {
        self.with(|held| held.end());
    }

    /// Asks the monitor for something; a descriptor may come with it.
    pub(super) fn ask(&self, request: RequestToMonitor, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let control = self.with(|held| held.control.as_ref().map(OwnedFd::try_clone)).transpose()?;
        let control = control.ok_or(io::ErrorKind::NotConnected)?;
        let packet = postcard::to_stdvec(&request).map_err(io::Error::other)?;
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        // Not waiting: a monitor that leaves so many requests unread is stuck.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::io::retry_on_intr(|| sendmsg(&control, &[IoSlice::new(&packet)], &mut ancillary, flags))?;
        Ok(())
    }

    /// The user has asked for the end.
    pub(super) fn was_killed(&self) -> bool {
        self.with(|held| held.killed)
    }
}

impl Held {
    fn end(&self) {
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

impl Monitor {
    /// Starts the program. `reach` holds its pidfd from then on.
    pub(super) fn start(
        program: &Path,
        machine: &Machine,
        control: OwnedFd,
        cgroup: BorrowedFd<'_>,
        reach: &Reach,
    ) -> std::io::Result<Self> {
        let stderr = LastWords::new()?;
        let again = control.try_clone()?;
        let (args, fds, is_qemu) = (machine.args(), machine.fds(), machine.is_qemus());
        let process = spawn(&Child {
            program,
            args,
            fds: &fds,
            stderr: stderr.as_fd(),
            cgroup: Some(cgroup),
            walls: machine.walls(),
            // Ours ends with its control socket.
            dies_with_caller: is_qemu,
        })?;
        reach.with(|held| {
            held.process = Some(process);
            held.control = Some(again);
            if held.killed {
                held.end();
            }
        });
        Ok(Self { control, stderr, open: true, is_qemu })
    }

    /// Its next report, if there is one.
    pub(super) fn hear(&mut self) -> Option<MachineEvent> {
        let mut packet = vec![0; PACKET];
        loop {
            match recv(&self.control, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.open = false,
                // A packet that is no event says nothing: the pidfd tells when the monitor has ended.
                Ok((count, _)) => match postcard::from_bytes(packet.get(..count).unwrap_or(&[])) {
                    Ok(event) => return Some(event),
                    Err(_) => continue,
                },
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {}
                Err(_) => self.open = false,
            }
            return None;
        }
    }

    /// The control socket, as long as the monitor holds its end.
    pub(super) fn control(&self) -> Option<&OwnedFd> {
        self.open.then_some(&self.control)
    }

    /// Waits for the end of the process until the deadline, reaps it, and tells how it ended. `None` if it has not.
    pub(super) fn reap(&mut self, reach: &Reach, deadline: Instant) -> Option<MachineEnd> {
        // Without the lock while waiting: a kill must get through.
        let process = reach.with(|held| held.process.as_ref().and_then(|p| p.try_clone().ok()))?;
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Ok(1..) => {}
            _ => return None,
        }
        let status = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok()??;
        reach.with(|held| (held.process, held.control) = (None, None));
        if let Some(exit) = status.exit_status().filter(|_| self.is_qemu).and_then(qemu::said) {
            return Some(MachineEnd::Said(exit));
        }
        if status.terminating_signal() == Some(Signal::SYS.as_raw()) {
            return Some(MachineEnd::Stopped);
        }
        Some(MachineEnd::Died { how: last_words::told(&status), stderr: self.last_words() })
    }

    /// Ends it and reaps it; false if the kernel does not let it go in time.
    pub(super) fn end(&mut self, reach: &Reach, patience: Duration) -> bool {
        reach.end();
        let deadline = Instant::now() + patience;
        while reach.with(|held| held.process.is_some()) {
            if self.reap(reach, deadline).is_none() && Instant::now() >= deadline {
                return false;
            }
        }
        true
    }

    fn last_words(&self) -> String {
        clean(&self.stderr.text())
    }
}

/// A pidfd to poll for the process's end.
pub(super) fn pidfd_of(reach: &Reach) -> Option<OwnedFd> {
    reach.with(|held| held.process.as_ref().and_then(|p| p.try_clone().ok()))
}

/// Words of a guest or a monitor as they may be shown: cut, and without what a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    let text = text.trim_end();
    let mut end = text.len().min(LONGEST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("").chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_and_cleaned() {
        assert_eq!(clean("a\x1b[31mb\r\nc\n"), "a\u{fffd}[31mb\u{fffd}\nc");
        assert_eq!(clean(&"ä".repeat(5000)).len(), LONGEST_TEXT);
    }

    #[test]
    fn a_kill_before_the_birth_is_remembered() {
        let reach = Reach::default();
        reach.kill();
        assert!(reach.was_killed());
    }
}
