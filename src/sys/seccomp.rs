//! Filters of system calls (seccomp(2)).

use std::io;

use libc::{c_long, sock_filter};

/// `AUDIT_ARCH_X86_64` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;

/// The first number of x32, programs of 64 bits with pointers of 32.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`: the number, the architecture, and the lower half of the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const IF_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Flags that make namespaces (linux/sched.h), of the calls that make some by their first argument. CLONE_NEWTIME is the second one's: to the first
/// it is a bit of a signal's number.
const NAMESPACES: [(c_long, u32); 2] = [(libc::SYS_clone, 0x7e02_0000), (libc::SYS_unshare, 0x7e02_0080)];

/// Calls that are made so often that they are not compared with a list.
const FREQUENT: [c_long; 2] = [libc::SYS_ioctl, libc::SYS_futex];

/// A program that refuses these calls with `EPERM`, and those that make a namespace if `namespaces`, and lets all others pass. Numbers of
/// other architectures end the process.
pub fn refuse(calls: &[c_long], namespaces: bool) -> Vec<sock_filter> {
    let line = |code: u16, k: u32| sock_filter { code, jt: 0, jf: 0, k };
    // The next instruction is for what holds, the one behind it for what does not.
    let unless = |code: u16, k: u32| sock_filter { code, jt: 0, jf: 1, k };
    let answer = |errno: i32| line(RETURN, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs());
    let number = |call: c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let (allow, kill) = (line(RETURN, libc::SECCOMP_RET_ALLOW), line(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    let mut program = vec![line(LOAD, ARCHITECTURE), sock_filter { code: IF_EQUAL, jt: 1, jf: 0, k: X86_64 }, kill];
    program.push(line(LOAD, NUMBER));
    for call in FREQUENT {
        program.extend([unless(IF_EQUAL, number(call)), allow]);
    }
    program.extend([unless(IF_AT_LEAST, X32), kill]);
    for call in calls {
        program.extend([unless(IF_EQUAL, number(*call)), answer(libc::EPERM)]);
    }
    if namespaces {
        // Its flags lie in memory, where no filter sees them: C libraries then use the older call.
        program.extend([unless(IF_EQUAL, number(libc::SYS_clone3)), answer(libc::ENOSYS)]);
        for (call, flags) in NAMESPACES {
            program.push(sock_filter { code: IF_EQUAL, jt: 0, jf: 4, k: number(call) });
            program.extend([line(LOAD, FIRST_ARGUMENT), unless(IF_ANY_BIT, flags), answer(libc::EPERM), allow]);
        }
    }
    program.push(allow);
    program
}

/// Confines this thread, and what it will execute, to this filter, for ever. Needs CAP_SYS_ADMIN or no_new_privs.
///
/// # Errors
/// `EACCES` without either, `EINVAL` for a program that is none.
pub fn confine(program: &[sock_filter]) -> io::Result<()> {
    install(program, 0)
}

/// The same for all threads of this process, which get no_new_privs with it.
///
/// # Errors
/// As [`confine`]; `ESRCH` if a thread has another filter that this one does not.
pub fn confine_all(program: &[sock_filter]) -> io::Result<()> {
    install(program, libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH)
}

fn install(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // The kernel does not write it.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the structure and the `len` instructions that it points to live through the call, and the kernel only reads them.
    let failed = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filters are a thread's: the others keep their calls.
    #[test]
    fn what_is_refused_is_refused_and_nothing_else() {
        let errno = |result: c_long| if result < 0 { io::Error::last_os_error().raw_os_error() } else { None };
        let tried = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            confine(&refuse(&[libc::SYS_getppid, libc::SYS_getpgid], true)).unwrap();
            let call = |number: c_long, first: libc::c_int| {
                // SAFETY: of these calls none reads or writes memory with the arguments that it gets here; clone(2) and clone3(2) make nothing of
                // theirs, with or without the filter.
                errno(unsafe { libc::syscall(number, first, 0, 0, 0, 0) })
            };
            let refused = [libc::SYS_getppid, libc::SYS_getpgid].map(|number| call(number, 0));
            let (allowed, clone3) = (call(libc::SYS_getpid, 0), call(libc::SYS_clone3, 0));
            // What shares the file system's state has no mount namespace of its own.
            let clone = call(libc::SYS_clone, libc::CLONE_NEWNS | libc::CLONE_FS);
            let unshare = [libc::CLONE_NEWNS, libc::CLONE_FS].map(|flag| call(libc::SYS_unshare, flag));
            let thread = std::thread::spawn(|| 7).join().unwrap();
            (refused, allowed, clone3, clone, unshare, thread)
        });
        let (no, none) = (Some(libc::EPERM), Some(libc::ENOSYS));
        assert_eq!(tried.join().unwrap(), ([no, no], None, none, no, [no, None], 7));
    }
}
