//! Rates of networks, in both isolations and on both kinds of network: nothing is faster, nothing stalls, and what cannot have one is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Output;
use std::thread::JoinHandle;

use crate::life::{Place, words};
use crate::neighbour::Address;
use crate::runner::{Case, Need, Verdict, cases_with};
use crate::volumes::{self, BOTH, IMAGE};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Program("passt"),
    Need::Program("ip"),
    Need::File("/usr/bin/busybox"),
    Need::Alone,
];

cases_with!(
    "net_rate",
    volumes::place(),
    [
        a_rate_holds_each_way_to_the_world,
        a_rate_holds_each_way_among_sandboxes,
        a_crash_leaves_nothing_of_a_rate,
        a_rate_is_told_and_what_is_none_is_refused,
    ]
);

/// A megabyte a second.
const RATE: &str = "8mbit";
const COUNT: usize = 2_000_000;
/// What that takes, less than a tenth for the burst of 64 KiB.
const SECONDS: f64 = 1.8;
/// What a stalled connection takes.
const STALLED: f64 = 10.0 * SECONDS;

/// Makes programs that send and receive so much over the connection that is their input and output, and note the seconds from their first word to
/// the last byte's arrival. Nobody half-closes a connection.
const PROGRAMS: &str = "printf '#!/bin/sh\\nread s r </proc/uptime; echo up; dd if=/dev/zero bs=1000 count=2000 2>/dev/null; read ok; read e r </proc/uptime; echo $s $e >/tmp/told\\n' >/tmp/up
    printf '#!/bin/sh\\nread s r </proc/uptime; echo down; dd iflag=fullblock bs=1000 count=2000 of=/dev/null 2>/dev/null; read e r </proc/uptime; echo $s $e >/tmp/told\\n' >/tmp/down
    chmod 755 /tmp/up /tmp/down\n";

/// Their other end in a sandbox.
const PEER: &str = "printf '#!/bin/sh\\nread way; if [ $way = up ]; then dd iflag=fullblock bs=1000 count=2000 of=/dev/null 2>/dev/null; echo ok; else dd if=/dev/zero bs=1000 count=2000 2>/dev/null; read end; fi\\n' >/tmp/peer
    chmod 755 /tmp/peer; nc -ll -p 7000 -e /tmp/peer & sleep 1; echo ready; sleep 600";

/// Their other end on the host, for so many connections.
fn peer(address: Ipv4Addr, connections: usize) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || listener.incoming().take(connections).for_each(|stream| answer(&stream.unwrap()));
    (port, std::thread::spawn(serve))
}

/// A sandbox that is gone in the middle is seen by its own word being missing.
fn answer(mut stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut way = String::new();
    let _ = reader.read_line(&mut way);
    let mut bytes = vec![0; COUNT];
    if way == "up\n" {
        let _ = reader.read_exact(&mut bytes);
        let _ = stream.write_all(b"ok\n");
    } else {
        let _ = stream.write_all(&bytes);
    }
    let _ = reader.read_to_end(&mut bytes);
}

fn run(place: &Place, isolation: &str, options: &[&str], script: &str) -> Output {
    let front = ["run", "--rm", "--isolation", isolation];
    place.output(&[&front, options, &[IMAGE, "sh", "-c", script]].concat())
}

#[track_caller]
fn sh(place: &Place, isolation: &str, options: &[&str], script: &str) -> String {
    let output = run(place, isolation, options, script);
    assert!(output.status.success(), "{isolation}: {} {}", output.status, words(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Connects each program to this other end.
fn script(peer: &str) -> String {
    ["up", "down"].map(|way| format!("nc {peer} -e /tmp/{way}; cat /tmp/told; rm /tmp/told\n")).concat()
}

/// Two lines of two moments.
#[track_caller]
fn must_be_at_the_rate(told: &str, what: &str) {
    let numbers: Vec<f64> = told.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let &[up_begin, up_end, down_begin, down_end] = &numbers[..] else { panic!("{what}: {told}") };
    for (way, seconds) in [("up", up_end - up_begin), ("down", down_end - down_begin)] {
        assert!((SECONDS..STALLED).contains(&seconds), "{what}: {COUNT} bytes {way} at {RATE} in {seconds} s");
    }
}

fn a_rate_holds_each_way_to_the_world(place: &Place) {
    let beyond = Address::of([198, 18]);
    let (port, served) = peer(beyond.0, 2 * BOTH.len());
    let script = format!("{PROGRAMS}{}", script(&format!("{} {port}", beyond.0)));
    for isolation in BOTH {
        let told = sh(place, isolation, &["--net-rate", RATE], &script);
        must_be_at_the_rate(&told, isolation);
    }
    served.join().unwrap();
    place.must_be_clean("rates of networks");
}

/// The other end has no rate.
fn a_rate_holds_each_way_among_sandboxes(place: &Place) {
    place.run("container", &["--name", "peer", "--net", "bridge:rated", IMAGE, "sh", "-c", PEER]);
    place.until("the peer", || place.say(&["logs", "peer"]).contains("ready"));
    let script = format!("{PROGRAMS}{}", script("peer 7000"));
    for isolation in BOTH {
        let told = sh(place, isolation, &["--net", "bridge:rated", "--net-rate", RATE], &script);
        must_be_at_the_rate(&told, isolation);
    }
    place.say(&["rm", "-fv", "peer"]);
    place.must_be_clean("rates of a shared network");
}

fn a_crash_leaves_nothing_of_a_rate(place: &Place) {
    for isolation in BOTH {
        let flags = ["--name", "slow", "--net", "bridge:rated", "--net-rate", "1mbit"];
        place.run(isolation, &[&flags[..], &[IMAGE, "sleep", "600"]].concat());
        place.kill_keepers();
        place.until("its end", || place.say(&["ps", "-q"]).is_empty());
        place.say(&["rm", "-v", "slow"]);
        place.until_clean();
    }
}

fn a_rate_is_told_and_what_is_none_is_refused(place: &Place) {
    for isolation in BOTH {
        let id = place.say(&["create", "--isolation", isolation, "--net-rate", "1mbps", IMAGE, "true"]);
        assert_eq!(place.look(&id, "{{.HostConfig.NetworkRate}}"), "8000000", "{isolation}");
        place.say(&["rm", "-v", &id]);
        for (flags, said) in [
            (&["--net", "none", "--net-rate", "1mbit"][..], "with --net none it has none"),
            (&["--net-rate", "10"], "such as 10mbit"),
            (&["--net-rate", "1kbit"], "64kbit"),
            (&["--net-rate", "1000gbit"], "32gbit"),
        ] {
            let output = run(place, isolation, flags, "true");
            assert_eq!(output.status.code(), Some(125), "{isolation} {flags:?}: {output:?}");
            let words = words(&output);
            assert!(words.contains("--net-rate") && words.contains(said), "{isolation} {flags:?}: {words}");
        }
    }
    let output = run(place, "container", &["--net", "host", "--net-rate", "1mbit"], "true");
    assert!(words(&output).contains("with --net host it has none"), "{}", words(&output));
    place.must_be_clean("refused rates of networks");
}
