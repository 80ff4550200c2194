//! Signals: dispositions, and sending by pidfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Gives every signal its default action, for a process that is about to execute a program: a Rust program ignores SIGPIPE, one that
/// `posix_spawn` has made ignores the C library's own (32 and 33), and what it ignores the next program would too.
pub fn default_all() {
    // The kernel's `struct sigaction` (rt_sigaction(2)): SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    for signal in 1..=64_i32 {
        // SAFETY: the structure has the kernel's size and outlives the call, which installs no code; the mask's size is in bytes. The C
        // library's call would refuse its own numbers. SIGKILL and SIGSTOP are refused and stay.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), size_of::<u64>())
        };
    }
}

/// The caller has set this signal to be ignored, as `nohup` does with SIGHUP.
pub fn is_ignored(signal: i32) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills in the old one, for which there is room.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: all bits zero is a valid sigaction, and so is what the kernel has filled in.
    let now = unsafe { now.assume_init() };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Sends a signal of any number, real-time ones included (rustix names only the classic ones), to the process of a pidfd.
///
/// # Errors
/// `ESRCH` if the process has ended and been waited for, `EINVAL` for a number that is no signal.
pub fn send(process: BorrowedFd<'_>, signal: u8) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for the length of the call; a null siginfo is allowed and means "as kill(2)".
    let failed =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::c_int::from(signal), null, 0) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The process id behind a pidfd (proc_pid_fdinfo(5)); -1, which is none, once it has been reaped.
///
/// # Errors
/// If there is no process, or `/proc` does not tell.
pub fn pid_of(process: BorrowedFd<'_>) -> io::Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    pid.ok_or_else(|| io::ErrorKind::NotFound.into())
}
