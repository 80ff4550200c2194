//! Interfaces by rtnetlink(7), in the network namespace of the calling thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, send, socket_with};

use super::tbf;
use crate::spec::NetRate;

/// The bridge, in a namespace of its own.
const BRIDGE: &str = "bridge";

/// The namespace has IPv4 alone: members' IPv6 is among themselves.
const NO_IPV6: [&str; 2] = ["/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/net/ipv6/conf/default/disable_ipv6"];

/// Makes the bridge, up and with these addresses, if any. Its hardware address would otherwise be that of a port, and change with the ports.
pub(super) fn make_bridge(address: Option<(Ipv4Addr, u8)>, mac: [u8; 6], mtu: u16) -> io::Result<()> {
    // A kernel without IPv6 has none of these files.
    for path in NO_IPV6 {
        match std::fs::write(path, "1") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let talk = Talk::new()?;
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]);
    let name = LinkAttribute::IfName(BRIDGE.to_owned());
    let mac = LinkAttribute::Address(mac.to_vec());
    talk.make(RouteNetlinkMessage::NewLink(up(vec![name, mac, LinkAttribute::Mtu(mtu.into()), kind])))?;
    match address {
        Some((address, prefix)) => configure(BRIDGE, (address.into(), prefix)),
        None => bring_up(BRIDGE),
    }
}

/// Makes a pair of interfaces: `port` here, the other with this name and hardware address in another network namespace.
pub(super) fn make_pair(
    port: &str,
    (namespace, name): (BorrowedFd<'_>, &str),
    mac: [u8; 6],
    mtu: u16,
) -> io::Result<()> {
    let mut other = LinkMessage::default();
    other.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu.into()),
    ];
    let pair = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other)))];
    let link = up(vec![LinkAttribute::IfName(port.to_owned()), LinkAttribute::LinkInfo(pair)]);
    Talk::new()?.make(RouteNetlinkMessage::NewLink(link))
}

/// Makes an interface a port of the bridge, and brings it up.
pub(super) fn attach(port: &str, mtu: u16) -> io::Result<()> {
    let talk = Talk::new()?;
    let mut link = up(vec![LinkAttribute::Controller(talk.index(BRIDGE)?), LinkAttribute::Mtu(mtu.into())]);
    link.header.index = talk.index(port)?;
    talk.ask(RouteNetlinkMessage::SetLink(link), 0)
}

/// Brings an interface up and gives it its address.
pub(super) fn configure(name: &str, address: (IpAddr, u8)) -> io::Result<()> {
    bring_up(name)?;
    add_address(name, address)
}

/// Brings an interface up.
pub(super) fn bring_up(name: &str) -> io::Result<()> {
    let talk = Talk::new()?;
    let mut link = up(Vec::new());
    link.header.index = talk.index(name)?;
    talk.ask(RouteNetlinkMessage::SetLink(link), 0)
}

/// Gives an interface an address. Nobody else has it, so nobody is asked.
pub(super) fn add_address(name: &str, (address, prefix): (IpAddr, u8)) -> io::Result<()> {
    let talk = Talk::new()?;
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = talk.index(name)?;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message.attributes.push(match address {
        IpAddr::V4(address) => {
            let last = u32::from(address) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            AddressAttribute::Broadcast(last.into())
        }
        IpAddr::V6(_) => AddressAttribute::Flags(AddressFlags::Nodad),
    });
    talk.make(RouteNetlinkMessage::NewAddress(message))
}

/// Sends what has no other way to this gateway.
pub(super) fn add_default_route(name: &str, gateway: IpAddr) -> io::Result<()> {
    let talk = Talk::new()?;
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    let to = match gateway {
        IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
        IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
    };
    message.attributes = vec![RouteAttribute::Gateway(to), RouteAttribute::Oif(talk.index(name)?)];
    talk.make(RouteNetlinkMessage::NewRoute(message))
}

/// Moves an interface to another network namespace, where it is down and has no addresses.
pub(super) fn hand_over(name: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
    set(name, LinkAttribute::NetNsFd(namespace.as_raw_fd()))
}

/// Gives an interface another hardware address.
pub(super) fn set_address(name: &str, mac: [u8; 6]) -> io::Result<()> {
    set(name, LinkAttribute::Address(mac.to_vec()))
}

fn set(name: &str, attribute: LinkAttribute) -> io::Result<()> {
    let talk = Talk::new()?;
    let mut link = LinkMessage::default();
    link.header.index = talk.index(name)?;
    link.attributes = vec![attribute];
    talk.ask(RouteNetlinkMessage::SetLink(link), 0)
}

/// Limits what an interface sends to this rate; so many bytes wait, and what comes beyond is dropped.
pub(super) fn limit(name: &str, rate: NetRate, waiting: u32) -> io::Result<()> {
    let talk = Talk::new()?;
    let message = tbf::queue(talk.index(name)?, rate, waiting)?;
    talk.make(RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// How many bytes wait for an interface at this rate where the senders slow down for what is lost: those of 200 ms, and at least some of the
/// longest frames.
pub(super) fn waiting(rate: NetRate) -> u32 {
    (rate.bytes() / 5).max(512 << 10)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Removes an interface; one that is not there is no error.
pub(super) fn remove(name: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    match Talk::new()?.ask(RouteNetlinkMessage::DelLink(link), 0) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

fn up(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = attributes;
    link
}

/// A socket of the kernel's network configuration.
struct Talk(OwnedFd);

impl Talk {
    fn new() -> io::Result<Self> {
        let family = rustix::net::AddressFamily::NETLINK;
        // The protocol NETLINK_ROUTE is 0, the default.
        Ok(Self(socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        Ok(netdevice::name_to_index(&self.0, name)?)
    }

    /// Something that is not there yet.
    fn make(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.ask(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sends a request and waits for the kernel's word on it.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.0, &bytes, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (count, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer.get(..count).unwrap_or_default());
        match answer.map_err(io::Error::other)?.payload {
            NetlinkPayload::Error(verdict) => match verdict.code {
                None => Ok(()),
                Some(errno) => Err(io::Error::from_raw_os_error(errno.get().saturating_neg())),
            },
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
