//! What the C library and Rust's runtime do behind a program's back, for one whose system calls are counted.

/// All memory of the process comes from one heap that grows in place: no thread maps one of its own. Call it before there are threads.
pub fn one_heap() {
    // SAFETY: mallopt(3) takes numbers, and no other thread allocates meanwhile, as the caller says.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_MAX, 0) };
}

/// A fault of memory ends the process at once and under its own name: the handlers of Rust's runtime, which tell an overflown stack from
/// others, would make calls for that.
pub fn plain_faults() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: SIG_DFL is a valid action, and nothing here relies on the handler that it replaces.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A file that may not grow any more is an error of the write, and not the end of the process (setrlimit(2), `RLIMIT_FSIZE`): how much is written
/// may be a guest's choice.
pub fn full_files_are_errors() {
    // SAFETY: SIG_IGN is a valid action.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Ends the process: all its threads, and nothing is run any more.
pub fn end(code: u8) -> ! {
    // SAFETY: _exit(2) runs no handler and never returns.
    unsafe { libc::_exit(code.into()) }
}
