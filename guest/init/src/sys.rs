//! System calls and memory. The caller may be a fork of anything that had one thread.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;

/// A set of signals.
pub(super) struct Mask(libc::sigset_t);

fn all() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset writes the whole set.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: it has just been written.
    unsafe { set.assume_init() }
}

/// Blocks all signals. Returns what was blocked before.
pub(super) fn block_all() -> io::Result<Mask> {
    let mut before = MaybeUninit::uninit();
    let all = all();
    // SAFETY: both sets live through the call; the second is written if it succeeds.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const all, before.as_mut_ptr()) } {
        // SAFETY: the call has succeeded.
        0 => Ok(Mask(unsafe { before.assume_init() })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Blocks these signals and no others.
pub(super) fn set_mask(mask: &Mask) -> io::Result<()> {
    // SAFETY: the set lives through the call; the old one is not asked for.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A child, `None` in it.
pub(super) fn fork() -> io::Result<Option<libc::pid_t>> {
    // SAFETY: the caller has one thread, so the child's copy is whole.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        child if child > 0 => Ok(Some(child)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the caller lead a process group, and that the one in the foreground of its terminal. Without a terminal there is no foreground.
pub(super) fn lead() {
    // SAFETY: no pointer is taken.
    unsafe { libc::setpgid(0, 0) };
    // SAFETY: no pointer is taken.
    let own = unsafe { libc::getpgrp() };
    // SAFETY: no pointer is taken. SIGTTOU is blocked, so that a process in the background may do this (tcsetpgrp(3)).
    unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, own) };
}

/// Closes every descriptor but the standard streams.
pub(super) fn close_all_but_streams() {
    // SAFETY: the process never uses one of them again.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// Gives the process a name for those who list processes.
pub(super) fn name(name: &CStr) {
    // SAFETY: the kernel reads a string that ends with a NUL byte.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Overwrites the arguments that this process was started with, which are those of another program, with a name.
pub(super) fn name_arguments(name: &CStr) {
    // Behind the program's name, which may hold any byte, the state is field 3; 48 and 49 are the bounds of the arguments (proc_pid_stat(5)).
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let number = |nth: usize| fields.get(nth).and_then(|field| field.parse::<usize>().ok());
    let (Some(start), Some(end)) = (number(45), number(46)) else { return };
    let length = end.saturating_sub(start);
    if start == 0 || name.to_bytes_with_nul().len() > length {
        return;
    }
    let arguments = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel says where this process's arguments are; they are on its own stack and writable, and nobody reads them any more.
    unsafe { arguments.write_bytes(0, length) };
    // SAFETY: as above; the name is not longer.
    unsafe { arguments.copy_from_nonoverlapping(name.as_ptr().cast::<u8>(), name.to_bytes().len()) };
}

/// Nobody but root outside may trace it or read its memory (PR_SET_DUMPABLE, prctl(2)).
pub(super) fn close_to_others() {
    // SAFETY: no pointer is taken.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Waits for a signal.
pub(super) fn next_signal() -> libc::c_int {
    let all = all();
    loop {
        // SAFETY: the set lives through the call, and more about the signal is not asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const all, std::ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

/// Sends a signal; who has gone needs none.
pub(super) fn send(process: libc::pid_t, signal: libc::c_int) {
    // SAFETY: no pointer is taken.
    unsafe { libc::kill(process, signal) };
}

/// A child that has ended: its number and its code as a shell tells it. `None` if there is none.
pub(super) fn reap() -> Option<(libc::pid_t, libc::c_int)> {
    let mut status = 0;
    // SAFETY: the status lives through the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let code =
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::WTERMSIG(status).saturating_add(128) };
    Some((pid, code))
}

/// Ends this process.
pub(super) fn exit(code: libc::c_int) -> ! {
    // SAFETY: _exit(2) runs no handler and never returns.
    unsafe { libc::_exit(code) }
}
