//! What a command reaches of the world, and what of the world reaches it.

use std::net::{Ipv4Addr, SocketAddr};

use duplex::spec::{HostAddress, NetworkMode, NetworkSpec, Protocol, Publish, SandboxSpec};

use super::limits::inventory;
use super::stage::Stage;
use crate::neighbour::{Address, ask_tcp, free_port, names, says};
use crate::runner::Verdict;

fn user(stage: &Stage, script: &str) -> SandboxSpec {
    let mut spec = stage.spec(&["sh", "-c", script]);
    spec.network.mode = NetworkMode::User;
    spec
}

pub(crate) fn no_network_is_loopback_only(stage: &Stage) -> Verdict {
    let text = stage.shell("ls /sys/class/net; cat /proc/net/route | wc -l; cat /etc/resolv.conf").good();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["lo", "1", "# This sandbox has no network."]);
    Ok(())
}

pub(crate) fn a_network_has_addresses_routes_and_names(stage: &Stage) -> Verdict {
    let beyond = Address::of([198, 18]);
    names(beyond.0, Ipv4Addr::new(192, 0, 2, 99));
    let port = says(beyond.0, "from beyond\n");
    let script = format!(
        "ls /sys/class/net; cat /sys/class/net/eth0/mtu; ifconfig eth0 | grep -o 'inet addr:[0-9.]*'; grep -c '^eth0.00000000' /proc/net/route
        grep -w box /etc/hosts; tail -n 2 /etc/hosts; cat /etc/resolv.conf
        nslookup db.example.org | grep -A1 db.example.org | grep -o '[0-9.]*$'
        (printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 3) | nc -w 20 {} {port} | tail -n 1; id -u",
        beyond.0
    );
    let mut spec = user(stage, &script);
    spec.network.dns = vec![beyond.0.into()];
    spec.network.hosts = vec![
        ("db".into(), HostAddress::Ip([192, 0, 2, 7].into())),
        ("six".into(), HostAddress::Ip("2001:db8::6".parse().unwrap())),
    ];
    let text = stage.run(&spec).good();
    let server = format!("nameserver {}", beyond.0);
    let expected = [
        "eth0",
        "lo",
        "32768",
        "inet addr:10.0.2.15",
        "1",
        "10.0.2.15\tbox",
        "192.0.2.7\tdb",
        "2001:db8::6\tsix",
        &server,
        "192.0.2.99",
        "from beyond",
        "0",
    ];
    assert_eq!(text.lines().filter(|l| !l.starts_with("search ")).collect::<Vec<_>>(), expected);
    Ok(())
}

/// Ports as they are bound, before anything runs; nothing without a network.
pub(crate) fn ports_are_told(stage: &Stage) -> Verdict {
    let mut spec = stage.spec(&["true"]);
    let none = stage.create(&spec);
    assert_eq!(none.sandbox.network(), None);
    none.sandbox.remove().unwrap();
    spec.network.mode = NetworkMode::User;
    let named =
        Publish { address: Some(Ipv4Addr::LOCALHOST.into()), host: free_port(), guest: 80, protocol: Protocol::Tcp };
    let chosen = Publish { host: 0, guest: 5000, protocol: Protocol::Udp, ..named };
    spec.network.publish = vec![named, chosen];
    let created = stage.create(&spec);
    let network = created.sandbox.network().unwrap();
    assert_eq!(network.ports[0], named);
    let port = network.ports[1].host;
    assert_ne!(port, 0);
    assert_eq!(network.ports[1], Publish { host: port, ..chosen });
    assert_eq!(network.ports.len(), 2);
    if !stage.is_fake() {
        assert_eq!(network.addresses[0], (Ipv4Addr::new(10, 0, 2, 15).into(), 24));
        assert_eq!(network.gateways[0], Ipv4Addr::new(10, 0, 2, 2));
    }
    created.sandbox.remove().unwrap();
    Ok(())
}

/// A server of the image's own, as the user that may bind no low port elsewhere, on every published port of a range.
pub(crate) fn published_ports_reach_the_command(stage: &Stage) -> Verdict {
    let script = "printf '#!/bin/sh\nread a; read b; echo HTTP/1.0 200 OK; echo; echo \"<p>served</p>\"' > /tmp/page; chmod 755 /tmp/page; nc -ll -p 80 -e /tmp/page & nc -ll -p 81 -e /tmp/page & sleep 1; echo ready; sleep 600";
    let mut spec = user(stage, script);
    spec.process.user = "ann".into();
    let ports = [free_port(), free_port()];
    let publish =
        |host, guest| Publish { address: Some(Ipv4Addr::LOCALHOST.into()), host, guest, protocol: Protocol::Tcp };
    spec.network.publish = vec![publish(ports[0], 80), publish(ports[1], 81)];
    let mut running = stage.start(&spec);
    running.stdout.until("ready");
    for port in ports {
        let page = ask_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "GET / HTTP/1.0\r\n\r\n");
        assert!(page.contains("200 OK") && page.contains("<p>served</p>"), "{page}");
    }
    running.sandbox.remote().signal(9).unwrap();
    running.finish();
    let left = inventory(stage.state.path(), &[spec.id.to_string()]);
    assert!(left.is_empty(), "{left:#?}");
    Ok(())
}

/// The host's loopback behind the gateway, and a link-local address that the host itself has, as clouds have their metadata.
pub(crate) fn closed_addresses_are_closed(stage: &Stage) -> Verdict {
    let (metadata, beyond) = (Address::of([169, 254]), Address::of([198, 18]));
    let targets = [
        ("gateway", Ipv4Addr::new(10, 0, 2, 2), says(Ipv4Addr::LOCALHOST, "leaked\n")),
        ("link-local", metadata.0, says(metadata.0, "leaked\n")),
        ("open", beyond.0, says(beyond.0, "reached\n")),
    ];
    let script: String = targets
        .iter()
        .map(|(name, address, port)| {
            format!("echo {name}: $( (printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 3) | nc -w 10 {address} {port} 2>/dev/null | tail -n 1)\n")
        })
        .collect();
    assert_eq!(stage.run(&user(stage, &script)).good(), "gateway:\nlink-local:\nopen: reached\n");
    let mut spec = user(stage, &script);
    spec.network.hosts = vec![("host".into(), HostAddress::Gateway)];
    let text = stage.run(&spec).good();
    assert_eq!(text, "gateway: leaked\nlink-local:\nopen: reached\n", "the loopback alone was opened, by its name");
    Ok(())
}

/// Two members of one network by name, id and address, a third one in another network, and the world beside it all.
pub(crate) fn members_of_a_network_find_each_other(stage: &Stage) -> Verdict {
    let beyond = Address::of([198, 18]);
    names(beyond.0, Ipv4Addr::new(192, 0, 2, 99));
    let member = |name: &str, network: &str, script: &str| {
        let mut spec = user(stage, script);
        (spec.name, spec.hostname) = (Some(name.to_owned()), name.to_owned());
        spec.network.bridge = Some(network.to_owned().try_into().unwrap());
        spec.network.dns = vec![beyond.0.into()];
        spec
    };
    let serve = "printf '#!/bin/sh\necho from db\n' > /tmp/say; chmod 755 /tmp/say; nc -ll -p 7000 -e /tmp/say & sleep 1; echo ready; sleep 600";
    let db = member("db", "app", serve);
    let mut running = stage.start(&db);
    running.stdout.until("ready");
    let place = running.sandbox.network().unwrap().bridge.unwrap();
    assert_eq!((place.name.as_str(), place.address, place.prefix), ("app", Ipv4Addr::new(198, 19, 0, 2), 22));
    let ask = |name: &str| format!("nc -w 20 {name} 7000 </dev/null; ");
    let look = |name: &str| format!("ping -c 1 -W 1 {name} | sed -n 's/^PING .* (\\([0-9.]*\\)).*/\\1/p'; ");
    let script = [
        &look("DB")[..],
        &look(db.id.as_str()),
        &look("somebody.example.org"),
        &ask("198.19.0.2"),
        "grep -w web /etc/hosts; ls /sys/class/net",
    ];
    let web = stage.run(&member("web", "app", &script.concat())).good();
    let expected = ["198.19.0.2", "198.19.0.2", "192.0.2.99", "from db", "198.19.0.3\tweb", "eth0", "eth1", "lo"]
        .map(str::to_owned);
    assert_eq!(web.lines().collect::<Vec<_>>(), expected);
    let script = format!("nc -w 3 198.19.0.2 7000 </dev/null; {} echo alone", look("db"));
    let other = stage.run(&member("other", "elsewhere", &script)).good();
    assert_eq!(other, "192.0.2.99\nalone\n", "another network is another one, and asks the world");
    running.sandbox.remote().signal(9).unwrap();
    running.finish();
    let left = inventory(stage.state.path(), &[db.id.to_string()]);
    assert!(left.is_empty(), "{left:#?}");
    Ok(())
}

pub(crate) fn neighbours_share_no_port(stage: &Stage) -> Verdict {
    let publish =
        Publish { address: Some(Ipv4Addr::LOCALHOST.into()), host: free_port(), guest: 80, protocol: Protocol::Tcp };
    let network = NetworkSpec { mode: NetworkMode::User, publish: vec![publish], ..NetworkSpec::default() };
    let mut first = stage.spec(&["sleep", "600"]);
    first.network = network.clone();
    let running = stage.start(&first);
    let mut second = stage.spec(&["true"]);
    second.network = network;
    let ids = [second.id.to_string()];
    let before = inventory(stage.state.path(), &ids);
    let words = stage.must_fail(&second);
    assert!(words.contains(&format!("127.0.0.1:{}/tcp", publish.host)) && words.contains("taken"), "{words}");
    let mut left = inventory(stage.state.path(), &ids);
    left.retain(|line| !before.contains(line));
    assert!(left.is_empty(), "the failed one left {left:?}");
    running.sandbox.remote().signal(9).unwrap();
    running.finish();
    stage.run(&SandboxSpec { process: second.process.clone(), ..first }).good();
    Ok(())
}
