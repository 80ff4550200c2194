//! Virtio 1.2 devices on the MMIO transport.
//!
//! ```text
//!   vCPU thread --- register access, queue notification ---\
//!                                                            MmioDevice (one lock) -> VirtioDevice -> queues in guest memory
//!   event loop  --- a host descriptor became ready ---------/
//! ```
//!
//! A queue notification is served on the vCPU thread that wrote it: the answer is there when the guest goes on, without waking another
//! thread. What must wait for the host (a stream that is full or empty) is taken up by the event loop. What the guest does wrong is a
//! [`fault::GuestFault`]: counted, answered with DEVICE_NEEDS_RESET, never an end of the monitor.
//!
//! Lock order: one device's lock at a time; the interrupt's and the counters' atomics need none.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod area;
pub mod balloon;
pub mod blk;
pub mod console;
pub mod counters;
pub mod device;
pub mod fault;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod status;
pub mod vsock;

#[cfg(any(test, feature = "fuzz"))]
mod driver;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
