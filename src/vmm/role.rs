//! The seam for confinement: the monitor tells its caller which role a thread is about to play, and the caller may take rights away from it.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::spec::{MachineSpec, NetBackend};

/// What a thread does from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves devices and the control socket. Entered on the main thread when everything is open and made.
    EventLoop,
    /// Runs this processor, and serves what its guest asks of devices. Entered on its own thread before the first guest instruction.
    Vcpu(u8),
}

/// What the machine has beside memory, processors, disks that are only read, a vsock, randomness and a balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Disks that are written to.
    pub volumes: bool,
    /// A network device over a stream.
    pub stream: bool,
    /// A network device over a tap.
    pub tap: bool,
    /// A network device with a rate.
    pub rate: bool,
    /// File systems of the host, served by other processes.
    pub shares: bool,
    /// A console.
    pub console: bool,
}

impl Parts {
    /// What the machine of this spec has.
    pub fn of(spec: &MachineSpec) -> Self {
        Self {
            volumes: spec.disks.iter().any(|disk| !disk.read_only),
            stream: spec.nets.iter().any(|net| matches!(net.backend, NetBackend::Stream(_))),
            tap: spec.nets.iter().any(|net| matches!(net.backend, NetBackend::Tap(_))),
            rate: spec.nets.iter().any(|net| net.rate.is_some()),
            shares: !spec.shares.is_empty(),
            console: spec.console.is_some(),
        }
    }
}

/// Called on the thread that enters a role; an error ends the machine before it runs.
#[derive(Clone)]
pub struct EnterRole {
    enter: Arc<dyn Fn(Role, Parts) -> io::Result<()> + Send + Sync>,
    /// A thread that has done its work waits for the process's end: it may not even end itself.
    pub(super) stays: bool,
}

impl EnterRole {
    /// With this function. Threads of processors do not end before the process does.
    pub fn new(enter: impl Fn(Role, Parts) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { enter: Arc::new(enter), stays: true }
    }

    /// Takes no rights away.
    pub fn unconfined() -> Self {
        Self { enter: Arc::new(|_, _| Ok(())), stays: false }
    }

    /// Enters the role on this thread, in a machine with these parts.
    ///
    /// # Errors
    /// What the caller's function gave.
    pub fn enter(&self, role: Role, parts: Parts) -> io::Result<()> {
        (self.enter)(role, parts)
    }
}

impl fmt::Debug for EnterRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnterRole")
    }
}
