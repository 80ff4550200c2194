//! Engine 2: a sandbox spec becomes an OCI bundle and runs by `libcontainer` or an outside OCI runtime.
//!
//! `libcontainer` forks, so it needs a process of its own with one thread: the keeper starts `duplex container-init` ([`child`]), which
//! lives in its own mount and network namespace, mounts the image there and stays the parent of the container's first process.
//!
//! ```text
//! keeper (duplex run)                    container-init                          container
//!   | -- Orders + descriptors ----------> |  mounts, bundle, namespaces
//!   | <-- Created + pidfd, terminal ----- | ------- libcontainer: create -------> waits
//!   | -- Start -------------------------> | ------- libcontainer: start --------> execve
//!   | <-- Started, or NotExecuted ------- |
//!   | <-- Exited ------------------------ | <------ wait ------------------------ ends
//! ```
//!
//! A plain process ([`plain`]) is made by container-init too, without any runtime.
//!
//! All mounts are made in container-init's namespace and are gone with it. It kills itself when the keeper's end of the socket closes, and
//! its death kills the container's first process (PR_SET_PDEATHSIG) and with it the process namespace.

pub mod child;
pub mod enter;
pub mod launch;
mod mounts;
pub mod orders;
mod plain;
pub mod seccomp;

mod builtin;
mod bundle;
mod console;
mod execute;
mod external;
mod inside;
mod limits;
mod rootfs;
mod walls;
