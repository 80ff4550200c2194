//! What one sandbox's user-mode network is, and how passt and pasta are told of it. The same in both isolations: addresses, gateway, MTU.
//!
//! The addresses are the ones that QEMU's user network has made customary. They are the sandbox's own: what else is in these networks is the
//! world as the host sees it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use duplex_wire::Network;

use super::{HostNetwork, NetError, Where};
use crate::spec::{Attachment, HostAddress, NetRate, NetworkSpec, Protocol, Publish};
use crate::sys::egress::{self, Openings};
use crate::sys::netns::NOBODY;

/// The sandbox's interface.
pub const INTERFACE: &str = "eth0";
/// Its hardware address, and that of everything beyond it.
pub const MAC: [u8; 6] = [0x02, 0x64, 0x75, 0x70, 0x00, 0x0f];
const BEYOND: [u8; 6] = [0x02, 0x64, 0x75, 0x70, 0x00, 0x02];
/// Longest packet: no wire is under it, and longer frames reach passt in pieces, which it does not survive.
const MTU: u16 = 32_768;
/// Longest packet of the slowest networks: that of an Ethernet.
const LEAST_MTU: u16 = 1500;

const ADDRESS4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where a resolver on the host's loopback is asked.
const RESOLVER4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PREFIX4: u8 = 24;
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0x7570, 0x6c78, 0, 0, 0, 0, 0x15);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const PREFIX6: u8 = 64;

/// The port of name servers.
const DNS: u16 = 53;

/// Longest packet of a network with this rate, in bytes without the Ethernet header. A packet shall not hold the line for longer than 10 ms: others
/// wait behind it, and TCP takes for lost what takes its time.
pub fn mtu(rate: Option<NetRate>) -> u16 {
    let fits = |rate: NetRate| u16::try_from(rate.bytes() / 100).unwrap_or(MTU);
    rate.map_or(MTU, |rate| fits(rate).clamp(LEAST_MTU, MTU))
}

/// One sandbox's user-mode network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Published ports; none is 0.
    pub publish: Vec<Publish>,
    /// Name servers for its `/etc/resolv.conf`.
    pub resolvers: Vec<IpAddr>,
    /// What of the closed addresses is open to it.
    pub open: Openings,
    /// How fast it goes in each direction.
    pub rate: Option<NetRate>,
    /// The interface from which IPv6 goes out; the sandbox has no IPv6 if `None`.
    ipv6: Option<String>,
    /// Questions to [`RESOLVER4`] go to the resolver on the host's loopback.
    forwards: bool,
}

impl Plan {
    /// The network that this spec asks for on this host. Ports that the host shall choose are chosen, and all are free at this moment.
    ///
    /// # Errors
    /// [`NetError`] if a port cannot be published.
    pub fn new(spec: &NetworkSpec, host: &HostNetwork) -> Result<Self, NetError> {
        let mut seen = BTreeSet::new();
        for publish in spec.publish.iter().filter(|p| p.host != 0) {
            if !seen.insert((publish.protocol, publish.host)) {
                return Err(NetError::Twice(publish.host, publish.protocol));
            }
            if publish.address.is_some_and(|a| a.is_ipv6()) && host.ipv6.is_none() {
                return Err(NetError::NoIpv6(Where::of(publish)));
            }
        }
        let publish = super::ports::claim(&spec.publish, host.ipv6.is_some())?;
        let usable = |ip: &&IpAddr| ip.is_ipv4() || host.ipv6.is_some();
        let local = host.local_resolver.filter(|_| spec.dns.is_empty());
        let resolvers: Vec<IpAddr> = match (&spec.dns[..], local) {
            ([], Some(_)) => vec![RESOLVER4.into()],
            ([], None) => host.resolvers.iter().filter(usable).copied().collect(),
            (named, _) => named.to_vec(),
        };
        // A loopback address named by --dns is the sandbox's own.
        let closed = resolvers.iter().filter(|ip| egress::is_closed(**ip) && !ip.is_loopback());
        let local_service = local.map(IpAddr::from);
        let services = closed.copied().chain(local_service).map(|ip| (ip, DNS)).collect();
        let answering = publish.iter().filter(|p| p.protocol == Protocol::Udp).map(|p| p.host).collect();
        let loopback = spec.hosts.iter().any(|(_, address)| *address == HostAddress::Gateway);
        let open = Openings { loopback, services, answering };
        let (rate, ipv6) = (spec.rate, host.ipv6.clone());
        Ok(Self { publish, resolvers, open, rate, ipv6, forwards: local.is_some() })
    }

    /// Longest packet, in bytes without the Ethernet header.
    pub fn mtu(&self) -> u16 {
        mtu(self.rate)
    }

    /// The sandbox's addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.guest().addresses.into_iter().map(|(address, _)| address).collect()
    }

    /// Its gateways.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.guest().gateways
    }

    /// What the guest's agent configures.
    pub fn guest(&self) -> Network {
        let mut addresses = vec![(ADDRESS4.into(), PREFIX4)];
        let mut gateways = vec![GATEWAY4.into()];
        if self.ipv6.is_some() {
            addresses.push((ADDRESS6.into(), PREFIX6));
            gateways.push(GATEWAY6.into());
        }
        Network { interface: INTERFACE.to_owned(), addresses, gateways }
    }

    /// How the sandbox is connected. A port that is published without an address is bound on all addresses of each family.
    pub fn attachment(&self) -> Attachment {
        let Network { addresses, gateways, .. } = self.guest();
        let everywhere = || {
            let six = self.ipv6.is_some().then_some(IpAddr::from(Ipv6Addr::UNSPECIFIED));
            std::iter::once(IpAddr::from(Ipv4Addr::UNSPECIFIED)).chain(six)
        };
        let bound = |port: &Publish| {
            let port = *port;
            let named = port.address.into_iter();
            let unnamed = everywhere().filter(move |_| port.address.is_none());
            named.chain(unnamed).map(move |address| Publish { address: Some(address), ..port })
        };
        Attachment {
            addresses,
            gateways,
            mac: Some(MAC),
            ports: self.publish.iter().flat_map(bound).collect(),
            bridge: None,
        }
    }

    /// Arguments of passt, which has inherited its end of the wire and of the pipe that tells of its readiness.
    pub(super) fn passt(&self, wire: i32, ready: i32) -> Vec<String> {
        let mut args = vec!["--fd".to_owned(), wire.to_string()];
        self.common(ready, NOBODY, &mut args);
        args
    }

    /// Arguments of pasta, which has inherited the container's network namespace and the user namespace that owns it, and becomes their owner.
    pub(super) fn pasta(&self, [user, network, ready]: [i32; 3], owner: u32) -> Vec<String> {
        let mut args: Vec<String> =
            ["--userns", &by_number(user), "--netns", &by_number(network)].map(Into::into).into();
        args.extend(
            ["--no-netns-quit", "--config-net", "--ns-ifname", INTERFACE, "--ns-mac-addr", &mac(MAC)].map(Into::into),
        );
        // Nothing from the container's loopback to the host's.
        args.extend(["--tcp-ns", "none", "--udp-ns", "none"].map(Into::into));
        self.common(ready, owner, &mut args);
        args
    }

    fn common(&self, ready: i32, user: u32, args: &mut Vec<String>) {
        let mut add = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));
        add(&["--foreground", "--quiet", "--stderr", "--runas", &format!("{user}:{user}"), "--pid", &by_number(ready)]);
        add(&["--mtu", &self.mtu().to_string(), "--mac-addr", &mac(BEYOND)]);
        add(&[
            "--address",
            &ADDRESS4.to_string(),
            "--netmask",
            &PREFIX4.to_string(),
            "--gateway",
            &GATEWAY4.to_string(),
        ]);
        // All that it would read from an interface is given, so any will do.
        match &self.ipv6 {
            Some(interface) => {
                add(&[
                    "--interface",
                    interface,
                    "--address",
                    &ADDRESS6.to_string(),
                    "--gateway",
                    &GATEWAY6.to_string(),
                ]);
            }
            None => add(&["--interface", "lo", "--ipv4-only"]),
        }
        add(&["--no-dhcp", "--no-dhcpv6", "--no-ra", "--search", "none"]);
        if self.forwards {
            add(&["--dns-forward", &RESOLVER4.to_string()]);
        } else {
            add(&["--dns", "none"]);
        }
        for (protocol, option) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
            let mut ports = self.publish.iter().filter(|p| p.protocol == protocol).peekable();
            if ports.peek().is_none() {
                add(&[option, "none"]);
            }
            for port in ports {
                let address = port.address.map_or_else(String::new, |a| format!("{a}/"));
                add(&[option, &format!("{address}{}:{}", port.host, port.guest)]);
            }
        }
    }
}

/// An ARP announcement of the sandbox's address (RFC 5227, 3), as a frame on the wire to passt: behind its length.
pub(super) fn announcement() -> Vec<u8> {
    const TO_ALL: [u8; 6] = [0xff; 6];
    const ARP: [u8; 2] = [0x08, 0x06];
    /// Ethernet and IPv4 with the lengths of their addresses; a request.
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let address = ADDRESS4.octets();
    let frame = [&TO_ALL[..], &MAC, &ARP, &REQUEST, &MAC, &address, &[0; 6], &address].concat();
    let length = u32::try_from(frame.len()).unwrap_or(0);
    [&length.to_be_bytes()[..], &frame].concat()
}

fn by_number(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::NetworkMode;

    fn user() -> NetworkSpec {
        NetworkSpec { mode: NetworkMode::User, ..NetworkSpec::default() }
    }

    #[test]
    fn an_announcement_is_a_frame_of_arp() {
        let bytes = announcement();
        assert_eq!(bytes[..4], 42_u32.to_be_bytes());
        assert_eq!(bytes[4..18], [255, 255, 255, 255, 255, 255, 2, 0x64, 0x75, 0x70, 0, 15, 8, 6]);
        assert_eq!(bytes[18..26], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(bytes[26..], [2, 0x64, 0x75, 0x70, 0, 15, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15]);
    }

    #[test]
    fn arguments_close_what_passt_opens_by_itself() {
        let plan = Plan::new(&user(), &HostNetwork::default()).unwrap();
        let passt = plan.passt(3, 4).join(" ");
        for words in [
            "--fd 3",
            "--pid /proc/self/fd/4",
            "--tcp-ports none",
            "--udp-ports none",
            "--dns none",
            "--ipv4-only",
            "--interface lo",
        ] {
            assert!(passt.contains(words), "{words} is not in {passt}");
        }
        let pasta = plan.pasta([3, 4, 5], 65534).join(" ");
        for words in [
            "--userns /proc/self/fd/3",
            "--netns /proc/self/fd/4",
            "--tcp-ns none",
            "--udp-ns none",
            "--tcp-ports none",
        ] {
            assert!(pasta.contains(words), "{words} is not in {pasta}");
        }
        assert_eq!(plan.open, Openings::default());
    }

    #[test]
    fn name_servers_at_closed_addresses_are_opened_alone() {
        let host = HostNetwork {
            resolvers: vec![[169, 254, 169, 254].into(), [192, 0, 2, 1].into()],
            ..HostNetwork::default()
        };
        let plan = Plan::new(&user(), &host).unwrap();
        assert_eq!(plan.open.services, [([169, 254, 169, 254].into(), 53)]);
        let host = HostNetwork { local_resolver: Some(Ipv4Addr::new(127, 0, 0, 53)), ..HostNetwork::default() };
        let plan = Plan::new(&user(), &host).unwrap();
        assert_eq!(plan.resolvers, [IpAddr::from(RESOLVER4)]);
        assert_eq!(plan.open.services, [([127, 0, 0, 53].into(), 53)]);
        assert!(plan.passt(3, 4).join(" ").contains("--dns-forward 10.0.2.3"));
        let named = NetworkSpec { dns: vec![[127, 0, 0, 1].into()], ..user() };
        let plan = Plan::new(&named, &host).unwrap();
        assert_eq!((plan.resolvers, plan.open.services), (vec![[127, 0, 0, 1].into()], vec![]));
    }

    #[test]
    fn a_slow_network_has_short_packets() {
        let of = |text: &str| mtu(Some(text.parse().unwrap()));
        assert_eq!((mtu(None), of("64kbit"), of("4mbit"), of("1gbit")), (32_768, 1500, 5000, 32_768));
        let plan = Plan::new(&NetworkSpec { rate: "4mbit".parse().ok(), ..user() }, &HostNetwork::default()).unwrap();
        assert!(plan.passt(3, 4).join(" ").contains("--mtu 5000"));
    }

    #[test]
    fn ipv6_comes_with_the_hosts() {
        let host = HostNetwork {
            ipv6: Some("eth7".into()),
            resolvers: vec!["2001:db8::1".parse().unwrap()],
            ..HostNetwork::default()
        };
        let plan = Plan::new(&user(), &host).unwrap();
        assert_eq!((plan.guest().addresses.len(), plan.resolvers.len()), (2, 1));
        assert!(plan.passt(3, 4).join(" ").contains("--interface eth7"));
        let without = Plan::new(&user(), &HostNetwork { ipv6: None, ..host }).unwrap();
        assert_eq!((without.guest().addresses.len(), without.resolvers.len()), (1, 0));
    }

    #[test]
    fn the_gateway_opens_the_loopback_and_nothing_else() {
        let spec = NetworkSpec { hosts: vec![("h".into(), HostAddress::Gateway)], ..user() };
        let plan = Plan::new(&spec, &HostNetwork::default()).unwrap();
        assert_eq!(plan.open, Openings { loopback: true, ..Openings::default() });
    }

    #[test]
    fn a_port_of_the_host_is_published_once() {
        let port = |address: [u8; 4], host| Publish {
            address: Some(address.into()),
            host,
            guest: 80,
            protocol: Protocol::Tcp,
        };
        let spec = NetworkSpec { publish: vec![port([127, 0, 0, 1], 65001), port([127, 0, 0, 2], 65001)], ..user() };
        assert!(matches!(Plan::new(&spec, &HostNetwork::default()), Err(NetError::Twice(65001, Protocol::Tcp))));
        let six =
            Publish { address: Some(Ipv6Addr::LOCALHOST.into()), host: 65001, guest: 80, protocol: Protocol::Udp };
        let spec = NetworkSpec { publish: vec![six], ..user() };
        assert!(matches!(Plan::new(&spec, &HostNetwork::default()), Err(NetError::NoIpv6(_))));
    }
}
