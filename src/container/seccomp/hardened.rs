//! The list of `--hardened`: the usual one without what a server or a tool of a container seldom needs and attacks on kernels often do.

use super::builtin::{BY_CAPABILITY, EPERM, GROUPS, clone_without_namespaces};
use super::{Profile, Rule, Test};
use crate::spec::Capability;

/// Allowed to others, not here.
const LEFT_OUT: &[&str] = &[
    // Looking into other processes.
    "ptrace process_vm_readv process_vm_writev get_robust_list",
    // Asynchronous reads and writes: much code, many holes; programs do without.
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    // Pages of a program handed to a pipe.
    "vmsplice",
    // Memory that not even the kernel reads, and mappings out of order.
    "memfd_secret remap_file_pages",
    // Segments of 16-bit programs.
    "modify_ldt",
    // Files past their paths, and device nodes by their old call.
    "name_to_handle_at fanotify_mark",
    // The host's clock.
    "adjtimex clock_adjtime clock_adjtime64",
    // With conditions below.
    "ioctl socketcall",
];

/// Unix, the internet, and netlink's routes, which C libraries ask for the interfaces.
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Requests to a terminal that put characters into its input, for whoever reads there next (ioctl_tty(2)).
const INTO_TERMINALS: [u64; 2] = [libc::TIOCSTI, TIOCLINUX];
const TIOCLINUX: u64 = 0x541c;

/// The list for a process with these capabilities: given ones have their calls.
pub(super) fn profile(capabilities: &[Capability]) -> Profile {
    let mut rules: Vec<Rule> = GROUPS.iter().map(|calls| Rule::allow(calls)).collect();
    rules.iter_mut().for_each(|rule| rule.calls.retain(|call| !left_out(call)));
    let held = |name: &str| capabilities.iter().any(|capability| capability.name() == Some(name));
    rules.extend(BY_CAPABILITY.iter().filter(|(name, _)| held(name)).map(|(_, calls)| Rule::allow(calls)));
    rules.extend(INTO_TERMINALS.map(|request| Rule::new("ioctl", EPERM).when(1, Test::Equal, request)));
    rules.push(Rule::allow("ioctl"));
    let family = |number: i32| Rule::allow("socket").when(0, Test::Equal, u64::from(number.unsigned_abs()));
    rules.extend(FAMILIES.map(family));
    rules.push(family(libc::AF_NETLINK).when(2, Test::Equal, u64::from(libc::NETLINK_ROUTE.unsigned_abs())));
    rules.push(Rule::allow("personality").when(0, Test::Equal, 0xffff_ffff));
    if !held("SYS_ADMIN") {
        rules.extend(clone_without_namespaces());
    }
    Profile { default: EPERM, i386: false, rules }
}

fn left_out(call: &str) -> bool {
    LEFT_OUT.iter().flat_map(|calls| calls.split_whitespace()).any(|left_out| left_out == call)
}
