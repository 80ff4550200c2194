//! What the host's own network is: its name servers, and whether it has IPv6.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Where systemd-resolved keeps the servers that stand behind its own on the loopback.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Most name servers and search domains that are handed on; resolvers use three (resolv.conf(5)).
const MOST: usize = 8;

/// RTF_UP and RTF_REJECT (linux/route.h).
const ROUTE_UP: u32 = 0x1;
const ROUTE_REJECTS: u32 = 0x200;

/// The host's network as far as a sandbox's depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// Name servers that a sandbox can ask itself.
    pub resolvers: Vec<IpAddr>,
    /// A name server on the host's own loopback, if there are no others.
    pub local_resolver: Option<Ipv4Addr>,
    /// Domains that names are looked up in.
    pub search: Vec<String>,
    /// The interface of the IPv6 default route, if it has a link-local address.
    pub ipv6: Option<String>,
}

impl HostNetwork {
    /// Looks.
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
        let mut host = Self::of_resolv_conf(&read("/etc/resolv.conf"));
        if host.resolvers.is_empty() {
            let behind = Self::of_resolv_conf(&read(BEHIND_RESOLVED));
            if !behind.resolvers.is_empty() {
                host = behind;
            }
        }
        host.ipv6 = ipv6(&read("/proc/net/ipv6_route"), &read("/proc/net/if_inet6"));
        host
    }

    #[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
    pub(super) fn fuzz(resolv: &str, routes: &str, addresses: &str) -> Self {
        Self { ipv6: ipv6(routes, addresses), ..Self::of_resolv_conf(resolv) }
    }

    fn of_resolv_conf(text: &str) -> Self {
        let mut host = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // Addresses with a zone are the host's links'.
                    match words.next().and_then(|word| word.parse().ok()) {
                        Some(IpAddr::V4(ip)) if ip.is_loopback() => drop(host.local_resolver.get_or_insert(ip)),
                        Some(ip) if !is_own(ip) && host.resolvers.len() < MOST => host.resolvers.push(ip),
                        _ => {}
                    }
                }
                // The last of these lines counts.
                Some("search" | "domain") => host.search = words.take(MOST).map(str::to_owned).collect(),
                _ => {}
            }
        }
        if !host.resolvers.is_empty() {
            host.local_resolver = None;
        }
        host
    }
}

/// An address that means another thing in a sandbox.
fn is_own(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local(),
    }
}

/// The interface of a default route (`/proc/net/ipv6_route`) that has a link-local address (`/proc/net/if_inet6`).
fn ipv6(routes: &str, addresses: &str) -> Option<String> {
    let has_link_local =
        |name: &str| addresses.lines().any(|l| l.starts_with("fe8") && l.split_whitespace().last() == Some(name));
    routes.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[to, prefix, .., flags, name] = fields.as_slice() else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let default = to.bytes().all(|b| b == b'0') && prefix == "00";
        let usable = flags & ROUTE_UP != 0 && flags & ROUTE_REJECTS == 0;
        (default && usable && has_link_local(name)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_those_that_a_sandbox_can_ask() {
        let of = HostNetwork::of_resolv_conf;
        let host = of(
            "# x\nsearch a.example b.example\nnameserver 192.0.2.1\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n",
        );
        assert_eq!(host.resolvers, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(host.search, ["a.example", "b.example"]);
        let local = of("nameserver 127.0.0.53\noptions edns0\n");
        assert_eq!((local.resolvers.len(), local.local_resolver), (0, Some(Ipv4Addr::new(127, 0, 0, 53))));
        assert_eq!(of("nameserver 127.0.0.1\nnameserver 192.0.2.1").local_resolver, None);
        assert_eq!(of(&"nameserver 192.0.2.1\n".repeat(100)).resolvers.len(), MOST);
        assert_eq!(of("nameserver\nnameserver x\n\u{0}"), HostNetwork::default());
    }

    #[test]
    fn ipv6_needs_a_route_and_a_link_local_address() {
        let zeroes = "0".repeat(32);
        let route = |flags: &str, name: &str| {
            format!(
                "{zeroes} 00 {zeroes} 00 fe800000000000000000000000000001 00000400 00000001 00000000 {flags}     {name}\n"
            )
        };
        let addresses = "fe800000000000000000000000000001 02 40 20 80     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(ipv6(&route("00000003", "eth0"), addresses).as_deref(), Some("eth0"));
        assert_eq!(ipv6(&route("00000003", "eth1"), addresses), None);
        assert_eq!(ipv6(&route("00200200", "lo"), addresses), None);
        assert_eq!(ipv6("", ""), None);
    }
}
