//! What a limit of swap does not do here.

use super::output::note;
use crate::sandbox::cgroup::Cgroup;
use crate::spec::{Isolation, Limits, MemorySwap};

/// Says so, once the limits hold.
pub(crate) fn remark(limits: &Limits, isolation: Isolation) {
    let Some(memory) = limits.memory else { return };
    let allows = limits.swap.beside(memory) != Some(0);
    match isolation {
        Isolation::MicroVm if allows && limits.swap != MemorySwap::AsMuchAgain => {
            note("a microVM has no swap, neither inside nor on this host: --memory-swap changes nothing");
        }
        Isolation::Container | Isolation::Process if !Cgroup::counts_swap() => {
            note(
                "this host's kernel does not limit swap (it was built without, or booted with swapaccount=0): memory is limited alone",
            );
        }
        _ => {}
    }
}
