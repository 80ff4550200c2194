//! What a child leaves behind between its birth and its program: namespaces, the host's file system, rights, its user.
//!
//! ```text
//! clone3 into new namespaces -> empty read-only root -> limits -> no capabilities -> own user and group -> no_new_privs -> program
//! ```
//!
//! Everything here runs in a copy of a process whose other threads may have held any lock: system calls only, no allocation.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{Resource, Rlimit, fchdir, pivot_root, setrlimit};

/// Walls around a child. Its namespaces (mount, process, network, IPC, host name, cgroup) are its own, its root is empty and
/// cannot be written, it has no capability and gets none by any program.
#[derive(Debug)]
pub struct Walls {
    /// The user and group that it becomes. `None` if this process may not choose: the child stays its user, without rights over
    /// anything else of that user's, in a user namespace of its own.
    pub user: Option<u32>,
    /// Limits, soft and hard.
    pub limits: Vec<(Resource, u64)>,
}

/// Whether this process may become any such user: it is root, and these users exist in its user namespace (user_namespaces(7), `uid_map`).
pub fn can_choose_users(from: u32, to: u32) -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let holds = |path: &str| {
        let map = std::fs::read_to_string(path).unwrap_or_default();
        map.lines().any(|line| {
            let mut numbers = line.split_whitespace().map_while(|n| n.parse::<u64>().ok());
            let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else {
                return false;
            };
            first <= u64::from(from) && u64::from(to) < first.saturating_add(count)
        })
    };
    holds("/proc/self/uid_map") && holds("/proc/self/gid_map")
}

impl Walls {
    /// Flags of clone(2) for the child's birth. The cgroup namespace comes later, when the child is in its cgroup.
    pub(super) fn clone_flags(&self) -> u64 {
        let own_user = if self.user.is_none() { libc::CLONE_NEWUSER } else { 0 };
        let flags = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | own_user;
        u64::from(flags.cast_unsigned())
    }

    /// Called in the child, last before its program.
    pub(super) fn put_up(&self) -> io::Result<()> {
        // SAFETY: unshare(2) takes no pointer; a cgroup namespace only changes what this process is told.
        check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })?;
        empty_root()?;
        for (resource, most) in &self.limits {
            setrlimit(*resource, Rlimit { current: Some(*most), maximum: Some(*most) })?;
        }
        drop_rights(self.user)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves the host's tree for an empty, read-only file system.
fn empty_root() -> io::Result<()> {
    mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"size", c"4096")?;
    fsconfig_set_string(&context, c"nr_inodes", c"1")?;
    fsconfig_set_string(&context, c"mode", c"0555")?;
    fsconfig_set_flag(&context, c"ro")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&root, c"", rustix::fs::CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(&root)?;
    // The old root comes to lie over the new one (pivot_root(2), NOTES), from where it is taken off with all that is mounted on it.
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(())
}

/// Gives up every capability for ever, and becomes the user.
fn drop_rights(user: Option<u32>) -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: PR_CAPBSET_DROP takes numbers only.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(()) => {}
            // Behind the last that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    if let Some(user) = user {
        // The calls of the C library would tell its other threads, of which this copy has none. No supplementary groups.
        // SAFETY: setgroups(2) with a count of 0 reads no list.
        system(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
        // SAFETY: setresgid(2) takes numbers only.
        system(unsafe { libc::syscall(libc::SYS_setresgid, user, user, user) })?;
        // SAFETY: setresuid(2) takes numbers only.
        system(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) })?;
    }
    let none = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, none)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn system(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Becomes the program behind this descriptor: its path means nothing any more. Returns only if that fails.
pub(super) fn execute(
    program: BorrowedFd<'_>,
    args: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> io::Error {
    // SAFETY: both lists end with a null pointer and point to strings that live; the path is empty, as AT_EMPTY_PATH wants it.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}
