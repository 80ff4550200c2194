//! Network namespaces. A sandbox's own belongs to nobody: its user namespace's owner is the user 65534, or the last of the container's own users,
//! so that a process of that user, and only one with no rights on the host, configures it. One that sandboxes share belongs to root and is kept by
//! a mount.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::birth::give_birth;
use super::signals;
use super::users::Range;

/// The user and group `nobody`.
pub const NOBODY: u32 = 65534;

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// File system of namespaces (linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// The namespaces, by descriptors that keep them.
#[derive(Debug)]
pub struct OwnedNamespace {
    /// The user namespace that owns the network.
    pub user: OwnedFd,
    /// The network namespace.
    pub network: OwnedFd,
    /// The host's user, and the group of that number, that owns them.
    pub owner: u32,
}

impl OwnedNamespace {
    /// Makes both, by a child that becomes their owner, makes them, and is ended. Their users are those of `range`; without one, nobody is anybody
    /// inside.
    ///
    /// # Errors
    /// `ENOSPC` where user namespaces are switched off, else what the kernel says.
    pub fn make(range: Option<Range>) -> io::Result<Self> {
        let owner = range.map_or(NOBODY, Range::owner);
        let (hear, speak) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let Some(child) = give_birth(None)? else { become_namespace(owner, &speak) };
        drop(speak);
        let made = Self::of(&child, hear, range);
        let _ = pidfd_send_signal(&child, Signal::KILL);
        let _ = waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED);
        made
    }

    fn of(child: &OwnedFd, hear: OwnedFd, range: Option<Range>) -> io::Result<Self> {
        let mut errno = [0; 4];
        File::from(hear).read_exact(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        let pid = signals::pid_of(child.as_fd())?;
        let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
        range.map_or(Ok(()), |range| range.write(pid))?;
        Ok(Self { user: open("user")?, network: open("net")?, owner: range.map_or(NOBODY, Range::owner) })
    }
}

/// What a thread of its own does in this network namespace. Sockets and tap interfaces that it makes stay there.
///
/// # Errors
/// `EPERM` without the right to enter it, else what the kernel says.
pub fn within<T: Send>(network: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    in_thread(|| {
        rustix::thread::move_into_link_name_space(network, kind)?;
        work()
    })
}

/// A new network namespace that lives as long as it is mounted on `place`, an empty file; mounted when `work` is done in it.
///
/// # Errors
/// What the kernel says; there is no namespace then.
pub fn make_at<T: Send>(place: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    in_thread(|| {
        unshare()?;
        let made = work()?;
        rustix::mount::mount_bind(OWN, place)?;
        Ok(made)
    })
}

/// A new network namespace that lives as long as its descriptor, and its interfaces with it; given when `work` is done in it.
///
/// # Errors
/// What the kernel says; there is no namespace then.
pub fn make<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<OwnedFd> {
    in_thread(|| {
        unshare()?;
        work()?;
        File::open(OWN).map(OwnedFd::from)
    })
}

/// The network namespace that is mounted on `place`; `None` if none is.
pub fn mounted_at(place: &Path) -> Option<OwnedFd> {
    let file = File::open(place).ok()?;
    let kind = rustix::fs::fstatfs(&file).ok()?.f_type;
    (kind == NSFS_MAGIC).then(|| file.into())
}

fn unshare() -> io::Result<()> {
    // SAFETY: a new network namespace takes nothing away that other threads rely on: it is the calling thread's alone.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

/// A thread that changes its namespaces is not used again.
fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("The thread in a network namespace has panicked")))
    })
}

/// Only system calls here: other threads of the parent may have held any lock at this child's birth.
fn become_namespace(owner: u32, speak: &OwnedFd) -> ! {
    let answer = enter(owner).err().and_then(|e| e.raw_os_error()).unwrap_or(0);
    let _ = rustix::io::write(speak, &answer.to_ne_bytes());
    loop {
        // SAFETY: pause(2) takes nothing; the parent ends this process.
        unsafe { libc::pause() };
    }
}

fn enter(owner: u32) -> io::Result<()> {
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // By number: the C library's own functions would call upon the parent's threads, which are not here.
    // SAFETY: setgroups(2) with a count of 0 reads no list.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: setresgid(2) takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_setresgid, owner, owner, owner) })?;
    // SAFETY: setresuid(2) takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_setresuid, owner, owner, owner) })?;
    // SAFETY: unshare(2) takes no pointer; this process has one thread.
    check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNET) })
}
