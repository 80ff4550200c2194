//! User namespaces whose users are others than the host's: what is root in there is, on the host, somebody who owns nothing (user_namespaces(7)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::thread::{CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits};

use super::mounts;
use super::netns::NOBODY;

/// How many users and groups a namespace has, from 0 on: all that POSIX names in images, and `nobody`.
pub const COUNT: u32 = 1 << 16;

/// Users and groups of this host's that are a namespace's, [`COUNT`] of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Who is root inside.
    pub first: u32,
}

impl Range {
    /// Who owns the namespace: the last of them, that no process inside should be.
    #[must_use]
    pub fn owner(self) -> u32 {
        self.first + (COUNT - 1)
    }

    /// Who this user of the host's is inside: the kernel's `nobody`, if none of these.
    #[must_use]
    pub fn inside(self, user: u32) -> u32 {
        user.checked_sub(self.first).filter(|user| *user < COUNT).unwrap_or(NOBODY)
    }

    /// The users of the namespace of this process become these; groups likewise. The caller is root and has not done so before.
    ///
    /// # Errors
    /// `EPERM` without CAP_SETUID and CAP_SETGID, or if the host itself has no such users.
    pub fn write(self, pid: u32) -> io::Result<()> {
        let line = format!("0 {} {COUNT}", self.first);
        std::fs::write(format!("/proc/{pid}/uid_map"), &line)?;
        std::fs::write(format!("/proc/{pid}/gid_map"), &line)
    }

    /// Of the process with this number; `None` if its users are the host's.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let read = |path: &str| std::fs::read_to_string(path);
        let (theirs, ours) = (read(&format!("/proc/{pid}/uid_map"))?, read("/proc/self/uid_map")?);
        Ok(if theirs == ours { None } else { first_of(&theirs).map(|first| Self { first }) })
    }
}

/// Who is user 0, by a map of one line.
fn first_of(map: &str) -> Option<u32> {
    let mut numbers = map.split_whitespace();
    (numbers.next() == Some("0")).then(|| numbers.next()?.parse().ok()).flatten()
}

/// A user namespace and its users.
#[derive(Debug)]
pub struct Users {
    /// The namespace.
    pub namespace: OwnedFd,
    /// Who they are on the host.
    pub range: Range,
}

impl Users {
    /// What belongs to user n in these mounts, which are attached nowhere yet, is shown as the namespace's n, and what its users make is stored as
    /// theirs: an idmapped mount (mount_setattr(2)). With `below`, what is mounted there as well.
    ///
    /// # Errors
    /// `EINVAL` where a file system cannot do that (ext4, XFS, Btrfs, EROFS and, from Linux 6.3 on, tmpfs can), else what the kernel says.
    pub fn shift(&self, mount: BorrowedFd<'_>, below: bool) -> io::Result<()> {
        mounts::shift(mount, self.namespace.as_fd(), below)
    }

    /// Gives this entry of the folder to the namespace's root.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn own(&self, folder: impl AsFd, name: &Path) -> io::Result<()> {
        let (user, group) = (rustix::fs::Uid::from_raw(self.range.first), rustix::fs::Gid::from_raw(self.range.first));
        Ok(rustix::fs::chownat(folder, name, Some(user), Some(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// From now on the calling thread, which is root's, makes files as the namespace's root, and keeps its own rights; until the result is dropped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make_files_as_root(&self) -> io::Result<MakesFiles> {
        let before = capabilities_secure_bits()?;
        // Else the change of user would take rights over files away (capabilities(7)).
        set_capabilities_secure_bits(before | CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
        let made = MakesFiles { before };
        become_for_files(self.range.first);
        Ok(made)
    }
}

/// The calling thread makes files as another.
#[derive(Debug)]
pub struct MakesFiles {
    before: CapabilitiesSecureBits,
}

impl Drop for MakesFiles {
    fn drop(&mut self) {
        become_for_files(0);
        // It had them before, and may set them.
        let _ = set_capabilities_secure_bits(self.before);
    }
}

/// Cannot fail for root (setfsuid(2)).
fn become_for_files(user: u32) {
    // SAFETY: setfsgid(2) takes no pointer.
    unsafe { libc::setfsgid(user) };
    // SAFETY: setfsuid(2) takes no pointer.
    unsafe { libc::setfsuid(user) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_one_line_has_a_root() {
        assert_eq!(first_of("         0 2013265920      65536\n"), Some(2_013_265_920));
        assert_eq!(first_of("1 5 1\n"), None);
        assert_eq!(first_of(""), None);
        let range = Range { first: 1000 };
        assert_eq!([1000, 1007, 66_535, 66_536, 0].map(|user| range.inside(user)), [0, 7, 65_535, NOBODY, NOBODY]);
        assert_eq!(Range::of(std::process::id()).unwrap(), None);
    }
}
