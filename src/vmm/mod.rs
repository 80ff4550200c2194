//! Engine 1: one microVM in one process. Knows no image, no command line and no path policy.
//!
//! ```text
//! main -> spawn::decode -> machine::run -> assemble -> { kvm, memory, boot, virtio, ports, ioapic } -> bus
//!                               \-> vcpu threads ------------------------------------------------^
//!                               \-> event loop: control socket, host descriptors of devices -----^
//! ```
//!
//! The spec arrives on the descriptor that the program's only argument names, [`SPEC_FD`] if there is none; events leave on the control
//! socket. The process exits with a [`MonitorExit`].

pub mod assemble;
mod begin;
pub mod boot;
pub mod bus;
pub mod control;
pub mod events;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
pub mod ioapic;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod ports;
pub mod role;
pub mod snapshot;
pub mod spawn;
pub mod vcpu;
pub mod virtio;

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use control::Control;
use role::EnterRole;
use spawn::SpecError;

use crate::spec::{MachineExit, MachineSpec};
use crate::sys::fd;

/// The descriptor of the machine spec if no argument names another.
pub const SPEC_FD: i32 = 3;

/// The monitor's exit code. What a caller needs to know is in the last [`crate::spec::MachineEvent`]; the code is for those who see only that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorExit {
    /// The guest shut down in order.
    Shutdown = 0,
    /// The machine could not be made or started.
    Failed = 1,
    /// There is no spec to make it from, or no socket to report on.
    NoSpec = 2,
    /// It could not confine itself.
    Unconfined = 3,
    /// The agent reported a failure on the exit port.
    AgentFailed = 10,
    /// The guest reset itself.
    Reset = 11,
    /// The guest's kernel panicked.
    Panic = 12,
    /// Triple fault.
    TripleFault = 13,
    /// Killed by request, or the caller is gone.
    Killed = 14,
    /// KVM gave up.
    KvmFault = 15,
}

impl From<&MachineExit> for MonitorExit {
    fn from(exit: &MachineExit) -> Self {
        match exit {
            MachineExit::Shutdown => Self::Shutdown,
            MachineExit::AgentFailed(_) => Self::AgentFailed,
            MachineExit::Reset => Self::Reset,
            MachineExit::Panic(_) => Self::Panic,
            MachineExit::TripleFault => Self::TripleFault,
            MachineExit::Killed => Self::Killed,
            MachineExit::KvmFault(_) => Self::KvmFault,
        }
    }
}

impl From<MonitorExit> for ExitCode {
    fn from(exit: MonitorExit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the monitor: its only argument is the number of the descriptor that holds its [`MachineSpec`]. `enter` is told which role each thread
/// is about to play.
pub fn main(argument: Option<&str>, enter: &EnterRole) -> MonitorExit {
    let Ok((spec, control)) = inherit(argument) else { return MonitorExit::NoSpec };
    match machine::run(&spec, &Control::new(control), enter) {
        Ok(exit) => MonitorExit::from(&exit),
        Err(_reported) => MonitorExit::Failed,
    }
}

/// Takes the spec and the control socket.
///
/// # Errors
/// [`SpecError`].
fn inherit(argument: Option<&str>) -> Result<(MachineSpec, OwnedFd), SpecError> {
    let number = match argument {
        None => SPEC_FD,
        Some(text) => text.parse().map_err(|_| SpecError::Argument(text.to_owned()))?,
    };
    let take = |number| fd::take(number).map_err(|e| SpecError::Missing(number, e));
    let spec = spawn::decode(&take(number)?)?;
    let control = take(spec.control.0)?;
    Ok((spec, control))
}
