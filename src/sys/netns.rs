//! A network namespace that belongs to nobody: its user namespace's owner is the user 65534, so that a process of that user, and only one
//! with no rights on the host, configures it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::birth::give_birth;

/// The user and group `nobody`.
const NOBODY: libc::uid_t = 65534;

/// The namespaces, by descriptors that keep them.
#[derive(Debug)]
pub struct OwnedNamespace {
    /// The user namespace that owns the network.
    pub user: OwnedFd,
    /// The network namespace.
    pub network: OwnedFd,
}

impl OwnedNamespace {
    /// Makes both, by a child that becomes nobody, makes them, and is ended.
    ///
    /// # Errors
    /// `ENOSPC` where user namespaces are switched off, else what the kernel says.
    pub fn make() -> io::Result<Self> {
        let (hear, speak) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let Some(child) = give_birth(None)? else { become_namespace(&speak) };
        drop(speak);
        let made = Self::of(&child, hear);
        let _ = pidfd_send_signal(&child, Signal::KILL);
        let _ = waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED);
        made
    }

    fn of(child: &OwnedFd, hear: OwnedFd) -> io::Result<Self> {
        let mut errno = [0; 4];
        File::from(hear).read_exact(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", child.as_raw_fd()))?;
        let pid = info.lines().find_map(|l| l.strip_prefix("Pid:")).map(str::trim).ok_or(io::ErrorKind::NotFound)?;
        let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
        Ok(Self { user: open("user")?, network: open("net")? })
    }
}

/// Only system calls here: other threads of the parent may have held any lock at this child's birth.
fn become_namespace(speak: &OwnedFd) -> ! {
    let answer = enter().err().and_then(|e| e.raw_os_error()).unwrap_or(0);
    let _ = rustix::io::write(speak, &answer.to_ne_bytes());
    loop {
        // SAFETY: pause(2) takes nothing; the parent ends this process.
        unsafe { libc::pause() };
    }
}

fn enter() -> io::Result<()> {
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // By number: the C library's own functions would call upon the parent's threads, which are not here.
    // SAFETY: setgroups(2) with a count of 0 reads no list.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: setresgid(2) takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) })?;
    // SAFETY: setresuid(2) takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) })?;
    // SAFETY: unshare(2) takes no pointer; this process has one thread.
    check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNET) })
}
