//! The control socket: events to the caller, requests from it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use crate::spec::{MachineEvent, RequestToMonitor};

/// Longest request; all of them are a few bytes.
const LONGEST: usize = 256;

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    /// A request, with the descriptor that came with it.
    Request(RequestToMonitor, Option<OwnedFd>),
    /// Bytes that are no request: ignored, since newer callers may know more.
    Unknown,
    /// Nothing is there now.
    Nothing,
    /// The other end is gone.
    Closed,
}

/// The socket.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Over this socket of type SOCK_SEQPACKET.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// For polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends an event.
    ///
    /// # Errors
    /// If the other end is gone.
    pub fn tell(&self, event: &MachineEvent) -> io::Result<()> {
        let packet = postcard::to_stdvec(event).map_err(io::Error::other)?;
        send(&self.socket, &packet, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes the next request, without waiting.
    pub fn receive(&self) -> Incoming {
        let mut bytes = [0_u8; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let count = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Incoming::Nothing,
            Err(_) => return Incoming::Closed,
        };
        let mut received = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let fd = received.next();
        if count == 0 {
            return Incoming::Closed;
        }
        match postcard::from_bytes(bytes.get(..count).unwrap_or(&[])) {
            Ok(request) => Incoming::Request(request, fd),
            Err(_) => Incoming::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, SocketType, sendmsg, socketpair,
    };
    use std::io::IoSlice;

    fn pair() -> (Control, OwnedFd) {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Control::new(near), far)
    }

    #[test]
    fn requests_bring_descriptors() {
        let (control, far) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let packet = postcard::to_stdvec(&RequestToMonitor::AddStream { port: 7 }).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&far, &[IoSlice::new(&packet)], &mut ancillary, SendFlags::empty()).unwrap();
        let Incoming::Request(RequestToMonitor::AddStream { port: 7 }, Some(_)) = control.receive() else { panic!() };
        assert!(matches!(control.receive(), Incoming::Nothing));
        send(&far, b"\xff\xff", SendFlags::empty()).unwrap();
        assert!(matches!(control.receive(), Incoming::Unknown));
        drop(far);
        assert!(matches!(control.receive(), Incoming::Closed));
    }

    #[test]
    fn events_go_out() {
        let (control, far) = pair();
        control.tell(&MachineEvent::Running { at_ns: 5 }).unwrap();
        let mut bytes = [0; 64];
        let (count, _) = rustix::net::recv(&far, &mut bytes[..], RecvFlags::empty()).unwrap();
        let event: MachineEvent = postcard::from_bytes(&bytes[..count]).unwrap();
        assert_eq!(event, MachineEvent::Running { at_ns: 5 });
        drop(far);
        assert!(control.tell(&MachineEvent::Running { at_ns: 6 }).is_err());
    }
}
