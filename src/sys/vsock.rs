//! The host's end of vsock where the kernel carries it (vsock(7), `/dev/vhost-vsock` of `linux/vhost.h`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `VHOST_VSOCK_SET_GUEST_CID`: `_IOW(0xaf, 0x60, u64)`.
const SET_GUEST_CID: libc::c_ulong = 0x4008_af60;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Context id.
    pub cid: u32,
    /// Port.
    pub port: u32,
}

/// Makes this context id that of the guest behind an open `/dev/vhost-vsock`.
///
/// # Errors
/// `EADDRINUSE` if another guest has it; `EINVAL` for one that no guest can have.
pub fn set_guest_cid(vhost: impl AsFd, cid: u32) -> io::Result<()> {
    let cid = u64::from(cid);
    // SAFETY: the request reads one u64, which `cid` is and which lives through the call.
    check(unsafe { libc::ioctl(vhost.as_fd().as_raw_fd(), SET_GUEST_CID, &raw const cid) }).map(drop)
}

/// A socket that guests and local processes can connect to at this port of the host.
///
/// # Errors
/// `EADDRINUSE` if another socket has the port; `EAFNOSUPPORT` if the kernel has no vsock.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointer.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `fd` was just made by the kernel and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid sockaddr_vm: it is made of integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or_default();
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let pointer = (&raw const address).cast::<libc::sockaddr>();
    // SAFETY: the pointer and the size describe `address`, which lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), pointer, size()) })?;
    // SAFETY: listen(2) takes no pointer.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) })?;
    Ok(socket)
}

/// The next connection.
///
/// # Errors
/// What accept4(2) says.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, Peer)> {
    // SAFETY: all zeroes is a valid sockaddr_vm: it is made of integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut length = size();
    let pointer = (&raw mut address).cast::<libc::sockaddr>();
    // SAFETY: pointer and length describe `address`; both live through the call.
    let fd = unsafe { libc::accept4(listener.as_fd().as_raw_fd(), pointer, &raw mut length, libc::SOCK_CLOEXEC) };
    let fd = check(fd)?;
    // SAFETY: `fd` was just made by the kernel and nothing else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, Peer { cid: address.svm_cid, port: address.svm_port }))
}

fn size() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(libc::socklen_t::MAX)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
