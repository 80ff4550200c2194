//! Signals to a command that is the first process of its namespace, with the effect that they would have outside of one.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use duplex_wire::{Effect, Ending, LOOK_AGAIN, effect};

/// SIGKILL.
pub(super) const KILL: u8 = 9;

/// The signal that ended the command although SIGKILL was sent in its place; 0 is none.
#[derive(Debug, Default)]
pub(super) struct EndedBy(AtomicU8);

impl EndedBy {
    /// Sends a signal to the process of a pidfd. One that the kernel would drop, and that would end the process elsewhere, ends it.
    pub(super) fn send(&self, process: BorrowedFd<'_>, signal: u8) -> io::Result<()> {
        let text = |file: &str| {
            let pid = crate::sys::signals::pid_of(process).ok()?;
            std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
        };
        let look = || (text("status").unwrap_or_default(), text("syscall").unwrap_or_default());
        let sent = match effect(signal, look, || std::thread::sleep(LOOK_AGAIN)) {
            Effect::Send => signal,
            Effect::End => {
                // The first one counts.
                let _ = self.0.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
                KILL
            }
        };
        crate::sys::signals::send(process, sent)
    }

    /// What a process that ended so has been ended by.
    pub(super) fn told(&self, ending: Ending) -> Ending {
        match (ending, self.0.load(Ordering::Relaxed)) {
            (Ending::Signal(KILL), signal @ 1..) => Ending::Signal(signal),
            (ending, _) => ending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn what_would_end_a_process_ends_it_and_is_told() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let ended_by = EndedBy::default();
        ended_by.send(process.as_fd(), 28).unwrap();
        assert_eq!(ended_by.told(Ending::Signal(KILL)), Ending::Signal(KILL), "a harmless signal is only sent");
        ended_by.send(process.as_fd(), 15).unwrap();
        ended_by.send(process.as_fd(), 2).unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert_eq!(ended_by.told(Ending::Signal(KILL)), Ending::Signal(15));
        assert_eq!(ended_by.told(Ending::Code(3)), Ending::Code(3));
    }
}
