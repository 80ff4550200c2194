//! Whether the verdicts of `compare` are true on real runs: containers beside themselves, and beside ones that are held up by a tenth of their time before they start.
//! The tenth is of what the container took just before, and what the program that holds it up takes by itself is measured and is part of it. Prints how often each verdict was given, and after every tenth comparison how far it is;
//! fails when an arm shows a difference from itself, or none can be told, in more than 5 of 100 comparisons, or what is held up is not called slower in as many.
//! Needs a host with cgroup v2; `make verdicts` brings it into the lab if this host has none. `DUPLEX_BENCH_ROUNDS` is the number of comparisons of an arm with itself; a fifth as many are with one held up.
//! An argument, `itself` or `slowed`, is the half that runs.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for the terminal: it stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use duplex::compare::{
    Arm, Build, Crowd, Evidence, Given, MemorySample, Observation, Plan, Probe, Reach, Runner, RunnerError, Spawner,
    Until, arms, compare, host_facts,
};
use duplex::image::Store;
use duplex::spec::{Cpus, MemorySize};

/// The name of the arm that is held up, and of the half of this program that is about it.
const SLOWED: &str = "slowed";

/// The half of this program that is about an arm beside itself.
const ITSELF: &str = "itself";

/// What this program is called where it holds up another: this, and the wait in microseconds.
const HELD_UP: &str = "held-up-";

/// What stands behind its name in the name of a link to the program that it holds up.
const HELD_UP_PROGRAM: &str = ".program";

/// Runs the arms as they are, and the slowed one through a program that waits first.
struct HeldUp {
    plain: Spawner,
    slowed: Spawner,
}

impl HeldUp {
    fn of(&mut self, arm: &Arm) -> &mut Spawner {
        if arm.name == SLOWED { &mut self.slowed } else { &mut self.plain }
    }
}

impl Runner for HeldUp {
    fn run(&mut self, arm: &Arm, sample: bool) -> Result<Observation, RunnerError> {
        self.of(arm).run(arm, sample)
    }

    fn idle(&mut self, arm: &Arm) -> Result<Option<MemorySample>, RunnerError> {
        self.plain.idle(arm)
    }

    fn crowd(&mut self, arm: &Arm) -> Box<dyn Crowd + '_> {
        self.plain.crowd(arm)
    }

    fn probes(&mut self, arm: &Arm) -> Result<Vec<Probe>, RunnerError> {
        self.plain.probes(arm)
    }

    fn reach(&mut self, arm: &Arm) -> Result<Reach, RunnerError> {
        self.plain.reach(arm)
    }

    fn evidence(&mut self, arm: &Arm) -> Result<Evidence, RunnerError> {
        self.plain.evidence(arm)
    }
}

struct Bench {
    duplex: PathBuf,
    folder: tempfile::TempDir,
    plan: Plan,
}

impl Bench {
    fn new() -> Self {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/duplex");
        let folder = tempfile::tempdir().unwrap();
        // Copies, which no build changes while this goes on.
        let parts = folder.path().join("parts");
        fs::create_dir_all(parts.join("guest")).unwrap();
        for part in ["duplex", "guest/workloads.tar"] {
            fs::copy(built.join(part), parts.join(part)).unwrap();
        }
        let store =
            Store::open(&folder.path().join("store")).unwrap().with_embedded(&parts.join("guest/workloads.tar"));
        let image = store.resolve(&"workloads".parse().unwrap()).unwrap().manifest;
        let plan = Plan {
            arms: Vec::new(),
            reference: "workloads".to_owned(),
            image,
            command: vec!["hello".to_owned()],
            workloads: Vec::new(),
            memory: MemorySize(256 << 20),
            cpus: Cpus(1000),
            runs: 10,
            until: None,
            warmup: 1,
            memory_runs: 0,
            probes: false,
            density: None,
            reach: false,
            functions: false,
            seed: 0,
            allow_difference: false,
            timeout: Duration::from_secs(60),
        };
        Self { duplex: parts.join("duplex"), folder, plan }
    }

    fn given() -> Given {
        Given {
            build: Build { version: env!("CARGO_PKG_VERSION").to_owned(), revision: None },
            host: host_facts(Path::new("/"), "unknown", false),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap(),
            now_unix_s: 0,
            disk_bytes: BTreeMap::new(),
            brought: BTreeMap::new(),
        }
    }

    fn spawner(&self, program: PathBuf, plan: &Plan) -> Spawner {
        let root = self.folder.path().join("store").display().to_string();
        Spawner::new(program, vec!["--root".to_owned(), root], plan.clone()).unwrap()
    }

    /// A program that waits so long and then is another, in a folder of its own.
    fn waiting(&self, wait: Duration, program: &Path) -> PathBuf {
        let folder = self.folder.path().join(program.file_name().unwrap());
        fs::create_dir_all(&folder).unwrap();
        let name = format!("{HELD_UP}{}", wait.as_micros());
        let path = folder.join(&name);
        if !path.exists() {
            symlink(std::env::current_exe().unwrap(), &path).unwrap();
            symlink(program, folder.join(name + HELD_UP_PROGRAM)).unwrap();
        }
        path
    }

    /// What being held up for `wait` takes beyond it: the difference of the medians of 40 runs of `true` with and without, less the wait.
    fn cost_of_waiting(&self, wait: Duration) -> Duration {
        let mut times = [Vec::new(), Vec::new()];
        let plain = PathBuf::from("/bin/true");
        let programs = [self.waiting(wait, &plain), plain];
        for _ in 0..40 {
            for (times, program) in times.iter_mut().zip(&programs) {
                let begun = Instant::now();
                let ended = Command::new(program).stdin(Stdio::null()).status();
                assert!(ended.unwrap().success(), "true cannot be run");
                times.push(begun.elapsed());
            }
        }
        let [held, plain] = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        });
        held.saturating_sub(plain + wait)
    }

    /// Verdict and ratio of the start of `other` beside a container, and the container's median in milliseconds.
    fn compared(&self, other: &str, wait: Duration, until: Option<Until>, seed: u64) -> (&'static str, f64, f64) {
        let names = ["plain=container".to_owned(), format!("{other}=container")];
        let plan = Plan { arms: arms(&names).unwrap(), seed, until, ..self.plan.clone() };
        let mut runner = HeldUp {
            plain: self.spawner(self.duplex.clone(), &plan),
            slowed: self.spawner(self.waiting(wait, &self.duplex), &plan),
        };
        let record = compare(&plan, &Self::given(), &mut runner, &mut |_| {}).unwrap();
        let start = record.comparisons.iter().find(|c| c.figure == "first_byte_ms").unwrap();
        (start.verdict.words(), start.ratio.ratio, record.arms[0].summary.first_byte_ms.unwrap().median)
    }
}

/// Waits and becomes the other program, if this was called by a name that says so.
fn held_up(mut name: OsString) {
    let wait = Path::new(&name).file_name().and_then(|name| name.to_str()?.strip_prefix(HELD_UP)?.parse().ok());
    let Some(wait) = wait else { return };
    std::thread::sleep(Duration::from_micros(wait));
    name.push(HELD_UP_PROGRAM);
    let err = Command::new(name).args(std::env::args_os().skip(1)).exec();
    panic!("cannot run what is held up: {err}");
}

/// How often each verdict was given in so many comparisons of one kind, told as they come.
fn verdicts(kind: &str, count: u64, mut one: impl FnMut(u64) -> &'static str) -> BTreeMap<&'static str, u64> {
    let begun = Instant::now();
    let mut given = BTreeMap::new();
    for seed in 0..count {
        *given.entry(one(seed)).or_default() += 1;
        if (seed + 1) % 10 == 0 {
            eprintln!("{kind}: {} of {count} in {} s: {given:?}", seed + 1, begun.elapsed().as_secs());
        }
    }
    given
}

fn until(precision: f64) -> Option<Until> {
    Some(Until { precision, budget: Duration::from_secs(300) })
}

fn beside_itself(bench: &Bench, count: u64) {
    let same = verdicts(ITSELF, count, |seed| bench.compared("again", Duration::ZERO, until(0.1), seed).0);
    println!("beside itself, {count} comparisons until within 10 %: {same:?}");
    let none = same.get("no difference seen").unwrap_or(&0);
    assert!(none * 20 >= count * 19, "an arm shows no difference from itself in {none} of {count} only");
}

fn beside_slowed(bench: &Bench, count: u64) {
    let mut ratios = Vec::new();
    let slower = verdicts(SLOWED, count, |seed| {
        let (_, _, median) = bench.compared("again", Duration::ZERO, None, seed);
        let tenth = Duration::from_secs_f64(median / 1e4);
        let cost = bench.cost_of_waiting(tenth / 2);
        let (verdict, ratio, _) = bench.compared(SLOWED, tenth.saturating_sub(cost), until(0.04), seed);
        eprintln!("{SLOWED}: by {tenth:.1?}, of which {cost:.1?} are what that takes: {ratio:.3}, {verdict}");
        ratios.push(ratio);
        verdict
    });
    println!("held up by a tenth, {count} comparisons until within 4 %: {slower:?}, ratios {ratios:.3?}");
    let seen = slower.get("slower").unwrap_or(&0);
    assert!(seen * 20 >= count * 19, "what is held up is called slower in {seen} of {count} only");
}

fn main() {
    held_up(std::env::args_os().next().unwrap_or_default());
    let count: u64 = std::env::var("DUPLEX_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let half = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name| half.as_deref().is_none_or(|half| half == name);
    let bench = Bench::new();
    if wanted(ITSELF) {
        beside_itself(&bench, count);
    }
    if wanted(SLOWED) {
        beside_slowed(&bench, count.div_ceil(5));
    }
}
