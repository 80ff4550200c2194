//! The usual list. In effect it is Docker's, so that an image that runs there runs here: what an ordinary program needs is allowed, what it does
//! not need and has been a way into the kernel is refused with EPERM, and what lets a program find another way with ENOSYS.
//!
//! Not in any group, and so refused to everybody: the kernel's keyrings, which are not namespaced (add_key, keyctl, request_key); io_uring, which
//! does its work past this filter and has had many holes; userfaultfd, which lets a program stop the kernel where it likes; kexec_load and its
//! kin, swapon, swapoff, pivot_root, nfsservctl and move_pages, migrate_pages, which are the host's; and calls that are obsolete (uselib, ustat,
//! sysfs, _sysctl, vm86, create_module ...).

use super::{Action, CAP_SYS_ADMIN, Profile, Rule, Test};
use crate::spec::Capability;

/// Files and folders by name. Who may do what is said by their modes, by mounts and by capabilities.
const FILES: &str = "\
    access chdir chmod chown chown32 creat faccessat faccessat2 fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
    fchownat fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat getcwd getdents getdents64 lchown lchown32 link linkat \
    lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat \
    rename renameat renameat2 rmdir stat stat64 statfs statfs64 statx symlink symlinkat truncate truncate64 umask \
    unlink unlinkat utime utimensat utimensat_time64 utimes";

/// Their extended attributes.
const ATTRIBUTES: &str = "\
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr \
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat";

/// Open descriptors: reading, writing, waiting, sending.
const DESCRIPTORS: &str = "\
    _llseek _newselect close close_range copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fadvise64 fadvise64_64 fallocate \
    fcntl fcntl64 fdatasync flock fsync ftruncate ftruncate64 ioctl lseek pipe pipe2 poll ppoll ppoll_time64 pread64 \
    preadv preadv2 pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readv select sendfile sendfile64 \
    signalfd signalfd4 splice sync sync_file_range syncfs tee vmsplice write writev";

/// Reads and writes that go on by themselves, in their first form (libaio).
const ASYNCHRONOUS: &str = "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit";

/// Watching files and mounts. A group of fanotify is made by who has SYS_ADMIN only.
const WATCHES: &str = "fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch listmount statmount";

/// Memory of its own.
const MEMORY: &str = "\
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages";

/// Processes and threads: their making (but for clone), their end, waiting for it, and what they know of themselves.
const PROCESSES: &str = "\
    arch_prctl execve execveat exit exit_group fork get_robust_list get_thread_area getpgid getpgrp getpid getppid \
    getsid gettid modify_ldt pidfd_open pidfd_send_signal prctl process_mrelease restart_syscall rseq set_robust_list \
    set_thread_area set_tid_address setpgid setsid vfork wait4 waitid waitpid";

/// Looking into processes of its own and debugging them. Kernels before 4.8 let this filter be gone round by it; Duplex needs a newer one.
const DEBUGGING: &str = "process_vm_readv process_vm_writev ptrace uretprobe";

/// Locks between threads.
const LOCKS: &str = "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake";

/// Signals.
const SIGNALS: &str = "\
    kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill tkill";

/// Users, groups and capabilities: to give them up, and to take those that are allowed.
const IDENTITY: &str = "\
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 \
    getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32";

/// Walls that a program puts around itself: they can only become narrower.
const OWN_WALLS: &str = "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp";

/// Limits, priorities and processors.
const SCHEDULING: &str = "\
    getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    setpriority setrlimit ugetrlimit";

/// Time and timers. Setting the clock needs SYS_TIME, which adjtimex asks for itself: without it, it tells only.
const TIME: &str = "\
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete \
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
    timerfd_gettime64 timerfd_settime timerfd_settime64 times";

/// Sockets, but for their making. socketcall, which 32-bit programs of glibc use for everything, hides its arguments: through it they make
/// every kind of socket that the kernel lets them.
const SOCKETS: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmmsg_time64 \
    recvmsg sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";

/// Messages, semaphores and shared memory of the container's own namespace.
const IPC: &str = "\
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget";

/// What the system is.
const SYSTEM: &str = "getrandom sysinfo uname";

/// All of these without a condition.
pub(super) const GROUPS: &[&str] = &[
    FILES,
    ATTRIBUTES,
    DESCRIPTORS,
    ASYNCHRONOUS,
    WATCHES,
    MEMORY,
    PROCESSES,
    DEBUGGING,
    LOCKS,
    SIGNALS,
    IDENTITY,
    OWN_WALLS,
    SCHEDULING,
    TIME,
    SOCKETS,
    IPC,
    SYSTEM,
];

/// What comes with a capability: who was given it is meant to use it, and the kernel asks for it or does not know better.
pub(super) const BY_CAPABILITY: &[(&str, &str)] = &[
    // Opens a file by a handle, wherever a path to it would lead.
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    // Mounts, namespaces, names, security modules.
    (
        "SYS_ADMIN",
        "\
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
        sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    // Other processes' descriptors and memory.
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// The families of sockets that are refused: AF_ALG, a way to the kernel's ciphers that has had holes, and AF_VSOCK, which reaches a hypervisor
/// past all namespaces.
const REFUSED_FAMILIES: [i32; 2] = [libc::AF_ALG, libc::AF_VSOCK];

/// What personality(2) may be asked for: PER_LINUX and PER_LINUX32, each with or without UNAME26, and what it is now. The others switch off
/// what makes attacks harder (ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC ...).
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of clone(2) that make a namespace; in one of a new user, root has every capability over what it then makes.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

pub(super) const EPERM: Action = Action::Errno(1);
const ENOSYS: Action = Action::Errno(38);

/// The list for a process with these capabilities.
pub(super) fn profile(capabilities: &[Capability]) -> Profile {
    let mut rules: Vec<Rule> = GROUPS.iter().map(|calls| Rule::allow(calls)).collect();
    let held = |name: &str| capabilities.iter().any(|capability| capability.name() == Some(name));
    rules.extend(BY_CAPABILITY.iter().filter(|(name, _)| held(name)).map(|(_, calls)| Rule::allow(calls)));
    let refused = REFUSED_FAMILIES.map(i32::unsigned_abs).map(u64::from);
    rules.extend(between(&refused).map(|rule| Rule { calls: vec!["socket".to_owned()], ..rule }));
    let personality = |value| Rule::allow("personality").when(0, Test::Equal, value);
    rules.extend(PERSONALITIES.map(personality));
    if !capabilities.contains(&CAP_SYS_ADMIN) {
        rules.extend(clone_without_namespaces());
    }
    Profile { default: EPERM, i386: true, rules }
}

/// Processes and threads, but no namespaces. clone3's flags are behind a pointer, which a filter cannot follow: C libraries fall back to clone
/// when there is no such call.
pub(super) fn clone_without_namespaces() -> [Rule; 2] {
    let flags = u64::from(NEW_NAMESPACES.cast_unsigned());
    [Rule::allow("clone").when(0, Test::Masked(flags), 0), Rule::new("clone3", ENOSYS)]
}

/// Rules without calls for a first argument that is none of these numbers, which are in order: what lies below, between and above them. (One
/// rule cannot say it: outside runtimes take several conditions on one argument as alternatives.)
fn between(refused: &[u64]) -> impl Iterator<Item = Rule> {
    let below = refused.first().map(|first| Rule::allow("").when(0, Test::Less, *first));
    let above = refused.last().map(|last| Rule::allow("").when(0, Test::Greater, *last));
    let gaps = refused.windows(2).flat_map(|pair| match pair {
        [from, to] => from.saturating_add(1)..*to,
        _ => 0..0,
    });
    let gaps: Vec<Rule> = gaps.map(|value| Rule::allow("").when(0, Test::Equal, value)).collect();
    below.into_iter().chain(gaps).chain(above)
}
