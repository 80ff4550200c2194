//! Noisy neighbours: what a sandbox with limits does to the answers of another one on the same host.
//!
//! A victim answers one small message at a time over a published port and is idle in between, as most services are. The time from a message to
//! its answer is taken on the host, alone and beside each noise, in turns, so that whatever else keeps this host busy is in both.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::busybox::BUSYBOX;
use crate::life::Place;
use crate::neighbour;
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Program("passt"),
    Need::Program("mke2fs"),
    Need::Program("chrt"),
    Need::File(BUSYBOX),
];

cases_with!(
    "noise",
    Place::with_busybox(IMAGE),
    [a_neighbours_noise_leaves_answers_quick, what_is_no_neighbour_is_heard]
);

/// Beside a neighbour 99 of 100 answers come within so many times of what they need without. Twice is what is wanted, and what most measurements
/// are within; a lab's one emulated processor, which all of the host shares, has single ones up to four times.
const MOST: f64 = 5.0;

/// How often a measurement is made before it counts against the promise: this host may have been busy itself.
const ATTEMPTS: usize = 3;

/// Messages of one measurement, alone and beside each, in so many turns. Some at the beginning of a turn do not count.
const MESSAGES: usize = 100;
const TURNS: usize = 2;
const FIRST: usize = 3;

/// What the client does between two messages.
const PAUSE: Duration = Duration::from_millis(10);

/// Least part of the time that a neighbour works on the host for its noise to be one.
const LOUD: f64 = 0.05;

const IMAGE: &str = "box:1";
const PORT: u16 = 8196;

/// A noise: its name, options of its sandbox beside those that all have, its script.
struct Noise(&'static str, &'static [&'static str], &'static str);

/// Loops that fork, as many as there is room for. Who starts them ends when there is none, so one process stands behind that one.
const BOMB: &str =
    "(i=0; while [ $i -lt 40 ]; do while :; do (:); done & i=$((i+1)); done; wait) 2>/dev/null; exec sleep 1000";

const NOISES: &[Noise] = &[
    Noise("processor", &["--isolation", "microvm"], "while :; do :; done"),
    Noise("fork bomb", &["--isolation", "microvm"], BOMB),
    Noise("fork bomb in a container", &["--isolation", "container"], BOMB),
    Noise("console", &["--isolation", "microvm"], "exec yes"),
    Noise(
        "disk",
        &["--isolation", "microvm", "-v", "noise:/data"],
        "while :; do dd if=/dev/zero of=/data/x bs=64k count=256 conv=fsync; done 2>/dev/null",
    ),
    Noise("memory", &["--isolation", "microvm"], "while :; do tail /dev/zero; done"),
    Noise("network", &["--isolation", "microvm"], "while :; do nc HOST < /dev/zero; done"),
];

/// A victim and a client that is connected to it.
struct Victim {
    stream: TcpStream,
}

impl Victim {
    fn new(place: &Place) -> Self {
        let publish = format!("127.0.0.1:{PORT}:80");
        place.run("microvm", &["--name", "victim", "--memory", "128m", "-p", &publish, "workloads", "serve", "80"]);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let mut connected = None;
        place.until("an answer of the victim", || {
            connected = TcpStream::connect(address).ok().filter(|stream| {
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                round_trip(stream).is_some()
            });
            connected.is_some()
        });
        Self { stream: connected.unwrap() }
    }

    /// Times of so many answers.
    fn answers(&self, count: usize) -> Vec<Duration> {
        let answer = |_| {
            sleep(PAUSE);
            round_trip(&self.stream).expect("an answer")
        };
        (0..count).map(answer).collect()
    }
}

fn round_trip(mut stream: &TcpStream) -> Option<Duration> {
    let began = Instant::now();
    stream.write_all(b"x").ok()?;
    stream.read_exact(&mut [0]).ok()?;
    Some(began.elapsed())
}

/// The time within which 99 of 100 came; of the few that are measured, all but the last.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

/// What the neighbour has used of the host's processor, in microseconds, what makes its connections included.
fn used(id: &str) -> u64 {
    let used = |folder: String| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/duplex/{folder}/cpu.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse::<u64>().ok()
    };
    let own = used(id.to_owned());
    own.expect("a neighbour that goes on") + used(format!("{id}.net")).unwrap_or(0)
}

/// How many times longer 99 of 100 answers need beside a noise, which is switched on and off in turns.
fn ratio(victim: &Victim, what: &str, noisy: &mut dyn FnMut(bool)) -> f64 {
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        for (on, times) in [(false, &mut alone), (true, &mut beside)] {
            noisy(on);
            victim.answers(FIRST);
            times.extend(victim.answers(MESSAGES / TURNS));
        }
    }
    let (alone, beside) = (p99(alone), p99(beside));
    let ratio = beside.as_secs_f64() / alone.as_secs_f64();
    println!("{what}: 99 of 100 answers within {alone:.1?} alone, {beside:.1?} beside it, {ratio:.2} times");
    ratio
}

/// The least ratio of some measurements of this noise, the first that keeps the promise if one does.
fn least_ratio(place: &Place, victim: &Victim, noise: &Noise, host: &str) -> f64 {
    let Noise(name, options, script) = noise;
    let limits = ["--name", "noise", "--memory", "128m", "--cpus", "1", "--pids-limit", "64"];
    let script = script.replace("HOST", host);
    let id = place.say(&[&["run", "-d"], &limits[..], options, &[IMAGE, "sh", "-c", &script]].concat());
    // It begins as it likes.
    sleep(Duration::from_secs(1));
    let mut least = f64::INFINITY;
    for _ in 0..ATTEMPTS {
        let (before, began) = (used(&id), Instant::now());
        let mut switch = |on: bool| drop(place.say(&[if on { "unpause" } else { "pause" }, "noise"]));
        least = least.min(ratio(victim, name, &mut switch));
        let loud = Duration::from_micros(used(&id) - before).as_secs_f64() / began.elapsed().as_secs_f64();
        assert!(loud > LOUD, "{name}: no noise, {loud:.3} of the time");
        if least <= MOST {
            break;
        }
    }
    place.say(&["rm", "-f", "noise"]);
    least
}

fn a_neighbours_noise_leaves_answers_quick(place: &Place) {
    let victim = Victim::new(place);
    let address = neighbour::Address::of([198, 18]);
    let host = format!("{} {}", address.0, neighbour::swallows(address.0));
    let ratios = NOISES.iter().map(|noise| (noise.0, least_ratio(place, &victim, noise, &host)));
    let broken: Vec<_> = ratios.filter(|(_, ratio)| *ratio > MOST).collect();
    place.say(&["rm", "-f", "victim"]);
    place.say(&["volume", "rm", "noise"]);
    assert!(broken.is_empty(), "more than {MOST} times: {broken:?}");
}

/// The measurement can tell: a process of the host that goes before all others, as no sandbox may, is far above what is promised of neighbours.
fn what_is_no_neighbour_is_heard(place: &Place) {
    let victim = Victim::new(place);
    let mut urgent: Option<Child> = None;
    let script = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.01; done";
    let heard = ratio(&victim, "an urgent process", &mut |on| {
        if let Some(mut child) = urgent.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        urgent = on.then(|| Command::new("chrt").args(["-r", "1", BUSYBOX, "sh", "-c", script]).spawn().unwrap());
    });
    if let Some(mut child) = urgent {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.say(&["rm", "-f", "victim"]);
    assert!(heard > MOST, "{heard:.2} times only");
}
