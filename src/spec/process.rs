//! The process that a sandbox runs: the image's config with what the user changed.

use serde::{Deserialize, Serialize};

pub use duplex_wire::{Capability, DEFAULT_CAPABILITIES, ProcessLimit, ProcessSpec, Sysctl, TerminalSize, Tmpfs};
pub use duplex_wire::{Transfer, Wanted};

const _: () = {
    const fn assert_plain<T: Serialize + for<'a> Deserialize<'a> + Clone>() {}
    assert_plain::<ProcessSpec>();
};
