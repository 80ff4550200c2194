//! What a signal does to a command that is PID 1 of its namespace.
//!
//! The kernel drops a signal to a namespace's first process when its action is the default one (pid_namespaces(7), "The namespace init process"), so that `sleep` or
//! a script without a trap could not be stopped by SIGTERM or Ctrl-C. A sandbox behaves as the same command outside: both isolations ask [`effect`]
//! first and end the command themselves where the default action would.
//!
//! C libraries block every signal for a moment while they make a thread or a process (pthread_create(3), posix_spawn(3)). The kernel would keep a
//! signal sent then, and drop it when the moment is over, so a block is looked at until it has lasted or the process sleeps with it.

use std::time::Duration;

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

/// Time between two looks at a process that blocks a signal and runs.
pub const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// So many looks, in all half a second, find a block that is meant: one of a moment is over after microseconds of the process's own time.
const LOOKS: u32 = 250;

/// What `signal` (1 to 64) does to the process that `look` sees: its texts in `/proc/PID/status` and `/proc/PID/syscall`, at each call anew. A
/// status without the masks gives [`Effect::Send`]; a syscall that cannot be read is an empty text. `wait` lets [`LOOK_AGAIN`] pass.
pub fn effect(signal: u8, mut look: impl FnMut() -> (String, String), mut wait: impl FnMut()) -> Effect {
    for _ in 0..LOOKS {
        let (status, syscall) = look();
        if let Some(effect) = seen(signal, &status, &syscall) {
            return effect;
        }
        wait();
    }
    Effect::Send
}

/// What one look tells; nothing of a process that runs with the signal blocked.
fn seen(signal: u8, status: &str, syscall: &str) -> Option<Effect> {
    let Some(bit) = signal.checked_sub(1).and_then(|n| 1_u64.checked_shl(u32::from(n))) else {
        return Some(Effect::Send);
    };
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let mask = |name: &str| field(name).and_then(|text| u64::from_str_radix(text, 16).ok());
    let (Some(caught), Some(ignored), Some(blocked)) = (mask("SigCgt:"), mask("SigIgn:"), mask("SigBlk:")) else {
        return Some(Effect::Send);
    };
    if (caught | ignored) & bit != 0 || HARMLESS.contains(&signal) {
        return Some(Effect::Send);
    }
    if blocked & bit != 0 {
        // For sigwait(3) or a signalfd: the kernel keeps it also for a namespace's first process. Who waits for one sleeps in it.
        let asleep = field("State:").is_some_and(|state| state.starts_with('S'));
        return asleep.then_some(Effect::Send);
    }
    // While a process waits, the signals it waits for do not show as blocked.
    let waits = syscall.split_whitespace().next() == Some(SIGTIMEDWAIT);
    Some(if waits { Effect::Send } else { Effect::End })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nState:\tR (running)\nSigBlk:\t0000000000000200\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000000002\n";

    fn effect(signal: u8, status: &str, syscall: &str) -> Effect {
        super::effect(signal, || (status.to_owned(), syscall.to_owned()), || {})
    }

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

    #[test]
    fn a_block_of_a_moment_is_waited_for() {
        let blocked = STATUS.replace("SigBlk:\t0000000000000200", "SigBlk:\tfffffffe7ffbfeff");
        let mut looks = 0;
        let mut look = |state: char, until: u32| {
            looks = 0;
            let turns = |status: &str| (status.replace("R (", &format!("{state} (")), String::new());
            let effect = super::effect(
                15,
                || {
                    looks += 1;
                    turns(if looks <= until { &blocked } else { STATUS })
                },
                || {},
            );
            (effect, looks)
        };
        assert_eq!(look('R', 3), (Effect::End, 4), "over while it is looked at");
        assert_eq!(look('D', 3), (Effect::End, 4), "one that waits for its child's exec");
        assert_eq!(look('R', u32::MAX), (Effect::Send, LOOKS), "it lasts");
        assert_eq!(look('S', 3), (Effect::Send, 1), "it sleeps with the block");
    }
}
