//! Whether the verdicts of `compare` are true on real runs: containers beside themselves, and beside ones that a shell holds up before they start:
//! by a tenth of their time and by what the shell itself takes, which in the lab is far more. Prints how often each verdict was given; fails when an arm shows a difference from itself, or none can be told, in more than
//! 5 of 100 comparisons, or what is held up is not called slower in as many. Needs a host with cgroup v2; `make verdicts` brings it into the lab if this host has none.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for the terminal: it stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use duplex::compare::{
    Arm, Build, Crowd, Evidence, Given, MemorySample, Observation, Plan, Probe, Reach, Runner, RunnerError, Spawner,
    Until, arms, compare, host_facts,
};
use duplex::image::Store;
use duplex::spec::{Cpus, MemorySize};

/// The name of the arm that is held up.
const SLOWED: &str = "slowed";

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
        let parts = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/duplex");
        let folder = tempfile::tempdir().unwrap();
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

    /// A program that waits so long and then is `duplex`.
    fn waiting(&self, wait: Duration) -> PathBuf {
        let path = self.folder.path().join("held-up");
        let script = format!("#!/bin/sh\nsleep {}\nexec '{}' \"$@\"\n", wait.as_secs_f64(), self.duplex.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Verdict and ratio of the start of `other` beside a container, and the container's median in milliseconds.
    fn compared(&self, other: &str, wait: Duration, until: Option<Until>, seed: u64) -> (&'static str, f64, f64) {
        let names = ["plain=container".to_owned(), format!("{other}=container")];
        let plan = Plan { arms: arms(&names).unwrap(), seed, until, ..self.plan.clone() };
        let mut runner =
            HeldUp { plain: self.spawner(self.duplex.clone(), &plan), slowed: self.spawner(self.waiting(wait), &plan) };
        let record = compare(&plan, &Self::given(), &mut runner, &mut |_| {}).unwrap();
        let start = record.comparisons.iter().find(|c| c.figure == "first_byte_ms").unwrap();
        (start.verdict.words(), start.ratio.ratio, record.arms[0].summary.first_byte_ms.unwrap().median)
    }
}

fn main() {
    let count: u64 = std::env::var("DUPLEX_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let bench = Bench::new();
    let until = |precision| Some(Until { precision, budget: Duration::from_secs(120) });
    let mut same: BTreeMap<&str, u64> = BTreeMap::new();
    let mut median = 0.0;
    for seed in 0..count {
        let (verdict, _, ms) = bench.compared("again", Duration::ZERO, until(0.1), seed);
        *same.entry(verdict).or_default() += 1;
        median = ms;
    }
    println!("beside itself, {count} comparisons until within 10 %: {same:?}");
    let mut slower: BTreeMap<&str, u64> = BTreeMap::new();
    let mut ratios = Vec::new();
    for seed in 0..count.div_ceil(5) {
        let (verdict, ratio, _) = bench.compared(SLOWED, Duration::from_secs_f64(median / 1e4), until(0.04), seed);
        *slower.entry(verdict).or_default() += 1;
        ratios.push(ratio);
    }
    println!("held up by a tenth and by what that takes, until within 4 %: {slower:?}, ratios {ratios:.2?}");
    let none = same.get("no difference seen").unwrap_or(&0);
    assert!(none * 20 >= count * 19, "an arm shows no difference from itself in {none} of {count} only");
    let seen = slower.get("slower").unwrap_or(&0);
    assert!(
        seen * 20 >= count.div_ceil(5) * 19,
        "what is held up is called slower in {seen} of {} only",
        count.div_ceil(5)
    );
}
