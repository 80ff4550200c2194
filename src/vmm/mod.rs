//! Engine 1: one microVM in one process. Knows no image, no command line and no path policy.

use std::process::ExitCode;

/// Runs the monitor whose [`crate::spec::MachineSpec`] the caller passed in.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
