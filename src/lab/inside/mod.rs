//! What runs in the lab: process 1, which builds the file systems and reaps, and the agent, which runs commands.

mod agent;
mod boot;
mod command;
mod live;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;

pub use live::shares;

/// The hidden verb; one argument follows: the folder of the lab's kernel, or [`AGENT`].
pub(super) const VERB: &str = "lab-inside";

/// The argument that asks for the agent.
const AGENT: &str = "agent";

/// Runs process 1 or the agent.
pub(super) fn main(what: &OsStr) -> u8 {
    let done = if what == AGENT {
        agent::main().map_err(|e| e.to_string())
    } else {
        boot::main(what).map_err(|e| e.to_string())
    };
    match done {
        Ok(()) => 0,
        Err(words) => {
            complain(&words);
            1
        }
    }
}

/// Says something on the lab's console, which the keeper shows when a lab does not come up.
fn complain(words: &str) {
    if let Ok(mut console) = File::options().write(true).open("/dev/console") {
        let _ = writeln!(console, "duplex: {words}");
    }
}
