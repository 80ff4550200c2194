//! The main thread: serves devices when their host's side is ready, and the control socket.

use super::filter::Filter;
use super::kvm;
use super::vcpu::{devices, of_devices};
use crate::vmm::kvm::kick_signal;
use crate::vmm::role::Parts;

/// The calls of the event loop.
pub(super) fn filter(parts: Parts) -> Filter {
    let mut filter = Filter::default();
    devices(&mut filter, parts);
    // Interrupts, saving, and making a stream that came over the control socket non-blocking.
    let requests = [&kvm::of_machine()[..], &of_devices(parts), &[kvm::number(libc::FIONBIO)]].concat();
    filter.call_if(libc::SYS_ioctl, 1, requests);
    // Takes processors out of the guest: the kick signal, to threads of this process.
    let own = rustix::process::getpid().as_raw_nonzero().get().cast_unsigned();
    filter.call_with(libc::SYS_tgkill, vec![(0, own), (2, kick_signal().cast_unsigned())]);
    filter.calls(&[
        // The same: the C library asks for its number and holds signals back meanwhile.
        libc::SYS_getpid,
        libc::SYS_rt_sigprocmask,
        // Waits for events.
        libc::SYS_epoll_wait,
        // Requests, with descriptors, and reports.
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        // How long the host takes to read a guest's last words.
        libc::SYS_clock_gettime,
        // Writes a machine to its file: which pages there are, that it is empty, where they go, and how long it is.
        libc::SYS_mincore,
        libc::SYS_fstat,
        libc::SYS_pwrite64,
        libc::SYS_ftruncate,
        // The machine is taken apart.
        libc::SYS_munmap,
    ]);
    filter
}
