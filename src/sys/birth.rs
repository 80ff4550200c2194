//! A child with exactly the descriptors it was given, in its cgroup from its first instruction.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use duplex_wire::Ending;

use super::walls::{self, Walls};

/// Number of the first descriptor that a child gets beyond the standard streams.
pub const FIRST_FD: RawFd = 3;

/// CLONE_INTO_CGROUP of clone(2), which has 33 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a child is made of. Its environment is empty, its standard input and output are `/dev/null`, it leads a session of its own (a
/// Ctrl-C on the caller's terminal does not reach it), its signals have their default actions.
#[derive(Debug)]
pub struct Child<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments after its name.
    pub args: &'a [String],
    /// Its descriptors [`FIRST_FD`] and on. All others are closed.
    pub fds: &'a [BorrowedFd<'a>],
    /// Its standard error.
    pub stderr: BorrowedFd<'a>,
    /// The folder of the cgroup it is born in. Being born there costs nothing, moving there later waits for all processors of the host.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// What it leaves behind. With walls its program finds no file but those of its room: without one it must be static.
    pub walls: Option<&'a Walls>,
    /// It is killed when the caller's thread ends (PR_SET_PDEATHSIG), for one that would not notice.
    pub dies_with_caller: bool,
}

/// All that the child touches between its birth and its exec, made before: it may not allocate.
struct Plan<'a> {
    program: CString,
    /// The program's file, where its path will mean nothing.
    file: Option<OwnedFd>,
    args: Vec<*const libc::c_char>,
    environment: [*const libc::c_char; 1],
    /// Copies of the descriptors, all above the numbers that they get.
    sources: Vec<OwnedFd>,
    null: OwnedFd,
    report: OwnedFd,
    mounts: Vec<OwnedFd>,
    walls: Option<&'a Walls>,
    dies_with_caller: bool,
}

/// Makes the child and waits until it executes its program. Returns a pidfd.
///
/// # Errors
/// What the kernel says to the birth or to the exec.
pub fn spawn(child: &Child<'_>) -> io::Result<OwnedFd> {
    let program = c_string(child.program.as_os_str().as_encoded_bytes())?;
    let strings = child.args.iter().map(|a| c_string(a.as_bytes())).collect::<io::Result<Vec<_>>>()?;
    let args = std::iter::once(&program).chain(&strings).map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    let count = RawFd::try_from(child.fds.len()).map_err(io::Error::other)?;
    let above = FIRST_FD.saturating_add(count);
    let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, above).map_err(io::Error::from);
    let mut sources = vec![copy(child.stderr)?];
    for fd in child.fds {
        sources.push(copy(*fd)?);
    }
    let null = copy(std::os::fd::AsFd::as_fd(&std::fs::File::options().read(true).write(true).open("/dev/null")?))?;
    let (hear, report_low) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let report = copy(std::os::fd::AsFd::as_fd(&report_low))?;
    drop(report_low);
    let room = child.walls.and_then(|walls| walls.room.as_ref());
    let mounts = room.into_iter().flat_map(|room| &room.mounts);
    let mounts = mounts.map(|(mount, _)| copy(std::os::fd::AsFd::as_fd(mount))).collect::<io::Result<Vec<_>>>()?;
    let file = child.walls.map(|_| open_program(&program, above)).transpose()?;
    let (walls, environment, dies_with_caller) = (child.walls, [std::ptr::null()], child.dies_with_caller);
    let plan = Plan { program, file, args, environment, sources, null, report, mounts, walls, dies_with_caller };
    let (namespaces, exit) = (walls.map_or(0, Walls::clone_flags), u64::from(libc::SIGCHLD.cast_unsigned()));
    let Some(process) = clone_into(child.cgroup, namespaces, exit)? else { become_program(&plan) };
    drop(plan);
    let mut errno = Vec::new();
    std::fs::File::from(hear).read_to_end(&mut errno)?;
    match <[u8; 4]>::try_from(errno.as_slice()) {
        Ok(errno) => {
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&process)),
                rustix::process::WaitIdOptions::EXITED,
            );
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
        Err(_) => Ok(process),
    }
}

/// A program's file, under a number from `above` on.
fn open_program(path: &CStr, above: RawFd) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, above)?)
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(io::Error::other)
}

/// Which side of a birth the caller is on.
#[derive(Debug)]
pub enum Birth {
    /// The parent, with a pidfd of the child.
    Parent(OwnedFd),
    /// The child.
    Child,
}

/// Makes a process that goes on from here with a copy of everything, in the cgroup whose folder is given and in the namespaces that the
/// caller has joined. It is a child of the caller's parent.
///
/// # Errors
/// `EDEADLK` if the caller has more than one thread: locks of the others would stay locked in the copy. Else what clone3(2) says, `ENOMEM` for
/// one in a process namespace whose first process has ended.
pub fn give_sibling_birth(cgroup: BorrowedFd<'_>) -> io::Result<Birth> {
    check_alone()?;
    let parent = u64::from(libc::CLONE_PARENT.cast_unsigned());
    Ok(clone_into(Some(cgroup), parent, 0)?.map_or(Birth::Child, Birth::Parent))
}

/// The same, and a child of the caller, who learns of its end.
///
/// # Errors
/// As [`give_sibling_birth`].
pub fn give_child_birth(cgroup: BorrowedFd<'_>) -> io::Result<Birth> {
    check_alone()?;
    Ok(give_birth(Some(cgroup))?.map_or(Birth::Child, Birth::Parent))
}

/// Who has joined a container's mount namespace has no number in the `/proc` of that one: there is nothing to be counted then.
fn check_alone() -> io::Result<()> {
    let several = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1);
    if several { Err(io::Error::from_raw_os_error(libc::EDEADLK)) } else { Ok(()) }
}

/// Waits for the end of a child and takes its status.
///
/// # Errors
/// `ECHILD` if it is not a child of this process.
pub fn reap(process: BorrowedFd<'_>) -> io::Result<Ending> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    loop {
        match waitid(WaitId::PidFd(process), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let code = status.exit_status().and_then(|c| u8::try_from(c & 0xff).ok()).map(Ending::Code);
                let signal = status.terminating_signal().and_then(|s| u8::try_from(s).ok()).map(Ending::Signal);
                return code.or(signal).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

pub(super) fn give_birth(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<OwnedFd>> {
    clone_into(cgroup, 0, u64::from(libc::SIGCHLD.cast_unsigned()))
}

/// clone3(2). `None` in the child.
fn clone_into(cgroup: Option<BorrowedFd<'_>>, flags: u64, exit_signal: u64) -> io::Result<Option<OwnedFd>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zeroes is a valid clone_args: it is made of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    args.exit_signal = exit_signal;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` and `pidfd` live through the call; without CLONE_VM the child runs on its own copy of this stack.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(None),
        // SAFETY: with CLONE_PIDFD the kernel has written a new descriptor that nothing else owns.
        pid if pid > 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(pidfd) })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The child's way to its program. Other threads of the parent may have held any lock at its birth: only system calls from here on.
fn become_program(plan: &Plan<'_>) -> ! {
    let failed = prepare(plan).err().unwrap_or_else(|| execute(plan));
    let errno = failed.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
    let _ = rustix::io::write(&plan.report, &errno);
    // SAFETY: _exit(2) runs no handler and never returns.
    unsafe { libc::_exit(127) }
}

fn prepare(plan: &Plan<'_>) -> io::Result<()> {
    rustix::process::setsid()?;
    if plan.dies_with_caller {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    put(&plan.null, 0)?;
    put(&plan.null, 1)?;
    for (number, source) in (2..).zip(&plan.sources) {
        put(source, number)?;
    }
    // The copies, the report and whatever the parent let slip: gone at exec.
    let last = u32::try_from(plan.sources.len()).unwrap_or(u32::MAX).saturating_add(2);
    // SAFETY: close_range(2) takes no pointer; with CLOSE_RANGE_CLOEXEC it closes nothing before exec.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, last, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if closed < 0 {
        return Err(io::Error::last_os_error());
    }
    plan.walls.map_or(Ok(()), |walls| walls.put_up(&plan.mounts))
}

/// dup2(2): the copy outlives exec.
fn put(source: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the child owns all its descriptors; what stood at `number` is not used again.
    let done = unsafe { libc::dup2(source.as_raw_fd(), number) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn execute(plan: &Plan<'_>) -> io::Error {
    // SAFETY: SIG_DFL is a valid action. The Rust runtime ignores SIGPIPE; handlers are reset by exec.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: all zeroes is a valid, empty signal set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` lives through the call; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    if let Some(file) = &plan.file {
        return walls::execute(std::os::fd::AsFd::as_fd(file), &plan.args, &plan.environment);
    }
    // SAFETY: both lists end with a null pointer, and the strings they point to live in the plan.
    unsafe { libc::execve(plan.program.as_ptr(), plan.args.as_ptr(), plan.environment.as_ptr()) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    fn run(script: &str, fds: &[BorrowedFd<'_>]) -> (i32, String) {
        let (out, err) = rustix::pipe::pipe().unwrap();
        let args = ["-c".to_owned(), script.to_owned()];
        let child = Child {
            program: Path::new("/bin/sh"),
            args: &args,
            fds,
            stderr: err.as_fd(),
            cgroup: None,
            walls: None,
            dies_with_caller: false,
        };
        let process = spawn(&child).unwrap();
        drop(err);
        let mut text = String::new();
        std::fs::File::from(out).read_to_string(&mut text).unwrap();
        let status = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        (status.exit_status().unwrap(), text)
    }

    #[test]
    fn a_child_has_its_descriptors_and_no_others() {
        let leak = std::fs::File::open("/dev/zero").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        std::fs::File::from(write).write_all(b"through").unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = [null.as_fd(), read.as_fd()];
        let script = "cat <&4 >&2; echo >&2; for n in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$n && echo $n >&2; done; env >&2; exit 7";
        let (code, text) = run(script, &fds);
        assert_eq!(code, 7);
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("PWD=") && !l.starts_with("_=")).collect();
        assert_eq!(lines, ["through", "0", "1", "2", "3", "4"]);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let child = Child {
            program: Path::new("/no/such"),
            args: &[],
            fds: &[],
            stderr: null.as_fd(),
            cgroup: None,
            walls: None,
            dies_with_caller: false,
        };
        assert_eq!(spawn(&child).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
