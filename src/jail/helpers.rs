//! What confines the processes beside a monitor: its keeper, and the file servers of its shares. passt confines itself, and has the keeper's
//! walls beside its own.
//!
//! A keeper makes monitors, networks and mounts, so it has root's rights over those; it has none over the kernel, other processes' memory, time
//! or hardware. A file server has what changes files' owners and modes, and sees nothing of the host but its share and programs' libraries.

use std::io;

use libc::c_long;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::CapabilitySet;

use crate::sys::seccomp;
use crate::sys::walls::{Becomes, Room, Walls, bound_capabilities};

/// Calls that neither a keeper, nor what it starts, has a use for, with all of their kind.
const NEVER: &[c_long] = &[
    // Code in the kernel, and another kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Large parts of the kernel that nothing here uses, and that attacks on it begin with.
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_modify_ldt,
    libc::SYS_vmsplice,
    // Files by numbers, past all folders.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Hardware, time, and what is the whole host's.
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
];

/// More of them for a process that only serves files: it finds its place furnished.
const NEVER_A_FILE_SERVER: &[c_long] = &[
    // Other places.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Its one socket is there.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_bpf,
    // Other processes: there is none in its namespace.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_fork,
    libc::SYS_vfork,
];

/// What a keeper of a machine keeps of root's rights: files of other users, its machines' users and processes, networks, mounts and namespaces.
const OF_KEEPER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    // What the kernel tells of a monitor's memory, another user's.
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::BPF);

/// What a file server keeps: owners, modes and attributes of files, a smaller root, a limit of descriptors, and giving up the rest of these.
const OF_FILE_SERVER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_RESOURCE);

/// Confines this process, the keeper of a machine to be, and all that it will start. Call it before it starts a thread.
///
/// # Errors
/// What the kernel says.
pub fn confine_keeper() -> io::Result<()> {
    // Its memory has what the sandbox was told, secrets included.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    bound_capabilities(OF_KEEPER)?;
    rustix::thread::set_no_new_privs(true)?;
    seccomp::confine_all(&seccomp::refuse(NEVER, false))
}

/// Walls around a file server that finds this in its room.
pub fn around_file_server(room: Room) -> Walls {
    let filter = seccomp::refuse(&[NEVER, NEVER_A_FILE_SERVER].concat(), true);
    let limits = vec![(Resource::Core, 0)];
    Walls { user: Becomes::Same, limits, keeps: OF_FILE_SERVER, room: Some(room), filter }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_server_has_no_right_that_its_keeper_lacks_and_none_over_the_host() {
        assert!(OF_KEEPER.contains(OF_FILE_SERVER));
        let host = CapabilitySet::SYS_MODULE
            | CapabilitySet::SYS_RAWIO
            | CapabilitySet::SYS_BOOT
            | CapabilitySet::SYS_TIME
            | CapabilitySet::SYSLOG
            | CapabilitySet::MAC_ADMIN
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::MKNOD;
        assert!(!OF_KEEPER.intersects(host));
        assert!(!OF_FILE_SERVER.intersects(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::KILL));
    }
}
