//! System calls and instructions that rustix lacks: the only unsafe code of the agent.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use duplex_wire::{EXIT_PORT, Ending, HOST_CID, READY_PORT, port};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// RNDADDENTROPY of random(4): `_IOW('R', 3, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// RNDRESEEDCRNG: `_IO('R', 7)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Turns the result of a libc call into a result.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A size of a C struct or array as the kernel takes it.
fn size_of_socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}

/// A vsock stream to this port of the host (vsock(7)).
pub(crate) fn vsock_connect(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let (address, size) = vsock_address(HOST_CID, of_this_machine(port));
    // SAFETY: the pointer and the size describe `address`, which lives through the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast::<libc::sockaddr>(), size) })?;
    Ok(socket)
}

/// The same from a port that only root can have.
pub(crate) fn vsock_connect_privileged(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let bind = |local: u32| {
        let (address, size) = vsock_address(libc::VMADDR_CID_ANY, local);
        // SAFETY: the pointer and the size describe `address`, which lives through the call.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast::<libc::sockaddr>(), size) })
    };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for local in (1..port::PRIVILEGED).rev() {
        match bind(local) {
            Ok(_) => {
                let (address, size) = vsock_address(HOST_CID, of_this_machine(port));
                let pointer = (&raw const address).cast::<libc::sockaddr>();
                // SAFETY: the pointer and the size describe `address`, which lives through the call.
                check(unsafe { libc::connect(socket.as_raw_fd(), pointer, size) })?;
                return Ok(socket);
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// The host's port for this one of ours.
fn of_this_machine(port: u32) -> u32 {
    let base = std::env::var(port::BASE).ok().and_then(|base| base.parse::<u32>().ok());
    port.saturating_add(base.unwrap_or(0))
}

fn vsock_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointer.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `fd` was just made by the kernel and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn vsock_address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    // SAFETY: all zeroes is a valid sockaddr_vm: it is made of integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or_default();
    address.svm_cid = cid;
    address.svm_port = port;
    (address, size_of_socklen::<libc::sockaddr_vm>())
}

/// Adds a seed to the kernel's random generator, counts all its bits, and has it used at once.
pub(crate) fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let device = std::fs::File::open("/dev/random")?;
    let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
    let bits = i32::try_from(seed.len().saturating_mul(8)).map_err(|_| too_long())?;
    let bytes = i32::try_from(seed.len()).map_err(|_| too_long())?;
    // struct rand_pool_info: two ints, then the bytes.
    let mut info = bits.to_ne_bytes().to_vec();
    info.extend_from_slice(&bytes.to_ne_bytes());
    info.extend_from_slice(seed);
    let mut words = vec![0_u32; info.len().div_ceil(4)];
    for (word, chunk) in words.iter_mut().zip(info.chunks(4)) {
        let mut four = [0; 4];
        four[..chunk.len()].copy_from_slice(chunk);
        *word = u32::from_ne_bytes(four);
    }
    // SAFETY: the request reads `bytes` bytes behind the two ints, all inside `words`, which is aligned for ints and lives through the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, words.as_ptr()) })?;
    // The generator takes new entropy in when it is due, minutes later: a machine that others went on from too may not wait for that.
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// Sets IFF_UP of a network interface (netdevice(7)).
pub(crate) fn interface_up(name: &str) -> io::Result<()> {
    // SAFETY: socket(2) takes no pointer.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `fd` was just made by the kernel and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid ifreq: it is made of integers and a union of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is and which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(|_| ())
}

/// Which side of a birth the caller is on.
pub(crate) enum Born {
    /// The parent, with a handle of the child.
    Parent(OwnedFd),
    /// The child.
    Child,
}

/// clone3(2) of a process in new namespaces (pid, mount, ipc, uts, cgroup) and in the cgroup whose folder is given. Call it while the
/// process has one thread: the child goes on with a copy of everything, locks included.
pub(crate) fn give_birth(cgroup: BorrowedFd<'_>) -> io::Result<Born> {
    let namespaces =
        libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    clone_into(cgroup, u64::from(namespaces.cast_unsigned()), u64::from(libc::SIGCHLD.cast_unsigned()))
}

fn clone_into(cgroup: BorrowedFd<'_>, flags: u64, exit_signal: u64) -> io::Result<Born> {
    let flags = flags | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zeroes is a valid clone_args: it is made of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | CLONE_INTO_CGROUP;
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    args.exit_signal = exit_signal;
    args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    // SAFETY: `args` and `pidfd` live through the call; no CLONE_VM, so the child runs on its own copy of this stack.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Born::Child),
        // SAFETY: with CLONE_PIDFD the kernel has written a new descriptor that nothing else owns.
        pid if pid > 0 => Ok(Born::Parent(unsafe { OwnedFd::from_raw_fd(pidfd) })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// clone3(2) of a process in the cgroup whose folder is given and in the namespaces that the caller has joined. It is a child of the
/// caller's parent. Call it while the process has one thread.
pub(crate) fn give_sibling_birth(cgroup: BorrowedFd<'_>) -> io::Result<Born> {
    clone_into(cgroup, u64::from(libc::CLONE_PARENT.cast_unsigned()), 0)
}

/// CLONE_INTO_CGROUP of clone(2), which has 33 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Waits for the end of a child.
pub(crate) fn reap(process: &OwnedFd) -> io::Result<Ending> {
    use std::os::fd::AsFd;
    loop {
        match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let code = status.exit_status().and_then(|c| u8::try_from(c & 0xff).ok()).map(Ending::Code);
                let signal = status.terminating_signal().and_then(|s| u8::try_from(s).ok()).map(Ending::Signal);
                return code.or(signal).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Sets supplementary groups, group and user of the calling process, which has one thread.
pub(crate) fn set_identity(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `groups`, which lives through the call.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: setresgid(2) takes no pointer.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: setresuid(2) takes no pointer.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    Ok(())
}

/// Replaces the calling process. All signals get their default action and none is blocked. Returns only why it failed.
pub(crate) fn execute(path: &CStr, args: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| {
        let list = strings.iter().map(|s| s.as_ptr());
        list.chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
    };
    let (args, environment) = (pointers(args), pointers(environment));
    // The kernel's `struct sigaction` (rt_sigaction(2)): SIG_DFL, no flags, no restorer, an empty mask. The Rust runtime ignores SIGPIPE, and
    // what `posix_spawn` has made the C library's own two, which its own call would refuse to change.
    let default = [0_u64; 4];
    for signal in [libc::SIGPIPE, 32, 33] {
        // SAFETY: the structure has the kernel's size and outlives the call, which installs no code; the mask's size is in bytes.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), size_of::<u64>())
        };
    }
    // SAFETY: all zeroes is a valid, empty signal set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` lives through the call; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    // SAFETY: both lists end with a null pointer, and the strings they point to live through the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), environment.as_ptr()) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Gives the calling thread a root and a working folder that it does not share with other threads, as joining a mount namespace asks for (setns(2)).
pub(crate) fn have_own_root() -> io::Result<()> {
    // SAFETY: descriptors stay shared: only the file system context is the thread's own from then on, which no other thread relies on.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?)
}

/// Ends a process that does not become a program.
pub(crate) fn leave(code: u8) -> ! {
    // SAFETY: _exit(2) runs no handler and never returns.
    unsafe { libc::_exit(libc::c_int::from(code)) }
}

/// The process id behind a pidfd (proc_pid_fdinfo(5)).
pub(crate) fn pid_of(process: &OwnedFd) -> io::Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let pid = info.lines().find_map(|l| l.strip_prefix("Pid:")).and_then(|p| p.trim().parse().ok());
    pid.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Sends any signal, real-time ones included, to the process behind a pidfd.
pub(crate) fn signal(process: &OwnedFd, signal: u8) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed (pidfd_send_signal(2)); the descriptor is open.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::c_int::from(signal), info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes a byte to [`READY_PORT`].
pub(crate) fn say_ready() -> io::Result<()> {
    // SAFETY: ioperm(2) takes no pointer.
    check(unsafe { libc::ioperm(libc::c_ulong::from(READY_PORT), 1, 1) })?;
    // SAFETY: ioperm allowed this port; `out` touches no memory and no flag.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") READY_PORT, in("al") 0_u8, options(nomem, nostack, preserves_flags))
    };
    // SAFETY: ioperm(2) takes no pointer.
    check(unsafe { libc::ioperm(libc::c_ulong::from(READY_PORT), 1, 0) }).map(drop)
}

/// Ends the machine: writes the byte to [`EXIT_PORT`], where the monitor waits for it. Resets the machine if the monitor does not listen.
pub(crate) fn end_machine(exit: u8) -> ! {
    let port = libc::c_ulong::from(EXIT_PORT);
    // SAFETY: ioperm(2) takes no pointer.
    let allowed = unsafe { libc::ioperm(port, 1, 1) };
    if allowed == 0 {
        // SAFETY: ioperm allowed this port; `out` touches no memory and no flag.
        unsafe {
            std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") exit, options(nomem, nostack, preserves_flags))
        };
    }
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}
