//! Limits of a container's processes that only this side of its user namespace may raise (setrlimit(2), CAP_SYS_RESOURCE): the processes inherit
//! room for them, and the runtime sets them inside.

use std::io;

use duplex_wire::DEFAULT_OPEN_FILES;

use super::child::ChildError;
use crate::spec::ProcessLimit;
use crate::sys::rlimit;

/// Lets this process, and what it makes, have what these limits say, and what is usual for open files.
pub(super) fn raise(limits: &[ProcessLimit]) -> Result<(), ChildError> {
    let files = u8::try_from(libc::RLIMIT_NOFILE).map_err(|e| failed("nofile", io::Error::other(e)))?;
    rlimit::allow(files, Some(DEFAULT_OPEN_FILES.1)).map_err(|e| failed("nofile", e))?;
    limits.iter().try_for_each(|limit| {
        rlimit::allow(limit.resource, limit.hard).map_err(|e| failed(limit.name().unwrap_or("of a process"), e))
    })
}

fn failed(name: &'static str, source: io::Error) -> ChildError {
    ChildError::Limit { name, source }
}
