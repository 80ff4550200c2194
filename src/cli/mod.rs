//! The command line: the only module that prints, exits and reads the environment.

use std::process::ExitCode;

/// Parses the command line, runs the verb and returns its exit code.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
