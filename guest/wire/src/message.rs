//! What host and agent say to each other.
//!
//! ```text
//! agent                         host
//!   | -- Hello ------------------> |   the guest kernel is up
//!   | <------------------ Start -- |
//!   | -- Started ----------------> |   the command was executed      (or StartFailed: it never will be)
//!   | <--------- Signal, Resize -- |   at any time from here on
//!   | -- Exited -----------------> |   after the last byte of its output
//!   | <-- end of the connection -- |   the host has read all: the machine may go
//! ```
//!
//! A machine may be saved while its command is held ([`crate::Question::Hold`]). One that goes on elsewhere finds that its connection has ended:
//!
//! ```text
//!   | -- Hello ------------------> |
//!   | <------------------- GoOn -- |   who it is from now on
//!   | -- Started ----------------> |   the command goes on, its streams connected anew; sessions have ended
//! ```
//!
//! Between `Started` and `Exited` the host may open sessions, each a further process beside the command, and ask questions. Every session
//! and every question has a number that the host gives out once in a sandbox's life:
//!
//! ```text
//!   | <----- Open(session, task) -- |
//!   | -- Opened(session) ---------> |   it runs              (or Refused: it never will)
//!   | <-- SessionSignal, -Resize -- |   at any time from here on
//!   | -- Closed(session) ---------> |   it has ended, and all that it wrote before is written
//!   | <-------- Ask(number, what) - |
//!   | -- Answer(number, words) ---> |
//! ```

use serde::{Deserialize, Serialize};

use crate::{Answer, Message, Network, ProcessSpec, Question, Sysctl, Task, TerminalSize, Tmpfs};

/// What the host tells the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Run this. Sent once, as the answer to [`ToHost::Hello`].
    Start(Box<Start>),
    /// Send the command's first process this signal.
    Signal(u8),
    /// The terminal has this size now.
    Resize(TerminalSize),
    /// Run this beside the command, with its streams on the ports of this session ([`crate::port::of_session`]).
    Open {
        /// The session's number.
        session: u32,
        /// What it does.
        task: Box<Task>,
    },
    /// Send the session's process this signal.
    SessionSignal {
        /// Which session.
        session: u32,
        /// The signal's number.
        signal: u8,
    },
    /// The session's terminal has this size now.
    SessionResize {
        /// Which session.
        session: u32,
        /// The size.
        size: TerminalSize,
    },
    /// Answer this.
    Ask {
        /// The question's number.
        number: u32,
        /// The question.
        question: Question,
    },
    /// Go on as this sandbox. Sent once, as the answer to the [`ToHost::Hello`] of a machine that was saved while its command was held, and goes on
    /// elsewhere; answered by [`ToHost::Started`].
    GoOn(Box<GoOn>),
}

/// One sandbox as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What runs.
    pub process: ProcessSpec,
    /// As the child of an init.
    pub init: bool,
    /// Host name.
    pub hostname: String,
    /// The root file system.
    pub root: Root,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Most processes and threads at once.
    pub pids: Option<u32>,
    /// At least [`Start::MIN_SEED`] bytes of the host's randomness for the guest kernel's own.
    pub seed: Vec<u8>,
    /// The host's wall clock when this was sent, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// File systems in memory, in the order in which they are mounted.
    pub tmpfs: Vec<Tmpfs>,
    /// Kernel parameters.
    pub sysctls: Vec<Sysctl>,
    /// The network interfaces that the machine has, loopback not counted.
    pub networks: Vec<Network>,
    /// Volumes and shares, in the order in which they are mounted.
    pub mounts: Vec<Mount>,
}

/// What is another's in a sandbox that goes on from a saved one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoOn {
    /// The names that it has, and where it finds others.
    pub names: Names,
    /// As [`Start::seed`].
    pub seed: Vec<u8>,
    /// As [`Start::realtime_ns`].
    pub realtime_ns: u64,
}

/// The names of a sandbox, as files and as the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Host name.
    pub hostname: String,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
}

impl Start {
    /// Fewest bytes of [`Start::seed`].
    pub const MIN_SEED: usize = 32;

    /// Its names.
    pub fn names(&self) -> Names {
        let Self { hostname, hosts, resolv_conf, .. } = self;
        Names { hostname: hostname.clone(), hosts: hosts.clone(), resolv_conf: resolv_conf.clone() }
    }
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Name of the block device with the image as EROFS, such as `vda`.
    pub disk: String,
    /// Writes are refused; otherwise they go to memory.
    pub read_only: bool,
}

/// What is mounted beside the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where: an absolute path.
    pub target: String,
    /// Writes are refused.
    pub read_only: bool,
    /// What is there.
    pub source: MountSource,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A volume.
    Volume {
        /// Name of its block device, such as `vdb`.
        disk: String,
        /// While it is empty it is filled with what the image has at the target.
        copy: bool,
    },
    /// A folder or file of the host, by a file system device.
    Share {
        /// The device's tag.
        tag: String,
        /// It is this one file in the device's file system, not all of it.
        file: Option<String>,
    },
}

/// What the agent tells the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// First of all; the frame around it carries the version.
    Hello {
        /// The agent's own version, for people.
        agent: String,
    },
    /// The command was executed.
    Started,
    /// The command was not executed and will not be; the last message.
    StartFailed {
        /// What Docker tells apart by exit code.
        kind: FailureKind,
        /// A sentence that names the thing.
        text: String,
    },
    /// The command has ended and its output is written; the last message.
    Exited {
        /// How.
        ending: Ending,
        /// The guest kernel killed a process of the command for want of memory.
        oom: bool,
    },
    /// A line for whoever looks for the cause of a trouble.
    Log {
        /// The line.
        text: String,
    },
    /// The session runs.
    Opened {
        /// Which session.
        session: u32,
    },
    /// The session was not opened and will not be; the last message about it.
    Refused {
        /// Which session.
        session: u32,
        /// What Docker tells apart by exit code.
        kind: FailureKind,
        /// A sentence that names the thing.
        text: String,
    },
    /// The session's process has ended and what it wrote is on its way; the last message about it.
    Closed {
        /// Which session.
        session: u32,
        /// How.
        ending: Ending,
    },
    /// The answer to a question.
    Answer {
        /// The question's number.
        number: u32,
        /// The answer, or why there is none.
        answer: Result<Answer, String>,
    },
}

/// Why a command was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such program: 127.
    NotFound,
    /// It is there and cannot be executed: 126.
    CannotExecute,
    /// All else, such as an unknown user: 125.
    Other,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl Message for ToGuest {
    const LIMIT: usize = 1 << 20;
}

impl Message for ToHost {
    const LIMIT: usize = 256 << 10;
}
