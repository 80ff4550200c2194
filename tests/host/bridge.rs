//! Networks that sandboxes share: a microVM and a container in one, names that follow a rename, and what crashes leave.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use crate::life::{Place, words};
use crate::neighbour::{ask_tcp, free_port};
use crate::runner::{Case, Need, Verdict, cases_with};
use crate::volumes;

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Program("passt"),
    Need::Program("setpriv"),
    Need::File("/usr/bin/busybox"),
    Need::Alone,
];
const BOTH: [&str; 2] = ["container", "microvm"];

cases_with!(
    "bridge",
    volumes::place(),
    [
        both_isolations_share_a_network,
        a_crash_leaves_no_network,
        many_members_come_and_go,
        only_root_has_shared_networks,
    ]
);

/// Answers with its name on port 7000, once it says so.
fn serve(place: &Place, isolation: &str, name: &str, options: &[&str]) {
    let script = format!(
        "printf '#!/bin/sh\\nread a; echo HTTP/1.0 200 OK; echo; echo from {name}\\n' > /say; chmod 755 /say; nc -ll -p 7000 -e /say & sleep 1; echo ready; sleep 600"
    );
    let front = ["--name", name, "--net", "bridge:app"];
    place.run(isolation, &[&front, options, &[volumes::IMAGE, "sh", "-c", &script]].concat());
    place.until("the server", || place.say(&["logs", name]).contains("ready"));
}

#[track_caller]
fn ask(place: &Place, from: &str, name: &str) -> String {
    let script = format!("echo GET / | nc -w 20 {name} 7000 | tail -n 1");
    place.say(&["exec", from, "sh", "-c", &script])
}

/// Each reaches the other by its name of the moment, and the host reaches it by a published port; from the host there is no other way.
fn both_isolations_share_a_network(place: &Place) {
    let port = free_port();
    serve(place, "container", "one", &["-p", &format!("127.0.0.1:{port}:7000")]);
    serve(place, "microvm", "two", &[]);
    for (from, to) in [("one", "two"), ("two", "one"), ("one", "one"), ("two", "two")] {
        assert_eq!(ask(place, from, to), format!("from {to}"), "{from} asks {to}");
    }
    let page = ask_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "GET /\n");
    assert!(page.ends_with("from one\n"), "{page}");
    place.say(&["rename", "two", "second"]);
    assert_eq!(ask(place, "one", "second"), "from two");
    assert_eq!(ask(place, "one", &place.look("second", "{{.Id}}")), "from two");
    let json: serde_json::Value = serde_json::from_str(&place.say(&["inspect", "second"])).unwrap();
    let network = &json[0]["NetworkSettings"]["Networks"]["bridge:app"];
    assert_eq!((network["IPAddress"].as_str(), network["IPPrefixLen"].as_u64()), (Some("198.19.0.3"), Some(22)));
    assert_eq!(json[0]["HostConfig"]["NetworkMode"], "bridge:app");
    let routes = fs::read_to_string("/proc/net/route").unwrap();
    assert!(!routes.contains("13C6"), "the host has a route to 198.19: {routes}");
    place.say(&["restart", "-t", "1", "one"]);
    place.until("its server", || place.say(&["logs", "one"]).matches("ready").count() == 2);
    assert_eq!(ask(place, "second", "one"), "from one");
    place.say(&["rm", "-fv", "one", "second"]);
    place.must_be_clean("a shared network");
}

/// Keepers, killed: the others go on, and the next command clears the network when nobody is in it.
fn a_crash_leaves_no_network(place: &Place) {
    for isolation in BOTH {
        serve(place, isolation, "one", &[]);
        serve(place, isolation, "two", &[]);
        place.kill_keepers();
        place.until("their end", || place.say(&["ps", "-q"]).is_empty());
        place.say(&["rm", "-v", "one", "two"]);
        place.until_clean();
    }
}

/// At once, on a network that nobody has made before and that is gone after.
fn many_members_come_and_go(place: &Place) {
    let member = |number: usize| {
        let isolation = BOTH[number % 2];
        let words = ["run", "--rm", "--isolation", isolation, "--net", "bridge:crowd", volumes::IMAGE];
        place
            .duplex(&[&words[..], &["cat", "/etc/hosts"]].concat())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let members: Vec<_> = (0..8).map(member).collect();
    for member in members {
        let output = member.wait_with_output().unwrap();
        let hosts = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && hosts.contains("198.19.0."), "{hosts} {}", words(&output));
    }
    place.must_be_clean("many members");
}

fn only_root_has_shared_networks(place: &Place) {
    let state = place.folder().join("nobody");
    fs::create_dir(&state).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&state, open).unwrap();
    let program = crate::debian::root().join("target/duplex/duplex");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "env"])
        .arg(format!("DUPLEX_ROOT={}", state.join("store").display()))
        .arg(format!("DUPLEX_STATE={}", state.join("state").display()))
        .arg(program)
        .args(["run", "--net", "bridge:app", "workloads", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(words(&output).contains("needs root"), "{}", words(&output));
    fs::remove_dir_all(&state).unwrap();
}
