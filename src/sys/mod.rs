//! Raw system calls that std and rustix lack.
#![allow(unsafe_code)]

pub mod clock;
pub mod loops;
pub mod mounts;
pub mod signals;
