//! passt or pasta: one process for each sandbox with a user-mode network, born in the cgroup whose closed addresses hold for it.
//!
//! ```text
//! start --> starting --its pipe speaks--> ready --its sandbox ends--> ended
//!              \_ its pipe ends: why, in its own words
//! ```
//!
//! It runs as nobody, in namespaces and under a seccomp filter of its own making. passt ends by itself when the monitor does; pasta ends
//! with whoever holds its pidfd, and what a crash leaves the shelf clears by its cgroup.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::{NetError, Plan, plan};
use crate::spec::NetworkSpec;
use crate::sys::birth::{Child, FIRST_FD, spawn};
use crate::sys::egress;
use crate::sys::last_words::{self, LastWords};
use crate::sys::netns::OwnedNamespace;

/// The program for microVMs.
pub const PASST: &str = "passt";
/// The program for containers.
pub const PASTA: &str = "pasta";

/// Where distributions and administrators put programs.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"];

/// How long it may take to be ready: 20 ms are usual.
const PATIENCE: Duration = Duration::from_secs(30);

/// Room for frames on the way to passt: several of the longest, so that each goes in whole.
const WIRE_BUFFER: usize = 208 << 10;

/// Bytes that wait at most on the way to a sandbox with a rate. passt and pasta send what the sandbox's TCP has room for, and what they cannot
/// hand over they send again after seconds: this holds the windows of several connections.
pub(super) const INCOMING: usize = 16 << 20;

/// How a sandbox is told that its network has failed it.
pub(super) const NETWORK_GONE: &str = "The network was gone before the command's end";

/// The process.
#[derive(Debug)]
pub struct Helper {
    name: &'static str,
    process: Option<OwnedFd>,
    /// Speaks when it is ready, ends when it is gone.
    ready: Option<File>,
    stderr: LastWords,
}

impl Helper {
    /// Starts passt for this plan at its end of the wire ([`wire`]); it gets ready by itself.
    ///
    /// # Errors
    /// [`NetError`]; nothing is left then.
    pub fn passt(plan: &Plan, wire: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> Result<Self, NetError> {
        egress::close(cgroup, &plan.open).map_err(NetError::Close)?;
        Self::passt_in_closed(plan, wire, cgroup)
    }

    /// The same in a cgroup to which what must be closed is closed already.
    pub(super) fn passt_in_closed(plan: &Plan, wire: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> Result<Self, NetError> {
        let args = plan.passt(FIRST_FD, FIRST_FD + 1);
        Self::start(PASST, &args, &[wire], cgroup)
    }

    /// Starts pasta for this plan; it configures the namespace before it is ready.
    ///
    /// # Errors
    /// [`NetError`]; nothing is left then.
    pub fn pasta(plan: &Plan, namespace: &OwnedNamespace, cgroup: BorrowedFd<'_>) -> Result<Self, NetError> {
        if !tun_is_open_to_all() {
            return Err(NetError::Tun);
        }
        let args = plan.pasta([FIRST_FD, FIRST_FD + 1, FIRST_FD + 2], namespace.owner);
        egress::close(cgroup, &plan.open).map_err(NetError::Close)?;
        Self::start(PASTA, &args, &[namespace.user.as_fd(), namespace.network.as_fd()], cgroup)
    }

    /// Whether the program is installed: told before anything is made.
    ///
    /// # Errors
    /// [`NetError::Missing`].
    pub fn find(name: &'static str) -> Result<PathBuf, NetError> {
        let found = FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
        found.ok_or(NetError::Missing { program: name })
    }

    fn start(
        name: &'static str,
        args: &[String],
        fds: &[BorrowedFd<'_>],
        cgroup: BorrowedFd<'_>,
    ) -> Result<Self, NetError> {
        let program = Self::find(name)?;
        let resource = |e: rustix::io::Errno| NetError::Resource(e.into());
        let (hear, speak) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(resource)?;
        // It opens the pipe by its path when it is nobody already.
        fchmod(&speak, Mode::from_raw_mode(0o622)).map_err(resource)?;
        let stderr = LastWords::new().map_err(NetError::Resource)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().copied().chain([speak.as_fd()]).collect();
        let child = Child {
            program: &program,
            args,
            fds: &fds,
            stderr: stderr.as_fd(),
            cgroup: Some(cgroup),
            walls: None,
            dies_with_caller: false,
        };
        let process = spawn(&child).map_err(|source| NetError::Spawn { program: program.clone(), source })?;
        Ok(Self { name, process: Some(process), ready: Some(File::from(hear)), stderr })
    }

    /// Waits until it is ready: its ports are bound and, if it is pasta, the interface stands.
    ///
    /// # Errors
    /// [`NetError::Ended`] with its own words, or [`NetError::Silent`].
    pub fn wait_until_ready(&mut self) -> Result<(), NetError> {
        let Some(mut ready) = self.ready.take() else { return Ok(()) };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|e| NetError::Resource(std::io::Error::other(e)))?;
            match poll(&mut [PollFd::new(&ready, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(NetError::Silent { program: self.name, after: PATIENCE }),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(NetError::Resource(e.into())),
            }
        }
        let mut word = [0; 32];
        match ready.read(&mut word).map_err(NetError::Resource)? {
            0 => {
                self.end();
                Err(NetError::Ended { program: self.name, words: self.words() })
            }
            _ => Ok(()),
        }
    }

    /// A sentence if it has ended by anything but its sandbox's end. Ask when the sandbox's command has ended and before [`Helper::end`].
    pub fn failure(&self) -> Option<String> {
        let process = self.process.as_ref()?;
        // passt ends with code 0 when the monitor is gone.
        let how = last_words::failure(process)?;
        let words = self.words();
        let words = if words.is_empty() { words } else { format!(": {words}") };
        Some(format!("{NETWORK_GONE}: {} {how}{words}", self.name))
    }

    /// A handle for whoever must end it when nobody else does.
    ///
    /// # Errors
    /// What `dup` gave; it has ended.
    pub fn handle(&self) -> std::io::Result<OwnedFd> {
        self.process.as_ref().map_or_else(|| Err(std::io::ErrorKind::NotFound.into()), OwnedFd::try_clone)
    }

    /// Ends it and reaps it.
    pub fn end(&mut self) {
        if let Some(process) = self.process.take() {
            let _ = pidfd_send_signal(&process, Signal::KILL);
            let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
        }
    }

    /// What it wrote to its standard error, as it may be shown.
    fn words(&self) -> String {
        telling(&self.stderr.text())
    }
}

/// A wire between a monitor and passt: the monitor's end and passt's. At a rate it has room for what waits on the way to the guest. With
/// published ports the guest's interface is announced on it: passt has its hardware address from its frames, it may be asked for what they
/// publish before it has sent one, and a guest drops connections that come to everybody's.
///
/// # Errors
/// What the kernel says.
pub fn wire(spec: &NetworkSpec) -> Result<(UnixStream, UnixStream), NetError> {
    let NetworkSpec { rate, publish, .. } = spec;
    use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
    let (ours, theirs) = UnixStream::pair().map_err(NetError::Resource)?;
    set_socket_send_buffer_size(&ours, WIRE_BUFFER).map_err(|e| NetError::Resource(e.into()))?;
    if rate.is_some() {
        // Who is not root has what net.core.wmem_max allows.
        let roomy = set_socket_send_buffer_size_force(&theirs, INCOMING);
        roomy.or_else(|_| set_socket_send_buffer_size(&theirs, INCOMING)).map_err(|e| NetError::Resource(e.into()))?;
    }
    if !publish.is_empty() {
        (&ours).write_all(&plan::announcement()).map_err(NetError::Resource)?;
    }
    Ok((ours, theirs))
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.end();
    }
}

/// The lines that tell something, in one.
fn telling(text: &str) -> String {
    // There is no system logger in many places, and it says so for each line.
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("Failed to send "));
    let clean = |line: &str| line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>();
    lines.map(clean).collect::<Vec<_>>().join("; ")
}

fn tun_is_open_to_all() -> bool {
    rustix::fs::stat("/dev/net/tun").is_ok_and(|stat| stat.st_mode & 0o006 == 0o006)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_the_cause_and_nothing_else() {
        let text = "Failed to send 47 bytes to syslog\nFailed to bind any port for '-t 8080:80', exiting\n\x1b[31mx\n";
        assert_eq!(telling(text), "Failed to bind any port for '-t 8080:80', exiting; \u{fffd}[31mx");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Helper::find("no-such-program").unwrap_err();
        assert!(error.to_string().contains("apt-get install passt"), "{error}");
    }
}
