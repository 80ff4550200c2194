//! Files on their way through the streams of a session, as a tar stream.

use serde::{Deserialize, Serialize};

/// What is copied, seen from inside the sandbox. Its paths begin at the sandbox's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    /// The sandbox sends a file or folder through its standard output.
    Out {
        /// Which one; with `/.` at the end what is in a folder.
        path: String,
        /// What a link leads to, in place of the link.
        follow: bool,
    },
    /// The sandbox takes in what comes through its standard input.
    In {
        /// Where it goes.
        path: String,
        /// What comes.
        wanted: Wanted,
        /// Owners and all permission bits are the stream's; otherwise all belongs to the root user.
        keep_owner: bool,
    },
}

/// What a stream of files was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// A file or folder, which is called so whatever the stream calls it.
    Named(Vec<u8>),
    /// What is in a folder.
    Contents,
    /// Whatever it has: the destination must be a folder.
    Anything,
}
