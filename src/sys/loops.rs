//! Loop devices (loop(4)): a file as a block device, for file systems that cannot be mounted from a file.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `LOOP_CTL_GET_FREE` (include/uapi/linux/loop.h).
const GET_FREE: libc::c_ulong = 0x4c82;
/// `LOOP_CONFIGURE`.
const CONFIGURE: libc::c_ulong = 0x4c0a;
/// `LO_FLAGS_READ_ONLY`.
const READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`.
const AUTOCLEAR: u32 = 4;

/// How often another process may take the free device before us.
const TRIES: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Makes a loop device of this file, which must be open for writing unless the device is `read_only`. It goes by itself when the returned
/// descriptor is closed and nothing is mounted from it; until then it keeps the open file, and a lock on that.
///
/// # Errors
/// `ENOENT` without `/dev/loop-control` (module `loop`), `EPERM` and `EACCES` without CAP_SYS_ADMIN.
pub fn attach(file: BorrowedFd<'_>, read_only: bool) -> io::Result<File> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let mut last = io::Error::from_raw_os_error(libc::EBUSY);
    for _ in 0..TRIES {
        // SAFETY: GET_FREE takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let device = File::options().read(true).write(!read_only).open(format!("/dev/loop{number}"))?;
        match configure(&device, file, read_only) {
            Ok(()) => return Ok(device),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

fn configure(device: &File, file: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: AUTOCLEAR | if read_only { READ_ONLY } else { 0 },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(file.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the argument points to a whole `struct loop_config` that outlives the call and is only read.
    let failed = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);
