//! The loopback interface of this network namespace.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType};

/// `struct ifreq` as SIOCSIFFLAGS reads it (netdevice(7)).
#[repr(C)]
struct InterfaceFlags {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Brings `lo` up.
///
/// # Errors
/// The kernel's answer: `EPERM` without CAP_NET_ADMIN over the network namespace.
pub fn up() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut request = InterfaceFlags { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // IFF_UP and IFF_RUNNING are bits 0 and 6.
    request.flags = 0x41;
    // SAFETY: SIOCSIFFLAGS reads one struct ifreq, 40 bytes, which InterfaceFlags is, and writes nothing.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(size_of::<InterfaceFlags>() == size_of::<libc::ifreq>());
