//! Ports of the host: whether they are free, and which one is where the user leaves the choice to us.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use super::{NetError, Where};
use crate::spec::{Protocol, Publish};

/// A bound socket, which keeps its port until all are bound.
enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Bound {
    fn port(&self) -> io::Result<u16> {
        Ok(match self {
            Self::Tcp(socket) => socket.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }?
        .port())
    }
}

/// Binds each port for a moment: passt's own words about a port that is taken name neither port nor mend. Ports of 0 come back chosen.
pub(super) fn claim(publish: &[Publish], ipv6: bool) -> Result<Vec<Publish>, NetError> {
    let mut held = Vec::new();
    let mut claimed = Vec::new();
    for wanted in publish {
        let mut wanted = *wanted;
        let first = wanted.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let bound = bind(first, &wanted)?;
        wanted.host = bound.port().map_err(NetError::Resource)?;
        held.push(bound);
        if wanted.address.is_none() && ipv6 {
            held.push(bind_v6_only(&wanted)?);
        }
        claimed.push(wanted);
    }
    drop(held);
    Ok(claimed)
}

fn bind(address: IpAddr, publish: &Publish) -> Result<Bound, NetError> {
    let at = SocketAddr::from((address, publish.host));
    let bound = match publish.protocol {
        Protocol::Tcp => TcpListener::bind(at).map(Bound::Tcp),
        Protocol::Udp => UdpSocket::bind(at).map(Bound::Udp),
    };
    bound.map_err(|e| explained(publish, e))
}

/// `[::]` beside `0.0.0.0`, which the standard library's sockets would take along.
fn bind_v6_only(publish: &Publish) -> Result<Bound, NetError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let (kind, is_tcp) = match publish.protocol {
        Protocol::Tcp => (SocketType::STREAM, true),
        Protocol::Udp => (SocketType::DGRAM, false),
    };
    let make = || {
        let socket = socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, None)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_socket_reuseaddr(&socket, is_tcp)?;
        bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, publish.host)))?;
        if is_tcp {
            listen(&socket, 1)?;
        }
        Ok::<_, rustix::io::Errno>(socket)
    };
    let socket = make().map_err(|e| explained(publish, e.into()))?;
    Ok(if is_tcp { Bound::Tcp(socket.into()) } else { Bound::Udp(socket.into()) })
}

fn explained(publish: &Publish, error: io::Error) -> NetError {
    let at = Where::of(publish);
    match error.kind() {
        io::ErrorKind::AddrInUse => NetError::Taken(at),
        io::ErrorKind::AddrNotAvailable => NetError::Address(at),
        io::ErrorKind::PermissionDenied => NetError::Privileged(at, error),
        _ => NetError::Port(at, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(host: u16, protocol: Protocol) -> Publish {
        Publish { address: Some(Ipv4Addr::LOCALHOST.into()), host, guest: 80, protocol }
    }

    #[test]
    fn a_taken_port_is_named_and_a_free_one_is_chosen() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let chosen = claim(&[local(0, protocol), local(0, protocol)], false).unwrap();
            assert!(chosen[0].host != 0 && chosen[0].host != chosen[1].host);
            let held = bind(Ipv4Addr::LOCALHOST.into(), &local(0, protocol)).unwrap();
            let taken = local(held.port().unwrap(), protocol);
            let error = claim(&[taken], false).unwrap_err();
            assert!(error.to_string().contains(&format!("127.0.0.1:{}/{protocol}", taken.host)), "{error}");
            drop(held);
            assert_eq!(claim(&[taken], false).unwrap(), [taken]);
        }
    }

    #[test]
    fn a_foreign_address_is_named() {
        let foreign = Publish { address: Some([192, 0, 2, 200].into()), ..local(8080, Protocol::Tcp) };
        assert!(matches!(claim(&[foreign], false), Err(NetError::Address(_))));
    }
}
