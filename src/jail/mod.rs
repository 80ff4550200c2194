//! What confines a monitor, always: the guest may have taken over any of its threads.
//!
//! ```text
//! by its parent, at its birth:   own namespaces, empty root, limits, no capabilities, own user, no_new_privs   (walls.rs, sys/walls.rs)
//! by itself, before its spec:    Landlock without any right, one heap                                            (settle)
//! by each thread, before a guest runs: the system calls of its role, others end the process                     (event_loop.rs, vcpu.rs)
//! ```
//!
//! The processes beside it, its keeper and the file servers of its shares, have walls of their own (helpers.rs).
//!
//! The monitor opens nothing: its files come as descriptors, so none of this costs it anything that it needs.

#[cfg(feature = "drill")]
pub mod drill;
mod event_loop;
mod filter;
#[cfg(feature = "cli")]
mod helpers;
mod kvm;
mod vcpu;
#[cfg(feature = "cli")]
mod walls;

use std::fmt::Write;
use std::io;

pub use filter::{Filter, FilterError};
#[cfg(feature = "cli")]
pub use helpers::{around_file_server, confine_keeper};
#[cfg(feature = "cli")]
pub use walls::around_monitor;

use crate::sys::{landlock, runtime};
use crate::vmm::role::{EnterRole, Parts, Role};

/// Exit code of a monitor that met a fault of its own, as of every Rust program that panics.
const PANICKED: u8 = 101;

/// Prepares this process for the filters of its threads and gives up what it will not need. Call it first, while there is one thread.
///
/// # Errors
/// What the kernel says.
pub fn settle() -> io::Result<EnterRole> {
    runtime::one_heap();
    runtime::plain_faults();
    runtime::full_files_are_errors();
    // As Rust's own, without its calls.
    std::panic::set_hook(Box::new(|panic| {
        let mut words = String::new();
        let _ = writeln!(words, "{panic}");
        let _ = rustix::io::write(rustix::stdio::stderr(), words.as_bytes());
        runtime::end(PANICKED);
    }));
    rustix::thread::set_no_new_privs(true)?;
    landlock::give_up_everything()?;
    #[cfg(feature = "drill")]
    let order = drill::Order::of_arguments();
    Ok(EnterRole::new(move |role, parts| {
        let mut filter = filter_of(role, parts);
        if cfg!(debug_assertions) {
            // Rust's library asks before it closes a descriptor whether it is open, in a monitor that is not a release.
            filter.call_if(libc::SYS_fcntl, 1, vec![libc::F_GETFD.cast_unsigned()]);
        }
        filter.install().map_err(io::Error::other)?;
        #[cfg(feature = "drill")]
        order.carry_out(role);
        Ok(())
    }))
}

/// The system calls of a thread in this role.
pub fn filter_of(role: Role, parts: Parts) -> Filter {
    match role {
        Role::EventLoop => event_loop::filter(parts),
        Role::Vcpu(_) => vcpu::filter(parts),
    }
}

#[cfg(test)]
mod tests;
