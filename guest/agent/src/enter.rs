//! `/init enter`: the agent's program once more, as a process of one thread, which makes a process of a session inside the command's namespaces.
//! The agent cannot do that itself: it has threads, and joins nobody's namespaces.
//!
//! ```text
//! agent                      /init enter                     the session's process
//!   | -- orders, descriptors -> |  joins namespaces
//!   |                           | -- clone3, CLONE_PARENT ---> |  child of the agent
//!   | <-- process ------------- |  ends                        |
//!   | <-- terminal, failure, or the channel's end (execve) --- |
//! ```

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread::Builder;

use duplex_wire::{Decoder, FailureKind, Names, Task, ToGuest, Transfer, encode};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::cgroup::GROUP;
use crate::inside;
use crate::launch::{Channel, Word};
use crate::program::Failure;
use crate::stdio::ChildEnds;
use crate::sys::{self, Born};
use crate::trouble::{Doing, Trouble};

/// The argument that asks for this.
pub(crate) const ARGUMENT: &str = "enter";

/// All namespaces that the command has of its own.
const ALL: ThreadNameSpaceType = ThreadNameSpaceType::PROCESS_ID
    .union(ThreadNameSpaceType::MOUNT)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
    .union(ThreadNameSpaceType::CONTROL_GROUP)
    .union(ThreadNameSpaceType::NETWORK);

/// The agent's program in the initial RAM file system.
const PROGRAM: &str = "/init";

/// A session's process, or why there is none.
pub(crate) enum Entered {
    /// It runs.
    Running {
        /// A handle of it.
        process: OwnedFd,
        /// Its terminal's master, if it has a terminal.
        terminal: Option<OwnedFd>,
    },
    /// It was not executed.
    Failed(Failure),
}

/// Gives the sandbox of the process behind `first` other names. All its processes are held, so a thread of the agent may join its namespaces: it has
/// ended when they go on.
pub(crate) fn rename(names: Names, first: &OwnedFd) -> Result<(), Trouble> {
    let first = first.try_clone().doing(|| "duplicate a handle".into())?;
    let work = move || {
        sys::have_own_root().doing(|| "have a root of its own".into())?;
        let namespaces = ThreadNameSpaceType::MOUNT.union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME);
        move_into_thread_name_spaces(first.as_fd(), namespaces).doing(|| "join the command's namespaces".into())?;
        inside::rename(&names)
    };
    let thread = Builder::new().name("names".to_owned()).spawn(work).doing(|| "start the names thread".into())?;
    thread.join().map_err(|_| Trouble::new("rename the sandbox", "its thread has failed"))?
}

/// Makes a process beside the one behind `first`. It is our child.
pub(crate) fn enter(task: &Task, first: BorrowedFd<'_>, ends: Option<ChildEnds>) -> Result<Entered, Trouble> {
    let (mut helper, ours) = Helper::start()?;
    let orders = orders(task)?;
    let pipes =
        ends.iter().flat_map(|e| [Some(e.stdout.as_fd()), Some(e.stderr.as_fd()), e.stdin.as_ref().map(AsFd::as_fd)]);
    let descriptors: Vec<BorrowedFd<'_>> = [orders.as_fd(), first].into_iter().chain(pipes.flatten()).collect();
    ours.send_orders(&descriptors)?;
    drop(ends);
    let (mut made, mut terminal, mut failure) = (None, None, None);
    // To the end: the process may fail before the helper has told that it made it.
    loop {
        match ours.hear()? {
            Word::Process(process) => made = Some(process),
            Word::Terminal(master) => terminal = Some(master),
            Word::Failure(why) => failure = Some(why),
            Word::End => break,
        }
    }
    helper.wait();
    match (made, failure) {
        (Some(process), None) => Ok(Entered::Running { process, terminal }),
        (made, failure) => {
            if let Some(process) = made {
                // It could not become the program and ends by itself.
                sys::reap(&process).doing(|| "reap a session's process".into())?;
            }
            let other = || Failure::new(FailureKind::Other, "Nothing can be started: the sandbox is ending");
            Ok(Entered::Failed(failure.unwrap_or_else(other)))
        }
    }
}

/// The helper. Ended and reaped at the latest when it is dropped.
struct Helper(Child);

impl Helper {
    /// With the channel to it.
    fn start() -> Result<(Self, Channel), Trouble> {
        let (ours, theirs) = Channel::pair()?;
        let child = Command::new(PROGRAM)
            .arg(ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .spawn();
        Ok((Self(child.doing(|| format!("start {PROGRAM} {ARGUMENT}"))?), ours))
    }

    fn wait(&mut self) {
        let _ = self.0.wait();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.wait();
    }
}

/// The task in a file without a name: it may be longer than a packet.
fn orders(task: &Task) -> Result<OwnedFd, Trouble> {
    let frame = encode(&ToGuest::Open { session: 0, task: Box::new(task.clone()) });
    let frame = frame.map_err(|e| Trouble::new("write a session's orders", e))?;
    let mut file = memfd_create("orders", MemfdFlags::CLOEXEC).map(File::from).doing(|| "make a memory file".into())?;
    file.write_all(&frame).and_then(|()| file.rewind()).doing(|| "write a session's orders".into())?;
    Ok(file.into())
}

/// The helper's whole life.
pub(crate) fn main() -> ! {
    let mut channel = Channel::of_stdin().ok();
    if let Err(failure) = join(&mut channel)
        && let Some(channel) = channel
    {
        channel.send_failure(&failure);
    }
    sys::leave(1)
}

/// A process that executes no program lets go of the channel by itself.
fn join(own: &mut Option<Channel>) -> Result<(), Failure> {
    let Some(channel) = own.as_ref() else { return Ok(()) }; // nobody to tell
    // Nothing inside may look into this process, nor into its child before that has become the program.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing(|| "close this process to others".into())?;
    let mut received = channel.receive_orders()?.into_iter();
    let mut next = || received.next().ok_or_else(|| Failure::new(FailureKind::Other, "The orders lack a descriptor"));
    let (orders, first) = (next()?, next()?);
    let task = read_orders(orders)?;
    let connected = task.connected();
    let ends = match connected.terminal {
        true => None,
        false => {
            let (stdout, stderr) = (next()?, next()?);
            Some(ChildEnds { stdout, stderr, stdin: connected.stdin.then(&mut next).transpose()? })
        }
    };
    std::fs::write("/proc/self/oom_score_adj", "0").doing(|| "become an ordinary process".into())?;
    let cgroup = rustix::fs::open(GROUP, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open {GROUP}"))?;
    let namespaces = match &task {
        Task::Run { .. } => ALL,
        // The command does not see it, and cannot reach it.
        Task::Copy(_) => ThreadNameSpaceType::MOUNT,
    };
    move_into_thread_name_spaces(first.as_fd(), namespaces).doing(|| "join the command's namespaces".into())?;
    drop(first);
    match sys::give_sibling_birth(cgroup.as_fd()).doing(|| "make the session's process".into())? {
        Born::Parent(child) => Ok(channel.send_process(&child)?),
        Born::Child => {
            // No descriptor of ours may lead out of the image (CVE-2024-21626).
            drop(cgroup);
            match (&task, ends) {
                (Task::Run { process, hostname }, ends) => {
                    channel.send_failure(&inside::become_further(process, hostname, ends, channel));
                    sys::leave(1)
                }
                (Task::Copy(transfer), ends) => {
                    drop(own.take());
                    sys::leave(ends.map_or(1, |ends| copy(transfer, ends)))
                }
            }
        }
    }
}

/// Copies files as the command's root has them: the exit code.
fn copy(transfer: &Transfer, ends: ChildEnds) -> u8 {
    let stdin = match ends.stdin {
        Some(stdin) => File::from(stdin),
        None => return duplex_copy::serve(transfer, std::io::empty(), ends.stdout.into(), ends.stderr.into()),
    };
    duplex_copy::serve(transfer, stdin, ends.stdout.into(), ends.stderr.into())
}

fn read_orders(file: OwnedFd) -> Result<Task, Failure> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).doing(|| "read the orders".into())?;
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    match decoder.next_message() {
        Ok(Some(ToGuest::Open { task, .. })) => Ok(*task),
        _ => Err(Failure::new(FailureKind::Other, "The orders are none")),
    }
}
