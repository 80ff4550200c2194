//! Tap interfaces (Linux `networking/tuntap.rst`): what a process that got one opened has still to tell it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// TUN_F_CSUM: checksums may be partial.
pub const OFFLOAD_CSUM: u32 = 0x01;
/// TUN_F_TSO4: long TCP frames over IPv4.
pub const OFFLOAD_TSO4: u32 = 0x02;
/// TUN_F_TSO6: long TCP frames over IPv6.
pub const OFFLOAD_TSO6: u32 = 0x04;
/// TUN_F_TSO_ECN: also with explicit congestion notification.
pub const OFFLOAD_TSO_ECN: u32 = 0x08;

/// TUNSETOFFLOAD: `_IOW('T', 208, unsigned int)`; its argument is the number itself.
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// TUNSETVNETHDRSZ: `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
/// TUNSETVNETLE: `_IOW('T', 220, int)`.
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

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
