//! Raw system calls that std and rustix lack.
#![allow(unsafe_code)]

pub mod birth;
mod bpf;
pub mod clock;
#[cfg(feature = "cli")]
pub mod counts;
pub mod devices;
pub mod egress;
pub mod fd;
#[cfg(feature = "cli")]
pub mod kvm_page;
pub mod landlock;
pub mod last_words;
pub mod locks;
pub mod loopback;
pub mod loops;
pub mod mounts;
pub mod netns;
#[cfg(feature = "drill")]
pub mod raw;
pub mod rlimit;
pub mod runtime;
pub mod seccomp;
pub mod signals;
pub mod spawn;
pub mod tap;
pub mod users;
#[cfg(feature = "cli")]
pub mod vsock;
pub mod walls;
