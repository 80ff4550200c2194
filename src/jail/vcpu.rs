//! The thread of a processor: runs the guest, and does at once what the guest asks of its devices.

use super::filter::Filter;
use super::kvm;
use crate::sys::tap::TUNSETOFFLOAD;
use crate::vmm::role::Parts;

/// The calls of the thread that runs a processor.
pub(super) fn filter(parts: Parts) -> Filter {
    let mut filter = Filter::default();
    // Runs the guest and gives it interrupts.
    filter.call_if(libc::SYS_ioctl, 1, [kvm::of_vcpu(), of_devices(parts)].concat());
    devices(&mut filter, parts);
    filter
}

/// Requests that devices make: interrupts, and what frames a tap takes from then on.
pub(super) fn of_devices(parts: Parts) -> Vec<u32> {
    let tap = parts.tap.then(|| kvm::number(TUNSETOFFLOAD));
    tap.into_iter().chain([kvm::interrupt()]).collect()
}

/// What both roles do: serving a device, on the thread on which somebody asks for it.
pub(super) fn devices(filter: &mut Filter, parts: Parts) {
    // Locks, and waiting at the gate. No other operation of this large call: FUTEX_WAIT, FUTEX_WAKE, FUTEX_WAIT_BITSET, all of this process.
    let private = libc::FUTEX_PRIVATE_FLAG;
    let operations =
        [libc::FUTEX_WAIT, libc::FUTEX_WAKE, libc::FUTEX_WAIT_BITSET].map(|o| (o | private).cast_unsigned());
    filter.call_if(libc::SYS_futex, 1, operations.to_vec());
    // The pages that the balloon gives back.
    let advice = [libc::MADV_DONTNEED, libc::MADV_REMOVE].map(i32::cast_unsigned);
    filter.call_if(libc::SYS_madvise, 2, advice.to_vec());
    filter.calls(&[
        // The heap.
        libc::SYS_brk,
        // The way back from the handler of a kick.
        libc::SYS_rt_sigreturn,
        // The end of a monitor that met a fault of its own.
        libc::SYS_exit_group,
        // Disks are read into the guest's memory.
        libc::SYS_preadv,
        // The random source.
        libc::SYS_getrandom,
        // Streams of the vsock, frames of a tap, calls to the event loop.
        libc::SYS_read,
        libc::SYS_write,
        // A connection of the vsock begins, is closed one way, and ends.
        libc::SYS_epoll_ctl,
        libc::SYS_shutdown,
        libc::SYS_close,
    ]);
    if parts.stream {
        // Frames of a network device over a stream.
        filter.calls(&[libc::SYS_sendto, libc::SYS_recvfrom]);
    }
    if parts.rate {
        // What time it is, where the kernel does not tell without a call, and when the next frame may go.
        filter.calls(&[libc::SYS_clock_gettime, libc::SYS_timerfd_settime]);
    }
    if parts.volumes {
        // Disks are written to, made durable, and holes punched into them.
        filter.calls(&[libc::SYS_pwritev, libc::SYS_fdatasync, libc::SYS_fallocate]);
    }
    if parts.console || parts.shares {
        // Whether a console's reader, or a file server, is ready; and going on with that after the process was stopped.
        filter.calls(&[libc::SYS_ppoll, libc::SYS_restart_syscall]);
    }
    if parts.shares {
        // A file server is told where the queues lie, with the descriptors by which they are kicked, and answers in time or never.
        filter.calls(&[libc::SYS_sendmsg, libc::SYS_recvfrom, libc::SYS_clock_gettime]);
    }
}
