//! One sandbox's network: the plan of its user-mode network, the cgroup of its own and the process in it, and its place in a network that it
//! shares with others. The same for both engines.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use duplex_wire::Network;

use super::cgroup::{Cgroup, CgroupError};
use super::names::Names;
use crate::net::bridge::{BridgeError, Bridges, Directory, Responder, Seat};
use crate::net::{Files, Helper, HostNetwork, Late, Limiter, NetError, Plan, files};
use crate::spec::{Attachment, BridgeAttachment, BridgeName, Limits, NetworkMode, SandboxSpec};
use crate::sys::netns::OwnedNamespace;

/// What a sandbox is told of its network.
#[derive(Clone, Debug)]
pub(super) struct Briefing {
    /// `/etc/hosts` and `/etc/resolv.conf`.
    pub(super) files: Files,
    /// The interfaces that a guest's agent configures.
    pub(super) guest: Vec<Network>,
}

/// A user-mode network, and a place in a shared one beside it.
#[derive(Debug)]
pub(super) struct UserNetwork {
    plan: Plan,
    host: HostNetwork,
    cgroup: Option<Cgroup>,
    helper: Option<Helper>,
    late: Option<Late>,
    /// A container's namespace that is to have its rate.
    unlimited: Option<OwnedFd>,
    limiter: Option<Limiter>,
    seat: Option<Seat>,
    responder: Option<Responder>,
}

/// What the spec asks for, before anything of it is made. `program` makes the connections of this engine's sandboxes.
pub(super) fn plan(spec: &SandboxSpec, program: &'static str) -> Result<(Briefing, Option<UserNetwork>), NetError> {
    let host = if spec.network.mode == NetworkMode::None { HostNetwork::default() } else { HostNetwork::look() };
    let user = spec.network.mode == NetworkMode::User;
    let plan = user.then(|| Helper::find(program).and_then(|_| Plan::new(&spec.network, &host))).transpose()?;
    let files = files(&spec.hostname, &spec.network, (plan.as_ref(), None), &host);
    let guest = plan.iter().map(Plan::guest).collect();
    let network = plan.map(|plan| UserNetwork {
        plan,
        host,
        cgroup: None,
        helper: None,
        late: None,
        unlimited: None,
        limiter: None,
        seat: None,
        responder: None,
    });
    Ok((Briefing { files, guest }, network))
}

impl UserNetwork {
    /// Makes its cgroup. Its shelf folder must be there: what is made here, the shelf clears.
    pub(super) fn create(&mut self, spec: &SandboxSpec) -> Result<(), CgroupError> {
        self.cgroup =
            Some(Cgroup::create_for_network(&spec.id, &Limits { cpus: spec.limits.cpus, ..Limits::default() })?);
        Ok(())
    }

    /// Takes its place in the shared network, if the spec names one, and tells of it. Its shelf folder must be there: the shelf gives the place up.
    pub(super) fn join(
        &mut self,
        spec: &SandboxSpec,
        state: &Path,
        briefing: &mut Briefing,
    ) -> Result<(), BridgeError> {
        let Some(name) = &spec.network.bridge else { return Ok(()) };
        let bridges = Bridges::of(state);
        let seat = bridges.join(name, &spec.id)?;
        let shared = Some(seat.attachment().address);
        briefing.files = files(&spec.hostname, &spec.network, (Some(&self.plan), shared), &self.host);
        briefing.guest.push(seat.guest());
        let members = Members { bridges, network: name.clone(), names: Names::of(state) };
        self.responder = Some(seat.answer(Arc::new(members))?);
        self.seat = Some(seat);
        Ok(())
    }

    /// The tap interface of its place in the shared network, and where that is.
    pub(super) fn tap(&self) -> Result<Option<(OwnedFd, BridgeAttachment)>, BridgeError> {
        let made = |seat: &Seat| Ok((seat.tap()?, seat.attachment().clone()));
        self.seat.as_ref().map(made).transpose()
    }

    /// Connects a container's namespace to its place in the shared network.
    pub(super) fn pair(&self, namespace: &OwnedNamespace) -> Result<(), BridgeError> {
        self.seat.as_ref().map_or(Ok(()), |seat| seat.pair(namespace.network.as_fd(), self.plan.rate))
    }

    /// Connects passt to this end of the machine's wire: at once if it has ports to bind, and it gets ready while the machine boots; otherwise
    /// when the guest has something to say.
    pub(super) fn connect_passt(&mut self, wire: UnixStream) -> Result<(), NetError> {
        let cgroup = self.cgroup()?;
        if self.plan.publish.is_empty() {
            self.late = Some(Late::new(self.plan.clone(), wire, cgroup.into())?);
        } else {
            self.helper = Some(Helper::passt(&self.plan, wire.as_fd(), cgroup.as_fd())?);
        }
        Ok(())
    }

    /// Starts pasta for this namespace. It gets ready while the container is made. Returns a handle of it.
    pub(super) fn start_pasta(&mut self, namespace: &OwnedNamespace) -> Result<OwnedFd, NetError> {
        let cgroup = self.cgroup()?;
        let helper = Helper::pasta(&self.plan, namespace, cgroup.as_fd())?;
        let handle = helper.handle();
        let limited = self.plan.rate.map(|_| namespace.network.try_clone());
        self.unlimited = limited.transpose().map_err(NetError::Resource)?;
        self.helper = Some(helper);
        handle.map_err(NetError::Resource)
    }

    fn cgroup(&self) -> Result<File, NetError> {
        let cgroup = self.cgroup.as_ref().ok_or_else(|| NetError::Resource(std::io::ErrorKind::NotFound.into()))?;
        File::open(cgroup.path()).map_err(NetError::Resource)
    }

    /// Waits until its ports are bound and its interface stands, and gives a container's its rate; a machine's monitor gives it its own.
    pub(super) fn wait_until_ready(&mut self) -> Result<(), NetError> {
        self.helper.as_mut().map_or(Ok(()), Helper::wait_until_ready)?;
        if let (Some(namespace), Some(rate)) = (self.unlimited.take(), self.plan.rate) {
            self.limiter = Some(Limiter::between(namespace.as_fd(), &self.plan, rate)?);
        }
        Ok(())
    }

    /// How the sandbox is connected by it.
    pub(super) fn attachment(&self) -> Attachment {
        let bridge = self.seat.as_ref().map(|seat| seat.attachment().clone());
        Attachment { bridge, ..self.plan.attachment() }
    }

    /// A sentence if it was gone before its sandbox was.
    pub(super) fn failure(&self) -> Option<String> {
        let late = || self.late.as_ref().and_then(Late::failure);
        self.helper.as_ref().and_then(Helper::failure).or_else(late)
    }

    /// Ends it. Its cgroup, and its place in the shared network, go with the shelf's folder.
    pub(super) fn end(&mut self) {
        (self.helper, self.late, self.responder, self.limiter) = (None, None, None, None);
    }
}

/// The members of a shared network by the names that they have at the moment.
struct Members {
    bridges: Bridges,
    network: BridgeName,
    names: Names,
}

impl Directory for Members {
    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let members = self.bridges.members(&self.network);
        // Names of the DNS know no case.
        let named = |text: &str| text.eq_ignore_ascii_case(name);
        let ids: Vec<_> = self.names.all().into_iter().filter(|(text, _)| named(text)).map(|(_, id)| id).collect();
        members.into_iter().find(|(_, id)| named(id.as_str()) || ids.contains(id)).map(|(address, _)| address)
    }

    fn name(&self, address: Ipv4Addr) -> Option<String> {
        let (_, id) = self.bridges.members(&self.network).into_iter().find(|(member, _)| *member == address)?;
        let named = self.names.all().into_iter().find(|(_, holder)| *holder == id).map(|(name, _)| name);
        Some(named.unwrap_or_else(|| id.to_string()))
    }
}
