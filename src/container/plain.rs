//! A plain process: the command in its image and in the limits of its cgroup, and nothing else around it. It is what a comparison takes away from
//! a container to see what the container costs, and isolates nothing: it has the host's processes, network, devices and names, every system
//! call, and as root all that the host's root may. Only `compare` has a use for it.
//!
//! ```text
//! keeper                                  container-init                          the command's process
//!   | -- Orders + descriptors ----------> |  a mount namespace, the image's mounts
//!   |                                     | ------- clone3, into the cgroup ------> waits
//!   | <-- Created + pidfd --------------- |
//!   | -- Start -------------------------> | ------- a byte -----------------------> chroot, user, execve
//!   | <-- Started, or NotExecuted ------- | <------ its end, or why not ----------- |
//!   | <-- Exited ------------------------ | <------ wait -------------------------- ends
//! ```
//!
//! The mount namespace is container-init's, so that a crash leaves no mounts; there the host's `/dev`, `/proc` and `/sys` are in the image too.
//! Where the orders want the host's own root directory the command is in the host's mount namespace too, and the image is mounted only to open
//! a program of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duplex_wire::{DEFAULT_OPEN_FILES, FailureKind, Identity, environment};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::Mode;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::child::{self, ChildError, Descriptors};
use super::execute::{Execute, Refusal, outcome};
use super::inside::Inside;
use super::orders::{Orders, Report, Request, receive, send};
use super::rootfs;
use super::walls::Walls;
use crate::spec::{ProgramOf, Seccomp, Security};
use crate::sys::birth::{Birth, give_child_birth};
use crate::sys::clock::monotonic_ns;
use crate::sys::mounts::tree_view;
use crate::sys::signals::pid_of;

/// Folders of the host that the command finds in its image.
const HOSTS: [&str; 3] = ["dev", "proc", "sys"];

/// Where cgroup v2 is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Why there is no plain process.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlainError {
    #[error("Cannot show /{name} of the host in the image")]
    Host {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Cannot use the cgroup {path}")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("Cannot keep the host's mounts")]
    Mounts(#[source] io::Error),
    #[error("Cannot make the command's process")]
    Birth(#[source] io::Error),
    #[error("Cannot talk to the command's process")]
    Pipe(#[source] io::Error),
}

/// Where the command finds itself.
enum Root {
    /// In its image, which container-init has mounted here.
    Image(PathBuf),
    /// In the host's root directory, by the host's own mounts.
    Host(OwnedFd),
}

/// The command's surroundings, made.
struct Place {
    root: Root,
    /// Whose accounts there are.
    accounts: Inside,
    /// The program, where it is the image's and the root is not.
    program: Option<OwnedFd>,
}

/// What the command's process does before it is the command.
struct Becoming {
    stdio: [OwnedFd; 3],
    /// Its first byte is the word to begin.
    begin: OwnedFd,
    root: Root,
    cwd: PathBuf,
    identity: Identity,
    execute: Execute,
    /// Where it says why it does not become the command.
    report: OwnedFd,
}

/// Makes the process of these orders and follows it to its end. This process has one thread yet.
pub(super) fn run(control: &Arc<OwnedFd>, orders: &Orders, descriptors: Descriptors) -> Result<(), ChildError> {
    let Descriptors { stdio, pieces, .. } = descriptors;
    let say = |report: &Report| send(&**control, report, &[]).map_err(ChildError::Report);
    let refuse = |(kind, text): Refusal| say(&Report::NotExecuted { kind, text });
    let process = &orders.spec.process;
    let Place { root, accounts, program } = match orders.spec.host_root {
        None => in_image(orders, &pieces)?,
        Some(_) if !Path::new(&process.cwd).is_dir() => {
            return refuse((FailureKind::Other, format!("The working folder {} is not on this host", process.cwd)));
        }
        Some(program) => on_host(orders, program, &pieces)?,
    };
    drop(pieces);
    let identity = match child::identify(&accounts, &process.user)? {
        Ok(identity) => identity,
        Err(unknown) => return refuse((FailureKind::Other, unknown.to_string())),
    };
    let environment = environment(process, &orders.spec.hostname, &identity);
    let walls = Walls::of(&Security { seccomp: Seccomp::Unconfined, ..Security::default() }, process)?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| PlainError::Pipe(e.into()));
    let ((begin, word), (refusals, report)) = (pipe()?, pipe()?);
    let told = report.try_clone().map_err(PlainError::Pipe)?;
    let execute = match Execute::new(&process.args, &environment, told, walls) {
        Ok(execute) => execute.by_file(program),
        Err(refusal) => return refuse(refusal),
    };
    let cgroup = Path::new(CGROUPS).join(orders.cgroup.strip_prefix("/").unwrap_or(&orders.cgroup));
    let cwd = PathBuf::from(&process.cwd);
    let becoming = Becoming { stdio, begin, root, cwd, identity, execute, report };
    let process = match give_birth(&cgroup)? {
        Birth::Parent(process) => process,
        Birth::Child => {
            drop(word); // of which the other end waits for a byte or the end
            becoming.become_command();
            return Ok(());
        }
    };
    drop(becoming);
    let pid = number_of(&process)?;
    child::end_with_keeper(control, None);
    child::report_created(control, pid, None, None)?;
    let (Request::Start, _) = receive(&**control).map_err(ChildError::Orders)?;
    File::from(word).write_all(b"1").map_err(PlainError::Pipe)?;
    if let Some(refusal) = outcome(refusals).map_err(PlainError::Pipe)? {
        child::wait(pid)?;
        return refuse(refusal);
    }
    say(&Report::Started { at_ns: monotonic_ns() })?;
    let ending = child::wait(pid)?;
    let at_ns = monotonic_ns();
    // No process namespace ends with it what it left behind.
    let killed = std::fs::write(cgroup.join("cgroup.kill"), "1");
    killed.map_err(|source| PlainError::Cgroup { path: cgroup, source })?;
    say(&Report::Exited { ending, at_ns })
}

/// In a mount namespace of container-init's, in which the image is the root directory to be.
fn in_image(orders: &Orders, pieces: &[OwnedFd]) -> Result<Place, ChildError> {
    child::enter_namespaces(orders, None)?;
    let (root, accounts) = child::mount_root(orders, pieces)?;
    show_host(&root)?;
    accounts.make_folders(orders.spec.process.cwd.as_ref())?;
    Ok(Place { root: Root::Image(root), accounts, program: None })
}

/// On the host as it is. A program of the image is opened where nobody else sees the image.
fn on_host(orders: &Orders, program: ProgramOf, pieces: &[OwnedFd]) -> Result<Place, ChildError> {
    let mounts = File::open("/proc/self/ns/mnt").map_err(PlainError::Mounts)?;
    let accounts = Inside::open(Path::new("/"))?;
    let program = match (program, orders.spec.process.args.first()) {
        (ProgramOf::Image, Some(path)) => {
            child::enter_namespaces(orders, None)?;
            let (_, image) = child::mount_root(orders, pieces)?;
            Some(image.program(path.as_ref())?)
        }
        _ => None,
    };
    Ok(Place { root: Root::Host(mounts.into()), accounts, program })
}

/// The host's devices, processes and kernel, as any of its programs sees them.
fn show_host(root: &Path) -> Result<(), ChildError> {
    for name in HOSTS {
        let view = tree_view(&Path::new("/").join(name), false).map_err(|source| PlainError::Host { name, source })?;
        rootfs::attach(&view, name, &root.join(name)).map_err(ChildError::Rootfs)?;
    }
    Ok(())
}

/// The process, in its cgroup from its first instruction.
fn give_birth(cgroup: &Path) -> Result<Birth, PlainError> {
    let folder = File::open(cgroup).map_err(|source| PlainError::Cgroup { path: cgroup.to_owned(), source })?;
    give_child_birth(folder.as_fd()).map_err(PlainError::Birth)
}

fn number_of(process: &OwnedFd) -> Result<Pid, PlainError> {
    let number = pid_of(process.as_fd()).map_err(PlainError::Birth)?;
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| PlainError::Birth(io::ErrorKind::InvalidData.into()))
}

impl Becoming {
    /// Returns only after it has said why it failed.
    fn become_command(self) {
        let refusal = match self.prepare() {
            Ok(()) => self.execute.become_command(),
            Err(error) => (FailureKind::Other, format!("Cannot become the command: {error}")),
        };
        if let Ok(bytes) = postcard::to_stdvec(&refusal) {
            let _ = File::from(self.report).write_all(&bytes);
        }
    }

    fn prepare(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let [stdin, stdout, stderr] = &self.stdio;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        let mut word = [0];
        if rustix::io::retry_on_intr(|| rustix::io::read(&self.begin, &mut word))? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rustix::process::setsid()?;
        let (soft, hard) = DEFAULT_OPEN_FILES;
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: Some(hard) })?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        match &self.root {
            Root::Image(path) => rustix::process::chroot(path)?,
            Root::Host(mounts) => setns(mounts, CloneFlags::CLONE_NEWNS)?,
        }
        rustix::process::chdir(&self.cwd)?;
        let Identity { uid, gid, groups, .. } = &self.identity;
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        // A change of user takes it away (prctl(2), PR_SET_PDEATHSIG).
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    }
}
