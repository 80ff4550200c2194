//! Signal dispositions.

/// Gives every signal its default action, for a process that is about to execute a program: a Rust program ignores SIGPIPE, and what it
/// ignores the next program would too.
pub fn default_all() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no code. Numbers that cannot be changed (SIGKILL, SIGSTOP, the C library's own) are refused and stay.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
