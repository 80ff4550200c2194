//! Published ports in Docker's words.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::spec::{Protocol, Publish};

/// As in the column PORTS: `0.0.0.0:8080->80/tcp`, those that follow each other as one range.
pub(crate) fn line(ports: &[Publish]) -> String {
    let mut sorted = ports.to_vec();
    sorted.sort_by_key(|p| (p.address.map(|a| a.is_ipv6()), p.address, p.protocol, p.guest, p.host));
    let mut runs: Vec<(Publish, u16)> = Vec::new();
    for port in sorted {
        match runs.last_mut() {
            Some((first, further)) if follows(first, *further, &port) => *further += 1,
            _ => runs.push((port, 0)),
        }
    }
    runs.iter().map(|(first, further)| run(first, *further)).collect::<Vec<_>>().join(", ")
}

/// Whether the port is the one behind a run of `further` ports after the first.
fn follows(first: &Publish, further: u16, port: &Publish) -> bool {
    let next = |from: u16| from.checked_add(further).and_then(|n| n.checked_add(1));
    (first.address, first.protocol) == (port.address, port.protocol)
        && next(first.guest) == Some(port.guest)
        && next(first.host) == Some(port.host)
}

fn run(first: &Publish, further: u16) -> String {
    let range = |from: u16| match further {
        0 => from.to_string(),
        _ => format!("{from}-{}", from.saturating_add(further)),
    };
    let address = match first.address {
        Some(IpAddr::V6(six)) => format!("[{six}]:"),
        Some(four) => format!("{four}:"),
        None => String::new(),
    };
    format!("{address}{}->{}/{}", range(first.host), range(first.guest), first.protocol)
}

/// As in `inspect`: for each port of the sandbox those of the host.
pub(crate) fn map(ports: &[Publish]) -> Value {
    let mut all: Vec<(u16, Protocol)> = ports.iter().map(|p| (p.guest, p.protocol)).collect();
    all.sort_unstable();
    all.dedup();
    let bound = |guest: u16, protocol: Protocol| -> Value {
        let of = ports.iter().filter(|p| (p.guest, p.protocol) == (guest, protocol));
        of.map(|p| {
            let address = p.address.map(|a| a.to_string()).unwrap_or_default();
            let port = if p.host == 0 { String::new() } else { p.host.to_string() };
            json!({ "HostIp": address, "HostPort": port })
        })
        .collect()
    };
    let entries = all.into_iter().map(|(guest, protocol)| (format!("{guest}/{protocol}"), bound(guest, protocol)));
    Value::Object(entries.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(options: &[&str]) -> Vec<Publish> {
        options.iter().flat_map(|option| Publish::parse(option).unwrap()).collect()
    }

    #[test]
    fn a_line_is_dockers() {
        for (options, expected) in [
            (&[][..], ""),
            (&["0.0.0.0:8080:80", "[::]:8080:80"], "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"),
            (&["127.0.0.1:53:53/udp", "127.0.0.1:53:53"], "127.0.0.1:53->53/tcp, 127.0.0.1:53->53/udp"),
            (&["0.0.0.0:8000-8002:7000-7002"], "0.0.0.0:8000-8002->7000-7002/tcp"),
            (&["0.0.0.0:81:81", "0.0.0.0:80:80", "0.0.0.0:83:83"], "0.0.0.0:80-81->80-81/tcp, 0.0.0.0:83->83/tcp"),
            (&["0.0.0.0:90:80", "0.0.0.0:80:81"], "0.0.0.0:90->80/tcp, 0.0.0.0:80->81/tcp"),
            (&["0.0.0.0:65534-65535:65534-65535"], "0.0.0.0:65534-65535->65534-65535/tcp"),
        ] {
            assert_eq!(line(&ports(options)), expected, "{options:?}");
        }
    }

    #[test]
    fn a_map_has_each_port_of_the_sandbox_once() {
        let expected = json!({
            "53/udp": [{ "HostIp": "", "HostPort": "" }],
            "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }, { "HostIp": "::", "HostPort": "8080" }],
        });
        assert_eq!(map(&ports(&["0.0.0.0:8080:80", "[::]:8080:80", "53/udp"])), expected);
        assert_eq!(map(&[]), json!({}));
    }
}
