//! Attacks from within: what code in a monitor's thread would try first. Built into a monitor of its own for the test (feature `drill`).
//!
//! The drill monitor is told a role and the number of an attempt. The thread of that role makes the attempt when it is confined. Each is a call that
//! no monitor makes, so the kernel ends the process by SIGSYS; an attempt that comes back, whatever it achieved, ends it with [`CAME_BACK`]. The
//! attempt's name is on the standard error before.

use libc::c_long;

use crate::sys::{raw, runtime};
use crate::vmm::role::Role;

/// Exit code of a drill whose attempt was not stopped by the filter.
pub const CAME_BACK: u8 = 70;
/// Exit code of a drill for an attempt that does not exist.
pub const NO_SUCH: u8 = 71;

/// What a drill monitor is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    vcpu: bool,
    attempt: usize,
}

impl Order {
    /// From the monitor's arguments after the first: `event-loop NUMBER` or `vcpu NUMBER`. Without any, the first attempt in a processor's thread.
    pub fn of_arguments() -> Self {
        let mut arguments = std::env::args().skip(2);
        let vcpu = arguments.next().is_none_or(|role| role == "vcpu");
        let attempt = arguments.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        Self { vcpu, attempt }
    }

    /// Attacks, if this is the thread for it.
    pub fn carry_out(self, role: Role) {
        if self.vcpu != matches!(role, Role::Vcpu(_)) {
            return;
        }
        let Some((name, number, arguments)) = attempts().get(self.attempt).copied() else { runtime::end(NO_SUCH) };
        let _ = rustix::io::write(rustix::stdio::stderr(), name.as_bytes());
        let _ = raw::call(number, arguments);
        runtime::end(CAME_BACK);
    }
}

/// One attempt: its name, the call, its arguments.
pub type Attempt = (&'static str, c_long, [usize; 6]);

/// A text's place in memory.
fn text(text: &'static std::ffi::CStr) -> usize {
    text.as_ptr().expose_provenance()
}

/// All attempts.
pub fn attempts() -> Vec<Attempt> {
    [files(), processes(), kernel(), sockets(), memory(), requests(), disguised()].concat()
}

const HERE: usize = libc::AT_FDCWD.cast_unsigned() as usize;

fn files() -> Vec<Attempt> {
    let (passwd, root, name) = (text(c"/etc/passwd"), text(c"/"), text(c"/x"));
    vec![
        ("open", libc::SYS_open, [passwd, 0, 0, 0, 0, 0]),
        ("openat", libc::SYS_openat, [HERE, passwd, 0, 0, 0, 0]),
        ("openat2", libc::SYS_openat2, [HERE, passwd, root, 24, 0, 0]),
        ("open of /proc/self/mem", libc::SYS_open, [text(c"/proc/self/mem"), 2, 0, 0, 0, 0]),
        ("creat", libc::SYS_creat, [name, 0o600, 0, 0, 0, 0]),
        ("mkdir", libc::SYS_mkdir, [name, 0o700, 0, 0, 0, 0]),
        ("unlink", libc::SYS_unlink, [name, 0, 0, 0, 0, 0]),
        ("rename", libc::SYS_rename, [name, root, 0, 0, 0, 0]),
        ("link", libc::SYS_link, [name, root, 0, 0, 0, 0]),
        ("symlink", libc::SYS_symlink, [root, name, 0, 0, 0, 0]),
        ("mknod", libc::SYS_mknod, [name, 0o020_600, 0x801, 0, 0, 0]),
        ("chmod", libc::SYS_chmod, [root, 0o777, 0, 0, 0, 0]),
        ("chown", libc::SYS_chown, [root, 0, 0, 0, 0, 0]),
        ("getdents64", libc::SYS_getdents64, [0, root, 0, 0, 0, 0]),
        ("readlink", libc::SYS_readlink, [root, root, 0, 0, 0, 0]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [HERE, root, 0, 0, 0, 0]),
        ("memfd_create", libc::SYS_memfd_create, [name, 0, 0, 0, 0, 0]),
        ("chdir", libc::SYS_chdir, [root, 0, 0, 0, 0, 0]),
        ("chroot", libc::SYS_chroot, [root, 0, 0, 0, 0, 0]),
        ("mount", libc::SYS_mount, [root, root, text(c"proc"), 0, 0, 0]),
        ("umount2", libc::SYS_umount2, [root, 2, 0, 0, 0, 0]),
        ("pivot_root", libc::SYS_pivot_root, [root, root, 0, 0, 0, 0]),
        ("open_tree", libc::SYS_open_tree, [HERE, root, 1, 0, 0, 0]),
        ("inotify_init1", libc::SYS_inotify_init1, [0; 6]),
        ("fanotify_init", libc::SYS_fanotify_init, [0; 6]),
    ]
}

fn processes() -> Vec<Attempt> {
    let program = text(c"/bin/sh");
    vec![
        ("execve", libc::SYS_execve, [program, 0, 0, 0, 0, 0]),
        ("execveat", libc::SYS_execveat, [HERE, program, 0, 0, 0, 0]),
        ("fork", libc::SYS_fork, [0; 6]),
        ("clone", libc::SYS_clone, [17, 0, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [program, 88, 0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [16, 1, 0, 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0, 0, 0, 0]),
        ("kill of all", libc::SYS_kill, [usize::MAX, 9, 0, 0, 0, 0]),
        ("tkill", libc::SYS_tkill, [1, 9, 0, 0, 0, 0]),
        ("tgkill of a neighbour", libc::SYS_tgkill, [2, 2, 9, 0, 0, 0]),
        ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, [1, 1, 9, 0, 0, 0]),
        ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [3, 0, 0, 0, 0, 0]),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal, [3, 9, 0, 0, 0, 0]),
        ("setuid", libc::SYS_setuid, [0; 6]),
        ("setresuid", libc::SYS_setresuid, [0; 6]),
        ("capset", libc::SYS_capset, [0; 6]),
        ("prctl", libc::SYS_prctl, [4, 1, 0, 0, 0, 0]),
        ("seccomp", libc::SYS_seccomp, [0; 6]),
        ("prlimit64", libc::SYS_prlimit64, [0, 7, 0, 0, 0, 0]),
        ("unshare", libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]),
        ("setns", libc::SYS_setns, [3, 0, 0, 0, 0, 0]),
        ("sched_setscheduler", libc::SYS_sched_setscheduler, [0, 1, 0, 0, 0, 0]),
        ("personality", libc::SYS_personality, [0x40000, 0, 0, 0, 0, 0]),
    ]
}

fn kernel() -> Vec<Attempt> {
    vec![
        ("bpf", libc::SYS_bpf, [0; 6]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [8, 0, 0, 0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, usize::MAX, usize::MAX, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0; 6]),
        ("add_key", libc::SYS_add_key, [0; 6]),
        ("request_key", libc::SYS_request_key, [0; 6]),
        ("init_module", libc::SYS_init_module, [0; 6]),
        ("finit_module", libc::SYS_finit_module, [0; 6]),
        ("kexec_load", libc::SYS_kexec_load, [0; 6]),
        ("reboot", libc::SYS_reboot, [0; 6]),
        ("syslog", libc::SYS_syslog, [3, 0, 0, 0, 0, 0]),
        ("swapon", libc::SYS_swapon, [0; 6]),
        ("iopl", libc::SYS_iopl, [3, 0, 0, 0, 0, 0]),
        ("ioperm", libc::SYS_ioperm, [0x70, 2, 1, 0, 0, 0]),
        ("modify_ldt", libc::SYS_modify_ldt, [0; 6]),
        ("settimeofday", libc::SYS_settimeofday, [0; 6]),
        ("sethostname", libc::SYS_sethostname, [0; 6]),
        ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, [0, 0, 1, 0, 0, 0]),
    ]
}

fn sockets() -> Vec<Attempt> {
    vec![
        ("socket of the Internet", libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
        ("socket of this host", libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
        ("netlink socket", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        ("vsock socket", libc::SYS_socket, [40, 1, 0, 0, 0, 0]),
        ("socketpair", libc::SYS_socketpair, [1, 1, 0, 0, 0, 0]),
        ("connect", libc::SYS_connect, [3, 0, 0, 0, 0, 0]),
        ("bind", libc::SYS_bind, [3, 0, 0, 0, 0, 0]),
        ("listen", libc::SYS_listen, [3, 1, 0, 0, 0, 0]),
        ("accept4", libc::SYS_accept4, [3, 0, 0, 0, 0, 0]),
        ("setsockopt", libc::SYS_setsockopt, [3, 1, 2, 0, 0, 0]),
        ("sendmsg with descriptors", libc::SYS_sendmsg, [3, 0, 0, 0, 0, 0]),
    ]
}

fn memory() -> Vec<Attempt> {
    let shared = 0x21;
    vec![
        ("mmap of code", libc::SYS_mmap, [0, 4096, 7, 0x22, usize::MAX, 0]),
        ("mmap of memory", libc::SYS_mmap, [0, 4096, 3, shared, usize::MAX, 0]),
        ("mprotect", libc::SYS_mprotect, [0x1000, 4096, 7, 0, 0, 0]),
        ("mremap", libc::SYS_mremap, [0x1000, 4096, 8192, 1, 0, 0]),
        ("remap_file_pages", libc::SYS_remap_file_pages, [0; 6]),
        ("shmget", libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]),
        ("move_pages", libc::SYS_move_pages, [0; 6]),
        ("madvise with other advice", libc::SYS_madvise, [0x1000, 4096, 101, 0, 0, 0]),
        ("futex with another operation", libc::SYS_futex, [0x1000, 6, 0, 0, 0, 0]),
        ("vmsplice", libc::SYS_vmsplice, [0; 6]),
        ("process_madvise", libc::SYS_process_madvise, [3, 0, 0, 4, 0, 0]),
    ]
}

/// ioctl(2) on descriptors that a monitor has, with requests that it has no need of any more.
fn requests() -> Vec<Attempt> {
    let requests = [
        ("KVM_CREATE_VM", 0xae01),
        ("KVM_CREATE_VCPU", 0xae41),
        ("KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
        ("KVM_CREATE_DEVICE", 0xc00c_aee0),
        ("KVM_IRQFD", 0x4020_ae76),
        ("KVM_IOEVENTFD", 0x4040_ae79),
        ("KVM_SET_NESTED_STATE", 0x4080_aebf),
        ("KVM_ENABLE_CAP", 0x4068_aea3),
        ("KVM_SET_SREGS", 0x4138_ae84),
        ("TIOCSTI", 0x5412),
        ("TUNSETIFF", 0x4004_54ca),
        ("SIOCSIFADDR", 0x8916),
        ("FS_IOC_SETFLAGS", 0x4008_6602),
    ];
    requests.into_iter().map(|(name, request)| (name, libc::SYS_ioctl, [5, request, 0, 0, 0, 0])).collect()
}

/// Allowed calls by the numbers of another ABI (x32), and numbers that are none.
fn disguised() -> Vec<Attempt> {
    const X32: c_long = 0x4000_0000;
    vec![
        ("write of the x32 ABI", X32 | libc::SYS_write, [2, 0, 0, 0, 0, 0]),
        ("ioctl of the x32 ABI", X32 | 514, [5, 0xae80, 0, 0, 0, 0]),
        ("a call that does not exist", 1 << 20, [0; 6]),
        ("a negative number", -1, [0; 6]),
    ]
}
