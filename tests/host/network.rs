//! Networks as a person types them, in both isolations: what is served, what is refused and in which words, and what a kill leaves.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Output, Stdio};

use duplex::sys::egress::{self, Openings};

use crate::debian::{must, root};
use crate::inventory::{inventory, must_equal};
use crate::life::Place as Life;
use crate::neighbour::{Address, ask_tcp, ask_udp, free_port, says, swallows};
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Program("passt"), Need::Program("ip"), Need::Alone];
const BOTH: [&str; 2] = ["microvm", "container"];

cases_with!(
    "network",
    Place::new(),
    [
        published_ports_serve_tcp_and_udp,
        a_port_without_number_is_one_that_is_free,
        ports_and_addresses_are_told,
        the_hosts_network_is_the_containers_own,
        what_cannot_be_is_refused_in_words,
        a_killed_duplex_leaves_no_network,
        a_network_that_dies_is_told,
        a_machine_that_sends_nothing_has_no_passt,
        ipv6_comes_with_the_hosts,
        closed_addresses_are_closed_to_every_socket,
    ]
);

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        must(place.duplex("container", &["--net", "none", "--name", "first"]).args(["workloads", "true"]));
        place
    }

    fn command(&self) -> Command {
        let mut command = Command::new(root().join("target/duplex/duplex"));
        command
            .env("DUPLEX_ROOT", self.folder.path().join("store"))
            .env("DUPLEX_STATE", self.folder.path().join("state"));
        command
    }

    fn duplex(&self, isolation: &str, flags: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["run", "--rm", "--isolation", isolation]).args(flags);
        command
    }

    fn output(&self, isolation: &str, flags: &[&str], words: &[&str]) -> Output {
        self.duplex(isolation, flags).arg("workloads").args(words).stdin(Stdio::null()).output().unwrap()
    }

    /// `serve PORT`, once it says that it does.
    fn serving(&self, isolation: &str, flags: &[&str], port: u16) -> Child {
        let mut command = self.duplex(isolation, flags);
        command.args(["workloads", "serve", &port.to_string()]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let expected = format!("Serving port {port}\n");
        let mut said = vec![0; expected.len()];
        if child.stdout.as_mut().unwrap().read_exact(&mut said).is_err() {
            panic!("{isolation}: {:?}", child.wait_with_output().unwrap());
        }
        assert_eq!(String::from_utf8_lossy(&said), expected);
        child
    }
}

fn end(mut child: Child, signal: rustix::process::Signal) -> Output {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    let mut stderr = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Output { status: child.wait().unwrap(), stdout: Vec::new(), stderr }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Both protocols, a range, an address of the host's own, and a megabyte.
fn published_ports_serve_tcp_and_udp(place: &Place) {
    let outside = Address::of([198, 18]);
    for isolation in BOTH {
        let first = (0..100).map(|_| free_port()).find(|p| std::net::TcpListener::bind(local(p + 1)).is_ok()).unwrap();
        let flags = [
            format!("{first}-{}:7000-7001", first + 1),
            format!("{}:7000:7000/udp", outside.0),
            format!("{}:9000:7000", outside.0),
        ];
        let flags: Vec<&str> = flags.iter().flat_map(|f| ["-p", f]).collect();
        let child = place.serving(isolation, &flags, 7000);
        assert_eq!(ask_tcp(local(first), "over tcp"), "over tcp", "{isolation}");
        assert_eq!(ask_udp(SocketAddr::from((outside.0, 7000)), "over udp"), "over udp", "{isolation}");
        assert_eq!(ask_tcp(SocketAddr::from((outside.0, 9000)), "from outside"), "from outside", "{isolation}");
        let long = "0123456789abcdef".repeat(1 << 16);
        assert!(ask_tcp(SocketAddr::from((outside.0, 9000)), &long) == long, "{isolation}: a megabyte");
        assert_eq!(end(child, rustix::process::Signal::TERM).status.code(), Some(143), "{isolation}");
    }
}

fn a_port_without_number_is_one_that_is_free(place: &Place) {
    for isolation in BOTH {
        let before = listening();
        let child = place.serving(isolation, &["-p", "127.0.0.1::7000"], 7000);
        let new: Vec<u16> = listening().difference(&before).copied().collect();
        assert_eq!(new.len(), 1, "{isolation}: {new:?}");
        assert_eq!(ask_tcp(local(new[0]), "word"), "word", "{isolation}");
        end(child, rustix::process::Signal::TERM);
    }
}

/// What `ps` and `inspect` say of a sandbox that runs, and no more once it has ended.
fn ports_and_addresses_are_told(_: &Place) {
    let place = Life::new();
    let ports = |name: &str| place.say(&["ps", "-a", "--filter", &format!("name={name}"), "--format", "{{.Ports}}"]);
    for isolation in BOTH {
        let first = (0..100).map(|_| free_port()).find(|p| std::net::TcpListener::bind(local(p + 1)).is_ok()).unwrap();
        let (range, free) = (format!("127.0.0.1:{first}-{}:7000-7001", first + 1), "127.0.0.1::7000/udp");
        place.run(isolation, &["--name", "web", "-p", &range, "-p", free, "workloads", "serve", "7000"]);
        let look = |field: &str| place.look("web", &format!("{{{{{field}}}}}"));
        let told = ports("web");
        let (tcp, udp) = told.split_once(", ").unwrap();
        assert_eq!(tcp, format!("127.0.0.1:{first}-{}->7000-7001/tcp", first + 1), "{isolation}");
        let chosen = udp.strip_prefix("127.0.0.1:").and_then(|rest| rest.strip_suffix("->7000/udp")).unwrap();
        assert!(chosen.parse::<u16>().unwrap() > 0, "{isolation}: {udp}");
        let bound = |port: &str| format!("[{{\"HostIp\":\"127.0.0.1\",\"HostPort\":\"{port}\"}}]");
        let (one, two) = (first.to_string(), (first + 1).to_string());
        let expected = |udp: &str| {
            let (one, two) = (bound(&one), bound(&two));
            format!("{{\"7000/tcp\":{one},\"7000/udp\":{udp},\"7001/tcp\":{two}}}")
        };
        assert_eq!(look("json .NetworkSettings.Ports"), expected(&bound(chosen)), "{isolation}");
        let lines = [("7000/tcp", one.as_str()), ("7000/udp", chosen), ("7001/tcp", two.as_str())];
        let lines = lines.map(|(port, at)| format!("{port} -> 127.0.0.1:{at}")).join("\n");
        assert_eq!(place.say(&["port", "web"]), lines, "{isolation}");
        assert_eq!(place.say(&["port", "web", "7000/udp"]), format!("127.0.0.1:{chosen}"), "{isolation}");
        let closed = place.output(&["port", "web", "7002"]);
        assert!(closed.status.code() == Some(1) && crate::life::words(&closed).contains("7002/tcp"), "{closed:?}");
        assert_eq!(look("json .HostConfig.PortBindings"), expected(&bound("")), "{isolation}");
        assert_eq!(look(".NetworkSettings.IPAddress"), "10.0.2.15", "{isolation}");
        assert_eq!(look(".NetworkSettings.Networks.user.Gateway"), "10.0.2.2", "{isolation}");
        assert_eq!(look(".HostConfig.NetworkMode"), "user", "{isolation}");
        place.say(&["kill", "web"]);
        place.say(&["wait", "web"]);
        assert_eq!((ports("web"), place.say(&["port", "web"])), (String::new(), String::new()), "{isolation}");
        assert_eq!(look("json .NetworkSettings.Ports"), "{}", "{isolation}");
        place.say(&["rm", "web"]);
    }
}

/// Ports of 127.0.0.1 that somebody listens on (proc_net(5), state 0A).
fn listening() -> std::collections::BTreeSet<u16> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let open = lines.filter(|fields| fields.get(3) == Some(&"0A"));
    open.filter_map(|fields| u16::from_str_radix(fields[1].strip_prefix("0100007F:")?, 16).ok()).collect()
}

fn the_hosts_network_is_the_containers_own(place: &Place) {
    let port = free_port();
    let child = place.serving("container", &["--net", "host"], port);
    assert_eq!(ask_tcp(local(port), "word"), "word");
    end(child, rustix::process::Signal::TERM);
    let hosts = place.output("container", &["--net", "host", "--add-host", "db:192.0.2.7"], &["cat", "/etc/hosts"]);
    let mut expected = fs::read_to_string("/etc/hosts").unwrap();
    expected.push_str("192.0.2.7\tdb\n");
    assert_eq!(String::from_utf8_lossy(&hosts.stdout), expected);
}

fn what_cannot_be_is_refused_in_words(place: &Place) {
    let port = says(Ipv4Addr::LOCALHOST, "");
    let taken = format!("127.0.0.1:{port}:80");
    let before = inventory(&[place.folder.path()]);
    for isolation in BOTH {
        for (flags, words) in [
            (vec!["-p", &taken], format!("Port 127.0.0.1:{port}/tcp of this host is taken")),
            (vec!["-p", "192.0.2.201:8080:80"], "this host does not have the address".to_owned()),
            (vec!["-p", "8080:80/sctp"], "8080:80/sctp".to_owned()),
            (
                vec!["-p", "8080:80", "-p", "127.0.0.1:8080:81"],
                "Port 8080/tcp of the host is published twice".to_owned(),
            ),
            (vec!["--net", "none", "-p", "8080:80"], "of no use with --net none".to_owned()),
            (vec!["--net", "bridge"], "'bridge'".to_owned()),
            (vec!["--net", "bridge:../up"], "'../up'".to_owned()),
        ] {
            let output = place.output(isolation, &flags, &["true"]);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(125), "{isolation} {flags:?}: {text}");
            assert!(text.contains(&words), "{isolation} {flags:?}: {text}");
        }
    }
    let output = place.output("microvm", &["--net", "host"], &["true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("a microVM's kernel has a network of its own"),
        "{output:?}"
    );
    must_equal(&before, &[place.folder.path()], "refusals");
}

/// SIGKILL to `duplex run` while it serves: processes, namespaces, cgroups and sockets are gone, at the latest with the next command.
fn a_killed_duplex_leaves_no_network(place: &Place) {
    let before = inventory(&[place.folder.path()]);
    for isolation in BOTH {
        let port = free_port();
        let child = place.serving(isolation, &["-p", &format!("127.0.0.1:{port}:7000")], 7000);
        assert_eq!(end(child, rustix::process::Signal::KILL).status.signal(), Some(9));
        must(place.duplex("container", &["--net", "none"]).args(["workloads", "true"]));
        must_equal(&before, &[place.folder.path()], isolation);
        std::net::TcpListener::bind(local(port)).unwrap();
    }
}

fn a_network_that_dies_is_told(place: &Place) {
    for (isolation, program) in [("microvm", "passt"), ("container", "pasta")] {
        let child = place.serving(isolation, &["-p", "127.0.0.1::7000"], 7000);
        must_tell_of_a_killed(program, child);
    }
}

/// Kills the process that makes the connections of the only sandbox that has one.
fn must_tell_of_a_killed(program: &str, child: Child) {
    let found = connecting();
    assert_eq!(found.len(), 1, "{program}");
    for pid in found {
        must(Command::new("kill").args(["-9", &pid]));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    let output = end(child, rustix::process::Signal::TERM);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{program}: {text}");
    assert!(text.contains(&format!("{program} was ended by signal 9")), "{text}");
}

/// The processes that make sandboxes' connections.
fn connecting() -> Vec<String> {
    let folders = fs::read_dir("/sys/fs/cgroup/duplex").unwrap().map(|entry| entry.unwrap().path());
    let networks = folders.filter(|path| path.extension().is_some_and(|end| end == "net"));
    let lists = networks.map(|path| fs::read_to_string(path.join("cgroup.procs")).unwrap());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// passt comes with the first frame, works from it on, and is missed when it is gone.
fn a_machine_that_sends_nothing_has_no_passt(place: &Place) {
    let outside = Address::of([198, 18]);
    let port = swallows(outside.0).to_string();
    let before = connecting();
    let child = place.serving("microvm", &["--name", "quiet"], 7000);
    assert_eq!(connecting(), before);
    let send = ["exec", "quiet", "/workloads", "send", &outside.0.to_string(), &port, "1"];
    let sent = place.command().args(send).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    must_tell_of_a_killed("passt", child);
}

/// An interface with an IPv6 default route, and with it an IPv6 address inside that is served and serves.
fn ipv6_comes_with_the_hosts(place: &Place) {
    struct Dummy;
    impl Drop for Dummy {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["link", "del", "duplex-test6"]).status();
        }
    }
    let ip = |words: &str| must(Command::new("ip").args(words.split(' ')));
    ip("link add duplex-test6 type dummy");
    let _dummy = Dummy;
    for words in [
        "link set duplex-test6 up",
        "addr add 2001:db8:6::1/64 dev duplex-test6 nodad",
        "-6 route add default via 2001:db8:6::2 dev duplex-test6",
    ] {
        ip(words);
    }
    for isolation in BOTH {
        let port = free_port();
        let child = place.serving(isolation, &["-p", &format!("[::1]:{port}:7000"), "-p", "0:7000/udp"], 7000);
        let to = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        assert_eq!(ask_tcp(to, "over six"), "over six", "{isolation}");
        end(child, rustix::process::Signal::TERM);
        let hosts = place.output(isolation, &["--hostname", "box"], &["cat", "/etc/hosts"]);
        assert!(String::from_utf8_lossy(&hosts.stdout).contains("fd64:7570:6c78::15\tbox\n"), "{hosts:?}");
        let inside = place.output(isolation, &[], &["cat", "/proc/net/if_inet6"]);
        assert!(String::from_utf8_lossy(&inside.stdout).contains("fd6475706c7800000000000000000015"), "{inside:?}");
        let beyond = swallows(std::net::Ipv6Addr::UNSPECIFIED);
        let sent =
            place.output(isolation, &["--net-rate", "100mbit"], &["send", "2001:db8:6::1", &beyond.to_string(), "1"]);
        assert!(sent.status.success(), "{isolation}: {sent:?}");
        let loopback = place.output(isolation, &[], &["send", "::1", &beyond.to_string(), "1"]);
        assert!(!loopback.status.success(), "{isolation}: its loopback is its own");
    }
}

/// Tries each "ADDRESS PORT" by TCP and UDP and says what came of it: `open`, or the name of Python's exception.
const EVERY_SOCKET: &str = "
import socket, sys
for place in sys.argv[1:]:
    address, port = place.split()
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    to = (address, int(port))
    for kind, call in ('tcp', lambda: socket.create_connection(to, 10)), ('udp', lambda: datagrams.sendto(b'x', to)):
        try:
            call()
            print(kind, address, 'open')
        except OSError as error:
            print(kind, address, type(error).__name__)
";

/// The programs on a real kernel: what passt would be told to do by a packet with a loopback destination, done by hand.
fn closed_addresses_are_closed_to_every_socket(_: &Place) {
    let cgroup = format!("/sys/fs/cgroup/duplex-test-{}", std::process::id());
    fs::create_dir(&cgroup).unwrap();
    egress::close(fs::File::open(&cgroup).unwrap().as_fd(), &Openings::default()).unwrap();
    let (metadata, beyond) = (Address::of([169, 254]), Address::of([198, 18]));
    let tries = [
        (says(Ipv4Addr::LOCALHOST, "x"), "127.0.0.1".to_owned(), false),
        (says(Ipv4Addr::UNSPECIFIED, "x"), "0.0.0.0".to_owned(), false),
        (says(std::net::Ipv6Addr::UNSPECIFIED, "x"), "::1".to_owned(), false),
        (says(std::net::Ipv6Addr::UNSPECIFIED, "x"), "::ffff:127.0.0.1".to_owned(), false),
        (says(metadata.0, "x"), metadata.0.to_string(), false),
        (says(beyond.0, "x"), beyond.0.to_string(), true),
    ];
    let places: Vec<String> = tries.iter().map(|(port, address, _)| format!("{address} {port}")).collect();
    let enter = format!("echo $$ > {cgroup}/cgroup.procs && exec python3 -c \"$0\" \"$@\"");
    let output = Command::new("sh").args(["-c", &enter, EVERY_SOCKET]).args(&places).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let expected: Vec<String> = tries
        .iter()
        .flat_map(|(_, address, open)| {
            ["tcp", "udp"].map(|kind| format!("{kind} {address} {}", if *open { "open" } else { "PermissionError" }))
        })
        .collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{output:?}");
    fs::remove_dir(&cgroup).unwrap();
}
