//! Signals and bare system calls: the only unsafe code of the workloads.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

fn end_signals() -> libc::sigset_t {
    // SAFETY: all zeroes is a valid, empty signal set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: `set` is an initialised set and the signal is a valid one.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Keeps SIGTERM and SIGINT for [`wait_for_end_signal`]. A blocked signal also reaches a process that is PID 1 of its namespace.
pub(crate) fn catch_end_signals() -> io::Result<()> {
    let set = end_signals();
    // SAFETY: `set` lives through the call; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Waits for SIGTERM or SIGINT and returns which, or nothing when the time is over.
pub(crate) fn wait_for_end_signal(time: Option<Duration>) -> io::Result<Option<u8>> {
    let set = end_signals();
    let time = time.map(|t| libc::timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    let pointer = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    loop {
        // SAFETY: `set` and the time, if there is one, live through the call; no siginfo is asked for.
        let signal = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), pointer) };
        if let Some(signal) = u8::try_from(signal).ok().filter(|s| *s > 0) {
            return Ok(Some(signal));
        }
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => {}
            e if e.raw_os_error() == Some(libc::EAGAIN) => return Ok(None),
            e => return Err(e),
        }
    }
}

/// One system call that does next to nothing.
pub(crate) fn getpid() {
    // SAFETY: getpid(2) takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_getpid) };
}
