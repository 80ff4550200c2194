//! What this host can do, and how to mend what it cannot.

mod checks;
mod facts;
mod kvm;
mod security;
pub(crate) mod tools;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use checks::install;
pub use facts::HostFacts;
pub use kvm::{KvmFinding, kvm, kvm_is_forbidden};
pub use security::checks as security;
pub use tools::{MissingTool, missing_for_lab};

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Root of the image store; it need not be there yet.
    pub store: PathBuf,
    /// Folders where programs are looked up, in order: the caller's `PATH`.
    pub search: Vec<PathBuf>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Duplex works, with something less.
    Warn,
    /// Something that Duplex needs is not there.
    Missing,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What, in a word or two; stable.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub found: String,
    /// What a person can do about it; never with [`CheckStatus::Ok`].
    pub mend: Option<String>,
}

/// All that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The machine.
    pub host: HostFacts,
    /// What KVM is worth.
    pub kvm: KvmFinding,
    /// MicroVMs run on this host itself; otherwise in the lab.
    pub microvms_here: bool,
    /// Containers run on this host itself; otherwise in the lab.
    pub containers_here: bool,
    /// Everything looked at, in the order of a person's reading.
    pub checks: Vec<Check>,
}

/// Looks at everything; well under a second.
pub fn probe(places: &Places) -> Report {
    let host = HostFacts::gather();
    let kvm = kvm();
    let lacking = lacking_for_containers();
    Report {
        microvms_here: kvm.is_usable() && lacking.is_none(),
        containers_here: lacking.is_none(),
        checks: checks::all(&host, &kvm, places),
        host,
        kvm,
    }
}

/// Why neither containers nor microVMs with their cgroups run on this host, in a few words; `None` if they do. Cheap: asked before every run.
pub fn lacking_for_containers() -> Option<String> {
    let lacking = [
        checks::cgroup_v2_lacks(),
        (!rustix::process::geteuid().is_root()).then(|| "not root".to_owned()),
        checks::file_system_lacks("overlay"),
        checks::file_system_lacks("erofs"),
    ];
    lacking.into_iter().flatten().next()
}
