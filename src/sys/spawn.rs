//! What a child process does between fork and exec.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

/// What a child does to itself before it becomes the program.
#[derive(Debug, Default)]
pub struct ChildSetup {
    /// Descriptors that the program inherits under the same numbers.
    pub keep: Vec<OwnedFd>,
    /// An open `cgroup.procs`: the child moves itself there, so that nothing of the program ever runs outside.
    pub cgroup: Option<OwnedFd>,
    /// The kernel may choose the child when memory runs out, whatever it does with this process.
    pub expendable: bool,
    /// A session of its own.
    pub session: bool,
    /// Standard input becomes the session's controlling terminal; needs `session`.
    pub terminal: bool,
    /// The signal that the child gets when the thread that started it ends.
    pub death_signal: Option<Signal>,
}

impl ChildSetup {
    /// Makes every child of `command` do this. The descriptors stay open here until `command` is dropped.
    pub fn apply(self, command: &mut Command) -> &mut Command {
        // SAFETY: the closure runs after fork in the child and makes system calls on descriptors that it owns, nothing else: no
        // allocation, no lock (an io::Error from an errno does not allocate).
        unsafe { command.pre_exec(move || self.run()) }
    }

    fn run(&self) -> io::Result<()> {
        if let Some(signal) = self.death_signal {
            rustix::process::set_parent_process_death_signal(Some(signal))?;
        }
        if self.expendable {
            // proc(5), oom_score_adj: raising it to the usual 0 needs no privilege.
            let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, b"0")?;
        }
        if let Some(cgroup) = &self.cgroup {
            // cgroup v2, "cgroup.procs": 0 is the writing process.
            rustix::io::write(cgroup, b"0")?;
        }
        if self.session {
            rustix::process::setsid()?;
        }
        if self.terminal {
            rustix::process::ioctl_tiocsctty(stdin_of_this_child().as_fd())?;
        }
        for fd in &self.keep {
            inherit(fd.as_fd())?;
        }
        Ok(())
    }
}

fn stdin_of_this_child() -> BorrowedFd<'static> {
    // SAFETY: std's Command has put a descriptor at 0 before it calls the pre_exec closures, and nothing closes it before exec.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Clears close-on-exec.
fn inherit(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_SETFD passes no pointer.
    let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_sees_what_it_was_to_inherit_and_leads_its_session() {
        let (ours, theirs) = io::pipe().unwrap();
        let number = theirs.as_raw_fd();
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            // By its path: `sh` takes numbers of one digit only.
            &format!("{{ echo $$; cut -d' ' -f6 /proc/$$/stat; }} >/proc/self/fd/{number}"),
        ]);
        let setup = ChildSetup { keep: vec![theirs.into()], session: true, ..ChildSetup::default() };
        let mut child = setup.apply(&mut command).spawn().unwrap();
        child.wait().unwrap();
        drop(command);
        let said = io::read_to_string(ours).unwrap();
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words.len(), 2, "{said}");
        assert_eq!(words[0], words[1]);
    }
}
