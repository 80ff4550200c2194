//! The guest's network as the host has planned it: no DHCP, nothing to wait for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One interface that the agent configures before the command starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name in the guest.
    pub interface: String,
    /// Its addresses with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where packets to everywhere else go, at most one address of each family.
    pub gateways: Vec<IpAddr>,
}
