//! A machine that runs is written to a file: its command is held, its processors are taken out, and both go on.
//!
//! ```text
//! keeper                    agent                     monitor
//!   | -- Hold --------------> |  the command stands       |
//!   | -- Save, file ------------------------------------> |  processors out, memory and state written
//!   |    copies the volumes                              |
//!   | -- Resume ----------------------------------------> |  processors in again
//!   | -- Release -----------> |  the command goes on      |
//! ```
//!
//! A machine that goes on from the file finds its command held, and its connections to the host gone: its agent makes new ones, asks who it is, and
//! only then lets the command go on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;
use std::time::Duration;

use duplex_wire::{Answer, Question};
use rustix::fs::{FallocateFlags, fallocate};

use super::inside::MicroVmInside;
use super::monitor::pidfd_of;
use super::{Cause, MicroVmError, error};
use crate::sandbox::inside::Saving;
use crate::sandbox::{Refusal, SandboxError};
use crate::spec::{MIB, MachineSize, RequestToMonitor};
use crate::sys::signals;

/// How long the monitor may take to write the machine: a slow disk takes 100 MB each second.
const WRITING: Duration = Duration::from_secs(600);

/// Most bytes of a file's parts that are not memory, and of pages between pages that are in use.
const BESIDE: u64 = 16 * MIB;

impl Saving for MicroVmInside {
    fn save(&self, file: &File, copy_disks: &dyn Fn() -> io::Result<()>) -> Result<MachineSize, SandboxError> {
        self.write(file, copy_disks).map_err(|e| error("save", &self.id, e))?;
        Ok(MachineSize { memory: self.size.0, vcpus: self.size.1 })
    }
}

impl MicroVmInside {
    fn write(&self, file: &File, copy_disks: &dyn Fn() -> io::Result<()>) -> Result<(), MicroVmError> {
        // No session is opened meanwhile, and nobody pauses it.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.board.running()? {
            return Err(Refusal::Paused.into());
        }
        self.reserve(file)?;
        let written = self.hold(Question::Hold).and_then(|()| self.write_held(file.as_fd(), copy_disks));
        // An agent that has not answered may hold the command yet: it hears this behind the other. One that is gone needs no word.
        let released =
            self.hold(Question::Release).or_else(|e| if self.board.running().is_ok() { Err(e) } else { Ok(()) });
        written.and(released)
    }

    fn hold(&self, question: Question) -> Result<(), MicroVmError> {
        match self.ask(question)? {
            Answer::Done => Ok(()),
            _ => Err(MicroVmError::NoAnswer("it answers another question".to_owned())),
        }
    }

    fn write_held(&self, file: BorrowedFd<'_>, copy_disks: &dyn Fn() -> io::Result<()>) -> Result<(), MicroVmError> {
        self.board.expect_saved();
        self.reach.ask(RequestToMonitor::Save, Some(file)).map_err(MicroVmError::Resource)?;
        let written = match self.board.wait_saved(WRITING) {
            Some(causes) if causes.is_empty() => copy_disks().map_err(MicroVmError::DisksNotCopied),
            Some(causes) => Err(MicroVmError::NotSaved(Cause::chain(&causes))),
            None => Err(self.board.running().err().map_or(MicroVmError::Unanswered(WRITING), Into::into)),
        };
        // A monitor that is still writing hears this when it is done.
        self.reach.ask(RequestToMonitor::Resume, None).map_err(MicroVmError::Resource)?;
        written
    }

    /// Gives the file its space in this process's name: where files are in memory, the monitor's own limit would have to hold the machine twice. The
    /// monitor cuts what is too much. A file system that does not know this gives the space as it is written.
    fn reserve(&self, file: &File) -> Result<(), MicroVmError> {
        let process = pidfd_of(&self.reach).ok_or(Refusal::NotRunning)?;
        let process = signals::pid_of(process.as_fd()).map_err(MicroVmError::Resource)?;
        // An ordinary user's monitor is in a user namespace of its own, and does not show it.
        let maps = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
        let used = maps.ok().map(|maps| resident(&maps)).or_else(|| self.cgroup.usage().memory_bytes);
        let Some(used) = used else { return Ok(()) };
        // What is the template's is part of it, whether it was used or not.
        let bytes = used.saturating_add(self.from_file).min(self.size.0.0).saturating_add(BESIDE);
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(e) => Err(MicroVmError::NoRoom { bytes, source: io::Error::from(e) }),
        }
    }
}

/// `Rss` of a process's memory, in bytes (proc_pid_smaps_rollup(5)).
fn resident(maps: &str) -> u64 {
    let line = maps.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB"));
    line.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_memory_is_read_from_the_kernels_lines() {
        let maps = "00400000-7ffd8 ---p 00000000 00:00 0    [rollup]\nRss:               34952 kB\nPss:  12 kB\n";
        assert_eq!(resident(maps), 34952 * 1024);
        assert_eq!(resident(""), 0);
    }
}
