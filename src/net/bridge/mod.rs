//! Networks that sandboxes of this host share by name (`--net bridge:NAME`).
//!
//! ```text
//! STATE                             locked while a network is made, joined, left or cleared
//! STATE/networks/NAME/namespace     a network namespace of its own, mounted here: a bridge and its ports, nothing else
//! STATE/networks/NAME/ADDRESS       a symbolic link to the id of the sandbox that has the address, made before anything else is
//! ```
//!
//! Nothing of it is in the host's own network namespace: no rule, route or interface there changes, and no packet passes between a shared network
//! and the host or another network. The world is reached, and ports are published, by the user-mode network that each member has beside it.
//! The first member makes the network, and with the last it goes.

mod names;

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) use names::fuzz as fuzz_names;

pub use names::{Directory, Responder};

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use duplex_wire::Network;

use super::wires;
use crate::spec::{BridgeAttachment, BridgeName, NetRate, SandboxId};
use crate::sys::{locks, netns, tap};

/// The bridge's address, where members ask for each other's names. All shared networks have the same addresses, 198.19.0.0/22: of the range for
/// benchmarks of network devices (RFC 2544), which no network in use has.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const PREFIX: u8 = 22;
/// Most members of a network: its addresses without the first, the resolver's and the last. A bridge has 1,023 ports.
pub const MOST_MEMBERS: u32 = (1 << (32 - PREFIX)) - 3;

/// The interface of a member, beside its user-mode network's.
pub const INTERFACE: &str = "eth1";
/// Longest packet on the bridge.
pub const MTU: u16 = 1500;

const DNS: u16 = 53;

/// Each who has the lock has it for some system calls.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a sandbox has no place in a shared network.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Only root makes interfaces.
    #[error("A network of several sandboxes needs root: run as root, or connect sandboxes by published ports (-p)")]
    Root,
    /// All addresses are taken.
    #[error("The network {0} has {MOST_MEMBERS} sandboxes, which is the most")]
    Full(BridgeName),
    /// A file or folder of it.
    #[error("Cannot {operation} {path}")]
    File {
        /// The verb.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses a namespace, a bridge or a port.
    #[error("Cannot {operation} of the network {name}: the kernel needs {module}")]
    Kernel {
        /// The verb.
        operation: &'static str,
        /// The network.
        name: BridgeName,
        /// What the kernel must have.
        module: &'static str,
        /// What it says.
        #[source]
        source: io::Error,
    },
}

/// The shared networks of one state folder.
#[derive(Clone, Debug)]
pub struct Bridges {
    state: PathBuf,
    folder: PathBuf,
}

/// A sandbox's place in a network. It is given up by [`Bridges::leave`], not by dropping this.
#[derive(Debug)]
pub struct Seat {
    namespace: OwnedFd,
    attachment: BridgeAttachment,
    port: String,
}

impl Bridges {
    /// Of this state folder.
    pub fn of(state: &Path) -> Self {
        Self { state: state.to_owned(), folder: state.join("networks") }
    }

    /// Whether this user can have shared networks at all.
    ///
    /// # Errors
    /// [`BridgeError::Root`].
    pub fn check() -> Result<(), BridgeError> {
        if rustix::process::geteuid().is_root() { Ok(()) } else { Err(BridgeError::Root) }
    }

    /// Gives a sandbox the lowest free address of a network, which is made if nobody is in it.
    ///
    /// # Errors
    /// [`BridgeError`]; what is left then, [`Bridges::leave`] clears.
    pub fn join(&self, name: &BridgeName, id: &SandboxId) -> Result<Seat, BridgeError> {
        Self::check()?;
        let _lock = self.lock()?;
        let folder = self.folder.join(name.as_str());
        make_folder(&folder)?;
        let address = addresses()
            .find_map(|address| {
                let link = folder.join(address.to_string());
                match std::os::unix::fs::symlink(id.as_str(), &link) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                    other => Some(other.map(|()| address).map_err(|e| failed("make", &link, e))),
                }
            })
            .unwrap_or_else(|| Err(BridgeError::Full(name.clone())))?;
        let namespace = self.namespace(name, &folder.join("namespace"))?;
        let attachment = BridgeAttachment { name: name.clone(), address, prefix: PREFIX, mac: mac(address) };
        Ok(Seat { namespace, attachment, port: port(id) })
    }

    fn namespace(&self, name: &BridgeName, place: &Path) -> Result<OwnedFd, BridgeError> {
        if let Some(namespace) = netns::mounted_at(place) {
            return Ok(namespace);
        }
        File::create(place).map_err(|e| failed("make", place, e))?;
        let made = netns::make_at(place, || wires::make_bridge(Some((RESOLVER, PREFIX)), mac(RESOLVER), MTU));
        made.map_err(|source| BridgeError::Kernel {
            operation: "make the bridge",
            name: name.clone(),
            module: "the module bridge",
            source,
        })?;
        netns::mounted_at(place).ok_or_else(|| failed("open", place, io::ErrorKind::NotFound.into()))
    }

    /// Gives up whatever places a sandbox has, and clears the networks that nobody is in. Its processes must be gone.
    ///
    /// # Errors
    /// The first thing that could not be done; all else was tried.
    pub fn leave(&self, id: &SandboxId) -> Result<(), BridgeError> {
        if !self.folder.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let folders = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| failed("read", &self.folder, e))?,
        };
        let folders = folders.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
        let left = folders.map(|folder| leave(&folder, id)).fold(Ok(()), Result::and);
        // With the last network.
        let _ = fs::remove_dir(&self.folder);
        left
    }

    /// Who is in a network.
    pub fn members(&self, name: &BridgeName) -> Vec<(Ipv4Addr, SandboxId)> {
        members(&self.folder.join(name.as_str()))
    }

    fn lock(&self) -> Result<File, BridgeError> {
        let state = File::open(&self.state).map_err(|e| failed("open", &self.state, e))?;
        locks::exclusive(state, PATIENCE).map_err(|e| failed("lock", &self.state, e))
    }
}

impl Seat {
    /// Its place.
    pub fn attachment(&self) -> &BridgeAttachment {
        &self.attachment
    }

    /// What a guest's agent configures.
    pub fn guest(&self) -> Network {
        let BridgeAttachment { address, prefix, .. } = self.attachment;
        Network { interface: INTERFACE.to_owned(), addresses: vec![(address.into(), prefix)], gateways: Vec::new() }
    }

    /// A tap interface on the bridge, for a monitor.
    ///
    /// # Errors
    /// [`BridgeError::Kernel`].
    pub fn tap(&self) -> Result<OwnedFd, BridgeError> {
        let made = netns::within(self.namespace.as_fd(), || {
            let tap = tap::make(&self.port)?;
            wires::attach(&self.port, MTU)?;
            Ok(tap)
        });
        made.map_err(|e| self.failed("make a tap", "the module tun", e))
    }

    /// A pair of interfaces, one on the bridge and one in a container's network namespace, configured. Each sends at this rate, if there is one.
    ///
    /// # Errors
    /// [`BridgeError::Kernel`].
    pub fn pair(&self, container: BorrowedFd<'_>, rate: Option<NetRate>) -> Result<(), BridgeError> {
        let BridgeAttachment { address, prefix, mac, .. } = self.attachment;
        let made = netns::within(self.namespace.as_fd(), || {
            wires::make_pair(&self.port, (container, INTERFACE), mac, MTU)?;
            wires::attach(&self.port, MTU)
        });
        made.map_err(|e| self.failed("make a pair of interfaces", "the module veth", e))?;
        if let Some(rate) = rate {
            let limit = |name: &str| wires::limit(name, rate, wires::waiting(rate));
            let limited = netns::within(self.namespace.as_fd(), || limit(&self.port));
            let limited = limited.and_then(|()| netns::within(container, || limit(INTERFACE)));
            limited.map_err(|e| self.failed("limit the rate", "the module sch_tbf", e))?;
        }
        let configured = netns::within(container, || wires::configure(INTERFACE, (address.into(), prefix)));
        configured.map_err(|e| self.failed("configure an interface", "IPv4", e))
    }

    /// Answers members' questions for names from now on, beside all other members' owners, until the responder is dropped.
    ///
    /// # Errors
    /// [`BridgeError::Kernel`].
    pub fn answer(&self, directory: Arc<dyn Directory>) -> Result<Responder, BridgeError> {
        let bound = netns::within(self.namespace.as_fd(), || bind(SocketAddrV4::new(RESOLVER, DNS)));
        let answering = bound.and_then(|socket| Responder::start(socket, directory));
        answering.map_err(|e| self.failed("answer for the names", "UDP", e))
    }

    fn failed(&self, operation: &'static str, module: &'static str, source: io::Error) -> BridgeError {
        BridgeError::Kernel { operation, name: self.attachment.name.clone(), module, source }
    }
}

/// Each member's owner has a socket of this address; the kernel gives a question to one of them (SO_REUSEPORT, socket(7)).
fn bind(address: SocketAddrV4) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket.into())
}

/// The addresses that members can have, from the lowest.
fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    let first = u32::from(RESOLVER).saturating_add(1);
    (0..MOST_MEMBERS).map(move |n| Ipv4Addr::from(first.saturating_add(n)))
}

/// A locally administered address that follows from the IP address, so that nobody's cache of neighbours goes stale.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x64, a, b, c, d]
}

/// The member's port on the bridge: an interface's name has at most 15 bytes.
fn port(id: &SandboxId) -> String {
    format!("dx{:.13}", id.as_str())
}

fn members(folder: &Path) -> Vec<(Ipv4Addr, SandboxId)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let member = |entry: fs::DirEntry| {
        let address = entry.file_name().to_str()?.parse().ok()?;
        Some((address, fs::read_link(entry.path()).ok()?.to_str()?.parse().ok()?))
    };
    entries.filter_map(member).collect()
}

/// Under the lock.
fn leave(folder: &Path, id: &SandboxId) -> Result<(), BridgeError> {
    let (own, others): (Vec<_>, Vec<_>) = members(folder).into_iter().partition(|(_, member)| member == id);
    let place = folder.join("namespace");
    let mut done = Ok(());
    if others.is_empty() {
        if netns::mounted_at(&place).is_some() {
            let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
            done = rustix::mount::unmount(&place, flags).map_err(|e| failed("unmount", &place, e.into()));
        }
    } else if let Some(namespace) = netns::mounted_at(&place).filter(|_| !own.is_empty()) {
        // The kernel takes its time with the end of a container's namespace, and with it the pair of interfaces.
        let removed = netns::within(namespace.as_fd(), || wires::remove(&port(id)));
        done = removed.map_err(|e| failed("remove a port of", folder, e));
    }
    done?;
    for (address, _) in own {
        remove(&folder.join(address.to_string()))?;
    }
    if others.is_empty() {
        remove(&place)?;
        fs::remove_dir(folder).map_err(|e| failed("remove", folder, e))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), BridgeError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}

fn make_folder(path: &Path) -> Result<(), BridgeError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed("make", path, e))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> BridgeError {
    BridgeError::File { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_network() {
        let all: Vec<_> = addresses().collect();
        assert_eq!(
            (all.first(), all.last()),
            (Some(&Ipv4Addr::new(198, 19, 0, 2)), Some(&Ipv4Addr::new(198, 19, 3, 254)))
        );
        let network = |a: Ipv4Addr| u32::from(a) >> (32 - u32::from(PREFIX));
        assert!(all.iter().all(|a| network(*a) == network(RESOLVER) && *a != RESOLVER));
        assert!(all.len() < 1023, "a bridge has no more ports");
        let macs: std::collections::BTreeSet<_> = all.iter().map(|a| mac(*a)).collect();
        assert_eq!(macs.len(), all.len());
        assert!(macs.iter().all(|mac| mac[0] & 3 == 2), "locally administered, of one");
    }

    #[test]
    fn names_of_interfaces_fit() {
        let id = SandboxId::from_bytes([0xab; 6]);
        let name = port(&id);
        assert!(name.len() <= 15 && name.ends_with(id.as_str()), "{name}");
    }

    #[test]
    fn who_is_in_no_network_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let bridges = Bridges::of(state.path());
        bridges.leave(&SandboxId::from_bytes([1; 6])).unwrap();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_half_made_network_goes_with_the_next_who_leaves_any() {
        let state = tempfile::tempdir().unwrap();
        let bridges = Bridges::of(state.path());
        let (gone, other) = (SandboxId::from_bytes([1; 6]), SandboxId::from_bytes([2; 6]));
        let of = |name: &str| state.path().join("networks").join(name);
        for name in ["empty", "half", "used"] {
            fs::create_dir_all(of(name)).unwrap();
        }
        fs::write(of("half").join("namespace"), "").unwrap();
        std::os::unix::fs::symlink(gone.as_str(), of("half").join("198.19.0.2")).unwrap();
        for (id, address) in [(&gone, "198.19.0.2"), (&other, "198.19.0.3")] {
            std::os::unix::fs::symlink(id.as_str(), of("used").join(address)).unwrap();
        }
        bridges.leave(&gone).unwrap();
        assert!(!of("empty").exists() && !of("half").exists());
        let name = BridgeName::try_from("used".to_owned()).unwrap();
        assert_eq!(bridges.members(&name), [(Ipv4Addr::new(198, 19, 0, 3), other)]);
    }
}
