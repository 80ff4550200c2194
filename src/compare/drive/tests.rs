use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::compare::agree::Captured;
use crate::compare::control::tests::BOOT_ID;
use crate::compare::control::{Evidence, NAMESPACES};
use crate::compare::density::Stopped;
use crate::compare::density::tests::Made;
use crate::compare::measures::Measured;
use crate::compare::meters::MemorySample;
use crate::compare::plan::Until;
use crate::compare::probes::{Probe, Reached};
use crate::compare::reach::{Counts, Reach, SetUserId};
use crate::compare::runner::Crowd;
use crate::compare::verdict::Verdict;
use crate::compare::{plan, table};
use crate::spec::{Cpus, Exit, MIB, MemorySize, Moments, Outcome, Usage};

pub(crate) fn plan() -> Plan {
    Plan {
        arms: plan::arms(&["container".to_owned(), "microvm".to_owned()]).unwrap(),
        reference: "workloads".to_owned(),
        image: Digest::from_sha256([1; 32]),
        command: vec!["hello".to_owned()],
        memory: MemorySize(512 * MIB),
        cpus: Cpus(1000),
        workloads: Vec::new(),
        runs: 10,
        until: None,
        warmup: 1,
        memory_runs: 5,
        probes: true,
        density: Some(density::tests::limits(3)),
        reach: true,
        functions: true,
        seed: 42,
        allow_difference: false,
        timeout: Duration::from_secs(10),
    }
}

fn given() -> Given {
    let part = |name: &str, bytes| (name.to_owned(), bytes);
    Given {
        build: Build { version: "0.1.0".to_owned(), revision: Some("0123abc".to_owned()) },
        host: HostFacts {
            lab: true,
            kvm: "lab".to_owned(),
            cpu_model: Some("QEMU TCG CPU version 2.5+".to_owned()),
            cpus: 1,
            kernel: Some("6.12.0".to_owned()),
            ..HostFacts::default()
        },
        boot_id: BOOT_ID.to_owned(),
        now_unix_s: 1_700_000_000,
        disk_bytes: BTreeMap::from([
            (Isolation::Container, BTreeMap::from([part("image", 1 << 20)])),
            (Isolation::MicroVm, BTreeMap::from([part("image", 1 << 20), part("kernel", 8 << 20)])),
        ]),
        brought: BTreeMap::new(),
    }
}

fn captured(text: &str) -> Captured {
    let sha256 = Digest::from_sha256(Sha256::digest(text).into());
    Captured { head: text.as_bytes().to_vec(), len: text.len() as u64, sha256 }
}

/// A runner of made-up sandboxes: a container takes 10 ms, a microVM 20 ms, both with a little regular noise.
struct Fake {
    runs: u64,
    stdout: fn(Isolation, u64) -> String,
    exit_code: fn(Isolation) -> u8,
    image: u8,
    boot_id: String,
    time_ms: fn(Isolation) -> u64,
    held: u64,
    seccomp: u8,
    measured: fn(Isolation, u64) -> BTreeMap<String, Measured>,
    crowd: fn(Isolation) -> Made,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            runs: 0,
            stdout: |_, _| "hello\n".to_owned(),
            exit_code: |_| 0,
            image: 1,
            boot_id: BOOT_ID.replace('0', "f"),
            time_ms: |isolation| if isolation == Isolation::MicroVm { 20 } else { 10 },
            measured: |_, _| BTreeMap::new(),
            held: 0,
            seccomp: 2,
            crowd: |_| Made::default(),
        }
    }
}

impl Runner for Fake {
    fn run(&mut self, arm: &Arm, sample: bool) -> Result<Observation, RunnerError> {
        self.runs += 1;
        let begin = 1_000_000_000 * self.runs;
        let unit = (self.time_ms)(arm.isolation) * 100_000 + self.runs * 7919 % 10_000;
        let mut moments = Moments::default();
        let steps = [
            (Moment::Exec, 0),
            (Moment::Main, 1),
            (Moment::ImageReady, 2),
            (Moment::MachineReady, 4),
            (Moment::Started, 6),
            (Moment::FirstByte, 7),
            (Moment::Exited, 8),
            (Moment::Gone, 10),
        ];
        steps.into_iter().for_each(|(moment, step)| moments.note(moment, begin + step * unit));
        if arm.isolation == Isolation::MicroVm {
            moments.note(Moment::AgentReady, begin + 5 * unit);
        }
        let code = (self.exit_code)(arm.isolation);
        let peak = MemorySample { pss: 5 << 20, tmpfs: Some(4096), kernel: None };
        Ok(Observation {
            deed: Deed {
                exit_code: code,
                stdout: captured(&(self.stdout)(arm.isolation, self.runs)),
                stderr: captured(""),
            },
            moments,
            image: Digest::from_sha256([self.image; 32]),
            outcome: Some(Outcome { exit: Exit::Code(code), oom: false, reason: None }),
            usage: Usage { memory_peak_bytes: Some(6 << 20), ..Usage::default() },
            measured: (self.measured)(arm.isolation, self.runs),
            peak: sample.then_some(peak),
        })
    }

    fn idle(&mut self, arm: &Arm) -> Result<Option<MemorySample>, RunnerError> {
        let pss = if arm.isolation == Isolation::MicroVm { 40 << 20 } else { 3 << 20 };
        Ok(Some(MemorySample { pss, tmpfs: None, kernel: Some(1 << 20) }))
    }

    fn crowd(&mut self, arm: &Arm) -> Box<dyn Crowd + '_> {
        Box::new((self.crowd)(arm.isolation))
    }

    fn probes(&mut self, arm: &Arm) -> Result<Vec<Probe>, RunnerError> {
        let probe = |name: &str, reached, found: &str| Probe { name: name.into(), reached, found: found.into() };
        let mut probes = vec![probe("bpf", Reached::Blocked, "Operation not permitted (os error 1)")];
        probes.push(match arm.isolation {
            Isolation::MicroVm => probe("kernel-release", Reached::Contained, "6.12.9"),
            Isolation::Container | Isolation::Process => probe("kernel-release", Reached::Reachable, "6.1.0"),
        });
        Ok(probes)
    }

    fn reach(&mut self, arm: &Arm) -> Result<Reach, RunnerError> {
        let own = arm.isolation == Isolation::MicroVm;
        let counts =
            |counts: &[(&str, u64)]| Counts::of(counts.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect(), 0);
        Ok(Reach {
            system_calls: Some(if own { counts(&[("16", 40)]) } else { counts(&[("0", 1000), ("1", 300)]) }),
            kernel_functions: Some(counts(if own {
                &[("ksys_ioctl", 9)]
            } else {
                &[("vfs_read", 7), ("vfs_write", 5)]
            })),
            vm_exits: own.then(|| counts(&[("hlt", 70), ("port i/o", 7)])),
            set_user_id: Some(SetUserId { becomes_root: true, capabilities: 14, of_host: !own }),
            writable_host_paths: Some(Vec::new()),
            not_measured: Vec::new(),
        })
    }

    fn evidence(&mut self, arm: &Arm) -> Result<Evidence, RunnerError> {
        let own = arm.isolation == Isolation::MicroVm;
        Ok(Evidence {
            boot_id: Some(if own { self.boot_id.clone() } else { BOOT_ID.to_owned() }),
            release: None,
            pid: Some(1),
            memory_total: Some(490 * MIB),
            processors: Some(1),
            memory_max: Some(512 * MIB),
            cpu_max: Some(1000),
            seccomp: Some(if own { 0 } else { self.seccomp }),
            effective: Some(self.held),
            no_new_privileges: Some(true),
            shared: Some(if arm.isolation == Isolation::Process {
                NAMESPACES.map(str::to_owned).into()
            } else {
                vec![]
            }),
            root: Some("/run/duplex/mnt/root".into()),
            program: None,
            python: None,
        })
    }
}

fn compared(plan: &Plan, mut fake: Fake) -> Result<Record, CompareError> {
    compare(plan, &given(), &mut fake, &mut |_| {})
}

/// A comparison of a container and a microVM in the lab.
pub(crate) fn recorded() -> Record {
    compared(&plan(), Fake::default()).unwrap()
}

fn refused(plan: &Plan, fake: Fake) -> String {
    let error = compared(plan, fake).unwrap_err();
    assert!(!matches!(error, CompareError::Arm { .. }));
    let mut text = error.to_string();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        text.push_str(&format!(": {next}"));
        cause = next;
    }
    text
}

#[test]
fn a_comparison_has_all_samples_and_counts_all_but_the_warm_up() {
    let record = compared(&plan(), Fake::default()).unwrap();
    assert_eq!(record.order.len(), 11);
    for arm in &record.arms {
        assert_eq!((arm.runs.len(), arm.memory_runs.len()), (11, 5));
        assert_eq!(arm.summary.total_ms.unwrap().n, 10);
        assert_eq!(arm.runs.iter().filter(|r| r.warmup).map(|r| r.round).collect::<Vec<_>>(), [0]);
        for run in &arm.runs {
            assert!((run.phases_ms.values().sum::<f64>() - run.total_ms).abs() < 0.01, "phases fill the run");
        }
    }
    let [container, microvm] = &record.arms[..] else { panic!() };
    assert!(!container.summary.phases_ms.contains_key("kernel"), "what an arm does not have is absent");
    assert!(microvm.summary.phases_ms.contains_key("kernel"));
    let verdict = |figure: &str| record.comparisons.iter().find(|c| c.figure == figure).map(|c| c.verdict);
    assert_eq!(verdict("total_ms"), Some(Verdict::Slower));
    assert_eq!(verdict("memory_bytes.idle"), Some(Verdict::More));
    assert_eq!(verdict("memory_bytes.peak"), Some(Verdict::NoDifferenceSeen));
    assert_eq!(verdict("phases_ms.kernel"), None);
}

#[test]
fn rounds_go_on_until_the_interval_is_narrow_or_the_time_is_over() {
    let until = |precision, seconds| Plan {
        runs: 5,
        until: Some(Until { precision, budget: Duration::from_secs(seconds) }),
        ..plan()
    };
    let wide = compared(&until(0.5, 3600), Fake::default()).unwrap().rounds;
    assert_eq!((wide.timed, wide.ended), (5, Ended::Precision), "the least number is enough");
    let narrow = compared(&until(0.002, 3600), Fake::default()).unwrap();
    assert!(narrow.rounds.timed > 5 && narrow.rounds.ended == Ended::Precision, "{:?}", narrow.rounds);
    let start = narrow.comparisons.iter().find(|c| c.figure == "first_byte_ms").unwrap();
    assert!(start.ratio.is_within(0.002) && start.rounds == narrow.rounds.timed as usize, "{start:?}");
    assert_eq!(narrow.order.len(), narrow.arms[0].runs.len());
    let over = compared(&until(1e-9, 0), Fake::default()).unwrap().rounds;
    assert_eq!((over.timed, over.ended), (5, Ended::Budget));
    let one = |seconds| Plan { runs: 1, ..until(0.5, seconds) };
    let few = compared(&one(3600), Fake::default()).unwrap().rounds;
    assert_eq!(
        (few.timed, few.ended),
        (5, Ended::Precision),
        "the interval of one round has no width, and is not narrow"
    );
    let over = compared(&one(0), Fake::default()).unwrap().rounds;
    assert_eq!((over.timed, over.ended), (1, Ended::Budget));
}

#[test]
fn what_is_measured_inside_is_a_figure_like_the_others() {
    let measured = |isolation, run: u64| {
        let ns = |each: f64| Measured { ns_each: each + (run % 3) as f64, unit: "call".to_owned() };
        let slow = if isolation == Isolation::MicroVm { 1500.0 } else { 1000.0 };
        BTreeMap::from([("fork-exec".to_owned(), ns(slow)), ("syscall".to_owned(), ns(1000.0))])
    };
    let plan = Plan { workloads: vec!["suite".to_owned()], ..plan() };
    let record = compared(&plan, Fake { measured, ..Fake::default() }).unwrap();
    let verdict = |figure: &str| record.comparisons.iter().find(|c| c.figure == figure).map(|c| c.verdict);
    assert_eq!(verdict("measured_ns.fork-exec"), Some(Verdict::Slower));
    assert_eq!(verdict("measured_ns.syscall"), Some(Verdict::NoDifferenceSeen));
    assert_eq!(record.units["syscall"], "call");
    let shown = table::table(&record, None);
    assert!(shown.contains("fork-exec, per call") && !shown.contains("Break-even"), "{shown}");
    let words = shown.replace('\n', " ");
    assert!(words.contains("of 2 programs it is slower in 1 (fork-exec 1.50), faster in none"), "{shown}");
    let page = crate::compare::report(&record, None).unwrap();
    assert!(page.contains("id=\"programs-measured\"") && page.contains("1.50"), "the page has them too");
    let text = serde_json::to_vec(&record).unwrap();
    assert_eq!(crate::compare::read(&text).unwrap(), record, "what was written is read");
}

#[test]
fn the_seed_fixes_the_order() {
    let order = |seed| compared(&Plan { seed, ..plan() }, Fake::default()).unwrap().order;
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn arms_that_do_different_things_are_refused_by_the_first_difference() {
    let by_kernel =
        |isolation, _| if isolation == Isolation::MicroVm { "6.12.1".to_owned() } else { "6.12.0".to_owned() };
    let text = refused(&plan(), Fake { stdout: by_kernel, ..Fake::default() });
    assert!(text.contains("Standard output differs from byte 5") && text.contains("--allow-difference"), "{text}");
    let text = refused(&plan(), Fake { exit_code: |i| u8::from(i == Isolation::MicroVm), ..Fake::default() });
    assert!(text.contains("Exit codes differ"), "{text}");
    let text = refused(&plan(), Fake { stdout: |_, run| run.to_string(), ..Fake::default() });
    assert!(text.contains("round"), "an arm that differs from itself: {text}");
}

#[test]
fn an_allowed_difference_is_told_above_the_table() {
    let plan = Plan { allow_difference: true, ..plan() };
    let record = compared(&plan, Fake { exit_code: |i| u8::from(i == Isolation::MicroVm), ..Fake::default() }).unwrap();
    let shown = table::table(&record, None);
    let (head, _) = shown.split_once('┌').unwrap();
    assert!(head.contains("Exit codes differ"), "{shown}");
}

#[test]
fn an_arm_that_is_not_what_it_says_is_refused() {
    let text = refused(&plan(), Fake { boot_id: BOOT_ID.to_owned(), ..Fake::default() });
    assert!(text.contains("Arm 'microvm' is not what it says: own kernel"), "{text}");
    let mut hardened = plan();
    hardened.arms.iter_mut().filter(|arm| arm.isolation == Isolation::Container).for_each(|arm| arm.hardened = true);
    compared(&hardened, Fake::default()).unwrap();
    let text = refused(&hardened, Fake { held: 1, ..Fake::default() });
    assert!(text.contains("Arm 'container' is not what it says: capabilities"), "{text}");
    let text = refused(&plan(), Fake { image: 2, ..Fake::default() });
    assert!(text.contains("ran image sha256:0202"), "{text}");
}

#[test]
fn an_arm_beside_itself_shows_no_difference() {
    let arms = plan::arms(&["a=container".to_owned(), "b=container".to_owned()]).unwrap();
    let record = compared(&Plan { arms, ..plan() }, Fake::default()).unwrap();
    let verdicts: Vec<Verdict> = record.comparisons.iter().map(|c| c.verdict).collect();
    assert!(verdicts.iter().all(|v| *v == Verdict::NoDifferenceSeen), "{verdicts:?}");
}

#[test]
fn idle_sandboxes_are_swept_arm_by_arm_and_only_if_asked_for() {
    let mut told = Vec::new();
    let crowd =
        |isolation| Made { fails_at: if isolation == Isolation::MicroVm { 3 } else { u32::MAX }, ..Made::default() };
    let mut fake = Fake { crowd, ..Fake::default() };
    let record = compare(&plan(), &given(), &mut fake, &mut |step| {
        if let Step::Density(arm, count) = step {
            told.push(format!("{arm} {count}"));
        }
    });
    let record = record.unwrap();
    assert_eq!(told, ["container 1", "container 2", "container 3", "microvm 1", "microvm 2"]);
    let sweep = |at: usize| record.arms[at].density.clone().unwrap();
    assert_eq!((sweep(0).stopped, sweep(0).steps.len(), sweep(0).words), (Stopped::Most, 3, None));
    assert_eq!((sweep(1).stopped, sweep(1).steps.len()), (Stopped::Start, 2), "a finding, and no failure");
    let shown = table::table(&record, None).replace('\n', " ");
    for words in ["3 asked for", "start 3 failed", "microvm stopped, start 3 failed: 'duplex run' failed", "20.0 MiB"] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    let plan = Plan { density: None, ..plan() };
    let without = compared(&plan, Fake::default()).unwrap();
    assert!(without.arms.iter().all(|arm| arm.density.is_none()));
    assert!(!table::table(&without, None).contains("Density"));
    assert!(!crate::compare::report(&without, None).unwrap().contains("id=\"density\""));
}

#[test]
fn what_could_be_is_told_from_what_was_measured() {
    let shown = table::table(&recorded(), None).replace('\n', " ");
    let told = "Extrapolated, not measured: less a reserve of 256 MiB, this host's memory would hold 63 idle sandboxes of \
        container (768 MiB at 12.0 MiB for each further one), or 63 idle sandboxes of microvm";
    assert!(shown.contains(told), "{shown}");
    assert!(shown.contains("Pings of the lab are those of an emulated processor"), "{shown}");
    let crowd = |isolation| Made {
        fails_at: if isolation == Isolation::MicroVm { 1 } else { u32::MAX },
        silent_from: 2,
        ..Made::default()
    };
    let record = compared(&plan(), Fake { crowd, ..Fake::default() }).unwrap();
    let shown = table::table(&record, None).replace('\n', " ");
    assert!(shown.contains("Left out: microvm has no idle sandbox here, start 1 failed: 'duplex run'"), "{shown}");
    assert!(shown.contains("container stopped, no answer: Idle sandbox 1 did not answer"), "{shown}");
    assert!(shown.contains("These figures cannot tell how many fit of microvm."), "{shown}");
    let page = crate::compare::report(&record, None).unwrap();
    assert!(page.contains("Left out: microvm") && page.contains("Not measured: sandboxes that work"));
}

#[test]
fn the_layout_of_the_json_is_frozen() {
    let plan = Plan { runs: 2, memory_runs: 1, ..plan() };
    let record = compared(&plan, Fake::default()).unwrap();
    let json = serde_json::to_string_pretty(&record).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/compare.v2.json");
    if std::env::var_os("DUPLEX_BLESS").is_some() {
        std::fs::write(path, &json).unwrap();
    }
    assert_eq!(json, std::fs::read_to_string(path).unwrap(), "a new layout needs a new SCHEMA and a new golden file");
    assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
}

#[test]
fn the_table_says_what_it_is_first_and_is_at_most_100_columns_wide() {
    let long = "x".repeat(20);
    let arms = plan::arms(&[format!("{long}=container"), format!("y{}=microvm,read-only", &long[1..])]).unwrap();
    let many: Vec<_> =
        (0..6).map(|at| format!("{}{at}={}", "x".repeat(19), ["container", "microvm"][at % 2])).collect();
    let six = Plan { arms: plan::arms(&many).unwrap(), ..plan() };
    for plan in [plan(), six, Plan { arms, reference: "registry.example/".repeat(9), ..plan() }] {
        let shown = table::table(&compared(&plan, Fake::default()).unwrap(), None);
        assert!(shown.starts_with("Measured in the lab"), "{shown}");
        for line in shown.lines() {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
        assert!(shown.find("Not equal").unwrap() < shown.find('┌').unwrap());
    }
}

#[test]
fn a_plain_process_must_be_one_and_is_told_first() {
    let arms = plan::arms(&["container".to_owned(), "bare=process".to_owned()]).unwrap();
    let plain = Plan { arms, probes: false, density: None, ..plan() };
    // The made-up sandboxes have a filter of system calls.
    assert!(refused(&plain, Fake::default()).contains("Arm 'bare' is not what it says: system calls is 2"));
    let record = compared(&plain, Fake { seccomp: 0, ..Fake::default() }).unwrap();
    assert!(record.unequal.iter().any(|line| line.starts_with("Arm 'bare' ISOLATES NOTHING")), "{:?}", record.unequal);
    let text = table(&record, None);
    assert_eq!(text.lines().nth(1).unwrap().split(',').next(), Some("bare isolates nothing"), "{text}");
    let page = crate::compare::report::report(&record, None).unwrap();
    assert!(page.find("bare isolates nothing").unwrap() < page.find("id=\"answer\"").unwrap());
}
