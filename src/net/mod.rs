//! Networks on the host's side: what a sandbox's user-mode network is, the process that makes its connections, the networks that sandboxes
//! share, and the files in `/etc` that tell of both. Knows no engine.
//!
//! ```text
//! NetworkSpec + HostNetwork --> Plan --> arguments of passt (microVM) or pasta (container) --> Helper, in a cgroup with closed addresses
//!                                  \--> addresses for the guest's agent, /etc/hosts, /etc/resolv.conf
//! ```

pub mod bridge;
mod files;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod helper;
mod host;
mod late;
mod limiter;
mod plan;
mod ports;
mod tbf;
mod wires;

pub use files::{Files, files};
pub use helper::{Helper, PASST, PASTA, wire};
pub use host::HostNetwork;
pub use late::Late;
pub use limiter::Limiter;
pub use plan::{INTERFACE, MAC, Plan, mtu};

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::spec::{Protocol, Publish};

/// The Debian package of passt and pasta.
pub const PACKAGE: &str = "passt";

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The program is not installed.
    #[error(
        "There is no {program}, which makes a sandbox's connections: install it with 'apt-get install {PACKAGE}', or run with --net none"
    )]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// It does not run.
    #[error("Cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("{program} could not make the network: {words}")]
    Ended {
        /// Its name.
        program: &'static str,
        /// What it said.
        words: String,
    },
    /// It is neither ready nor at its end.
    #[error("{program} is not ready after {} s", .after.as_secs())]
    Silent {
        /// Its name.
        program: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// A pipe or a file in memory is not to be had.
    #[error("The host refuses a pipe, a socket or a file")]
    Resource(#[source] io::Error),
    /// Without this the sandbox would reach what is closed.
    #[error(
        "Cannot close the host's loopback and link-local addresses to the sandbox: the kernel needs CONFIG_CGROUP_BPF, and we CAP_BPF and CAP_NET_ADMIN"
    )]
    Close(#[source] io::Error),
    /// The namespace of the container's network.
    #[error("Cannot make the container's network namespace (user.max_user_namespaces must not be 0)")]
    Namespace(#[source] io::Error),
    /// The kernel refuses what limits a container's rate.
    #[error(
        "Cannot limit the rate of the container's network: the kernel needs the module {module} ('modprobe {module}')"
    )]
    Rate {
        /// What the kernel must have.
        module: &'static str,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// pasta runs as nobody and must open it.
    #[error(
        "/dev/net/tun cannot be opened by everyone, as pasta needs it: 'modprobe tun' makes it, 'chmod 666 /dev/net/tun' opens it"
    )]
    Tun,
    /// Somebody has the port.
    #[error("Port {0} of this host is taken: publish another one ('ss -lntup' shows who has it)")]
    Taken(Where),
    /// Not an address of this host.
    #[error("Port {0} cannot be published: this host does not have the address")]
    Address(Where),
    /// Not allowed to this user.
    #[error("Port {0} cannot be published: ports below 1024 need root")]
    Privileged(Where, #[source] io::Error),
    /// The kernel says no.
    #[error("Port {0} cannot be published")]
    Port(Where, #[source] io::Error),
    /// passt knows each port of the host once.
    #[error("Port {0}/{1} of the host is published twice")]
    Twice(u16, Protocol),
    /// An IPv6 address without IPv6.
    #[error("Port {0} cannot be published: this host has no IPv6 route, so the sandbox has no IPv6")]
    NoIpv6(Where),
}

/// A port of the host in an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Where {
    address: Option<IpAddr>,
    port: u16,
    protocol: Protocol,
}

impl Where {
    /// Of this one.
    pub fn of(publish: &Publish) -> Self {
        Self { address: publish.address, port: publish.host, protocol: publish.protocol }
    }
}

impl std::fmt::Display for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}/{}", self.port, self.protocol),
            Some(address) => write!(f, "{address}:{}/{}", self.port, self.protocol),
            None => write!(f, "{}/{}", self.port, self.protocol),
        }
    }
}
