//! A sandbox's network: what it reaches, and what reaches it, in Docker's notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::NetRate;

/// Most published ports of one sandbox.
pub const MOST_PUBLISHED: usize = 512;

/// What a sandbox has for a network. The default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    /// Which kind.
    pub mode: NetworkMode,
    /// Ports of the sandbox that the host hands on.
    pub publish: Vec<Publish>,
    /// Name servers in place of the host's.
    pub dns: Vec<IpAddr>,
    /// Further lines of `/etc/hosts`: name and address.
    pub hosts: Vec<(String, HostAddress)>,
    /// The network that it shares with others, beside a user-mode one of its own.
    pub bridge: Option<BridgeName>,
    /// How fast each of its interfaces sends, and how fast it receives, at most.
    pub rate: Option<NetRate>,
}

/// Name of a network that sandboxes of this host share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BridgeName(String);

impl BridgeName {
    /// Longest, in bytes.
    pub const MOST: usize = 64;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<BridgeName> for String {
    fn from(name: BridgeName) -> Self {
        name.0
    }
}

impl TryFrom<String> for BridgeName {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let good = text.len() <= Self::MOST
            && text.bytes().all(allowed)
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if good { Ok(Self(text)) } else { Err(NetworkError::Bridge(text)) }
    }
}

/// What `--net` names: a kind, and for `bridge:NAME` the network to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkChoice {
    /// The kind.
    pub mode: NetworkMode,
    /// The shared network.
    pub bridge: Option<BridgeName>,
}

impl FromStr for NetworkChoice {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        match text.strip_prefix("bridge:") {
            Some(name) => Ok(Self { mode: NetworkMode::User, bridge: Some(name.to_owned().try_into()?) }),
            None => Ok(Self { mode: text.parse()?, bridge: None }),
        }
    }
}

impl fmt::Display for NetworkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bridge {
            Some(name) => write!(f, "bridge:{name}"),
            None => self.mode.fmt(f),
        }
    }
}

/// Kind of network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Its own loopback and nothing else.
    #[default]
    None,
    /// User-mode: a process of its own on the host (passt, pasta) makes the sandbox's connections.
    User,
    /// The host's own network (container only).
    Host,
}

/// A port that the host hands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address that it is bound to; all of them if `None`.
    pub address: Option<IpAddr>,
    /// The host's port; one that is free if 0.
    pub host: u16,
    /// The sandbox's port, never 0.
    pub guest: u16,
    /// Which protocol.
    pub protocol: Protocol,
}

/// How a sandbox that has been created is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its addresses with the lengths of their prefixes, at most one of each family.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its gateways, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Hardware address of its interface.
    pub mac: Option<[u8; 6]>,
    /// Its published ports as they are bound: each names its address, none has the host's port 0.
    pub ports: Vec<Publish>,
    /// Where it is in the network that it shares with others.
    #[serde(default)]
    pub bridge: Option<BridgeAttachment>,
}

/// One sandbox's place in a network that it shares with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeAttachment {
    /// The network.
    pub name: BridgeName,
    /// Its address there.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// Hardware address of its interface there.
    pub mac: [u8; 6],
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The address of a name in `/etc/hosts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostAddress {
    /// This one.
    Ip(IpAddr),
    /// The gateway, behind which the host's own loopback is then open.
    Gateway,
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Gateway => f.write_str("host-gateway"),
        }
    }
}

/// Why a text does not describe a network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetworkError {
    /// An unknown kind.
    #[error("Network '{0}' is none of 'none', 'user', 'host' and 'bridge:NAME'")]
    Mode(String),
    /// No name of a shared network.
    #[error(
        "'{0}' is no name of a network: it begins with a letter or digit and has at most {most} letters, digits, '_', '.' and '-'",
        most = BridgeName::MOST
    )]
    Bridge(String),
    /// Not a published port.
    #[error(
        "Port '{0}' is not [ADDRESS:][HOST:]GUEST[/tcp|/udp], such as 8080:80, 127.0.0.1:8000-8009:8000-8009 or 53:53/udp"
    )]
    Publish(String),
    /// Two ranges of different length.
    #[error("Port '{0}': as many ports of the host as of the sandbox must be named")]
    Ranges(String),
    /// Not a line of `/etc/hosts`.
    #[error("Host '{0}' is not NAME:ADDRESS, such as db:192.0.2.7 or host:host-gateway")]
    Host(String),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for NetworkMode {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        match text {
            "none" => Ok(Self::None),
            "user" => Ok(Self::User),
            "host" => Ok(Self::Host),
            other => Err(NetworkError::Mode(other.to_owned())),
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::User => "user",
            Self::Host => "host",
        })
    }
}

impl Publish {
    /// The ports that an option of `-p` names.
    ///
    /// # Errors
    /// [`NetworkError::Publish`] or [`NetworkError::Ranges`].
    pub fn parse(text: &str) -> Result<Vec<Self>, NetworkError> {
        let bad = || NetworkError::Publish(text.to_owned());
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(bad()),
        };
        let (front, guest) = ports.rsplit_once(':').map_or((None, ports), |(front, guest)| (Some(front), guest));
        let (address, host) = match front {
            None => (None, ""),
            Some(front) => front.rsplit_once(':').map_or((None, front), |(address, host)| (Some(address), host)),
        };
        let address = address.map(|a| a.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(a));
        let address = address.filter(|a| !a.is_empty()).map(str::parse).transpose().map_err(|_| bad())?;
        let guest = range(guest).filter(|(first, _)| *first > 0).ok_or_else(bad)?;
        let length = guest.1 - guest.0;
        let host = if host.is_empty() { None } else { Some(range(host).ok_or_else(bad)?) };
        if host.is_some_and(|(first, last)| last - first != length) {
            return Err(NetworkError::Ranges(text.to_owned()));
        }
        let of = |n: u16| Self { address, host: host.map_or(0, |(first, _)| first + n), guest: guest.0 + n, protocol };
        Ok((0..=length).map(of).collect())
    }
}

/// `N` or `N-M`.
fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

impl HostAddress {
    /// Name and address of an option `--add-host`.
    ///
    /// # Errors
    /// [`NetworkError::Host`].
    pub fn parse(text: &str) -> Result<(String, Self), NetworkError> {
        let bad = || NetworkError::Host(text.to_owned());
        let (name, address) = text.split_once([':', '=']).ok_or_else(bad)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
            return Err(bad());
        }
        let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        let address = match bare {
            "host-gateway" => Self::Gateway,
            address => Self::Ip(address.parse().map_err(|_| bad())?),
        };
        Ok((name.to_owned(), address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (Option<String>, u16, u16, Protocol) {
        let all = Publish::parse(text).unwrap();
        assert_eq!(all.len(), 1, "{text}");
        (all[0].address.map(|a| a.to_string()), all[0].host, all[0].guest, all[0].protocol)
    }

    #[test]
    fn ports_read_as_docker_reads_them() {
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        assert_eq!(one("80"), (None, 0, 80, tcp));
        assert_eq!(one("8080:80"), (None, 8080, 80, tcp));
        assert_eq!(one("8080:80/udp"), (None, 8080, 80, udp));
        assert_eq!(one("127.0.0.1:8080:80/tcp"), (Some("127.0.0.1".into()), 8080, 80, tcp));
        assert_eq!(one("127.0.0.1::80"), (Some("127.0.0.1".into()), 0, 80, tcp));
        assert_eq!(one("[::1]:8080:80"), (Some("::1".into()), 8080, 80, tcp));
        let all = Publish::parse("8000-8002:9000-9002/udp").unwrap();
        assert_eq!(
            all.iter().map(|p| (p.host, p.guest)).collect::<Vec<_>>(),
            [(8000, 9000), (8001, 9001), (8002, 9002)]
        );
        assert_eq!(Publish::parse("7000-7001").unwrap().len(), 2);
        assert_eq!(Publish::parse("1-65535:1-65535").unwrap().len(), 65535);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in [
            "",
            ":",
            "0",
            "x",
            "80:",
            "8080:80/sctp",
            "1.2.3:1:2",
            "70000:80",
            "80:70000",
            "9-8",
            "-1",
            "+80",
            "a:b:c:d",
        ] {
            assert_eq!(Publish::parse(bad), Err(NetworkError::Publish(bad.to_owned())), "{bad}");
        }
        assert_eq!(Publish::parse("80-81:80"), Err(NetworkError::Ranges("80-81:80".into())));
    }

    #[test]
    fn a_shared_network_has_a_name_that_is_one_path_component() {
        let choice: NetworkChoice = "bridge:app-1.x".parse().unwrap();
        assert_eq!((choice.mode, choice.to_string().as_str()), (NetworkMode::User, "bridge:app-1.x"));
        assert_eq!("none".parse(), Ok(NetworkChoice { mode: NetworkMode::None, bridge: None }));
        for bad in ["", "..", ".lock", "a/b", "a b", &"a".repeat(65)] {
            assert_eq!(
                format!("bridge:{bad}").parse::<NetworkChoice>(),
                Err(NetworkError::Bridge(bad.to_owned())),
                "{bad}"
            );
        }
        assert_eq!("bridge".parse::<NetworkChoice>(), Err(NetworkError::Mode("bridge".into())));
        assert!(serde_json::from_str::<BridgeName>("\"../x\"").is_err());
    }

    #[test]
    fn hosts_read_as_docker_reads_them() {
        let ip = |text: &str| HostAddress::Ip(text.parse().unwrap());
        assert_eq!(HostAddress::parse("db:192.0.2.7"), Ok(("db".into(), ip("192.0.2.7"))));
        assert_eq!(HostAddress::parse("db=[2001:db8::1]"), Ok(("db".into(), ip("2001:db8::1"))));
        assert_eq!(HostAddress::parse("db:2001:db8::1"), Ok(("db".into(), ip("2001:db8::1"))));
        assert_eq!(HostAddress::parse("h:host-gateway"), Ok(("h".into(), HostAddress::Gateway)));
        for bad in ["", "db", "db:", ":1.2.3.4", "a b:1.2.3.4", "a\n:1.2.3.4", "db:1.2.3"] {
            assert!(HostAddress::parse(bad).is_err(), "{bad}");
        }
    }
}
