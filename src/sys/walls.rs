//! What a child leaves behind between its birth and its program: namespaces, the host's file system, rights, its user.
//!
//! ```text
//! clone3 into new namespaces -> empty read-only root -> limits -> no capabilities -> own user and group -> no_new_privs -> program
//!                                  or a furnished one             or a few                                    -> filter ---^
//! ```
//!
//! Everything here runs in a copy of a process whose other threads may have held any lock: system calls only, no allocation.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{Resource, Rlimit, fchdir, pivot_root, setrlimit};
use rustix::thread::CapabilitySet;

use super::{mounts, seccomp};

/// Walls around a child. Its namespaces (mount, process, network, IPC, host name, cgroup) are its own, its root cannot be written and is empty or
/// has its furniture, it has no capability but those that it keeps, and gets none by any program.
#[derive(Debug)]
pub struct Walls {
    /// Whose it becomes.
    pub user: Becomes,
    /// Limits, soft and hard.
    pub limits: Vec<(Resource, u64)>,
    /// Capabilities that it keeps; with another user none.
    pub keeps: CapabilitySet,
    /// What its root has in it. `None`: nothing.
    pub room: Option<Room>,
    /// A filter of system calls that holds for its program from the first on. Empty: none.
    pub filter: Vec<libc::sock_filter>,
}

/// The user that a child becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// This user, and the group of this number.
    User(u32),
    /// Its caller's user, without rights over anything else of that user's, in a user namespace of its own: the caller may not choose.
    Stranger,
    /// Its caller's.
    Same,
}

/// Where a child with a room finds the folders of its processes, as proc(5) has them, and nothing else of the kernel.
pub const PROCESSES: &str = "processes";

/// What a child's root has in it, beside [`PROCESSES`]. Paths are relative to it; what they lie in comes first.
#[derive(Debug, Default)]
pub struct Room {
    /// Folders.
    pub folders: Vec<CString>,
    /// Empty files.
    pub files: Vec<CString>,
    /// Symbolic links: what they say, and where they are.
    pub links: Vec<(CString, CString)>,
    /// Mounts that are attached nowhere, and the folders and files over which they come to lie, in this order.
    pub mounts: Vec<(OwnedFd, CString)>,
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
        let own_user = if self.user == Becomes::Stranger { libc::CLONE_NEWUSER } else { 0 };
        let flags = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | own_user;
        u64::from(flags.cast_unsigned())
    }

    /// Called in the child, last before its program. `mounts` are those of its room, by descriptors that are still there.
    pub(super) fn put_up(&self, mounts: &[OwnedFd]) -> io::Result<()> {
        // SAFETY: unshare(2) takes no pointer; a cgroup namespace only changes what this process is told.
        check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })?;
        match &self.room {
            None => empty_root()?,
            Some(room) => room.enter(mounts)?,
        }
        for (resource, most) in &self.limits {
            setrlimit(*resource, Rlimit { current: Some(*most), maximum: Some(*most) })?;
        }
        drop_rights(self.user, self.keeps)?;
        if self.filter.is_empty() { Ok(()) } else { seccomp::confine(&self.filter) }
    }
}

impl Room {
    /// Leaves the host's tree for this one.
    fn enter(&self, mounts: &[OwnedFd]) -> io::Result<()> {
        mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, c"size", c"65536")?;
        fsconfig_set_string(&context, c"nr_inodes", c"64")?;
        fsconfig_set_string(&context, c"mode", c"0555")?;
        fsconfig_create(&context)?;
        let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let silent = plain | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, plain)?;
        move_mount(&root, c"", rustix::fs::CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        fchdir(&root)?;
        for folder in &self.folders {
            rustix::fs::mkdirat(&root, folder.as_c_str(), Mode::from_raw_mode(0o555))?;
        }
        for file in &self.files {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&root, file.as_c_str(), flags, Mode::from_raw_mode(0o444))?);
        }
        for (says, link) in &self.links {
            rustix::fs::symlinkat(says.as_c_str(), &root, link.as_c_str())?;
        }
        let attach = |mount: BorrowedFd<'_>, place: &std::ffi::CStr| {
            move_mount(mount, c"", &root, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        };
        for (mount, (_, place)) in mounts.iter().zip(&self.mounts) {
            attach(std::os::fd::AsFd::as_fd(mount), place)?;
        }
        let context = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, c"subset", c"pid")?;
        fsconfig_create(&context)?;
        let proc = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, silent | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        rustix::fs::mkdirat(&root, PROCESSES, Mode::from_raw_mode(0o555))?;
        move_mount(&proc, c"", &root, PROCESSES, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        mounts::set_read_only(&root)?;
        leave_old_root()
    }
}

/// Makes the working directory, over which the root lies, the root. The old one comes to lie over it (pivot_root(2), NOTES), from where it is taken
/// off with all that is mounted on it.
fn leave_old_root() -> io::Result<()> {
    pivot_root(c".", c".")?;
    Ok(unmount(c".", UnmountFlags::DETACH)?)
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
    leave_old_root()
}

/// Gives up, for this thread and for what it will start, every capability but these, and becoming able to have them again. Who has none that
/// could be given up, an ordinary user, stays as it is.
///
/// # Errors
/// What the kernel says.
pub fn bound_capabilities(keeps: CapabilitySet) -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    if !now.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    bound(keeps)?;
    rustix::thread::clear_ambient_capability_set()?;
    let sets = rustix::thread::CapabilitySets {
        effective: now.effective.intersection(keeps),
        permitted: now.permitted.intersection(keeps),
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Takes all others out of the bounding set.
fn bound(keeps: CapabilitySet) -> io::Result<()> {
    for capability in 0..64 {
        if keeps.bits() & 1 << capability != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes numbers only.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(()) => {}
            // Behind the last that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Gives up every capability but these for ever, and becomes the user: another one keeps none.
fn drop_rights(user: Becomes, keeps: CapabilitySet) -> io::Result<()> {
    bound(keeps)?;
    if let Becomes::User(user) = user {
        // The calls of the C library would tell its other threads, of which this copy has none. No supplementary groups.
        // SAFETY: setgroups(2) with a count of 0 reads no list.
        system(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
        // SAFETY: setresgid(2) takes numbers only.
        system(unsafe { libc::syscall(libc::SYS_setresgid, user, user, user) })?;
        // SAFETY: setresuid(2) takes numbers only.
        system(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) })?;
    }
    let keeps = if user == Becomes::Same { keeps } else { CapabilitySet::empty() };
    let left =
        rustix::thread::CapabilitySets { effective: keeps, permitted: keeps, inheritable: CapabilitySet::empty() };
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, left)?;
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
