//! Words that the host and the guest's agent share, and the messages between them.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod environment;
mod frame;
mod message;
mod process;
mod signals;
mod users;

pub use environment::{DEFAULT_PATH, environment};
pub use frame::{Decoder, HEADER, Message, VERSION, WireError, encode};
pub use message::{Ending, FailureKind, Root, Start, ToGuest, ToHost};
pub use process::{Capability, DEFAULT_CAPABILITIES, DEFAULT_OPEN_FILES, ProcessSpec, TerminalSize};
pub use signals::{Effect, effect};
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

/// The guest's own vsock context id.
pub const GUEST_CID: u32 = 3;

/// The host's vsock context id.
pub const HOST_CID: u32 = 2;

/// vsock ports on the host (CID 2) that the agent connects to.
pub mod port {
    /// Framed messages, both ways.
    pub const CONTROL: u32 = 1024;
    /// Raw bytes for the command's standard input (or its terminal).
    pub const STDIN: u32 = 1025;
    /// Raw bytes of its standard output (or its terminal).
    pub const STDOUT: u32 = 1026;
    /// Raw bytes of its standard error.
    pub const STDERR: u32 = 1027;
}
