//! Files in `/etc` that a sandbox gets from us, the same in both isolations.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::bridge::RESOLVER;
use super::{HostNetwork, Plan};
use crate::spec::{HostAddress, NetworkMode, NetworkSpec};

/// Their contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// The files of a sandbox with this host name. `plan` is there if its network is a user-mode one; `shared` is its address in the network that it
/// shares with others.
pub fn files(
    hostname: &str,
    spec: &NetworkSpec,
    (plan, shared): (Option<&Plan>, Option<Ipv4Addr>),
    host: &HostNetwork,
) -> Files {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    match (spec.mode, plan) {
        (NetworkMode::Host, _) => Files {
            hosts: with_lines(read("/etc/hosts"), &spec.hosts, &[IpAddr::from([127, 0, 0, 1])]),
            resolv_conf: if spec.dns.is_empty() {
                read("/etc/resolv.conf")
            } else {
                resolv_conf(&spec.dns, &host.search)
            },
        },
        (_, Some(plan)) => {
            // Its own name is what the others know it by.
            let own = shared.map_or_else(|| plan.addresses(), |address| vec![address.into()]);
            let resolvers = shared.map(|_| RESOLVER.into()).into_iter().chain(plan.resolvers.iter().copied());
            let mut resolv_conf = resolv_conf(&resolvers.collect::<Vec<_>>(), &host.search);
            if shared.is_some() {
                // A member's name is asked for as it is before the search domains are tried, as in Docker's networks.
                resolv_conf.push_str("options ndots:0\n");
            }
            Files { hosts: with_lines(hosts(hostname, &own), &spec.hosts, &plan.gateways()), resolv_conf }
        }
        // Without a network its own name is itself, and nobody is to be asked.
        (_, None) => Files {
            hosts: with_lines(hosts(hostname, &[IpAddr::from([127, 0, 0, 1])]), &spec.hosts, &[]),
            resolv_conf: "# This sandbox has no network.\n".to_owned(),
        },
    }
}

/// Docker's lines, then the sandbox's own name.
fn hosts(hostname: &str, own: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    for address in own {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

fn with_lines(mut text: String, lines: &[(String, HostAddress)], gateways: &[IpAddr]) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for (name, address) in lines {
        let addresses = match address {
            HostAddress::Ip(ip) => std::slice::from_ref(ip),
            HostAddress::Gateway => gateways.get(..1).unwrap_or_default(),
        };
        for address in addresses {
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    text
}

fn resolv_conf(resolvers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for resolver in resolvers {
        let _ = writeln!(text, "nameserver {resolver}");
    }
    if resolvers.is_empty() {
        text.push_str("# This host names no name server that the sandbox could ask: --dns ADDRESS does.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_without_network_knows_itself() {
        let spec = NetworkSpec {
            hosts: vec![("db".into(), HostAddress::Ip([192, 0, 2, 7].into()))],
            ..NetworkSpec::default()
        };
        let files = files("box", &spec, (None, None), &HostNetwork::default());
        assert!(files.hosts.ends_with("127.0.0.1\tbox\n192.0.2.7\tdb\n"), "{}", files.hosts);
        assert!(files.resolv_conf.starts_with('#'));
    }

    #[test]
    fn a_network_shows_in_both_files() {
        let host = HostNetwork {
            resolvers: vec![[192, 0, 2, 53].into()],
            search: vec!["example.org".into()],
            ipv6: Some("eth0".into()),
            ..HostNetwork::default()
        };
        let spec = NetworkSpec {
            mode: NetworkMode::User,
            hosts: vec![("host".into(), HostAddress::Gateway)],
            ..NetworkSpec::default()
        };
        let plan = Plan::new(&spec, &host).unwrap();
        let shared = files("box", &spec, (Some(&plan), Some([198, 19, 0, 2].into())), &host);
        assert!(shared.hosts.contains("198.19.0.2\tbox\n") && !shared.hosts.contains("10.0.2.15"), "{}", shared.hosts);
        let servers = "search example.org\nnameserver 198.19.0.1\nnameserver 192.0.2.53\noptions ndots:0\n";
        assert_eq!(shared.resolv_conf, servers);
        let files = files("box", &spec, (Some(&plan), None), &host);
        assert!(
            files.hosts.contains("10.0.2.15\tbox\n") && files.hosts.contains("fd64:7570:6c78::15\tbox\n"),
            "{}",
            files.hosts
        );
        assert!(files.hosts.ends_with("10.0.2.2\thost\n"), "{}", files.hosts);
        assert_eq!(files.resolv_conf, "search example.org\nnameserver 192.0.2.53\n");
    }
}
