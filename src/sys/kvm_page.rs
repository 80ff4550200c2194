//! A little guest memory for a probe of KVM.

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::kvm_userspace_memory_region;

/// Bytes of a probe's memory.
pub const PROBE_BYTES: usize = 64 << 10;

/// `KVM_SET_USER_MEMORY_REGION`: _IOW(KVMIO, 0x46, struct kvm_userspace_memory_region) (linux/kvm.h).
const SET_USER_MEMORY_REGION: libc::Ioctl = 0x4020_ae46;

/// Gives a VM [`PROBE_BYTES`] of memory at guest address 0, filled with `content` and zeroes behind it.
///
/// The memory is never given back, so that no later mapping of this process can come under the VM: call it once or twice in a process.
///
/// # Errors
/// `EINVAL` if `content` is too long or the VM has such memory already, `ENOMEM`.
pub fn give(vm: &impl AsRawFd, content: &[u8]) -> io::Result<()> {
    if content.len() > PROBE_BYTES {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory that is in use.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), PROBE_BYTES, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has PROBE_BYTES writable bytes, checked above to be enough, and nobody else knows of it yet.
    unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), memory.cast::<u8>(), content.len()) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: u64::try_from(PROBE_BYTES).map_err(io::Error::other)?,
        userspace_addr: u64::try_from(memory.addr()).map_err(io::Error::other)?,
    };
    // SAFETY: the request reads one region; the memory it names is mapped and stays so until the process ends.
    let done = unsafe { libc::ioctl(vm.as_raw_fd(), SET_USER_MEMORY_REGION, &raw const region) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(size_of::<kvm_userspace_memory_region>() == 0x20);
