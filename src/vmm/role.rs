//! The seam for confinement: the monitor tells its caller which role a thread is about to play, and the caller may take rights away from it.

use std::fmt;
use std::io;
use std::sync::Arc;

/// What a thread does from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves devices and the control socket. Entered on the main thread when everything is open and made.
    EventLoop,
    /// Runs this processor. Entered on its own thread before the first guest instruction.
    Vcpu(u8),
}

/// Called on the thread that enters a role; an error ends the machine before it runs.
#[derive(Clone)]
pub struct EnterRole(Arc<dyn Fn(Role) -> io::Result<()> + Send + Sync>);

impl EnterRole {
    /// With this function.
    pub fn new(enter: impl Fn(Role) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(enter))
    }

    /// Takes no rights away.
    pub fn unconfined() -> Self {
        Self::new(|_| Ok(()))
    }

    /// Enters the role on this thread.
    ///
    /// # Errors
    /// What the caller's function gave.
    pub fn enter(&self, role: Role) -> io::Result<()> {
        (self.0)(role)
    }
}

impl fmt::Debug for EnterRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnterRole")
    }
}
