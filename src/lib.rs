//! Duplex runs any OCI image as a microVM or as a namespace container and measures the difference.
//!
//! ```text
//! cli -> build compose compare shim -> oci -> keeper -> jail
//!          \------+------+------/----> sandbox (dyn) -> microvm -> vmm
//!                                         |        \-> container -> libcontainer
//!                                         \-> image, net, jail -> vmm     all -> spec, sys
//! ```
//!
//! | module | one line |
//! |---|---|
//! | [`spec`] | plain data that all share: what a sandbox, a machine, a limit is; no I/O |
//! | [`sys`] | raw system calls that std and rustix lack |
//! | [`vmm`] | engine 1: one microVM in one process |
//! | [`jail`] | what confines a monitor: walls around its process, a filter of system calls in each of its threads; and the processes beside it |
//! | [`container`] | engine 2: a sandbox spec becomes an OCI bundle and runs by `libcontainer` or an OCI runtime |
//! | [`image`] | references, registry, store, layers, EROFS, archives |
//! | [`net`] | user-mode networks on the host's side: passt and pasta, ports, name servers |
//! | [`volume`] | named volumes: disks that outlive sandboxes |
//! | [`sandbox`] | the trait over both engines, and what survives on disk |
//! | [`keeper`] | the owner of one sandbox from its start to its last end, and who talks to it |
//! | [`compare`] | both isolations, one workload, numbers |
//! | [`lab`] | the emulated KVM host |
//! | `fuzz` | targets of fuzzing: what reads bytes of others, called with any bytes; in tests and for `fuzz/` only |
//! | [`doctor`] | what this host can do |
//! | [`cli`] | the command line: the only module that prints, exits and reads the environment |
#![deny(unsafe_code)]
#![cfg_attr(
    any(test, feature = "fuzz"),
    allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)
)]

pub mod jail;
pub mod spec;
pub mod sys;
pub mod vmm;

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod compare;
#[cfg(feature = "cli")]
pub mod container;
#[cfg(feature = "cli")]
pub mod doctor;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub mod fuzz;
#[cfg(feature = "cli")]
pub mod image;
#[cfg(feature = "cli")]
pub mod keeper;
#[cfg(feature = "cli")]
pub mod lab;
#[cfg(feature = "cli")]
pub mod net;
#[cfg(feature = "cli")]
pub mod sandbox;
#[cfg(feature = "cli")]
pub mod volume;
