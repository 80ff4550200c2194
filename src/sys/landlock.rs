//! Landlock's version.

/// `LANDLOCK_CREATE_RULESET_VERSION` (linux/landlock.h).
const VERSION: u32 = 1;

/// The kernel's Landlock ABI; `None` if it has none or it is switched off.
pub fn abi() -> Option<u32> {
    // SAFETY: with this flag the call reads no attributes (the pointer must be null and the size 0) and makes no descriptor.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}
