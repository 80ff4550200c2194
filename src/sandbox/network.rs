//! One sandbox's user-mode network: its plan, the cgroup of its own, and the process in it. The same for both engines.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use duplex_wire::Network;

use super::cgroup::{Cgroup, CgroupError};
use crate::net::{Files, Helper, HostNetwork, NetError, Plan, files};
use crate::spec::{Attachment, Limits, NetworkMode, SandboxSpec};
use crate::sys::netns::OwnedNamespace;

/// What a sandbox is told of its network.
#[derive(Clone, Debug)]
pub(super) struct Briefing {
    /// `/etc/hosts` and `/etc/resolv.conf`.
    pub(super) files: Files,
    /// The interface that a guest's agent configures.
    pub(super) guest: Option<Network>,
}

/// A user-mode network.
#[derive(Debug)]
pub(super) struct UserNetwork {
    plan: Plan,
    cgroup: Option<Cgroup>,
    helper: Option<Helper>,
}

/// What the spec asks for, before anything of it is made. `program` makes the connections of this engine's sandboxes.
pub(super) fn plan(spec: &SandboxSpec, program: &'static str) -> Result<(Briefing, Option<UserNetwork>), NetError> {
    let host = if spec.network.mode == NetworkMode::None { HostNetwork::default() } else { HostNetwork::look() };
    let user = spec.network.mode == NetworkMode::User;
    let plan = user.then(|| Helper::find(program).and_then(|_| Plan::new(&spec.network, &host))).transpose()?;
    let files = files(&spec.hostname, &spec.network, plan.as_ref(), &host);
    let guest = plan.as_ref().map(Plan::guest);
    Ok((Briefing { files, guest }, plan.map(|plan| UserNetwork { plan, cgroup: None, helper: None })))
}

impl UserNetwork {
    /// Makes its cgroup. Its shelf folder must be there: what is made here, the shelf clears.
    pub(super) fn create(&mut self, spec: &SandboxSpec) -> Result<(), CgroupError> {
        self.cgroup =
            Some(Cgroup::create_for_network(&spec.id, &Limits { cpus: spec.limits.cpus, ..Limits::default() })?);
        Ok(())
    }

    /// Starts passt at this end of the machine's wire. It gets ready while the machine boots.
    pub(super) fn start_passt(&mut self, wire: &UnixStream) -> Result<(), NetError> {
        let cgroup = self.cgroup()?;
        self.helper = Some(Helper::passt(&self.plan, wire.as_fd(), cgroup.as_fd())?);
        Ok(())
    }

    /// Starts pasta for this namespace. It gets ready while the container is made. Returns a handle of it.
    pub(super) fn start_pasta(&mut self, namespace: &OwnedNamespace) -> Result<OwnedFd, NetError> {
        let cgroup = self.cgroup()?;
        let helper = Helper::pasta(&self.plan, namespace, cgroup.as_fd())?;
        let handle = helper.handle();
        self.helper = Some(helper);
        handle.map_err(NetError::Resource)
    }

    fn cgroup(&self) -> Result<File, NetError> {
        let cgroup = self.cgroup.as_ref().ok_or_else(|| NetError::Resource(std::io::ErrorKind::NotFound.into()))?;
        File::open(cgroup.path()).map_err(NetError::Resource)
    }

    /// Waits until its ports are bound and its interface stands.
    pub(super) fn wait_until_ready(&mut self) -> Result<(), NetError> {
        self.helper.as_mut().map_or(Ok(()), Helper::wait_until_ready)
    }

    /// How the sandbox is connected by it.
    pub(super) fn attachment(&self) -> Attachment {
        self.plan.attachment()
    }

    /// A sentence if it was gone before its sandbox was.
    pub(super) fn failure(&self) -> Option<String> {
        self.helper.as_ref().and_then(Helper::failure)
    }

    /// Ends it. Its cgroup goes with the shelf's folder.
    pub(super) fn end(&mut self) {
        self.helper = None;
    }
}
