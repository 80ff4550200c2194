//! The guest's network interface: addresses and routes by rtnetlink(7), as the host has planned them.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use duplex_wire::Network;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, send, socket_with};

use crate::sys;
use crate::trouble::{Doing, Trouble};

/// Message types and flags of linux/netlink.h and linux/rtnetlink.h.
const NLMSG_ERROR: u16 = 2;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const REQUEST: u16 = 0x1 | 0x4 | 0x400; // NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// The address is nobody else's, so no time goes into asking.
const IFA_F_NODAD: u8 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// What a container engine sets in each network namespace: ports and pings for everybody (ip-sysctl.rst).
const SETTINGS: [(&str, &str); 2] =
    [("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"), ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")];

/// Sets what every sandbox has.
pub(crate) fn set_defaults() -> Result<(), Trouble> {
    SETTINGS
        .iter()
        .try_for_each(|(path, value)| std::fs::write(path, value).doing(|| format!("write {value} to {path}")))
}

/// Brings the interface up, gives it its addresses and lays the default routes.
pub(crate) fn configure(network: &Network) -> Result<(), Trouble> {
    let name = &network.interface;
    let flags = SocketFlags::CLOEXEC;
    // The protocol NETLINK_ROUTE is 0, the default.
    let talk = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .doing(|| "reach the kernel's network configuration".into())?;
    let index = netdevice::name_to_index(&talk, name).doing(|| format!("find the interface {name}"))?;
    if !network.addresses.iter().any(|(address, _)| address.is_ipv6()) {
        without_ipv6(name)?;
    }
    sys::interface_up(name).doing(|| format!("bring the interface {name} up"))?;
    for (address, prefix) in &network.addresses {
        ask(&talk, RTM_NEWADDR, &address_message(*address, *prefix, index))
            .doing(|| format!("give {name} the address {address}/{prefix}"))?;
    }
    for gateway in &network.gateways {
        ask(&talk, RTM_NEWROUTE, &route_message(*gateway, index)).doing(|| format!("lay the route over {gateway}"))?;
    }
    Ok(())
}

/// Keeps IPv6 off an interface that has no address of it, as Docker does: the kernel would give it one of its own and tell the neighbours, and
/// whoever waits for the first frame to make the connections would have to start for that.
fn without_ipv6(name: &str) -> Result<(), Trouble> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::write(&path, "1") {
        // Another kernel may have no IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.doing(|| format!("write 1 to {path}")),
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    u8::try_from(family.as_raw()).unwrap_or_default()
}

/// struct ifaddrmsg and its attributes.
fn address_message(address: IpAddr, prefix: u8, index: u32) -> Vec<u8> {
    let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut message = vec![family(address), prefix, flags, 0];
    message.extend(index.to_ne_bytes());
    let bytes = octets(address);
    attribute(&mut message, IFA_LOCAL, &bytes);
    attribute(&mut message, IFA_ADDRESS, &bytes);
    if let IpAddr::V4(ip) = address {
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        attribute(&mut message, IFA_BROADCAST, &(u32::from(ip) | hosts).to_be_bytes());
    }
    message
}

/// struct rtmsg and its attributes: to everywhere, over this gateway.
fn route_message(gateway: IpAddr, index: u32) -> Vec<u8> {
    let mut message = vec![family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
    attribute(&mut message, RTA_GATEWAY, &octets(gateway));
    attribute(&mut message, RTA_OIF, &index.to_ne_bytes());
    message
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// struct rtattr: length, type, value, padded to four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Sends a request and waits for the kernel's word on it.
fn ask(talk: &OwnedFd, kind: u16, body: &[u8]) -> io::Result<()> {
    // struct nlmsghdr: length, type, flags, sequence, port.
    let length = u32::try_from(body.len().saturating_add(16)).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    send(talk, &message, SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (count, _) = recv(talk, &mut answer[..], RecvFlags::empty())?;
    verdict(answer.get(..count).unwrap_or_default())
}

/// NLMSG_ERROR with the negated errno, 0 if all is well.
fn verdict(answer: &[u8]) -> io::Result<()> {
    let field = |from: usize| answer.get(from..)?.first_chunk::<4>().copied();
    let is_verdict = answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes());
    match field(16).map(i32::from_ne_bytes).filter(|_| is_verdict) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let message = address_message([10, 0, 2, 15].into(), 24, 2);
        assert_eq!(message[..8], [2, 24, 0, 0, 2, 0, 0, 0]);
        assert_eq!(message[8..16], [8, 0, 2, 0, 10, 0, 2, 15]);
        assert_eq!(message[24..], [8, 0, 4, 0, 10, 0, 2, 255]);
        let message = address_message("fd00::1".parse().unwrap(), 64, 2);
        assert_eq!((message[..4].to_vec(), message.len()), (vec![10, 64, 2, 0], 8 + 20 + 20));
        let message = route_message([10, 0, 2, 2].into(), 3);
        assert_eq!(message[12..], [8, 0, 5, 0, 10, 0, 2, 2, 8, 0, 4, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn the_kernels_word_is_an_errno() {
        let answer =
            |errno: i32| [&[36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &errno.to_ne_bytes()].concat();
        assert!(verdict(&answer(0)).is_ok());
        assert_eq!(verdict(&answer(-17)).unwrap_err().raw_os_error(), Some(17));
        assert!(verdict(&[]).is_err() && verdict(&[0; 40]).is_err());
    }
}
