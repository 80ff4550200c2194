//! Sandboxes with a kernel of their own: one `duplex-vmm` process each, one agent inside.
//!
//! ```text
//! caller's stdio -- threads (streams) -- unix sockets -- monitor -- vsock -- agent -- pipes or terminal -- command
//!                   Client (agent.rs) -- unix socket  ----'
//!                   Monitor           -- control socket, pidfd
//! folder of the host -- virtiofsd (shares.rs) -- guest memory, unix socket -- monitor
//! ```
//!
//! Once the command runs, a thread of its own (course.rs) hears agent and monitor to the end, whether anybody waits or not: further commands
//! and questions (inside.rs) go to them directly and find their answers on a board.
//!
//! The monitor ends when its control socket's other end closes, so a killed caller leaves no machine.

mod board;
mod course;
mod inside;
mod life;
mod machine;
mod monitor;
mod mounts;
mod outcome;
mod qemu;
mod saving;
mod shares;
mod streams;
mod templates;

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(super) use templates::fuzz_mappings;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use duplex_wire::{Mount, ToGuest};

use self::board::Board;
use self::course::{Course, End};
use self::inside::MicroVmInside;
use self::life::{Life, Orders};
use self::machine::{Ends, Machine, Wires};
use self::monitor::{Monitor, Reach};
use self::qemu::Bridge;
use self::shares::{ShareError, Shares};
use self::streams::Pumps;
use self::templates::Lesson;
pub use self::templates::remove_templates;
use super::agent::{AgentError, Client, Voice};
use super::cgroup::{Cgroup, CgroupError};
use super::network::{self, Briefing, UserNetwork};
use super::shelf::{Shelf, ShelfError, Slot};
use super::{Backend, Images, Inside, Refusal, Remote, Sandbox, SandboxError, Stdio};
use crate::net::bridge::BridgeError;
use crate::net::{self, NetError, PASST};
use crate::spec::{
    Attachment, Exit, Installation, Isolation, Limits, MIB, MemorySize, MemorySwap, Moments, NetworkMode, Outcome,
    SandboxId, SandboxSpec, State, TerminalSize, Usage,
};
use crate::volume::VolumeError;

/// Host memory that a monitor may use above its guest's, in bytes: a bound against faults, far above what it needs.
const MONITOR_MEMORY: u64 = 64 * MIB;

/// Most threads of a monitor.
const MONITOR_THREADS: u32 = 64;

/// How long a guest may take to boot: a tenth of a second on hardware, 25 s were seen in a lab whose host had ten times too much to do.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// How long the kernel gets to let go of a killed monitor.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a microVM could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MicroVmError {
    /// The image's root disk is not there.
    #[error("The image's root disk cannot be used")]
    Image(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No access to KVM.
    #[error(
        "Cannot open /dev/kvm: 'duplex doctor' tells what this host lacks; membership in the group that owns it often does"
    )]
    Kvm(#[source] io::Error),
    /// A file of the machine cannot be opened.
    #[error("Cannot open the {what} {path}")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Below the smallest machine.
    #[error("A microVM with {asked} of memory is too small to boot: give it at least {least}m with --memory")]
    MemoryTooSmall {
        /// What was asked for.
        asked: MemorySize,
        /// The least there is, in MiB.
        least: u64,
    },
    /// Above the largest machine.
    #[error("A microVM cannot have {0} of memory")]
    MemoryTooLarge(MemorySize),
    /// More processors than a machine can have.
    #[error("A microVM with {asked} processors is not possible: --cpus may be at most {most}")]
    TooManyCpus {
        /// What was asked for.
        asked: u32,
        /// The most there is.
        most: u32,
    },
    /// The image has more layers than a process can have files.
    #[error("The machine needs more files than a process can open")]
    TooManyFiles,
    /// A socket, a thread or memory is not to be had.
    #[error("The host refuses a socket, a thread or a file")]
    Resource(#[source] io::Error),
    /// The sandbox's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The sandbox's place on the shelf.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// The monitor program does not run.
    #[error("Cannot run the monitor {path}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The monitor could not build the machine.
    #[error("The monitor could not start a machine with the kernel {kernel}")]
    Machine {
        /// The kernel's file.
        kernel: PathBuf,
        /// What the monitor says.
        #[source]
        source: Cause,
    },
    /// The monitor could not go on from a template.
    #[error("The machine could not go on from its template, which is removed now: start it again, or with --cold")]
    Template(#[source] Cause),
    /// The monitor could not go on from a saved machine.
    #[error("The machine could not go on from the one that was saved")]
    Resume(#[source] Cause),
    /// No space for it.
    #[error("There is no room for a saved machine of up to {} MiB", .bytes / MIB)]
    NoRoom {
        /// Bytes.
        bytes: u64,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// A volume could not be copied beside it.
    #[error("The volumes of the machine are not saved")]
    DisksNotCopied(#[source] io::Error),
    /// The monitor could not write the machine.
    #[error("The machine is not saved")]
    NotSaved(#[source] Cause),
    /// The guest kernel or the agent takes too long.
    #[error("The guest's agent has not spoken {} s after the machine started: --kernel-log FILE shows how far the guest kernel came", .0.as_secs())]
    Silent(Duration),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetError),
    /// A network that it shares with others.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// The host's part of the way to an agent in QEMU's machine.
    #[error(
        "Cannot use /dev/vhost-vsock, by which QEMU's machine reaches this host: load the kernel's module with 'modprobe vhost_vsock'"
    )]
    Vhost(#[source] io::Error),
    /// More than QEMU's machine is given here.
    #[error("A machine of QEMU's has no {0} here: leave it out")]
    QemuLacks(&'static str),
    /// What only our monitor does.
    #[error("A machine of QEMU's cannot be paused here")]
    QemuPause,
    /// A machine has a kernel, and with it a network, of its own.
    #[error("A microVM cannot have the host's network: use --net user with -p, or --isolation container")]
    HostNetwork,
    /// The wire to the agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// More than a machine has places for.
    #[error("A microVM has at most {most} volumes, not {0}", most = mounts::MOST_VOLUMES)]
    Volumes(usize),
    /// A folder or file of the host.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Called twice.
    #[error("It has been started before")]
    Started,
    /// Called too early.
    #[error("It has not been started")]
    NotStarted,
    /// It is not in a state for that.
    #[error(transparent)]
    Inside(#[from] Refusal),
    /// More than the machine has.
    #[error("Its machine has {has}, and {asked} is more: 'duplex stop' it, update it, and start it again")]
    LargerMachine {
        /// What was asked for.
        asked: String,
        /// What there is.
        has: String,
    },
    /// The agent or the monitor keeps still.
    #[error("It has not answered within {} s", .0.as_secs())]
    Unanswered(Duration),
    /// The agent says why it has no answer.
    #[error("The guest's agent has no answer: {0}")]
    NoAnswer(String),
    /// The kernel keeps the monitor.
    #[error("The monitor is still there {} s after it was killed", PATIENCE.as_secs())]
    Immortal,
}

/// Most causes of an error that a monitor may tell: each is a level of the chain, and a monitor may be in its guest's hands.
const MOST_CAUSES: usize = 16;

/// One cause that a monitor has reported, with the next.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Cause {
    text: String,
    #[source]
    next: Option<Box<Cause>>,
}

impl Cause {
    /// The chain of the first [`MOST_CAUSES`] of these texts, cleaned for showing.
    fn chain(texts: &[String]) -> Self {
        let texts = texts.get(..MOST_CAUSES).unwrap_or(texts);
        let (first, rest) = texts.split_first().map_or(("it gave no reason", &[][..]), |(f, r)| (f.as_str(), r));
        let next = (!rest.is_empty()).then(|| Box::new(Self::chain(rest)));
        Self { text: monitor::clean(first), next }
    }
}

/// Makes microVMs.
#[derive(Debug)]
pub struct MicroVmBackend {
    installation: Installation,
    images: Arc<dyn Images>,
    boot_deadline: Duration,
}

impl MicroVmBackend {
    /// With the programs of this installation and the images of this store.
    pub fn new(installation: Installation, images: Arc<dyn Images>) -> Self {
        Self { installation, images, boot_deadline: BOOT_DEADLINE }
    }

    /// How long a guest may take from its first instruction to its agent's word. [`BOOT_DEADLINE`] unless set.
    #[must_use]
    pub fn with_boot_deadline(self, boot_deadline: Duration) -> Self {
        Self { boot_deadline, ..self }
    }

    fn build(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<MicroVm, MicroVmError> {
        if spec.network.mode == NetworkMode::Host {
            return Err(MicroVmError::HostNetwork);
        }
        let root = self.images.root_disk(&spec.image).map_err(MicroVmError::Image)?;
        let (mut briefing, mut network) = network::plan(spec, PASST)?;
        let wire = network.is_some().then(|| net::wire(&spec.network)).transpose()?;
        let (ours, wire) = wire.map_or((None, None), |(ours, theirs)| (Some(ours), Some(theirs)));
        let volumes = mounts::attach(&self.installation, spec)?;
        let mut shares = Shares::open(spec)?;
        if spec.runtime.is_some() {
            qemu::check(spec, shares.count())?;
        }
        // In this order: what the shelf holds, the next command finds and clears, whatever happens to this one.
        let slot = Shelf::open(&self.installation.state)?.reserve(spec)?;
        network.as_mut().map_or(Ok(()), |network| network.join(spec, &self.installation.state, &mut briefing))?;
        let bridge = network.as_ref().map_or(Ok(None), UserNetwork::tap)?;
        let wires = Wires { user: ours, bridge, shares: shares.connect(slot.path())? };
        let (machine, ends) = machine::build(spec, &self.installation, &root, wires, &volumes)?;
        drop(volumes);
        let mounts = mounts::for_guest(spec, &shares);
        let monitor = spec.runtime.clone().unwrap_or_else(|| self.installation.monitor.clone());
        let pumps = Pumps::new().map_err(MicroVmError::Resource)?;
        let Ends { control, agent, stdin, stdout, stderr } = ends;
        let agent = Client::new(agent)?;
        let voice = agent.voice();
        let streams = (stdin, stdout, stderr);
        let ready = Ready { machine, control, agent, stdio, streams, monitor, briefing, mounts, wire };
        let inside = Arc::new(MicroVmInside {
            id: spec.id.clone(),
            hostname: spec.hostname.clone(),
            board: Arc::default(),
            reach: Arc::default(),
            voice: voice.clone(),
            cgroup: Arc::new(Cgroup::create(&spec.id, &host_limits(spec, shares.count()))?),
            size: machine::size(&spec.limits)
                .map(|(mib, vcpus)| (MemorySize(u64::from(mib).saturating_mul(MIB)), vcpus))?,
            turn: Mutex::new(()),
            is_qemus: spec.runtime.is_some(),
            from_file: machine::bytes_of_beginning(spec, &self.installation),
        });
        inside.cgroup.throttle(&spec.devices)?;
        network.as_mut().map_or(Ok(()), |network| network.create(spec))?;
        Ok(MicroVm {
            network,
            shares,
            slot: Some(slot),
            spec: spec.clone(),
            kernel: spec.kernel.clone().unwrap_or_else(|| self.installation.kernel.clone()),
            boot_deadline: self.boot_deadline,
            ready: Some(ready),
            unfollowed: None,
            pumps: Some(pumps),
            followed: false,
            end: Arc::default(),
            cgroup: Arc::clone(&inside.cgroup),
            reach: Arc::clone(&inside.reach),
            board: Arc::clone(&inside.board),
            inside,
            voice,
            moments: Arc::default(),
        })
    }
}

impl Backend for MicroVmBackend {
    fn isolation(&self) -> Isolation {
        Isolation::MicroVm
    }

    fn create(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, SandboxError> {
        let built = self.build(spec, stdio).map_err(|e| error("create", &spec.id, e))?;
        Ok(Box::new(built))
    }
}

/// Limits of the cgroup of the monitor and of the shares' file servers: the machine's size is a limit of its own, the guest's processes are the
/// guest's.
fn host_limits(spec: &SandboxSpec, shares: usize) -> Limits {
    let limits = &spec.limits;
    let memory = limits.memory.unwrap_or(machine::DEFAULT_MEMORY).mib_ceil().saturating_mul(MIB);
    let (for_files, for_servers) = shares::allowance(shares, memory);
    let (for_monitor, threads) =
        if spec.runtime.is_some() { (qemu::MEMORY, qemu::THREADS) } else { (MONITOR_MEMORY, MONITOR_THREADS) };
    Limits {
        memory: Some(MemorySize(memory.saturating_add(for_monitor).saturating_add(for_files))),
        swap: MemorySwap::NONE,
        cpus: limits.cpus,
        pids: Some(threads.saturating_add(for_servers)),
        cpu_shares: limits.cpu_shares,
    }
}

fn error(operation: &'static str, id: &SandboxId, source: MicroVmError) -> SandboxError {
    let source: Box<dyn std::error::Error + Send + Sync> = match source {
        MicroVmError::Inside(refusal) => Box::new(refusal),
        other => Box::new(other),
    };
    SandboxError { operation, isolation: Isolation::MicroVm, id: id.clone(), source }
}

type Streams =
    (Option<std::os::unix::net::UnixStream>, std::os::unix::net::UnixStream, Option<std::os::unix::net::UnixStream>);

/// What a created machine holds until it starts.
#[derive(Debug)]
struct Ready {
    machine: Machine,
    control: std::os::fd::OwnedFd,
    agent: Client,
    stdio: Stdio,
    streams: Streams,
    monitor: PathBuf,
    briefing: Briefing,
    mounts: Vec<Mount>,
    /// passt's end of the network device's wire.
    wire: Option<UnixStream>,
}

/// One microVM.
#[derive(Debug)]
struct MicroVm {
    network: Option<UserNetwork>,
    shares: Shares,
    spec: SandboxSpec,
    kernel: PathBuf,
    boot_deadline: Duration,
    ready: Option<Ready>,
    /// A machine whose command has not been executed yet.
    unfollowed: Option<Life>,
    pumps: Option<Pumps>,
    /// From then on a thread has the machine, and tells its end.
    followed: bool,
    end: Arc<End>,
    cgroup: Arc<Cgroup>,
    slot: Option<Slot>,
    reach: Arc<Reach>,
    board: Arc<Board>,
    inside: Arc<MicroVmInside>,
    voice: Voice,
    moments: Arc<Mutex<Moments>>,
}

impl MicroVm {
    fn run(&mut self) -> Result<(), MicroVmError> {
        let ready = self.ready.take().ok_or(MicroVmError::Started)?;
        let Ready { mut machine, control, agent, stdio, streams, monitor, briefing, mounts, wire } = ready;
        let pumps = self.pumps.as_mut().ok_or(MicroVmError::Started)?;
        if let (Some(from), Some(to)) = (stdio.stdin, streams.0) {
            pumps.input(from, to).map_err(MicroVmError::Resource)?;
        }
        pumps.output(streams.1, stdio.stdout).map_err(MicroVmError::Resource)?;
        if let Some(from) = streams.2 {
            pumps.output(from, stdio.stderr).map_err(MicroVmError::Resource)?;
        }
        if let (Some(network), Some(wire)) = (&mut self.network, wire) {
            network.connect_passt(wire)?;
        }
        let cgroup = File::open(self.cgroup.path()).map_err(MicroVmError::Resource)?;
        self.shares.start(cgroup.as_fd())?;
        machine.take_bridge().map_or(Ok(()), Bridge::start).map_err(MicroVmError::Resource)?;
        let born = Monitor::start(&monitor, &machine, control, cgroup.as_fd(), &self.reach);
        let monitor = born.map_err(|source| MicroVmError::Spawn { path: monitor, source })?;
        // The monitor has its own copies: with these closed, a socket's end is the end of the monitor.
        let lesson = machine.take_lesson();
        drop(machine);
        let life = Life::new(agent, monitor, Arc::clone(&self.reach), Arc::clone(&self.board));
        let life = self.unfollowed.insert(life);
        self.network.as_mut().map_or(Ok(()), UserNetwork::wait_until_ready)?;
        let orders = Orders { spec: &self.spec, briefing: &briefing, mounts: &mounts };
        life.until_started(&orders, self.boot_deadline, &self.moments)?;
        if let Some(source) = life.why_not_made() {
            // The monitor knows only that a file server is not there.
            if let Some(failure) = self.shares.failure() {
                return Err(ShareError::Ended(failure).into());
            }
            if let Some(Lesson::Touched(learner)) = lesson {
                learner.refused();
                return Err(MicroVmError::Template(source));
            }
            if self.spec.from.is_some() {
                return Err(MicroVmError::Resume(source));
            }
            return Err(MicroVmError::Machine { kernel: self.kernel.clone(), source });
        }
        let process = monitor::pidfd_of(&self.reach);
        let unlearned = lesson.and_then(|lesson| lesson.learn(life.saved(), process.as_ref().map(AsFd::as_fd)));
        let unlearned = unlearned.zip(process).map(|(unlearned, process)| (unlearned, process, Instant::now()));
        if let (Some(life), Some(pumps)) = (self.unfollowed.take(), self.pumps.take()) {
            let (cgroup, moments) = (Arc::clone(&self.cgroup), Arc::clone(&self.moments));
            let course = Course { life, pumps, cgroup, moments, board: Arc::clone(&self.board), unlearned };
            course.follow(Arc::clone(&self.end)).map_err(MicroVmError::Resource)?;
            self.followed = true;
        }
        Ok(())
    }

    /// Ends the machine and gives all back. Tries everything; the first failure is told.
    fn release(&mut self) -> Result<(), MicroVmError> {
        self.ready = None;
        let mut ended = self.unfollowed.as_mut().is_none_or(|life| life.end(PATIENCE));
        if self.followed {
            self.reach.end();
            ended = self.end.wait_gone(PATIENCE);
        }
        if let Some(pumps) = &mut self.pumps {
            if ended {
                pumps.flush();
            }
            pumps.stop();
        } else if ended {
            let _ = self.end.wait();
        }
        self.board.end();
        self.network.as_mut().into_iter().for_each(UserNetwork::end);
        self.shares.end();
        let released = self.slot.take().map_or(Ok(()), Slot::release).map_err(MicroVmError::Shelf);
        if ended { released } else { Err(MicroVmError::Immortal) }
    }
}

impl Sandbox for MicroVm {
    fn id(&self) -> &SandboxId {
        &self.spec.id
    }

    fn state(&self) -> State {
        match (&self.ready, self.end.has_come()) {
            (Some(_), _) => State::Created,
            (None, true) => State::Exited,
            (None, false) if self.board.is_paused() => State::Paused,
            (None, false) => State::Running,
        }
    }

    fn start(&mut self) -> Result<(), SandboxError> {
        self.run().map_err(|e| error("start", &self.spec.id, e))
    }

    fn remote(&self) -> Box<dyn Remote> {
        Box::new(MicroVmRemote { id: self.spec.id.clone(), voice: self.voice.clone(), reach: Arc::clone(&self.reach) })
    }

    fn inside(&self) -> Arc<dyn Inside> {
        Arc::clone(&self.inside) as Arc<dyn Inside>
    }

    fn wait(&mut self) -> Result<Outcome, SandboxError> {
        let followed = if self.followed { Ok(()) } else { Err(MicroVmError::NotStarted) };
        let mut outcome = followed.and_then(|()| self.end.wait()).map_err(|e| error("wait for", &self.spec.id, e))?;
        if outcome.exit == Exit::SandboxFailed
            && let Some(failure) = self.shares.failure()
        {
            outcome.reason = Some(failure);
        }
        outcome.reason = outcome.reason.or_else(|| self.network.as_ref().and_then(UserNetwork::failure));
        Ok(outcome)
    }

    fn usage(&self) -> Usage {
        self.cgroup.usage()
    }

    fn network(&self) -> Option<Attachment> {
        self.network.as_ref().map(UserNetwork::attachment)
    }

    fn moments(&self) -> Moments {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remove(mut self: Box<Self>) -> Result<(), SandboxError> {
        self.release().map_err(|e| error("remove", &self.spec.id, e))
    }
}

impl Drop for MicroVm {
    fn drop(&mut self) {
        let _ = self.release();
    }
}

/// Reaches one microVM from any thread.
struct MicroVmRemote {
    id: SandboxId,
    voice: Voice,
    reach: Arc<Reach>,
}

/// The signal that nothing inside can refuse.
const SIGKILL: u8 = 9;

impl Remote for MicroVmRemote {
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        if signal == SIGKILL {
            self.reach.kill();
            return Ok(());
        }
        self.voice.say(ToGuest::Signal(signal)).map_err(|e| error("signal", &self.id, e.into()))
    }

    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        self.voice.say(ToGuest::Resize(size)).map_err(|e| error("resize the terminal of", &self.id, e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitors_causes_are_bounded() {
        let chain = Cause::chain(&vec![String::from("x"); 60_000]);
        let levels = std::iter::successors(Some(&chain), |cause| cause.next.as_deref()).count();
        assert_eq!(levels, MOST_CAUSES);
        assert_eq!(Cause::chain(&["a".into(), "b\u{7}".into()]).next.unwrap().text, "b\u{fffd}");
        assert_eq!(Cause::chain(&[]).text, "it gave no reason");
    }
}
