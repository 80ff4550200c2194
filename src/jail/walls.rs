//! The walls around a monitor's process: which user, which limits.

use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use crate::spec::{MIB, SandboxId};
use crate::sys::walls::{Becomes, Walls, can_choose_users};

/// Users and groups of monitors, one for each sandbox, if root starts them: a range that neither distributions, nor systemd, nor subordinate ids
/// (subuid(5)) give away (systemd's `UIDS-GIDS`: 1879048192 and on, "unused"). Behind it are those of containers (`crate::sandbox`).
const FIRST_USER: u32 = 0x7000_0000;
/// How many there are: what a sandbox's id has in it is more, so that two may meet, which only lets them share limits on numbers of processes.
const USERS: u32 = 0x0800_0000;

/// Most descriptors: devices have some tens, each command and each connection of a sandbox has up to four.
const DESCRIPTORS: u64 = 4096;
/// Most threads.
const THREADS: u64 = 64;
/// What the file of a saved machine has beside its memory.
const BESIDE_MEMORY: u64 = 64 * MIB;

/// Walls for the monitor of this sandbox, whose machine has so much memory and whose largest disk has so many bytes.
pub fn around_monitor(id: &SandboxId, memory: u64, largest_disk: u64) -> Walls {
    let own = can_choose_users(FIRST_USER, FIRST_USER + (USERS - 1)).then(|| user_of(id));
    let file = memory.saturating_add(BESIDE_MEMORY).max(largest_disk);
    let mut limits = vec![(Resource::Core, 0), (Resource::Nofile, DESCRIPTORS), (Resource::Fsize, file)];
    if own.is_some() {
        // Before Linux 5.14 the processes of an ordinary user are counted with it.
        limits.push((Resource::Nproc, THREADS));
    }
    let (keeps, filter) = (CapabilitySet::empty(), Vec::new());
    let user = own.map_or(Becomes::Stranger, Becomes::User);
    Walls { user, limits, keeps, room: None, filter }
}

/// The user of a sandbox's monitor.
fn user_of(id: &SandboxId) -> u32 {
    let number = u64::from_str_radix(id.as_str(), 16).unwrap_or(0);
    FIRST_USER + u32::try_from(number % u64::from(USERS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sandbox_has_its_user_in_the_range() {
        let user = |text: &str| user_of(&text.parse().unwrap());
        assert_eq!(user("000000000000"), FIRST_USER);
        assert_eq!(user("000007ffffff"), FIRST_USER + 0x07ff_ffff);
        assert_eq!(user("000008000000"), FIRST_USER);
        assert_ne!(user("0123456789ab"), user("0123456789ac"));
        assert!((FIRST_USER..FIRST_USER + USERS).contains(&user("ffffffffffff")));
    }
}
