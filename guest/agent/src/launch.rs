//! The command's birth: a process in new namespaces and in its cgroup, and the word of how far it came.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use duplex_wire::{Connected, FailureKind, Start};
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

/// First byte of a packet that carries the terminal, or a session's process, or its orders.
const TERMINAL: u8 = b'T';
const PROCESS: u8 = b'P';
const ORDERS: u8 = b'R';

/// Most descriptors in a packet: a session's orders, the command's process and three streams.
const MOST_DESCRIPTORS: usize = 5;

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
    /// What its standard streams are.
    pub(crate) connected: Connected,
    /// Its streams, and the threads that move its output.
    pub(crate) output: Output,
}

/// The command's end of a packet socket to the agent: a terminal, a failure, or silence when exec has closed it.
pub(crate) struct Channel(OwnedFd);

/// What came over a channel.
pub(crate) enum Word {
    /// The terminal's master.
    Terminal(OwnedFd),
    /// A handle of a session's process.
    Process(OwnedFd),
    /// The program is not executed.
    Failure(Failure),
    /// All that could speak have gone or have become the program.
    End,
}

impl Channel {
    pub(crate) fn pair() -> Result<(Self, Self), Trouble> {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map(|(a, b)| (Self(a), Self(b)))
            .doing(|| "make a socket pair".into())
    }

    /// Of a helper, whose standard input it is. The program to come gets another one.
    pub(crate) fn of_stdin() -> Result<Self, Trouble> {
        let take = || {
            let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
            rustix::net::sockopt::socket_type(&channel)?;
            rustix::stdio::dup2_stdin(rustix::stdio::stdout())?;
            Ok::<_, Errno>(Self(channel))
        };
        take().doing(|| "take the channel".into())
    }

    /// To be a helper's standard input.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    fn send(&self, kind: u8, descriptors: &[BorrowedFd<'_>]) -> Result<(), Trouble> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Trouble::new("send descriptors", "they are too many"));
        }
        sendmsg(&self.0, &[IoSlice::new(&[kind])], &mut control, SendFlags::NOSIGNAL)
            .map(|_| ())
            .doing(|| "send descriptors".into())
    }

    /// Sends the terminal's master.
    pub(crate) fn send_terminal(&self, master: &OwnedFd) -> Result<(), Trouble> {
        self.send(TERMINAL, &[master.as_fd()])
    }

    /// Sends a handle of a session's process.
    pub(crate) fn send_process(&self, process: &OwnedFd) -> Result<(), Trouble> {
        self.send(PROCESS, &[process.as_fd()])
    }

    /// Sends what a helper is to do.
    pub(crate) fn send_orders(&self, descriptors: &[BorrowedFd<'_>]) -> Result<(), Trouble> {
        self.send(ORDERS, descriptors)
    }

    /// Waits for what [`Channel::send_orders`] sends.
    pub(crate) fn receive_orders(&self) -> Result<Vec<OwnedFd>, Trouble> {
        match self.packet()? {
            (packet, descriptors) if packet == [ORDERS] => Ok(descriptors),
            _ => Err(Trouble::new("hear the agent", "it sent no orders")),
        }
    }

    pub(crate) fn send_failure(&self, failure: &Failure) {
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
            match self.hear()? {
                Word::Terminal(master) => terminal = Some(master),
                Word::Process(_) => {}
                Word::Failure(failure) => return Ok((terminal, Some(failure))),
                Word::End => return Ok((terminal, None)),
            }
        }
    }

    /// Waits for a word.
    pub(crate) fn hear(&self) -> Result<Word, Trouble> {
        let (packet, descriptors) = self.packet()?;
        let Some((kind, text)) = packet.split_first() else { return Ok(Word::End) };
        let first = descriptors.into_iter().next();
        let kind = match (*kind, first) {
            (TERMINAL, Some(master)) => return Ok(Word::Terminal(master)),
            (PROCESS, Some(process)) => return Ok(Word::Process(process)),
            (b'N', _) => FailureKind::NotFound,
            (b'C', _) => FailureKind::CannotExecute,
            _ => FailureKind::Other,
        };
        Ok(Word::Failure(Failure::new(kind, String::from_utf8_lossy(text))))
    }

    /// The next packet, empty at the channel's end, with its descriptors.
    fn packet(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), Trouble> {
        let mut packet = vec![0; LONGEST_TEXT + 1];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [std::io::IoSliceMut::new(&mut packet)];
            let count = match recvmsg(&self.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e).doing(|| "hear the command's process".into()),
            };
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    descriptors.extend(fds);
                }
            }
            packet.truncate(count);
            return Ok((packet, descriptors));
        }
    }
}

/// Starts the command. While its process prepares, the streams to the host are connected.
pub(crate) fn launch(start: &Start, workload: &Workload) -> Result<Launched, Trouble> {
    let (ours, theirs) = Channel::pair()?;
    let connected = start.process.connected();
    let (child_ends, agent_ends) = stdio::pipes(connected)?;
    let process = match sys::give_birth(workload.as_fd()).doing(|| "make the command's process".into())? {
        Born::Parent(process) => process,
        Born::Child => {
            drop(ours);
            theirs.send_failure(&inside::become_command(start, child_ends, &theirs));
            sys::leave(1);
        }
    };
    drop((theirs, child_ends));
    std::fs::write("/proc/self/oom_score_adj", "-1000").doing(|| "protect the agent from the OOM killer".into())?;
    let host_ends = HostEnds::connect(connected)?;
    let (terminal, failure) = ours.receive()?;
    if let Some(Failure { kind, text }) = failure {
        return Ok(Launched::Failed { kind, text });
    }
    let output = agent_ends.connect(host_ends, terminal.as_ref())?;
    Ok(Launched::Running(Command { process, terminal, connected, output }))
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
