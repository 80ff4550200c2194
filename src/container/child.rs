//! container-init: the process that makes one container and is the parent of its first process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use duplex_wire::{Accounts, Ending, FailureKind, Identity, MAX_ACCOUNTS_FILE, UserError, environment};
use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Uid};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};

use super::builtin::{self, Builtin, BuiltinError};
use super::bundle;
use super::execute::Refusal;
use super::external::{self, External, ExternalError};
use super::inside::{Inside, InsideError};
use super::limits;
use super::mounts::{self, MountError};
use super::orders::{NetworkSource, Orders, Report, Request, WireError, causes, receive, receive_orders, send};
use super::plain::{self, PlainError};
use super::rootfs::{self, RootfsError};
use super::seccomp::file::ProfileError;
use super::walls::Walls;
use crate::spec::{Isolation, TerminalSize};
use crate::sys::clock::monotonic_ns;
use crate::sys::users::{COUNT, Range, Users};

/// Why container-init failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChildError {
    #[error("container-init is started by duplex itself, with a socket as its standard input")]
    NoSocket(#[source] io::Error),
    #[error("The keeper's orders do not arrive")]
    Orders(#[source] WireError),
    #[error("The orders came with {0} descriptors, at least 4 are needed")]
    Descriptors(usize),
    #[error("Cannot make namespaces: containers need root (CAP_SYS_ADMIN)")]
    Namespaces(#[source] nix::errno::Errno),
    #[error("Cannot keep mounts to this process")]
    Propagation(#[source] rustix::io::Errno),
    #[error("Cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
    #[error("Cannot set the kernel parameter {name}")]
    Parameter {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("Cannot make files as the root of the container's user namespace")]
    Users(#[source] io::Error),
    #[error("Cannot raise the limit {name}, which nobody in the container may")]
    Limit {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Cannot give the user its streams")]
    Streams(#[source] io::Error),
    #[error("Cannot enter the network namespace")]
    Network(#[source] nix::errno::Errno),
    #[error("Cannot open ports and pings to every user of the container")]
    Settings(#[source] io::Error),
    #[error("The root file system cannot be mounted")]
    Rootfs(#[source] RootfsError),
    #[error("The root file system cannot be prepared")]
    Inside(#[from] InsideError),
    #[error(transparent)]
    Mounts(#[from] MountError),
    #[error("The profile of system calls cannot be used")]
    Profile(#[from] ProfileError),
    #[error("Cannot make the OCI bundle")]
    Bundle(#[source] io::Error),
    #[error(transparent)]
    Builtin(#[from] BuiltinError),
    #[error(transparent)]
    External(#[from] ExternalError),
    #[error(transparent)]
    Plain(#[from] PlainError),
    #[error("Cannot set the terminal's size")]
    Terminal(#[source] rustix::io::Errno),
    #[error("Cannot watch the container's first process")]
    Watch(#[source] rustix::io::Errno),
    #[error("Cannot wait for the container")]
    Wait(#[source] rustix::io::Errno),
    #[error("Cannot report to the keeper")]
    Report(#[source] WireError),
}

/// `duplex container-init`: takes its orders from the socket that is its standard input.
pub fn main(_: impl Iterator<Item = OsString>) -> ExitCode {
    let control = match take_control() {
        Ok(control) => Arc::new(control),
        Err(_) => return ExitCode::from(125), // nobody to tell
    };
    match run(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = send(&*control, &Report::Failed { causes: causes(&error) }, &[]);
            ExitCode::from(125)
        }
    }
}

/// Takes standard input, which is the control socket, away from the programs to come.
pub(super) fn take_control() -> Result<OwnedFd, ChildError> {
    let take = || {
        let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::net::sockopt::socket_type(&control)?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        Ok(control)
    };
    take().map_err(ChildError::NoSocket)
}

fn run(control: &Arc<OwnedFd>) -> Result<(), ChildError> {
    let (orders, descriptors) = receive_orders(&**control).map_err(ChildError::Orders)?;
    if orders.spec.isolation == Isolation::Process {
        return plain::run(control, &orders, sort_descriptors(&orders, descriptors)?);
    }
    let Descriptors { stdio, network, helper, users, sources, pieces } = sort_descriptors(&orders, descriptors)?;
    enter_namespaces(&orders, network.as_ref())?;
    drop(network);
    set_network_parameters(&orders)?;
    end_with_keeper(control, helper);
    let say = |report: &Report| send(&**control, report, &[]).map_err(ChildError::Report);
    let refuse = |(kind, text): Refusal| say(&Report::NotExecuted { kind, text });
    let walls = Walls::of(&orders.spec.security, &orders.spec.process)?;
    let (identity, environment) = match prepare(&orders, sources, (&pieces, users.as_ref()), &walls)? {
        Ok(prepared) => prepared,
        Err(refusal) => return refuse(refusal),
    };
    drop(pieces);
    if let Some(users) = &users {
        limits::raise(&orders.spec.process.limits)?;
        give_streams(&stdio, users.range.first.saturating_add(identity.uid)).map_err(ChildError::Streams)?;
    }
    let (waiting, pid, terminal) = match create(&orders, &environment, stdio, walls)? {
        Ok(made) => made,
        Err(refusal) => return refuse(refusal),
    };
    report_created(control, pid, terminal.as_ref(), orders.terminal())?;
    drop(terminal);
    let (Request::Start, _) = receive(&**control).map_err(ChildError::Orders)?;
    let refusal = match waiting {
        Waiting::Builtin(builtin) => builtin.start()?,
        Waiting::External(external) => external.start()?,
    };
    if let Some(refusal) = refusal {
        wait(pid)?;
        return refuse(refusal);
    }
    say(&Report::Started { at_ns: monotonic_ns() })?;
    let ending = wait(pid)?;
    say(&Report::Exited { ending, at_ns: monotonic_ns() })
}

/// A container that waits for its start, of whichever runtime.
enum Waiting {
    Builtin(Box<Builtin>),
    External(External),
}

type Made = (Waiting, Pid, Option<OwnedFd>);

fn create(
    orders: &Orders,
    environment: &[String],
    stdio: [OwnedFd; 3],
    walls: Walls,
) -> Result<Result<Made, Refusal>, ChildError> {
    if let Some(program) = &orders.runtime {
        let made = external::create(program, orders, stdio)?;
        return Ok(made.map(|(external, pid, terminal)| (Waiting::External(external), pid, terminal)));
    }
    let made = builtin::create(orders, environment, stdio, walls)?;
    Ok(made.map(|(builtin, pid, terminal)| (Waiting::Builtin(Box::new(builtin)), pid, terminal)))
}

/// What comes with the orders.
pub(super) struct Descriptors {
    pub(super) stdio: [OwnedFd; 3],
    /// The network namespace.
    network: Option<OwnedFd>,
    /// The process that serves it.
    helper: Option<OwnedFd>,
    /// The user namespace.
    users: Option<Users>,
    /// What is mounted beside the image.
    sources: Vec<OwnedFd>,
    /// The image.
    pub(super) pieces: Vec<OwnedFd>,
}

fn sort_descriptors(orders: &Orders, descriptors: Vec<OwnedFd>) -> Result<Descriptors, ChildError> {
    let count = descriptors.len();
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(ChildError::Descriptors(count));
    let stdio = [next()?, next()?, next()?];
    let comes = matches!(orders.network, NetworkSource::Given | NetworkSource::Made);
    let network = if comes { Some(next()?) } else { None };
    let helper = if orders.network == NetworkSource::Given { Some(next()?) } else { None };
    let users = match orders.users {
        Some(first) => Some(Users { namespace: next()?, range: Range { first } }),
        None => None,
    };
    let sources = (0..mounts::descriptors(&orders.spec)).map(|_| next()).collect::<Result<_, _>>()?;
    let pieces: Vec<OwnedFd> = descriptors.collect();
    if pieces.is_empty() {
        return Err(ChildError::Descriptors(count));
    }
    Ok(Descriptors { stdio, network, helper, users, sources, pieces })
}

/// Our own mount namespace, so that a crash leaves no mounts, and the network namespace, which the container shares.
pub(super) fn enter_namespaces(orders: &Orders, network: Option<&OwnedFd>) -> Result<(), ChildError> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    let new_network = orders.runtime.is_none() && orders.network == NetworkSource::New;
    if new_network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    nix::sched::unshare(flags).map_err(ChildError::Namespaces)?;
    if let Some(network) = network {
        nix::sched::setns(network, CloneFlags::CLONE_NEWNET).map_err(ChildError::Network)?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(ChildError::Propagation)?;
    if new_network || network.is_some() {
        crate::sys::loopback::up().map_err(ChildError::Loopback)?;
        set_defaults()?;
    }
    Ok(())
}

/// The network namespace of a container of the built-in runtime is this process's own, and its parameters are set here: the runtime takes it
/// for the host's.
fn set_network_parameters(orders: &Orders) -> Result<(), ChildError> {
    if orders.runtime.is_some() || orders.network == NetworkSource::Host {
        return Ok(());
    }
    for sysctl in orders.spec.sysctls.iter().filter(|s| s.name.starts_with("net.")) {
        std::fs::write(format!("/proc/sys/{}", sysctl.path()), &sysctl.value)
            .map_err(|source| ChildError::Parameter { name: sysctl.name.clone(), source })?;
    }
    Ok(())
}

/// What Docker sets in each network namespace: ports and pings for everybody (ip-sysctl.rst).
fn set_defaults() -> Result<(), ChildError> {
    let settings = [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")];
    let set = |(name, value)| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    settings.into_iter().try_for_each(set).map_err(ChildError::Settings)
}

/// From now on, when the keeper's end of the socket closes, this process dies at once, whatever it is doing, and takes along the process that
/// serves its network.
pub(super) fn end_with_keeper(control: &Arc<OwnedFd>, helper: Option<OwnedFd>) {
    let control = Arc::clone(control);
    let watch = move || {
        loop {
            let mut watched = [PollFd::new(&*control, PollFlags::empty())];
            let polled = poll(&mut watched, None);
            if polled.is_ok() && watched[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                if let Some(helper) = &helper {
                    let _ = rustix::process::pidfd_send_signal(helper, rustix::process::Signal::KILL);
                }
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
        }
    };
    // Without the thread the keeper's death is seen at the next word to it.
    let _ = std::thread::Builder::new().name("keeper-watch".into()).stack_size(64 << 10).spawn(watch);
}

/// Mounts the root and what is beside it, and writes the bundle. Returns the command's environment.
fn prepare(
    orders: &Orders,
    sources: Vec<OwnedFd>,
    (pieces, users): (&[OwnedFd], Option<&Users>),
    walls: &Walls,
) -> Result<Result<(Identity, Vec<String>), Refusal>, ChildError> {
    let root = rootfs::mount(&orders.folder, (pieces, users), orders.scratch_bytes).map_err(ChildError::Rootfs)?;
    let process = &orders.spec.process;
    let inside = {
        let _as_root = users.map(Users::make_files_as_root).transpose().map_err(ChildError::Users)?;
        let inside = furnish(orders, &root)?;
        mounts::mount(orders, sources, &inside, users)?;
        inside.make_folders(process.cwd.as_ref())?;
        inside
    };
    let identity = match identify(&inside, &process.user)? {
        Ok(identity) => identity,
        Err(unknown) => return Ok(Err((FailureKind::Other, unknown.to_string()))),
    };
    if let Some(foreign) = users.and_then(|_| foreign(&identity)) {
        return Ok(Err((FailureKind::Other, foreign)));
    }
    let environment = environment(process, &orders.spec.hostname, &identity);
    let namespace = users.map(|users| users.namespace.as_fd());
    write_bundle((orders, namespace), &identity, &environment, (&root, walls)).map_err(ChildError::Bundle)?;
    Ok(Ok((identity, environment)))
}

/// Mounts the root, with what every container finds there; its users are the host's.
pub(super) fn mount_root(orders: &Orders, pieces: &[OwnedFd]) -> Result<(PathBuf, Inside), ChildError> {
    let root = rootfs::mount(&orders.folder, (pieces, None), orders.scratch_bytes).map_err(ChildError::Rootfs)?;
    let inside = furnish(orders, &root)?;
    Ok((root, inside))
}

/// Makes what every container finds in its root.
fn furnish(orders: &Orders, root: &Path) -> Result<Inside, ChildError> {
    let inside = Inside::open(root)?;
    for name in ["dev", "proc", "sys"] {
        inside.make_plain_folder(name)?;
    }
    let hostname = format!("{}\n", orders.spec.hostname);
    for (name, content) in [("hosts", &orders.hosts), ("resolv.conf", &orders.resolv_conf), ("hostname", &hostname)] {
        inside.replace_file("/etc", name, content)?;
    }
    Ok(inside)
}

/// So that the user can open `/dev/stdout` again. What is no pipe is somebody's file, and stays theirs.
fn give_streams(stdio: &[OwnedFd], user: u32) -> io::Result<()> {
    for stream in stdio {
        let found = rustix::fs::fstat(stream)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stream, Some(Uid::from_raw(user)), None)?;
        }
    }
    Ok(())
}

/// Why a user namespace of the container's has no such user: its numbers end.
pub(super) fn foreign(identity: &Identity) -> Option<String> {
    let most = identity.groups.iter().copied().chain([identity.uid, identity.gid]).max()?;
    let last = COUNT - 1;
    (most > last).then(|| {
        format!("User or group {most} is none of the container's own, which are 0 to {last}: use --userns host")
    })
}

pub(super) fn identify(inside: &Inside, user: &str) -> Result<Result<Identity, UserError>, ChildError> {
    let read = |path| inside.read(path, MAX_ACCOUNTS_FILE).map(Option::unwrap_or_default);
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    Ok(Identity::resolve(user, Accounts { passwd: &passwd, group: &group }))
}

fn write_bundle(
    (orders, users): (&Orders, Option<BorrowedFd<'_>>),
    identity: &Identity,
    environment: &[String],
    (root, walls): (&std::path::Path, &Walls),
) -> io::Result<()> {
    let folder = orders.folder.join("bundle");
    std::fs::create_dir(&folder)?;
    let config = bundle::config((orders, users), identity, environment, root, walls)?;
    std::fs::write(folder.join("config.json"), serde_json::to_vec(&config)?)
}

pub(super) fn report_created(
    control: &OwnedFd,
    pid: Pid,
    terminal: Option<&OwnedFd>,
    size: Option<TerminalSize>,
) -> Result<(), ChildError> {
    if let (Some(terminal), Some(size)) = (terminal, size) {
        let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).map_err(ChildError::Terminal)?;
    }
    // The process is our own child and not waited for yet: the number is its own.
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(ChildError::Watch)?;
    let descriptors: Vec<_> = std::iter::once(process.as_fd()).chain(terminal.map(AsFd::as_fd)).collect();
    send(control, &Report::Created { at_ns: monotonic_ns() }, &descriptors).map_err(ChildError::Report)
}

pub(super) fn wait(pid: Pid) -> Result<Ending, ChildError> {
    let wait = || rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    loop {
        let status = wait().map_err(ChildError::Wait)?.map(|(_, status)| status);
        if let Some(ending) = status.and_then(ending) {
            return Ok(ending);
        }
    }
}

fn ending(status: WaitStatus) -> Option<Ending> {
    let number = |n: i32| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
    let code = status.exit_status().map(|code| Ending::Code(number(code)));
    code.or_else(|| status.terminating_signal().map(|signal| Ending::Signal(number(signal))))
}
