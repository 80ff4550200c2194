//! Which of this host's users a container has for its own: a block of them that no other running container has.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::spec::SandboxId;
use crate::sys::locks;
use crate::sys::users::{COUNT, Range};

/// The first user of the first block, where the users of monitors end (`crate::jail`): no distribution, no systemd and no subordinate ids
/// (subuid(5)) give these away.
const FIRST: u32 = 0x7800_0000;
/// How many blocks there are, up to 2^31, where signed numbers end.
const BLOCKS: u32 = (0x8000_0000 - FIRST) / COUNT - 1;
/// The file in the state folder whose bytes are locked, one for each block.
const FILE: &str = "users";

/// A block. It is free again when this is dropped, or its process is gone.
#[derive(Debug)]
pub(super) struct Claim {
    /// The users.
    pub(super) range: Range,
    _lock: File,
}

/// Why a container has no users of its own.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsersError {
    #[error("Cannot lock a part of {path}")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("All {BLOCKS} blocks of users are taken: use --userns host for further containers")]
    None,
    #[error(
        "Cannot make a user namespace for the container (see user.max_user_namespaces): --userns host does without"
    )]
    Namespace(#[source] io::Error),
}

/// Claims a block for this sandbox; which one is tried first follows from its id.
pub(super) fn claim(state: &Path, id: &SandboxId) -> Result<Claim, UsersError> {
    let path = state.join(FILE);
    let failed = |source| UsersError::Lock { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed)?;
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open().map_err(failed)?;
    let wish = u64::from_str_radix(id.as_str(), 16).unwrap_or(0) % u64::from(BLOCKS);
    for turn in 0..u64::from(BLOCKS) {
        let block = (wish + turn) % u64::from(BLOCKS);
        match locks::byte(file, block).map_err(failed)? {
            Ok(lock) => {
                let first = FIRST + u32::try_from(block).unwrap_or(0) * COUNT;
                return Ok(Claim { range: Range { first }, _lock: lock });
            }
            Err(again) => file = again,
        }
    }
    Err(UsersError::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_the_same_block() {
        let state = tempfile::tempdir().unwrap();
        let claim = |text: &str| claim(state.path(), &text.parse().unwrap()).unwrap();
        let (one, two) = (claim("000000000000"), claim("000000000000"));
        assert_eq!((one.range.first, two.range.first), (FIRST, FIRST + COUNT));
        drop(one);
        assert_eq!(claim("000000000000").range.first, FIRST);
        let last = claim(&format!("{:012x}", BLOCKS - 1));
        assert!(last.range.owner() < 0x7fff_ffff, "{:x}", last.range.owner());
        assert_eq!(last.range.first % COUNT, 0);
    }
}
