//! What a signal does to a command that is PID 1 of its namespace.
//!
//! The kernel drops a signal to a namespace's first process when its action is the default one (pid_namespaces(7), "The namespace init process"), so that `sleep` or
//! a script without a trap could not be stopped by SIGTERM or Ctrl-C. A sandbox behaves as the same command outside: both isolations ask [`effect`]
//! first and end the command themselves where the default action would.

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send it: the command handles, blocks or ignores it, or its default action is not an end.
    Send,
    /// End the command with SIGKILL and report that this signal ended it.
    End,
}

/// Signals whose default action leaves the process alive (signal(7)): CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH.
const HARMLESS: [u8; 8] = [17, 18, 19, 20, 21, 22, 23, 28];

/// rt_sigtimedwait(2) on x86-64, by which sigwait(3) works: `tini` waits in it as the first process of many an image.
const SIGTIMEDWAIT: &str = "128";

/// What `signal` (1 to 64) does to the process with these texts in `/proc/PID/status` and `/proc/PID/syscall`. A status without the masks gives
/// [`Effect::Send`]; a syscall that cannot be read is an empty text.
pub fn effect(signal: u8, status: &str, syscall: &str) -> Effect {
    let Some(bit) = signal.checked_sub(1).and_then(|n| 1_u64.checked_shl(u32::from(n))) else { return Effect::Send };
    let mask = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    // A blocked signal is for sigwait(3) or a signalfd: the kernel keeps it also for a namespace's first process. While a process waits, the
    // signals it waits for do not show as blocked.
    let waits = syscall.split_whitespace().next() == Some(SIGTIMEDWAIT);
    match (mask("SigCgt:"), mask("SigIgn:"), mask("SigBlk:")) {
        (Some(caught), Some(ignored), Some(blocked)) if (caught | ignored | blocked) & bit == 0 => {
            if waits || HARMLESS.contains(&signal) { Effect::Send } else { Effect::End }
        }
        _ => Effect::Send,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nSigBlk:\t0000000000000200\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000000002\n";

    #[test]
    fn only_unhandled_ends_are_ends() {
        assert_eq!(effect(15, STATUS, "running"), Effect::End, "TERM: default action");
        assert_eq!(effect(9, STATUS, "running"), Effect::End, "KILL");
        assert_eq!(effect(2, STATUS, "running"), Effect::Send, "INT: caught");
        assert_eq!(effect(3, STATUS, "running"), Effect::Send, "QUIT: ignored");
        assert_eq!(effect(10, STATUS, "running"), Effect::Send, "USR1: blocked, for sigwait");
        assert_eq!(effect(15, STATUS, "128 0x1 0x0"), Effect::Send, "TERM: waited for");
        assert_eq!(effect(15, STATUS, "35 0x1 0x0"), Effect::End, "TERM: asleep");
        assert_eq!(effect(28, STATUS, "running"), Effect::Send, "WINCH: harmless");
        assert_eq!(effect(15, "Name:\tsh\n", ""), Effect::Send, "unknown");
        assert_eq!(effect(0, STATUS, "running"), Effect::Send);
        assert_eq!(effect(200, STATUS, "running"), Effect::Send);
    }
}
