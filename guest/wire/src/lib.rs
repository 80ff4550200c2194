//! Words that the host and the guest's agent share, and the messages between them.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod environment;
mod frame;
mod message;
mod network;
mod process;
mod procfs;
mod session;
mod settings;
mod signals;
mod transfer;
mod users;

pub use environment::{DEFAULT_PATH, environment};
pub use frame::{Decoder, HEADER, Message, VERSION, WireError, encode};
pub use message::{Ending, FailureKind, GoOn, Mount, MountSource, Names, Root, Start, ToGuest, ToHost};
pub use network::Network;
pub use process::{Capability, Connected, DEFAULT_CAPABILITIES, DEFAULT_OPEN_FILES, ProcessSpec, TerminalSize};
pub use procfs::{Pid, ProcessEntry, command_line, process_entry, processes};
pub use session::{Answer, Counters, MOST_PROCESSES, Question, Task};
pub use settings::{ProcessLimit, Sysctl, Tmpfs};
pub use signals::{Effect, LOOK_AGAIN, effect};
pub use transfer::{Transfer, Wanted};
pub use users::{Accounts, Identity, MAX_ACCOUNTS_FILE, UserError};

/// I/O port on which the agent says how the machine ended, in one byte of [`guest_exit`].
pub const EXIT_PORT: u16 = 0x5f0;

/// Bytes that the agent writes to [`EXIT_PORT`].
pub mod guest_exit {
    /// All is done and reported; the machine may go.
    pub const SHUTDOWN: u8 = 0x10;
    /// The agent could not do its work; what it knows it has written to the console.
    pub const AGENT_FAILED: u8 = 0x11;
}

/// I/O port to which the agent writes a byte when it has done all that it can do before it knows what it is for. The monitor may keep the
/// machine as it is at this moment, and let others go on from there.
pub const READY_PORT: u16 = 0x5f1;

/// The word on the kernel's command line that tells the agent of slots: the machine's devices appear after [`READY_PORT`].
pub const SLOTS: &str = "slots";

/// The guest's own vsock context id.
pub const GUEST_CID: u32 = 3;

/// The host's vsock context id.
pub const HOST_CID: u32 = 2;

/// vsock ports on the host (CID 2) that the agent connects to.
pub mod port {
    /// The variable in the agent's environment, put there by the kernel's command line, of a number that is added to all of these: where the host's
    /// kernel carries vsock, its ports are shared by all guests.
    pub const BASE: &str = "duplex_ports";

    /// Framed messages, both ways.
    pub const CONTROL: u32 = 1024;
    /// Raw bytes for the command's standard input (or its terminal).
    pub const STDIN: u32 = 1025;
    /// Raw bytes of its standard output (or its terminal).
    pub const STDOUT: u32 = 1026;
    /// Raw bytes of its standard error.
    pub const STDERR: u32 = 1027;

    /// First port of the sessions' streams. From here on the monitor takes connections from ports below [`PRIVILEGED`] only, which
    /// Linux gives to root alone: no other user of the guest can take a stream that waits for the agent.
    pub const SESSIONS: u32 = 0x1_0000;

    /// Ports below this one are root's (`LAST_RESERVED_PORT` of Linux is the one before).
    pub const PRIVILEGED: u32 = 1024;

    /// The last session whose ports are numbers. A sandbox that has used them all opens no more.
    pub const LAST_SESSION: u32 = (u32::MAX - SESSIONS) / 3 - 1;

    /// The ports of a session's standard input, output and error; `None` past [`LAST_SESSION`]. No two sessions share one, and none is used
    /// a second time.
    pub fn of_session(session: u32) -> Option<[u32; 3]> {
        let first = session.checked_mul(3)?.checked_add(SESSIONS)?;
        Some([first, first.checked_add(1)?, first.checked_add(2)?])
    }
}

#[cfg(test)]
mod tests {
    use super::port;

    #[test]
    fn sessions_have_ports_of_their_own() {
        assert_eq!(port::of_session(0), Some([0x1_0000, 0x1_0001, 0x1_0002]));
        assert_eq!(port::of_session(1), Some([0x1_0003, 0x1_0004, 0x1_0005]));
        assert!(port::of_session(port::LAST_SESSION).is_some());
        assert_eq!(port::of_session(u32::MAX / 3), None);
    }
}
