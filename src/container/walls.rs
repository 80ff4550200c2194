//! What a process in a container puts around itself just before it becomes the command: everything before needs more than the command may.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use duplex_wire::{FailureKind, ProcessSpec};
use libc::sock_filter;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::execute::Refusal;
use super::orders::causes;
use super::seccomp::file::ProfileError;
use super::seccomp::{Profile, profile};
use crate::spec::{Capability, Security};
use crate::sys::landlock::{Below, Rights, keep_only};
use crate::sys::seccomp::confine;

/// The walls of one process.
#[derive(Clone, Debug)]
pub(super) struct Walls {
    profile: Option<Arc<Profile>>,
    filter: Option<Arc<[sock_filter]>>,
    borrows: bool,
    capabilities: CapabilitySet,
    hardened: bool,
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {step}")]
struct WallError {
    step: &'static str,
    #[source]
    source: std::io::Error,
}

impl Walls {
    /// Of a process in a container with this security.
    pub(super) fn of(security: &Security, process: &ProcessSpec) -> Result<Self, ProfileError> {
        let profile = profile(security, &process.capabilities)?;
        let program = profile.as_ref().map(Profile::compile).transpose()?;
        Ok(Self {
            borrows: profile.is_some() && !process.no_new_privileges,
            profile: profile.map(Arc::new),
            filter: program.map(Arc::from),
            capabilities: set_of(&process.capabilities),
            hardened: security.hardened,
        })
    }

    /// What its system calls are, for an outside runtime.
    pub(super) fn profile(&self) -> Option<&Profile> {
        self.profile.as_deref()
    }

    /// What the process holds until it is confined, if it keeps `kept` of its capabilities afterwards: a filter of system calls is for who has
    /// SYS_ADMIN, or for who can gain no privileges.
    pub(super) fn until_closed(&self, kept: CapabilitySet) -> CapabilitySet {
        if self.borrows { kept | CapabilitySet::SYS_ADMIN } else { kept }
    }

    /// Confines this process. It has its user; of its capabilities it keeps what the command begins with.
    pub(super) fn close(&self) -> Result<(), Refusal> {
        self.try_close().map_err(|error| (FailureKind::Other, causes(&error).join(": ")))
    }

    fn try_close(&self) -> Result<(), WallError> {
        let failed = |step| move |source: std::io::Error| WallError { step, source };
        if self.hardened {
            confine_files().map_err(failed("confine files by Landlock (boot the host with it: lsm=landlock,...)"))?;
        }
        if let Some(filter) = &self.filter {
            confine(filter).map_err(failed("load the filter of system calls"))?;
        }
        if self.borrows {
            let root = rustix::process::geteuid().is_root();
            let kept = if root { self.capabilities } else { CapabilitySet::empty() };
            let step = "give up the right to load filters (does the profile allow capget and capset?)";
            let held = capabilities(None).map_err(|e| failed(step)(e.into()))?;
            let sets = CapabilitySets { effective: held.effective & kept, permitted: held.permitted & kept, ..held };
            set_capabilities(None, sets).map_err(|e| failed(step)(e.into()))?;
        }
        Ok(())
    }
}

/// What files may be used for, by where they are. What is no file is in no folder and stays: streams, sockets, what is open.
///
/// | below | read | execute | write, make, remove | requests to devices |
/// |---|---|---|---|---|
/// | `/` itself | yes | | | |
/// | `/proc`, `/sys` | yes | | | |
/// | `/dev` | yes | | yes | yes |
/// | all else in `/` | yes | yes | yes | |
///
/// Device nodes are made nowhere, nothing is mounted, and nothing outside of this is traced (landlock(7)).
fn confine_files() -> std::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut opened = vec![(rustix::fs::open("/", flags, Mode::empty())?, FileType::Directory, Rights::READ)];
    for entry in std::fs::read_dir("/")? {
        let name = entry?.file_name();
        let rights = match name.as_bytes() {
            b"proc" | b"sys" => continue,
            b"dev" => Rights::READ | Rights::WRITE | Rights::REQUESTS,
            _ => Rights::READ | Rights::WRITE | Rights::EXECUTE,
        };
        let file = rustix::fs::open(std::path::Path::new("/").join(&name), flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind != FileType::Symlink {
            opened.push((file, kind, rights));
        }
    }
    let below = opened.iter().map(|(file, kind, rights)| Below {
        path: file.as_fd(),
        folder: *kind == FileType::Directory,
        rights: *rights,
    });
    keep_only(&below.collect::<Vec<_>>())
}

/// Capabilities by number as the kernel's set.
pub(super) fn set_of(capabilities: &[Capability]) -> CapabilitySet {
    let numbers = capabilities.iter().filter(|c| c.0 < 64);
    CapabilitySet::from_bits_retain(numbers.fold(0, |set, Capability(number)| set | 1 << number))
}
