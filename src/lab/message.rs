//! What clients, the keeper and the agent say to each other.

use serde::{Deserialize, Serialize};

/// Version of everything in this file and of the frames. A client refuses a lab of another version.
pub(super) const PROTOCOL: u16 = 2;

/// One of a command's three streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stream {
    /// Standard input, or what is typed at the terminal.
    Input,
    /// Standard output, or the terminal's.
    Output,
    /// Standard error.
    Error,
}

impl Stream {
    /// The frame kind of its bytes.
    pub(super) fn kind(self) -> u8 {
        match self {
            Self::Input => 0,
            Self::Output => 1,
            Self::Error => 2,
        }
    }

    /// The stream of a frame kind.
    pub(super) fn from_kind(kind: u8) -> Option<Self> {
        [Self::Input, Self::Output, Self::Error].into_iter().find(|s| s.kind() == kind)
    }
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A command to run in the lab. Paths and words are the caller's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommandSpec {
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working folder.
    pub cwd: Vec<u8>,
    /// Folders of the host that must be live inside: written through and read fresh.
    pub live: Vec<Vec<u8>>,
    /// Standard input is connected; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// A terminal of this size; output and error are one stream then.
    pub terminal: Option<Size>,
    /// The host's wall clock, nanoseconds since 1970.
    pub clock_ns: u64,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ended {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// It was never a process.
    NotStarted {
        /// 125, 126 or 127, as a shell says it.
        code: u8,
        /// Why.
        reason: String,
    },
}

/// Everything but the bytes of streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Control {
    /// Both ways, first on a client's socket: [`PROTOCOL`]. Its place in this enum never changes.
    Hello(u16),
    /// Client: run this. Once per connection.
    Run(CommandSpec),
    /// Client: send [`Control::Status`].
    StatusWanted,
    /// Client: this signal for the command.
    Signal(u8),
    /// Client: the terminal has this size now.
    Resize(Size),
    /// The reader of a stream can take this many more bytes.
    Credit(Stream, u32),
    /// The reader of a stream is gone: the writer is to feel it as a closed pipe.
    Closed(Stream),
    /// Keeper to agent: the command's client is gone, end the command.
    Gone,
    /// Keeper to agent: end everything and power off.
    Halt,
    /// Agent: it is there and takes commands.
    Ready,
    /// Agent: the command has ended and all its output was sent. The last message of a command.
    Exited(Ended),
    /// Keeper: the answer to [`Control::StatusWanted`].
    Status(super::Status),
    /// Keeper: the lab ends with this command unfinished.
    LabEnds(String),
    /// Keeper to agent: nothing. That it comes is what counts.
    Awake,
}
