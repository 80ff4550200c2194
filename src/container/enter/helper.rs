//! container-enter, and the way of its child to the command.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use duplex_wire::{
    Accounts, DEFAULT_OPEN_FILES, FailureKind, Identity, MAX_ACCOUNTS_FILE, ProcessLimit, ProcessSpec, Task,
    TerminalSize, Transfer, environment,
};
use nix::unistd::{Gid, Uid};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType, move_into_thread_name_spaces};

use super::{Word, from_memory};
use crate::container::child::{foreign, take_control};
use crate::container::execute::{Execute, Refusal};
use crate::container::orders::{causes, receive, send};
use crate::container::walls::{Walls, set_of};
use crate::spec::Security;
use crate::sys::birth::{Birth, give_sibling_birth};
use crate::sys::users::Range;

/// All that a container has of its own, but its user namespace, if it has one: who joins that has no rights outside any more.
const NAMESPACES: ThreadNameSpaceType = ThreadNameSpaceType::MOUNT
    .union(ThreadNameSpaceType::PROCESS_ID)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
    .union(ThreadNameSpaceType::CONTROL_GROUP)
    .union(ThreadNameSpaceType::NETWORK);

/// Device number of `/dev/ptmx` (devices.txt).
const PTMX: (u32, u32) = (5, 2);

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {step}")]
struct StepError {
    step: &'static str,
    #[source]
    source: io::Error,
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Refusal>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Refusal> {
        self.map_err(|e| (FailureKind::Other, causes(&StepError { step, source: e.into() }).join(": ")))
    }
}

/// `duplex container-enter`: takes its orders from the socket that is its standard input. The process has one thread.
pub fn main(_: impl Iterator<Item = OsString>) -> ExitCode {
    let Ok(socket) = take_control() else { return ExitCode::from(125) }; // nobody to tell
    let mut socket = Some(socket);
    match (run(&mut socket), socket) {
        (Ok(code), _) => code,
        (Err((kind, text)), Some(socket)) => {
            let _ = send(&socket, &Word::Refused(kind, text), &[]);
            ExitCode::from(125)
        }
        (Err(_), None) => ExitCode::from(125),
    }
}

/// A process that executes no program lets go of the socket by itself.
fn run(own: &mut Option<OwnedFd>) -> Result<ExitCode, Refusal> {
    let socket = own.as_ref().ok_or(Errno::BADF).step("hear the keeper")?;
    // Nothing inside may look into this process, nor into its child before that has become the command.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("close this process to others")?;
    let words = receive::<u8>(socket).map_err(io::Error::other).step("hear the keeper")?;
    let mut received = words.1.into_iter();
    let mut next = || received.next().ok_or(Errno::BADF).step("take the descriptors of the orders");
    let (memory, first, cgroup) = (next()?, next()?, next()?);
    let (task, security) = from_memory(memory).step("read the orders")?;
    let stdio = match task.connected().terminal {
        true => None,
        false => Some([next()?, next()?, next()?]),
    };
    let namespaces = match task {
        Task::Run { .. } => NAMESPACES,
        Task::Copy(_) => ThreadNameSpaceType::MOUNT,
    };
    let users = crate::sys::signals::pid_of(first.as_fd()).and_then(Range::of).step("see the container's users")?;
    move_into_thread_name_spaces(first.as_fd(), namespaces).step("join the container's namespaces")?;
    let users = Own { first, users };
    match give_sibling_birth(cgroup.as_fd()).step("make a process in the container")? {
        Birth::Parent(process) => {
            send(socket, &Word::Made, &[process.as_fd()]).map_err(io::Error::other).step("tell the keeper")?;
            Ok(ExitCode::SUCCESS)
        }
        Birth::Child => {
            // No descriptor of ours may lead out of the container (CVE-2024-21626): what is left are the socket and the streams.
            drop(cgroup);
            match task {
                Task::Run { process, hostname } => {
                    become_command((&process, &security), &hostname, (stdio, users), socket)?;
                    Ok(ExitCode::SUCCESS)
                }
                Task::Copy(transfer) => {
                    users.join()?;
                    drop(own.take());
                    Ok(stdio.map_or(ExitCode::FAILURE, |stdio| copy(&transfer, stdio)))
                }
            }
        }
    }
}

/// The container's user namespace.
struct Own {
    /// The container's first process.
    first: OwnedFd,
    /// Who its users are; `None`: the host's.
    users: Option<Range>,
}

impl Own {
    /// The user's number on the host.
    fn outside(&self, user: u32) -> u32 {
        self.users.map_or(user, |range| range.first.saturating_add(user))
    }

    /// Becomes its root, with all rights inside and none outside, if there is one; and lets go of the container's first process.
    fn join(self) -> Result<(), Refusal> {
        if self.users.is_none() {
            return Ok(());
        }
        move_into_thread_name_spaces(self.first.as_fd(), ThreadNameSpaceType::USER)
            .step("join the container's user namespace")?;
        let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
        nix::unistd::setgroups(&[])
            .and_then(|()| nix::unistd::setresgid(group, group, group))
            .and_then(|()| nix::unistd::setresuid(user, user, user))
            .step("become the container's root")
    }
}

/// Copies files as the container's root has them.
fn copy(transfer: &Transfer, [stdin, stdout, stderr]: [OwnedFd; 3]) -> ExitCode {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let stdin = std::fs::File::from(stdin);
    ExitCode::from(duplex_copy::serve(transfer, stdin, stdout.into(), stderr.into()))
}

/// Returns only why it failed.
fn become_command(
    (process, security): (&ProcessSpec, &Security),
    hostname: &str,
    (stdio, users): (Option<[OwnedFd; 3]>, Own),
    socket: &OwnedFd,
) -> Result<(), Refusal> {
    let walls = Walls::of(security, process).map_err(io::Error::other).step("use the profile of system calls")?;
    let identity = identify(&process.user)?;
    if let Some(foreign) = users.users.and_then(|_| foreign(&identity)) {
        return Err((FailureKind::Other, foreign));
    }
    enter_folder(&process.cwd)?;
    rustix::process::setsid().step("make a session")?;
    let stdio = stdio.map(|stdio| own(stdio, users.outside(identity.uid))).transpose()?;
    limit(process)?;
    users.join()?;
    let [stdin, stdout, stderr] = match stdio {
        Some(stdio) => stdio,
        None => terminal(process.terminal.unwrap_or_default(), &identity, socket)?,
    };
    rustix::stdio::dup2_stdin(&stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(&stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(&stderr))
        .step("connect the standard streams")?;
    drop((stdin, stdout, stderr));
    drop_privileges(process, &identity, &walls)?;
    let report = rustix::io::fcntl_dupfd_cloexec(socket, 3).step("keep the socket")?;
    let environment = environment(process, hostname, &identity);
    let command = Execute::new(&process.args, &environment, report, walls)?;
    Err(command.become_command())
}

/// Looks user and groups up in the container's own files; we are inside.
fn identify(user: &str) -> Result<Identity, Refusal> {
    let (passwd, group) = (read_accounts("/etc/passwd")?, read_accounts("/etc/group")?);
    let identity = Identity::resolve(user, Accounts { passwd: &passwd, group: &group });
    identity.map_err(|e| (FailureKind::Other, e.to_string()))
}

/// A regular file's content up to one byte more than [`Identity::resolve`] takes; nothing where there is none.
fn read_accounts(path: &str) -> Result<Vec<u8>, Refusal> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(Vec::new()) };
    let found = rustix::fs::fstat(&file).step("look at the container's accounts")?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let mut content = Vec::new();
    let most = u64::try_from(MAX_ACCOUNTS_FILE).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::from(file).take(most).read_to_end(&mut content).step("read the container's accounts")?;
    Ok(content)
}

/// Enters a folder that must be there: only the command's own is made. The links of `/proc`, which may lead out of the container, are not
/// followed, and a folder without a path below the root is refused.
fn enter_folder(cwd: &str) -> Result<(), Refusal> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let text = |why: &str| format!("Cannot enter the working folder '{cwd}': {why}");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat2(rustix::fs::CWD, cwd, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let entered = folder.and_then(|folder| rustix::process::fchdir(&folder));
    entered.map_err(|errno| match errno {
        Errno::NOENT => (FailureKind::NotFound, text("no such file or directory")),
        Errno::NOTDIR => (FailureKind::CannotExecute, text("not a directory")),
        other => (FailureKind::CannotExecute, text(&io::Error::from(other).to_string())),
    })?;
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err((FailureKind::CannotExecute, text("it is outside the container"))),
    }
}

/// Gives the user its streams, so that it can open `/dev/stdout` again.
fn own(stdio: [OwnedFd; 3], user: u32) -> Result<[OwnedFd; 3], Refusal> {
    for stream in &stdio {
        let found = rustix::fs::fstat(stream).step("look at the standard streams")?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(user)), None)
                .step("give the user its streams")?;
        }
    }
    Ok(stdio)
}

/// A terminal of the container's own, as the session's controlling one; its master goes to the keeper.
fn terminal(size: TerminalSize, identity: &Identity, socket: &OwnedFd) -> Result<[OwnedFd; 3], Refusal> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).step("open a terminal in the container")?;
    let found = rustix::fs::fstat(&master).step("look at the container's terminals")?;
    if (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev)) != PTMX {
        return Err((FailureKind::Other, "The container's /dev/pts/ptmx makes no terminals".to_owned()));
    }
    unlockpt(&master).step("unlock the terminal")?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer).step("open the terminal's other end")?;
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).step("set the terminal's size")?;
    let user = rustix::fs::Uid::from_raw(identity.uid);
    rustix::fs::fchown(&slave, Some(user), None).step("give the user the terminal")?;
    rustix::process::ioctl_tiocsctty(&slave).step("take the terminal")?;
    send(socket, &Word::Terminal, &[master.as_fd()]).map_err(io::Error::other).step("hand the terminal over")?;
    let again = || slave.try_clone().step("duplicate the terminal");
    Ok([again()?, again()?, again()?])
}

/// Sets the process's limits, some of which only the host's root may raise.
fn limit(process: &ProcessSpec) -> Result<(), Refusal> {
    let (soft, hard) = DEFAULT_OPEN_FILES;
    let files = Rlimit { current: Some(soft), maximum: Some(hard) };
    rustix::process::setrlimit(Resource::Nofile, files).step("limit open files")?;
    let set = |limit: &ProcessLimit| crate::sys::rlimit::set(limit.resource, limit.soft, limit.hard);
    process.limits.iter().try_for_each(|limit| set(limit).step("set a limit of the process"))
}

/// What the bundle says of the first process (bundle.rs), for this one. Order matters: the bounding set needs CAP_SETPCAP, the user needs
/// CAP_SETUID, and the sets of root are cut last.
fn drop_privileges(process: &ProcessSpec, identity: &Identity, walls: &Walls) -> Result<(), Refusal> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let granted = set_of(&process.capabilities);
    bound(granted.bits()).step("drop capabilities")?;
    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let (user, group) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_keep_capabilities(true).step("keep capabilities until this process is confined")?;
    nix::unistd::setgroups(&groups)
        .and_then(|()| nix::unistd::setresgid(group, group, group))
        .and_then(|()| nix::unistd::setresuid(user, user, user))
        .step("become the user")?;
    let held = walls.until_closed(if identity.uid == 0 { granted } else { CapabilitySet::empty() });
    let sets = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).step("set the capabilities")?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step("forbid new privileges")?;
    }
    Ok(())
}

fn bound(granted: u64) -> rustix::io::Result<()> {
    for number in 0..64_u32 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if granted & capability.bits() != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the kernel's last capability (capabilities(7), "cap_last_cap").
            Err(Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
