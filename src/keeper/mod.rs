//! Keepers: the owner of one sandbox from its start to its last end. There is no daemon; each sandbox has one keeper, which is the process of
//! a `run` in the foreground, or one of its own that outlives the command that started it.
//!
//! ```text
//! client -- control socket (wire) -- serve threads -- Remote ----------.
//! client -- control socket ----------- attached <--+                    v
//! `run` in the foreground <------------------------+-- hub <-- pipes -- Sandbox <-- life (restarts) --> roster
//!                                                  `-> log files
//! ```
//!
//! Lock order: `Shared::now`, then `Shared::entry`. The hub's locks are taken with neither held.

pub mod client;
mod further;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod health;
mod hub;
mod life;
pub mod log;
mod serve;
pub mod wire;

pub use hub::Local;
pub use life::{Ended, Keeper, KeeperError, Report, confine};
pub use serve::Handle;
