//! Containers behind the trait: shelf and cgroup are ours, the rest is the engine's (`crate::container`).

mod inside;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use duplex_wire::FailureKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::inside::ContainerInside;
use super::binds::{self, BindError};
use super::cgroup::{Cgroup, CgroupError};
use super::network::{self, UserNetwork};
use super::relay::Relay;
use super::shelf::{Shelf, ShelfError, Slot};
use super::signals::EndedBy;
use super::users::{self, Claim, UsersError};
use super::{Backend, Images, Inside, Refusal, Remote, Sandbox, SandboxError, Stdio, exit_of};
use crate::container::enter::EnterError;
use crate::container::launch::{self, Creation, LaunchError, Launched, Started};
use crate::container::orders::{NetworkSource, Orders};
use crate::net::bridge::BridgeError;
use crate::net::{NetError, PASTA};
use crate::spec::{
    Attachment, Exit, Installation, Isolation, Moment, Moments, MountSource, NetworkMode, Outcome, SandboxId,
    SandboxSpec, State, UserNamespace,
};
use crate::spec::{TerminalSize, Usage};
use crate::sys::clock::monotonic_ns;
use crate::sys::mounts::tree_view;
use crate::sys::netns::OwnedNamespace;
use crate::volume::{VolumeError, Volumes};

/// Most pieces of a root disk: what one packet carries beside the rest.
const PIECES: usize = 240;

const SIGKILL: u8 = 9;

/// Runs sandboxes as containers of this host's kernel.
#[derive(Debug)]
pub struct ContainerBackend {
    duplex: PathBuf,
    state: PathBuf,
    store: PathBuf,
    images: Arc<dyn Images>,
    runtime: Option<PathBuf>,
    isolation: Isolation,
}

/// Why a container cannot do what it should.
#[derive(Debug, thiserror::Error)]
enum ContainerError {
    #[error("The image cannot be used")]
    Image(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("Cannot open {path}, a piece of the image")]
    Piece {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("An outside runtime gives no init to a container: leave out --init")]
    Init,
    #[error("An outside runtime does not confine files: leave out --hardened")]
    Hardened,
    #[error("An outside runtime gives no users of its own to a container: leave out --userns private")]
    Users,
    #[error("A plain process has no {0}: it isolates nothing")]
    Plain(&'static str),
    #[error("The image has {0} pieces, at most {PIECES} can be mounted")]
    Pieces(usize),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Source(#[from] BindError),
    #[error("Cannot mount {path} of the host")]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Network(#[from] NetError),
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    #[error(transparent)]
    OwnUsers(#[from] UsersError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("Cannot open /dev/null")]
    Null(#[source] io::Error),
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error(transparent)]
    Inside(#[from] Refusal),
    #[error("The host refuses a pipe, a thread or a file")]
    Session(#[source] io::Error),
    #[error("Cannot serve the terminal")]
    Relay(#[source] io::Error),
    #[error("Cannot send signal {signal}")]
    Signal {
        signal: u8,
        #[source]
        source: io::Error,
    },
    #[error("It is not in a state for that: {0:?}")]
    State(State),
}

impl ContainerBackend {
    /// Containers by the built-in runtime.
    pub fn new(installation: &Installation, images: Arc<dyn Images>) -> Self {
        let (duplex, state) = (installation.duplex.clone(), installation.state.clone());
        Self {
            duplex,
            state,
            store: installation.store.clone(),
            images,
            runtime: None,
            isolation: Isolation::Container,
        }
    }

    /// Containers by this OCI runtime program (crun, runc ...) instead, over the same bundle.
    #[must_use]
    pub fn with_runtime(self, program: &Path) -> Self {
        Self { runtime: Some(program.to_owned()), ..self }
    }

    /// No containers: the command runs on the host, in its image and in the limits of its cgroup, and nothing else is around it
    /// (`crate::container::plain`). For comparisons; whatever it runs is trusted with the host.
    #[must_use]
    pub fn of_plain_processes(self) -> Self {
        Self { isolation: Isolation::Process, runtime: None, ..self }
    }

    /// What only the built-in runtime has, and what needs a container at all.
    fn check(&self, spec: &SandboxSpec) -> Result<(), ContainerError> {
        if self.runtime.is_some() && spec.init {
            return Err(ContainerError::Init);
        }
        if self.runtime.is_some() && spec.security.hardened {
            return Err(ContainerError::Hardened);
        }
        if self.runtime.is_some() && spec.security.users == UserNamespace::Private {
            return Err(ContainerError::Users);
        }
        if self.isolation == Isolation::Process { check_plain(spec) } else { Ok(()) }
    }

    fn make(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<ContainerSandbox, ContainerError> {
        self.check(spec)?;
        let plain = self.isolation == Isolation::Process;
        let mut descriptors = self.open_mounts(spec)?;
        descriptors.extend(self.open_pieces(spec)?);
        let (mut briefing, mut network) = network::plan(spec, PASTA)?;
        let mut moments = Moments::default();
        moments.note(Moment::ImageReady, monotonic_ns());
        let slot = Shelf::open(&self.state)?.reserve(spec)?;
        let cgroup = Arc::new(Cgroup::create(&spec.id, &spec.limits)?);
        cgroup.throttle(&spec.devices)?;
        if self.runtime.is_none() && !plain {
            cgroup.allow_standard_devices_only()?; // an outside runtime does this itself
        }
        network.as_mut().map_or(Ok(()), |network| network.join(spec, &self.state, &mut briefing))?;
        let users = self.claim_users(spec)?;
        let orders = Orders {
            spec: spec.clone(),
            folder: slot.path().to_owned(),
            cgroup: cgroup.path_in_hierarchy(),
            scratch_bytes: spec.limits.memory.map(|m| m.0 / 2),
            hosts: briefing.files.hosts,
            resolv_conf: briefing.files.resolv_conf,
            runtime: self.runtime.clone(),
            network: match spec.network.mode {
                NetworkMode::None if users.is_some() => NetworkSource::Made,
                NetworkMode::None => NetworkSource::New,
                NetworkMode::User => NetworkSource::Given,
                NetworkMode::Host => NetworkSource::Host,
            },
            users: users.as_ref().map(|claim| claim.range.first),
        };
        // What serves its network gets ready while the container is made.
        let given = make_namespaces(network.as_mut(), users.as_ref(), spec)?;
        let (streams, ours) = split(stdio, spec.process.terminal.is_some())?;
        let inside = Arc::new(ContainerInside {
            id: spec.id.clone(),
            plain,
            hostname: spec.hostname.clone(),
            security: spec.security.clone(),
            users: users.as_ref().map(|claim| claim.range),
            duplex: self.duplex.clone(),
            cgroup: Arc::clone(&cgroup),
            first: Mutex::new(None),
            commands: Arc::default(),
            turn: Mutex::new(()),
        });
        let creation = launch::create(&self.duplex, &orders, streams, given, descriptors)?;
        let mut sandbox = ContainerSandbox {
            life: Life::Ended(Outcome { exit: Exit::SandboxFailed, oom: false, reason: None }),
            relay: None,
            network,
            id: spec.id.clone(),
            cgroup,
            inside,
            _users: users,
            slot: Some(slot),
            remote: None,
            moments,
        };
        match creation {
            Creation::Not(kind, text) => sandbox.life = Life::Doomed(refused(kind, text)),
            Creation::Ready(launched) => {
                sandbox.moments.note(Moment::MachineReady, launched.created_at_ns);
                sandbox.take(launched, ours)?;
            }
        }
        Ok(sandbox)
    }

    fn claim_users(&self, spec: &SandboxSpec) -> Result<Option<Claim>, UsersError> {
        let own = spec.security.users == UserNamespace::Private;
        own.then(|| users::claim(&self.state, &spec.id)).transpose()
    }

    /// What is mounted beside the image and is the host's: disks of volumes and views of folders, each opened once and here.
    fn open_mounts(&self, spec: &SandboxSpec) -> Result<Vec<OwnedFd>, ContainerError> {
        let mut opened = Vec::new();
        for mount in &spec.mounts {
            match &mount.source {
                MountSource::Volume { name, .. } => {
                    let volume = Volumes::of(&self.store).attach(name, mount.read_only, &spec.id)?;
                    // A loop device goes the way that its file is open.
                    if spec.limits_writes() {
                        volume.go_direct(name)?;
                    }
                    opened.push(volume.disk.into());
                }
                MountSource::Bind { path, create } => {
                    binds::prepare(path, *create)?;
                    let view = tree_view(path, mount.read_only);
                    opened.push(view.map_err(|source| match source.kind() {
                        io::ErrorKind::NotFound => BindError::NoSource(path.clone()).into(),
                        _ => ContainerError::Bind { path: path.clone(), source },
                    })?);
                }
            }
        }
        Ok(opened)
    }

    fn open_pieces(&self, spec: &SandboxSpec) -> Result<Vec<OwnedFd>, ContainerError> {
        let disk = self.images.root_disk(&spec.image).map_err(ContainerError::Image)?;
        if disk.pieces.len() + spec.mounts.len() > PIECES {
            return Err(ContainerError::Pieces(disk.pieces.len()));
        }
        let open = |path: &Path| File::open(path).map(OwnedFd::from);
        let opened = disk.pieces.iter().map(|piece| {
            open(&piece.path).map_err(|source| ContainerError::Piece { path: piece.path.clone(), source })
        });
        opened.collect()
    }
}

/// What needs a wall, or a mount beside the image's, is refused: it would not be there.
fn check_plain(spec: &SandboxSpec) -> Result<(), ContainerError> {
    let asked = [
        ("init of its own", spec.init),
        ("wall", spec.security.hardened),
        ("user namespace of its own", spec.security.users == UserNamespace::Private),
        ("read-only root", spec.read_only),
        ("terminal of its own", spec.process.terminal.is_some()),
        ("network of its own", spec.network.mode != NetworkMode::Host),
        ("mounts of its own", !spec.mounts.is_empty() || !spec.tmpfs.is_empty()),
        ("kernel parameters of its own", !spec.sysctls.is_empty()),
    ];
    asked.into_iter().find(|(_, asked)| *asked).map_or(Ok(()), |(what, _)| Err(ContainerError::Plain(what)))
}

/// The namespaces that come with the container's orders, and the process that serves its network.
fn make_namespaces(
    network: Option<&mut UserNetwork>,
    users: Option<&Claim>,
    spec: &SandboxSpec,
) -> Result<Vec<OwnedFd>, ContainerError> {
    let range = users.map(|claim| claim.range);
    let made = match network {
        Some(network) => {
            network.create(spec)?;
            let namespace = OwnedNamespace::make(range).map_err(NetError::Namespace)?;
            network.pair(&namespace)?;
            let helper = network.start_pasta(&namespace)?;
            Some((namespace, Some(helper)))
        }
        None if range.is_some() => Some((OwnedNamespace::make(range).map_err(UsersError::Namespace)?, None)),
        None => None,
    };
    let Some((OwnedNamespace { user, network, .. }, helper)) = made else { return Ok(Vec::new()) };
    Ok([network].into_iter().chain(helper).chain(range.map(|_| user)).collect())
}

/// The streams that the container gets, and those that stay here for its terminal.
fn split(stdio: Stdio, terminal: bool) -> Result<([OwnedFd; 3], Option<Stdio>), ContainerError> {
    let null =
        || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from).map_err(ContainerError::Null);
    if terminal {
        return Ok(([null()?, null()?, null()?], Some(stdio)));
    }
    let stdin = stdio.stdin.map_or_else(null, Ok)?;
    Ok(([stdin, stdio.stdout, stdio.stderr], None))
}

impl Backend for ContainerBackend {
    fn isolation(&self) -> Isolation {
        self.isolation
    }

    fn create(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, SandboxError> {
        let made = self.make(spec, stdio).map_err(|e| wrapped("create", &spec.id, e))?;
        Ok(Box::new(made))
    }
}

/// One container. The order of the fields is the order in which a dropped one is taken apart.
#[derive(Debug)]
struct ContainerSandbox {
    life: Life,
    relay: Option<Relay>,
    network: Option<UserNetwork>,
    id: SandboxId,
    cgroup: Arc<Cgroup>,
    inside: Arc<ContainerInside>,
    _users: Option<Claim>,
    slot: Option<Slot>,
    remote: Option<ContainerRemote>,
    moments: Moments,
}

/// ```text
/// Created -> Running -> Ended
///        \------------> Ended      (the command cannot be executed)
/// Doomed -------------> Ended      (known before anything ran)
/// ```
#[derive(Debug)]
enum Life {
    Created(Launched),
    Doomed(Outcome),
    Running(Launched),
    Ended(Outcome),
}

impl ContainerSandbox {
    fn take(&mut self, launched: Launched, ours: Option<Stdio>) -> Result<(), ContainerError> {
        let (process, terminal) = (Arc::clone(&launched.process), launched.terminal.clone());
        let (id, cgroup, ended_by) = (self.id.clone(), Arc::clone(&self.cgroup), Arc::default());
        self.remote = Some(ContainerRemote { id, process, terminal, cgroup, ended_by });
        let terminal = launched.terminal.clone();
        self.life = Life::Created(launched);
        if let (Some(terminal), Some(stdio)) = (terminal, ours) {
            self.relay = Some(Relay::start(terminal, stdio).map_err(ContainerError::Relay)?);
        }
        Ok(())
    }

    fn end(&mut self, exit: Exit, reason: Option<String>) -> Outcome {
        let oom = self.cgroup.oom_kills().is_some_and(|kills| kills > 0);
        let reason = reason.or_else(|| self.network.as_ref().and_then(UserNetwork::failure));
        let outcome = Outcome { exit, oom, reason };
        self.life = Life::Ended(outcome.clone());
        outcome
    }

    fn execute(&mut self, launched: &mut Launched) -> Result<Started, ContainerError> {
        self.network.as_mut().map_or(Ok(()), UserNetwork::wait_until_ready)?;
        Ok(launched.start()?)
    }

    fn run(&mut self) -> Result<(), ContainerError> {
        let ended = || Life::Ended(Outcome { exit: Exit::SandboxFailed, oom: false, reason: None });
        match std::mem::replace(&mut self.life, ended()) {
            Life::Created(mut launched) => match self.execute(&mut launched)? {
                Started::At(at_ns) => {
                    self.moments.note(Moment::Started, at_ns);
                    self.inside.begin(Arc::clone(&launched.process));
                    self.life = Life::Running(launched);
                }
                Started::Not(kind, text) => {
                    drop(launched);
                    let refused = refused(kind, text);
                    self.end(refused.exit, refused.reason);
                }
            },
            Life::Doomed(outcome) => self.life = Life::Ended(outcome),
            other => {
                self.life = other;
                return Err(ContainerError::State(self.state()));
            }
        }
        Ok(())
    }
}

impl Sandbox for ContainerSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn state(&self) -> State {
        match &self.life {
            Life::Created(_) | Life::Doomed(_) => State::Created,
            Life::Running(launched) if !has_ended(&launched.process) => {
                if self.cgroup.is_frozen() {
                    State::Paused
                } else {
                    State::Running
                }
            }
            Life::Running(_) | Life::Ended(_) => State::Exited,
        }
    }

    fn start(&mut self) -> Result<(), SandboxError> {
        self.run().map_err(|e| wrapped("start", &self.id, e))
    }

    fn remote(&self) -> Box<dyn Remote> {
        match &self.remote {
            Some(remote) => Box::new(remote.clone()),
            None => Box::new(NobodyThere),
        }
    }

    fn inside(&self) -> Arc<dyn Inside> {
        Arc::clone(&self.inside) as Arc<dyn Inside>
    }

    fn wait(&mut self) -> Result<Outcome, SandboxError> {
        let ended = match &mut self.life {
            Life::Ended(outcome) => return Ok(outcome.clone()),
            Life::Running(launched) => launched.wait(),
            Life::Created(_) | Life::Doomed(_) => {
                return Err(wrapped("wait for", &self.id, ContainerError::State(State::Created)));
            }
        };
        let (exit, reason) = match ended {
            Ok((ending, at_ns)) => {
                self.moments.note(Moment::Exited, at_ns);
                let ended_by = self.remote.as_ref().map(|remote| &remote.ended_by);
                (exit_of(ended_by.map_or(ending, |by| by.told(ending))), None)
            }
            Err(error) => (Exit::SandboxFailed, Some(chain(&error))),
        };
        if let Some(relay) = &mut self.relay {
            relay.finish();
        }
        Ok(self.end(exit, reason))
    }

    fn usage(&self) -> Usage {
        self.cgroup.usage()
    }

    fn network(&self) -> Option<Attachment> {
        self.network.as_ref().map(UserNetwork::attachment)
    }

    fn moments(&self) -> Moments {
        self.moments.clone()
    }

    fn remove(mut self: Box<Self>) -> Result<(), SandboxError> {
        let outcome = Outcome { exit: Exit::SandboxFailed, oom: false, reason: None };
        drop(std::mem::replace(&mut self.life, Life::Ended(outcome)));
        drop(self.relay.take());
        drop(self.network.take());
        let released = self.slot.take().map_or(Ok(()), Slot::release);
        released.map_err(|e| wrapped("remove", &self.id, e.into()))
    }
}

#[derive(Clone, Debug)]
struct ContainerRemote {
    id: SandboxId,
    process: Arc<OwnedFd>,
    terminal: Option<Arc<OwnedFd>>,
    cgroup: Arc<Cgroup>,
    ended_by: Arc<EndedBy>,
}

impl Remote for ContainerRemote {
    fn signal(&self, signal: u8) -> Result<(), SandboxError> {
        let sent = self.ended_by.send(self.process.as_fd(), signal);
        if signal == SIGKILL {
            self.cgroup.kill().map_err(|e| wrapped("kill", &self.id, e.into()))?;
        }
        match sent {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()), // it has ended meanwhile
            other => other.map_err(|source| wrapped("signal", &self.id, ContainerError::Signal { signal, source })),
        }
    }

    fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        set_size(self.terminal.as_deref(), size).map_err(|e| wrapped("resize", &self.id, e))
    }
}

fn set_size(terminal: Option<&OwnedFd>, size: TerminalSize) -> Result<(), ContainerError> {
    let Some(terminal) = terminal else { return Ok(()) };
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).map_err(|e| ContainerError::Relay(e.into()))
}

/// Reaches a command that will never be executed.
struct NobodyThere;

impl Remote for NobodyThere {
    fn signal(&self, _: u8) -> Result<(), SandboxError> {
        Ok(())
    }

    fn resize(&self, _: TerminalSize) -> Result<(), SandboxError> {
        Ok(())
    }
}

/// A pidfd becomes readable when its process ends (pidfd_open(2)).
fn has_ended(process: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(process, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

fn refused(kind: FailureKind, text: String) -> Outcome {
    let exit = match kind {
        FailureKind::NotFound => Exit::NotFound,
        FailureKind::CannotExecute => Exit::CannotExecute,
        FailureKind::Other => Exit::SandboxFailed,
    };
    Outcome { exit, oom: false, reason: Some(text) }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let texts = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}

fn wrapped(operation: &'static str, id: &SandboxId, source: ContainerError) -> SandboxError {
    let source: Box<dyn std::error::Error + Send + Sync> = match source {
        ContainerError::Inside(refusal) => Box::new(refusal),
        other => Box::new(other),
    };
    SandboxError { operation, isolation: Isolation::Container, id: id.clone(), source }
}
