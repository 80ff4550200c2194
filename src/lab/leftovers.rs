//! Who a lab is: its lock, the processes it is made of, and what a crashed one leaves.
//!
//! ```text
//! <state>/lock     held (flock) by the keeper as long as it lives
//!         pids     every process of the lab, with its start time: a number alone may be somebody else's by now
//!         socket   there while the lab takes commands
//!         program  a copy of `duplex` that runs inside, whatever becomes of the original
//!         console  the lab kernel's words        log   those of QEMU and the file servers
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::Places;

/// A process of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recorded {
    pub(super) pid: i32,
    pub(super) what: String,
    /// Clock ticks after boot (proc(5), stat, field 22).
    started: u64,
    boot: String,
}

impl Recorded {
    /// Notes a process that lives.
    pub(super) fn of(pid: u32, what: &str) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        let started = start_time(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { pid, what: what.to_owned(), started, boot: boot_id() })
    }

    /// A descriptor of the process if it is still the one that was noted.
    pub(super) fn open(&self) -> Option<std::os::fd::OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Checked after opening: from here on the descriptor cannot mean another process.
        (self.boot == boot_id() && start_time(self.pid) == Some(self.started)).then_some(pidfd)
    }

    /// Sends `signal` and waits until the process has ended. `false` if it has not by then.
    pub(super) fn end(&self, signal: Signal, patience: Duration) -> bool {
        let Some(pidfd) = self.open() else { return true };
        if pidfd_send_signal(&pidfd, signal).is_err() {
            return true;
        }
        ended(&pidfd, patience)
    }
}

/// Waits until the process behind `pidfd` has ended.
pub(super) fn ended(pidfd: &std::os::fd::OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).ok();
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()).is_ok_and(|n| n > 0)
}

fn start_time(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold anything; what follows its last bracket is field 3 and on.
    let mut rest = text.rsplit_once(')')?.1.split_whitespace();
    let state = rest.next()?;
    (state != "Z" && state != "X").then_some(())?;
    rest.nth(18)?.parse().ok()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Places {
    /// The unix socket that takes commands.
    pub(super) fn socket(&self) -> PathBuf {
        self.state.join("socket")
    }

    pub(super) fn pids(&self) -> PathBuf {
        self.state.join("pids")
    }

    pub(super) fn program(&self) -> PathBuf {
        self.state.join("program")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.state.join("console")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.state.join("log")
    }

    /// Makes the state folder, which only its owner may enter.
    pub(super) fn make_state(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.state)
    }

    /// The lock, or `None` if a keeper holds it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let path = self.state.join("lock");
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => other?,
            }
            // The last owner removes the file: a lock on what is no longer there is none.
            if fs::metadata(&path).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino())) {
                return Ok(Some(file));
            }
        }
    }

    /// The processes of the lab that was started last.
    pub(super) fn recorded(&self) -> Vec<Recorded> {
        fs::read(self.pids()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Notes the processes of this lab.
    pub(super) fn record(&self, processes: &[Recorded]) -> io::Result<()> {
        let fresh = self.state.join("pids.new");
        fs::write(&fresh, serde_json::to_vec(processes)?)?;
        fs::rename(fresh, self.pids())
    }

    /// Ends what is left of an earlier lab and removes its files. The caller holds the lock.
    pub(super) fn clear(&self, keep_words: bool) {
        let own = std::process::id();
        for process in self.recorded().iter().filter(|p| u32::try_from(p.pid) != Ok(own)) {
            process.end(Signal::KILL, Duration::from_secs(5));
        }
        let words = [self.console(), self.log()];
        let gone = [self.socket(), self.pids(), self.program(), self.state.join("pids.new")];
        for path in gone.iter().chain(words.iter().filter(|_| !keep_words)) {
            // What is not there needs no removing, and what cannot be removed does not stop a new lab.
            let _ = fs::remove_file(path);
        }
    }

    /// Removes the lock's file, and the folder if it is empty now. The last thing a keeper does; the caller holds the lock.
    pub(super) fn remove_lock(&self) {
        let _ = fs::remove_file(self.state.join("lock"));
        let _ = fs::remove_dir(&self.state);
    }

    /// The last lines of a log for an error message.
    pub(super) fn last_words(path: &Path) -> String {
        let bytes = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { kernel: dir.path().join("k"), state: dir.path().join("s") };
        places.make_state().unwrap();
        (dir, places)
    }

    #[test]
    fn the_lock_has_one_owner_and_survives_its_files_removal() {
        let (_dir, places) = places();
        let first = places.lock().unwrap().unwrap();
        assert!(places.lock().unwrap().is_none());
        places.remove_lock();
        drop(first);
        places.make_state().unwrap();
        assert!(places.lock().unwrap().is_some());
    }

    #[test]
    fn leftovers_are_ended_by_number_and_start_time_together() {
        let (_dir, places) = places();
        let mut mine = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let mut other = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let noted = Recorded::of(mine.id(), "sleeper").unwrap();
        let mut stale = Recorded::of(other.id(), "other").unwrap();
        stale.started += 1;
        places.record(&[noted.clone(), stale]).unwrap();
        places.clear(false);
        assert!(!mine.wait().unwrap().success());
        assert!(noted.open().is_none());
        assert!(other.try_wait().unwrap().is_none(), "another process with a recorded number was ended");
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(places.recorded(), []);
    }
}
