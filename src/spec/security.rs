//! What confines a sandbox's processes beyond its isolation.

use serde::{Deserialize, Serialize};

/// A sandbox's walls that its user can choose. That its processes gain no rights is said of each process (`no_new_privileges`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Its system calls.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Fewer system calls and Landlock (container only).
    #[serde(default)]
    pub hardened: bool,
    /// Whose users its users are (container only).
    #[serde(default)]
    pub users: UserNamespace,
}

/// Who the users of a container are on the host. A microVM's are nobody there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNamespace {
    /// The same: its root is the host's, without most rights.
    #[default]
    Host,
    /// Its own, in a user namespace: on the host they are users that own nothing.
    Private,
}

/// Which system calls the processes of a container may make. A microVM's guest has a kernel of its own and no filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Those of the built-in list.
    #[default]
    Builtin,
    /// All.
    Unconfined,
    /// Those of this profile, the content of a file in Docker's format.
    Profile(String),
}
