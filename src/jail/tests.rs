//! The lists themselves: how long they are and what is never in them.

use std::collections::BTreeSet;

use super::*;

/// Everything that a machine can have, and what one has that `duplex run` makes without flags.
const FULL: Parts = Parts { volumes: true, stream: true, tap: true, rate: true, shares: true, console: true };
const USUAL: Parts = Parts { volumes: false, stream: true, tap: false, rate: false, shares: false, console: false };

fn calls(role: Role, parts: Parts) -> BTreeSet<libc::c_long> {
    filter_of(role, parts).numbers().collect()
}

#[test]
fn lists_are_short() {
    let all: BTreeSet<_> = [Role::EventLoop, Role::Vcpu(0)].into_iter().flat_map(|role| calls(role, FULL)).collect();
    assert!(all.len() <= 40, "{}", all.len());
    assert!(calls(Role::Vcpu(0), USUAL).len() <= 15, "{}", calls(Role::Vcpu(0), USUAL).len());
    assert!(calls(Role::Vcpu(0), FULL).len() <= 24, "{}", calls(Role::Vcpu(0), FULL).len());
}

#[test]
fn lists_have_nothing_that_opens_or_makes() {
    let never = [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_ptrace,
        libc::SYS_kill,
        libc::SYS_mount,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_keyctl,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_process_vm_readv,
        libc::SYS_pidfd_open,
    ];
    for role in [Role::EventLoop, Role::Vcpu(0)] {
        let calls = calls(role, FULL);
        assert!(never.iter().all(|call| !calls.contains(call)));
        filter_of(role, FULL).compile().unwrap();
    }
}
