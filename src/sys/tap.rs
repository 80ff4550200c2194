//! Tap interfaces (Linux `networking/tuntap.rst`): making one, and what a process that got one opened has still to tell it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// TUN_F_CSUM: checksums may be partial.
pub const OFFLOAD_CSUM: u32 = 0x01;
/// TUN_F_TSO4: long TCP frames over IPv4.
pub const OFFLOAD_TSO4: u32 = 0x02;
/// TUN_F_TSO6: long TCP frames over IPv6.
pub const OFFLOAD_TSO6: u32 = 0x04;
/// TUN_F_TSO_ECN: also with explicit congestion notification.
pub const OFFLOAD_TSO_ECN: u32 = 0x08;

/// TUNSETIFF: `_IOW('T', 202, int)`; its argument is an ifreq.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// TUNSETOFFLOAD: `_IOW('T', 208, unsigned int)`; its argument is the number itself.
pub const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// TUNSETVNETHDRSZ: `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
/// TUNSETVNETLE: `_IOW('T', 220, int)`.
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

/// A new tap interface in this thread's network namespace: one queue, frames behind a virtio-net header, gone with its last descriptor.
///
/// # Errors
/// `EBUSY` if the name is taken, `EINVAL` for one longer than 15 bytes, `ENOENT` or `EPERM` without /dev/net/tun.
pub fn make(name: &str) -> io::Result<OwnedFd> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags =
        libc::c_short::from_ne_bytes(flags.to_ne_bytes().first_chunk().copied().unwrap_or_default());
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is and which lives through the call.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(tun.into()) }
}

/// Says what the tap may leave to whoever reads it.
///
/// # Errors
/// `EINVAL` for what this kernel does not know.
pub fn set_offloads(tap: &impl AsFd, offloads: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let done = unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the length of the header before each frame, which is little-endian from then on.
///
/// # Errors
/// `EINVAL` for a length below 10, `EBADFD` for a descriptor without an interface.
pub fn set_header(tap: &impl AsFd, length: u8) -> io::Result<()> {
    let fd = tap.as_fd().as_raw_fd();
    for (request, value) in [(TUNSETVNETHDRSZ, libc::c_int::from(length)), (TUNSETVNETLE, 1)] {
        // SAFETY: both requests read one int, which `value` is and which lives through the call.
        if unsafe { libc::ioctl(fd, request, &raw const value) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
