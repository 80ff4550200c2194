//! The command's birth: a process in new namespaces and in its cgroup, and the word of how far it came.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use duplex_wire::{FailureKind, Start};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::cgroup::Workload;
use crate::inside;
use crate::program::Failure;
use crate::stdio::{self, HostEnds, Output};
use crate::sys::{self, Born};
use crate::trouble::{Doing, Trouble};

/// Longest failure text in bytes that travels from the command's process.
const LONGEST_TEXT: usize = 8192;

/// First byte of a packet that carries the terminal.
const TERMINAL: u8 = b'T';

/// What came of it.
pub(crate) enum Launched {
    /// The command runs.
    Running(Command),
    /// It was not executed.
    Failed { kind: FailureKind, text: String },
}

/// A running command.
pub(crate) struct Command {
    /// Its first process.
    pub(crate) process: OwnedFd,
    /// Its terminal's master, if it has a terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// The threads that move its output.
    pub(crate) output: Output,
}

/// The command's end of a packet socket to the agent: a terminal, a failure, or silence when exec has closed it.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    fn pair() -> Result<(Self, Self), Trouble> {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map(|(a, b)| (Self(a), Self(b)))
            .doing(|| "make a socket pair".into())
    }

    /// Sends the terminal's master.
    pub(crate) fn send_terminal(&self, master: &OwnedFd) -> Result<(), Trouble> {
        let fds = [master.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.0, &[IoSlice::new(&[TERMINAL])], &mut control, SendFlags::empty())
            .map(|_| ())
            .doing(|| "send the terminal".into())
    }

    fn send_failure(&self, failure: &Failure) {
        let kind = match failure.kind {
            FailureKind::NotFound => b'N',
            FailureKind::CannotExecute => b'C',
            FailureKind::Other => b'O',
        };
        let text = failure.text.as_bytes();
        let text = text.get(..LONGEST_TEXT).unwrap_or(text);
        let _ = sendmsg(
            &self.0,
            &[IoSlice::new(&[kind]), IoSlice::new(text)],
            &mut SendAncillaryBuffer::default(),
            SendFlags::empty(),
        );
    }

    /// Waits until the command is executed or has failed.
    fn receive(&self) -> Result<(Option<OwnedFd>, Option<Failure>), Trouble> {
        let mut terminal = None;
        loop {
            let mut packet = [0; LONGEST_TEXT + 1];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [std::io::IoSliceMut::new(&mut packet)];
            let count = match recvmsg(&self.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e).doing(|| "hear the command's process".into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                    terminal = fds.next().or(terminal);
                }
            }
            let Some((kind, text)) = packet.get(..count).and_then(|p| p.split_first()) else {
                return Ok((terminal, None));
            };
            let kind = match *kind {
                TERMINAL => continue,
                b'N' => FailureKind::NotFound,
                b'C' => FailureKind::CannotExecute,
                _ => FailureKind::Other,
            };
            return Ok((terminal, Some(Failure::new(kind, String::from_utf8_lossy(text)))));
        }
    }
}

/// Starts the command. While its process prepares, the streams to the host are connected.
pub(crate) fn launch(start: &Start, workload: &Workload) -> Result<Launched, Trouble> {
    let (ours, theirs) = Channel::pair()?;
    let (child_ends, agent_ends) = stdio::pipes(&start.process)?;
    let process = match sys::give_birth(workload.as_fd()).doing(|| "make the command's process".into())? {
        Born::Parent(process) => process,
        Born::Child => {
            drop(ours);
            theirs.send_failure(&inside::become_command(start, child_ends, &theirs));
            sys::leave();
        }
    };
    drop((theirs, child_ends));
    std::fs::write("/proc/self/oom_score_adj", "-1000").doing(|| "protect the agent from the OOM killer".into())?;
    let host_ends = HostEnds::connect(&start.process)?;
    let (terminal, failure) = ours.receive()?;
    if let Some(Failure { kind, text }) = failure {
        return Ok(Launched::Failed { kind, text });
    }
    let output = agent_ends.connect(host_ends, terminal.as_ref())?;
    Ok(Launched::Running(Command { process, terminal, output }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_terminal_and_a_failure_travel() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        theirs.send_terminal(&write).unwrap();
        theirs.send_failure(&Failure::new(FailureKind::CannotExecute, "x".repeat(LONGEST_TEXT + 7)));
        let (terminal, failure) = ours.receive().unwrap();
        drop(write);
        File::from(terminal.unwrap()).write_all(b"hi").unwrap();
        let mut got = String::new();
        File::from(read).read_to_string(&mut got).unwrap();
        assert_eq!(got, "hi");
        assert_eq!(failure, Some(Failure::new(FailureKind::CannotExecute, "x".repeat(LONGEST_TEXT))));
        drop(theirs);
        assert!(matches!(ours.receive(), Ok((None, None))), "silence is success");
    }
}
