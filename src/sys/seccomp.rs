//! Filters of system calls (seccomp(2)).

use std::io;

/// Confines this thread, and what it will execute, to this filter, for ever. Needs CAP_SYS_ADMIN or no_new_privs.
///
/// # Errors
/// `EACCES` without either, `EINVAL` for a program that is none.
pub fn confine(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // The kernel does not write it.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the structure and the `len` instructions that it points to live through the call, and the kernel only reads them.
    let failed = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
