//! Signals and bare system calls: the only unsafe code of the workloads.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
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

/// Any system call by number: what it returns. Meant for calls that a kernel or a filter refuses, and for those that only ask.
pub(crate) fn call(number: u32, arguments: &[u64]) -> i64 {
    let argument = |place: usize| arguments.get(place).copied().unwrap_or(0);
    let answer: i64;
    // SAFETY: the registers that the kernel writes are named. What the call does to this process is what its caller asked for: no reference of
    // Rust's leads to what it may change, for no argument is an address of this program's but of bytes that [`call_with`] holds for it.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") i64::from(number) => answer,
            in("rdi") argument(0),
            in("rsi") argument(1),
            in("rdx") argument(2),
            in("r10") argument(3),
            in("r8") argument(4),
            in("r9") argument(5),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    answer
}

/// One word of a system call.
pub(crate) enum Word<'a> {
    /// As it is.
    Number(u64),
    /// The address of these bytes, which the kernel may change.
    Bytes(&'a mut [u8]),
}

impl From<u64> for Word<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// A descriptor as a word.
pub(crate) fn number_of(fd: &impl AsRawFd) -> u64 {
    u64::from(fd.as_raw_fd().unsigned_abs())
}

/// A system call by number, what it returns or its error. The caller's bytes are as many as this call reads and writes.
pub(crate) fn call_with(number: libc::c_long, words: &mut [Word<'_>]) -> io::Result<u64> {
    let mut arguments = Vec::with_capacity(words.len());
    for word in words {
        arguments.push(match word {
            Word::Number(number) => *number,
            Word::Bytes(bytes) => bytes.as_mut_ptr().expose_provenance() as u64,
        });
    }
    let number = u32::try_from(number).map_err(io::Error::other)?;
    match call(number, &arguments) {
        error @ -4095..0 => Err(io::Error::from_raw_os_error(i32::try_from(-error).unwrap_or(0))),
        value => Ok(value.cast_unsigned()),
    }
}

/// As a program of 32 bits makes it: by interrupt 0x80, whose numbers are others. Three arguments.
pub(crate) fn call_32(number: u32, arguments: &[u64]) -> i64 {
    let argument = |place: usize| arguments.get(place).copied().unwrap_or(0);
    let answer: i64;
    // SAFETY: as for `call`. The compiler keeps rbx for itself, so it is exchanged and given back; the kernel clears r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) argument(0) => _,
            inlateout("rax") i64::from(number) => answer,
            in("rcx") argument(1),
            in("rdx") argument(2),
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
        );
    }
    // What it returns has 32 bits.
    let [a, b, c, d, ..] = answer.to_le_bytes();
    i64::from(i32::from_le_bytes([a, b, c, d]))
}
