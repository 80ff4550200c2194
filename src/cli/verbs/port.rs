//! `duplex port`.

use std::net::{IpAddr, SocketAddr};

use crate::cli::args::PortArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::roster;
use crate::cli::output::print;
use crate::cli::{Context, place};
use crate::spec::{Protocol, Publish};

/// Why no port is told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum PortError {
    /// Not a port.
    #[error("'{0}' is not a port of the sandbox, such as 80, 80/tcp or 53/udp")]
    Port(String),
    /// A port that is not published, or not now.
    #[error(
        "Port {port}/{protocol} of sandbox {sandbox} is not published: 'duplex port {sandbox}' lists those that are"
    )]
    Unpublished {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The sandbox, as it was named.
        sandbox: String,
    },
}

/// Tells where the ports of a sandbox are on this host.
pub(crate) fn port(context: &Context, args: &PortArgs) -> Result<u8, Failure> {
    let wanted = args.port.as_deref().map(parse).transpose().map_err(failed)?;
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.sandbox), false)? {
        return Ok(code);
    }
    let seen = roster.find(&args.sandbox).and_then(|id| roster.see(&id)).map_err(failed)?;
    let ports = seen.standing.network.map(|network| network.ports).unwrap_or_default();
    let text = match wanted {
        None => all(&ports),
        Some(wanted) => one(&ports, wanted, &args.sandbox).map_err(failed)?,
    };
    print(&text)?;
    Ok(0)
}

/// `80`, `80/tcp`.
fn parse(text: &str) -> Result<(u16, Protocol), PortError> {
    let refuse = || PortError::Port(text.to_owned());
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(refuse()),
    };
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(refuse)?;
    Ok((port, protocol))
}

/// A line for each port of the host, in the order of the sandbox's.
fn all(ports: &[Publish]) -> String {
    let mut ports = ports.to_vec();
    ports.sort_by_key(|p| (p.guest, p.protocol, p.address, p.host));
    ports.iter().map(|p| format!("{}/{} -> {}\n", p.guest, p.protocol, bound(p))).collect()
}

/// Where one of the sandbox's ports is.
fn one(ports: &[Publish], (port, protocol): (u16, Protocol), sandbox: &str) -> Result<String, PortError> {
    let mut found: Vec<&Publish> = ports.iter().filter(|p| (p.guest, p.protocol) == (port, protocol)).collect();
    if found.is_empty() {
        return Err(PortError::Unpublished { port, protocol, sandbox: sandbox.to_owned() });
    }
    found.sort_by_key(|p| (p.address, p.host));
    Ok(found.into_iter().map(|p| bound(p) + "\n").collect())
}

fn bound(port: &Publish) -> String {
    SocketAddr::from((port.address.unwrap_or(IpAddr::from([0, 0, 0, 0])), port.host)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(options: &[&str]) -> Vec<Publish> {
        options.iter().flat_map(|option| Publish::parse(option).unwrap()).collect()
    }

    #[test]
    fn ports_are_told_as_docker_tells_them() {
        let ports = ports(&["0.0.0.0:8080:80", "[::]:8080:80", "127.0.0.1:5353:53/udp", "0.0.0.0:9000:9"]);
        let told = "9/tcp -> 0.0.0.0:9000\n53/udp -> 127.0.0.1:5353\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n";
        assert_eq!(all(&ports), told);
        let find = |text: &str| one(&ports, parse(text).unwrap(), "web");
        assert_eq!(find("80").unwrap(), "0.0.0.0:8080\n[::]:8080\n");
        assert_eq!(find("53/udp").unwrap(), "127.0.0.1:5353\n");
        assert!(find("53").unwrap_err().to_string().contains("53/tcp of sandbox web"));
        assert_eq!(all(&[]), "");
        for bad in ["", "0", "65536", "80/sctp", "http", "-1", "80/"] {
            assert_eq!(parse(bad), Err(PortError::Port(bad.to_owned())));
        }
    }
}
