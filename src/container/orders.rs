//! What keeper and container-init say to each other: one postcard message per packet of a unix SOCK_SEQPACKET socket. Orders may be longer
//! than a packet and travel in a memory file.

use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::{fs::File, io};

use duplex_wire::{Ending, FailureKind};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::{SandboxSpec, TerminalSize};

/// Most descriptors in one packet (SCM_MAX_FD of the kernel).
const DESCRIPTORS: usize = 253;

/// Longest packet in bytes.
const PACKET: usize = 64 << 10;

/// Everything that container-init is told. With it come, in this order: the command's stdin, stdout and stderr, the network where
/// [`Orders::network`] says so, its user namespace where [`Orders::users`] says so, what is mounted beside the image (`mounts::descriptors`), and the pieces of the root disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// The sandbox.
    pub spec: SandboxSpec,
    /// Its folder on the shelf.
    pub folder: PathBuf,
    /// Its cgroup, made and limited already, as a path from the root of the hierarchy.
    pub cgroup: PathBuf,
    /// Most bytes that the writable layer takes in memory; the kernel's default (half of the host's memory) if `None`.
    pub scratch_bytes: Option<u64>,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// The OCI runtime program that runs the bundle; the built-in one if `None`.
    pub runtime: Option<PathBuf>,
    /// Where its network namespace comes from.
    pub network: NetworkSource,
    /// Who the users of its user namespace are, if it has one of its own; that owns its network namespace, too.
    pub users: Option<u32>,
}

/// Where a container's network namespace comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkSource {
    /// A new one, with nothing but the loopback.
    New,
    /// One that comes with the orders, behind the standard streams, with nothing but the loopback.
    Made,
    /// One that comes with the orders in the same place; behind it a pidfd of the process that serves it, which must not outlive
    /// the keeper.
    Given,
    /// The host's.
    Host,
}

impl Orders {
    /// The terminal's size, if there is to be one.
    pub fn terminal(&self) -> Option<TerminalSize> {
        self.spec.process.terminal
    }
}

/// The keeper's word after [`Report::Created`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Execute the command.
    Start,
}

/// What container-init reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Namespaces, mounts and cgroup stand. With it come a pidfd of the first process and, with a terminal, its master side.
    Created {
        /// When, in nanoseconds of CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// The command was executed.
    Started {
        /// When, in nanoseconds of CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// The command could not be executed; the last report.
    NotExecuted {
        /// What Docker tells apart by exit code.
        kind: FailureKind,
        /// A sentence that names the thing.
        text: String,
    },
    /// The command has ended; the last report.
    Exited {
        /// How.
        ending: Ending,
        /// When, in nanoseconds of CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// Something else failed; the last report. The error and its causes.
    Failed {
        /// Outermost first.
        causes: Vec<String>,
    },
}

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket or memory file fails.
    #[error("Cannot talk to the other process")]
    Socket(#[source] io::Error),
    /// The other process is gone.
    #[error("The other process has ended")]
    Ended,
    /// What came is no message.
    #[error("A message does not decode")]
    Decode(#[source] postcard::Error),
    /// What came is too long for a packet.
    #[error("A message is longer than {PACKET} bytes or has more than {DESCRIPTORS} descriptors")]
    TooLong,
}

impl From<rustix::io::Errno> for WireError {
    fn from(errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Self::Ended,
            other => Self::Socket(other.into()),
        }
    }
}

/// Sends a message and descriptors in one packet.
///
/// # Errors
/// [`WireError::Ended`] if nobody reads any more.
pub fn send(socket: impl AsFd, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let bytes = postcard::to_stdvec(message).map_err(WireError::Decode)?;
    if bytes.len() > PACKET || descriptors.len() > DESCRIPTORS {
        return Err(WireError::TooLong);
    }
    let rights = SendAncillaryMessage::ScmRights(descriptors);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(rights) {
        return Err(WireError::TooLong);
    }
    let send = || rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    rustix::io::retry_on_intr(send)?;
    Ok(())
}

/// Receives a packet and its descriptors, all of them close-on-exec.
///
/// # Errors
/// [`WireError::Ended`] if the other end is closed.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), WireError> {
    let mut bytes = vec![0; PACKET];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(WireError::Ended);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(WireError::TooLong);
    }
    let message = postcard::from_bytes(bytes.get(..received.bytes).unwrap_or_default()).map_err(WireError::Decode)?;
    Ok((message, descriptors))
}

/// Receives one descriptor beside whatever bytes, from a stream.
///
/// # Errors
/// As [`receive`]; [`WireError::Ended`] if none comes.
pub(super) fn receive_descriptor(socket: impl AsFd) -> Result<OwnedFd, WireError> {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    rights.ok_or(WireError::Ended)
}

/// Sends orders: their length in the packet, themselves in a memory file that is the first descriptor.
///
/// # Errors
/// As [`send`].
pub fn send_orders(socket: impl AsFd, orders: &Orders, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let bytes = postcard::to_stdvec(orders).map_err(WireError::Decode)?;
    let memory = rustix::fs::memfd_create("duplex-orders", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(&bytes).and_then(|()| file.rewind()).map_err(WireError::Socket)?;
    let all: Vec<BorrowedFd<'_>> = std::iter::once(file.as_fd()).chain(descriptors.iter().copied()).collect();
    send(socket, &bytes.len(), &all)
}

/// Receives what [`send_orders`] sends.
///
/// # Errors
/// As [`receive`].
pub fn receive_orders(socket: impl AsFd) -> Result<(Orders, Vec<OwnedFd>), WireError> {
    let (length, descriptors) = receive::<usize>(socket)?;
    let mut descriptors = descriptors.into_iter();
    let mut file = File::from(descriptors.next().ok_or(WireError::Ended)?);
    let mut bytes = Vec::with_capacity(length.min(PACKET));
    file.read_to_end(&mut bytes).map_err(WireError::Socket)?;
    let orders = postcard::from_bytes(&bytes).map_err(WireError::Decode)?;
    Ok((orders, descriptors.collect()))
}

/// An error and its causes, outermost first.
pub fn causes(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect()
}
