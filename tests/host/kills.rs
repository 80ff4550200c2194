//! SIGKILL to one process of Duplex at any moment of any verb: the next command finds what is left, and the host is as it was before.
//!
//! `DUPLEX_TEST_KILLS` is how many, `DUPLEX_TEST_SEED` repeats the choices of a run (the moments depend on the host); `make test-kills` does many.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::inventory::inventory;
use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Program("mke2fs"), Need::Program("passt"), Need::Alone];
const BOTH: [&str; 2] = ["container", "microvm"];

pub(crate) const CASES: &[Case] = &[Case {
    name: "kills::a_kill_at_any_moment_leaves_nothing",
    needs: NEEDS,
    run: || {
        a_kill_at_any_moment_leaves_nothing(&mut Place::new());
        Verdict::Ok(())
    },
}];

/// Kills if nobody says how many.
const KILLS: u64 = 12;

/// How long the next commands may take to bring order: a folder that was never finished is nobody's after a minute.
const PATIENCE: Duration = Duration::from_secs(100);

/// A program of the embedded image.
const P: &str = "/workloads";

/// What is interrupted, and what the sandbox has come to before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Create,
    Run,
    RunDetached,
    Start,
    Exec,
    Stop,
    Remove,
}

const ACTS: [Act; 7] = [Act::Create, Act::Run, Act::RunDetached, Act::Start, Act::Exec, Act::Stop, Act::Remove];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    /// The process of the verb.
    Command,
    /// The process in the background that owns the sandbox.
    Keeper,
    /// The monitor, or the parent of the container's first process.
    Monitor,
}

const VICTIMS: [Victim; 3] = [Victim::Command, Victim::Keeper, Victim::Monitor];

/// SplitMix64: numbers that a seed decides.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.next() % choices.len() as u64).unwrap()]
    }
}

/// One kill, as chance would have it.
#[derive(Debug)]
struct Round {
    number: u64,
    isolation: &'static str,
    act: Act,
    victim: Victim,
    /// When, in percent of the time that the verb takes undisturbed.
    at: u32,
    options: Vec<&'static str>,
    /// No machine was there before it: a microVM leaves a template.
    first: bool,
}

impl Round {
    /// `shared` is a folder of the host as `-v` takes it.
    fn of(number: u64, chance: &mut Chance, shared: &'static str) -> Self {
        let networks =
            [&["--net", "none"][..], &["--net", "bridge:doom"], &[], &["--net", "bridge:doom", "--net-rate", "4mbit"]];
        let mut options = chance.of(&networks).to_vec();
        options.extend(chance.of(&[&["-v", "/data"][..], &["-v", shared], &[]]));
        options.extend(chance.of(&[&["--rm"][..], &[]]));
        Self {
            number,
            isolation: chance.of(&BOTH),
            act: chance.of(&ACTS),
            victim: chance.of(&VICTIMS),
            at: u32::try_from(chance.next() % 125).unwrap(),
            options,
            first: chance.of(&[true, false, false, false]),
        }
    }

    /// The verb with this sandbox's options.
    fn line(&self, verb: &[&'static str]) -> Vec<&'static str> {
        let front = ["--isolation", self.isolation, "--name", "doomed"];
        [verb, &front, &self.options, &["workloads", "spin"]].concat()
    }

    /// Brings the sandbox to where the act begins; the act's words.
    fn prepare(&self, place: &Place) -> Vec<&'static str> {
        let run = || place.say(&self.line(&["run", "-d"]));
        match self.act {
            Act::Create => return self.line(&["create"]),
            Act::Run => return self.line(&["run"]),
            Act::RunDetached => return self.line(&["run", "-d"]),
            Act::Start => place.say(&self.line(&["create"])),
            _ => run(),
        };
        match self.act {
            Act::Start => vec!["start", "doomed"],
            Act::Exec => vec!["exec", "doomed", P, "true"],
            Act::Stop => vec!["stop", "doomed"],
            _ => vec!["rm", "-fv", "doomed"],
        }
    }
}

/// A number from the environment.
pub(crate) fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

fn a_kill_at_any_moment_leaves_nothing(place: &mut Place) {
    let kills = number_from("DUPLEX_TEST_KILLS").unwrap_or(KILLS);
    let seed = number_from("DUPLEX_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("     kills: DUPLEX_TEST_SEED={seed} DUPLEX_TEST_KILLS={kills}");
    let wholes: Vec<BTreeMap<Act, Duration>> = BOTH.into_iter().map(|isolation| wholes(place, isolation)).collect();
    // Of the file system of the place: in the lab, the host's own files are on one that a container's users are refused.
    let shared = place.folder().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the host").unwrap();
    let shared = format!("{}:/in:ro", shared.display()).leak();
    // The folder of volumes is there now.
    place.count();
    let (mut chance, mut met) = (Chance(seed), BTreeMap::new());
    for number in 0..kills {
        let round = Round::of(number, &mut chance, shared);
        let whole = wholes[usize::from(round.isolation == BOTH[1])][&round.act];
        let victim = kill_one(place, &round, whole);
        *met.entry((round.isolation, victim)).or_insert(0_u32) += 1;
        if round.number % 50 == 49 {
            println!("     kills: {} of {kills}, {met:?}", round.number + 1);
        }
    }
    println!("     kills: {met:?}");
}

/// How long each act takes when nobody is killed.
fn wholes(place: &Place, isolation: &'static str) -> BTreeMap<Act, Duration> {
    let round =
        Round { number: 0, isolation, act: Act::Create, victim: Victim::Command, at: 0, options: vec![], first: false };
    let timed = |words: &[&str]| {
        let began = Instant::now();
        place.say(words);
        began.elapsed()
    };
    let create = timed(&[&round.line(&["create"])[..]].concat());
    let start = timed(&["start", "doomed"]);
    let exec = timed(&["exec", "doomed", P, "true"]);
    let stop = timed(&["stop", "doomed"]);
    place.say(&["rm", "doomed"]);
    let volume = Round { options: vec!["-v", "/data"], ..round };
    let run = timed(&volume.line(&["run", "-d"]));
    let remove = timed(&["rm", "-fv", "doomed"]);
    BTreeMap::from([
        (Act::Create, create),
        (Act::Run, run),
        (Act::RunDetached, run),
        (Act::Start, start),
        (Act::Exec, exec),
        (Act::Stop, stop),
        (Act::Remove, remove),
    ])
}

/// Who was killed: the process of the verb stands in for one that is not there.
fn kill_one(place: &Place, round: &Round, whole: Duration) -> Victim {
    if round.first {
        for template in fs::read_dir(place.folder().join("state/templates")).into_iter().flatten().flatten() {
            fs::remove_file(template.path()).unwrap();
        }
    }
    let act = round.prepare(place);
    let mut command = place.duplex(&act);
    let client = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    sleep(whole * round.at / 100);
    let process = match round.victim {
        Victim::Command => None,
        Victim::Keeper => keepers(place).first().copied(),
        Victim::Monitor => {
            let owner = keepers(place).first().copied().unwrap_or(client.id());
            children(owner).into_iter().find(|pid| !is_network(*pid))
        }
    };
    let victim = if process.is_some() { round.victim } else { Victim::Command };
    let killed = words_of(process.unwrap_or(client.id()));
    kill(process.unwrap_or(client.id()));
    // A command in the foreground whose sandbox lives would go on for ever.
    if round.act == Act::Run && victim != Victim::Monitor {
        kill(client.id());
    }
    let output = end_of(client, round, &killed);
    // A further command that ends with its sandbox has a code that says so, as in Docker.
    let told_by_code = round.act == Act::Exec && output.status.code() == Some(137);
    if victim != Victim::Command && !output.status.success() && round.act != Act::Run && !told_by_code {
        assert!(!words(&output).trim().is_empty(), "{round:?}: the command fails without a word: {output:?}");
    }
    must_come_to_order(place, round);
    victim
}

/// All verbs go on, the name is free, and the host is as before.
fn must_come_to_order(place: &Place, round: &Round) {
    let began = Instant::now();
    let listed = place.output(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
    assert!(listed.status.success(), "{round:?}: {}", words(&listed));
    let removed = place.output(&["rm", "-fv", "doomed"]);
    assert!(removed.status.success(), "{round:?}: {}", words(&removed));
    loop {
        place.say(&["ps", "-a"]);
        let now = inventory(&[place.folder()]);
        if now == *place.before() {
            return;
        }
        if began.elapsed() > PATIENCE {
            let left: Vec<_> = now.difference(place.before()).collect();
            let gone: Vec<_> = place.before().difference(&now).collect();
            panic!("{round:?}: left behind {left:#?}, gone {gone:#?}; ps said {listed:?}");
        }
        sleep(Duration::from_millis(100));
    }
}

fn end_of(mut client: Child, round: &Round, killed: &[String]) -> Output {
    let deadline = Instant::now() + PATIENCE;
    while client.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let still = still_there();
            kill(client.id());
            panic!(
                "{round:?}: {killed:?} was killed, the command does not end: {:?}; {still}",
                client.wait_with_output()
            );
        }
        sleep(Duration::from_millis(5));
    }
    client.wait_with_output().unwrap()
}

/// Duplex's processes, and where in the kernel they wait.
fn still_there() -> String {
    let ours = |pid: &u32| words_of(*pid).iter().any(|word| word.contains("duplex") || word.contains("/workloads"));
    let threads = |pid: u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let stack = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stack")).unwrap_or_default();
    let told =
        |pid: u32| format!("{pid} {:?}\n{}", words_of(pid), threads(pid).map(stack).collect::<Vec<_>>().join("--\n"));
    processes().filter(ours).map(told).collect::<Vec<_>>().join("\n")
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, Signal::KILL);
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn words_of(pid: u32) -> Vec<String> {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The keepers of this place.
fn keepers(place: &Place) -> Vec<u32> {
    let folder = place.folder().display().to_string();
    let of_place = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&folder)
    };
    processes().filter(|pid| words_of(*pid).get(1).is_some_and(|w| w == "keeper")).filter(of_place).collect()
}

/// passt and pasta, which have other names where the processor can do more: a sandbox lives on without them.
fn is_network(pid: u32) -> bool {
    words_of(pid).first().and_then(|word| word.rsplit('/').next()).is_some_and(|name| name.starts_with("pas"))
}

fn children(parent: u32) -> Vec<u32> {
    let of_parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        fields.split(' ').nth(1).is_some_and(|p| p == parent.to_string())
    };
    processes().filter(of_parent).collect()
}
