//! One comparison from plan to record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use super::agree::{Deed, Disagreement, disagreement};
use super::control::{Control, controls};
use super::density::{self, Sweep};
use super::facts::HostFacts;
use super::plan::{Arm, Plan};
use super::random::Random;
use super::record::{
    self, ArmRecord, Build, Ended, ImageRecord, LimitsRecord, MemoryRun, Record, Rounds, Run, SCHEMA, Summary,
    comparisons,
};
use super::runner::{Observation, Runner, RunnerError};
use super::schedule::{self, rounds};
use super::stats::{ratio, rounded};
use super::venv;
use super::verdict::LEAST_ROUNDS;
use crate::spec::{Digest, Isolation, Moment};

/// Most rounds, however wide an interval stays.
const MOST_ROUNDS: u32 = 10_000;

/// What the caller knows and a plan does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// The program that measures.
    pub build: Build,
    /// The host.
    pub host: HostFacts,
    /// Boot id of the host.
    pub boot_id: String,
    /// Now, in seconds since 1970.
    pub now_unix_s: u64,
    /// Bytes on disk by isolation and part.
    pub disk_bytes: BTreeMap<Isolation, BTreeMap<String, u64>>,
    /// Bytes on disk of what arms bring by themselves: virtual environments, and QEMU's program.
    pub brought: BTreeMap<PathBuf, u64>,
}

/// What is being done, for who watches.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The proofs of an arm begin.
    Controls(String),
    /// The probes of an arm begin.
    Probes(String),
    /// A timed round is over: its number from 1, how many there are, and the arms' times to the end in milliseconds.
    Timed(u32, u32, Vec<(String, f64)>),
    /// A memory round is over: its number from 1 and how many there are.
    Memory(u32, u32),
    /// The count of what an arm reaches begins.
    Reach(String),
    /// So many idle sandboxes of this arm live.
    Density(String, u32),
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// An arm does not run.
    #[error("Cannot run arm '{arm}' ({what})")]
    Arm {
        /// The arm.
        arm: String,
        /// Which of its runs.
        what: String,
        /// Why.
        #[source]
        source: RunnerError,
    },
    /// Arms, or runs of one arm, did different things.
    #[error("The runs did not do the same, so their times say nothing (--allow-difference compares them all the same)")]
    Differ(#[source] Disagreement),
    /// An arm ran another image.
    #[error("Arm '{arm}' ran image {found}, not {expected}: do not change the image's name while it is measured")]
    Image {
        /// The arm.
        arm: String,
        /// What it ran.
        found: Digest,
        /// What it should run.
        expected: Digest,
    },
    /// An arm's setting did not take.
    #[error("Arm '{arm}' is not what it says: {} is {}, and must be {}", control.name, control.found, control.expected)]
    Control {
        /// The arm.
        arm: String,
        /// The proof that failed.
        control: Control,
    },
}

/// Proves the arms, runs the rounds and makes the record.
pub fn compare(
    plan: &Plan,
    given: &Given,
    runner: &mut dyn Runner,
    watch: &mut dyn FnMut(&Step),
) -> Result<Record, CompareError> {
    let mut random = Random::new(plan.seed);
    let mut arms = Vec::new();
    for arm in &plan.arms {
        watch(&Step::Controls(arm.name.clone()));
        arms.push(proved(arm, plan, given, runner)?);
    }
    same_user(&mut arms)?;
    if plan.probes {
        for record in &mut arms {
            watch(&Step::Probes(record.arm.name.clone()));
            let probes = runner.probes(&record.arm);
            record.probes = probes.map_err(|e| failed(&record.arm, "probes of its walls".to_owned(), e))?;
        }
    }
    let mut agreement = Agreement::default();
    let mut units = BTreeMap::new();
    let mut under = Under { arms: &mut arms, agreement: &mut agreement, random: &mut random, units: &mut units };
    let (order, ended) = timed(plan, runner, watch, &mut under)?;
    measured(plan, runner, watch, &mut under)?;
    crowded(plan, given, runner, watch, &mut arms)?;
    if plan.reach {
        for record in &mut arms {
            watch(&Step::Reach(record.arm.name.clone()));
            let reach =
                runner.reach(&record.arm).map_err(|e| failed(&record.arm, "count of what it reaches".to_owned(), e));
            record.reach = Some(reach?);
        }
    }
    arms.iter_mut().for_each(ArmRecord::summarize);
    let mut unequal = unequal(plan);
    unequal.extend(venv::unequal(plan, &arms));
    unequal.extend(agreement.allowed.iter().map(ToString::to_string));
    Ok(Record {
        schema: SCHEMA.to_owned(),
        duplex: given.build.clone(),
        began_unix_s: given.now_unix_s,
        host: given.host.clone(),
        image: ImageRecord { reference: plan.reference.clone(), digest: plan.image.clone() },
        command: plan.command.clone(),
        workloads: plan.workloads.clone(),
        units,
        limits: LimitsRecord { memory_bytes: plan.memory.0, cpus: f64::from(plan.cpus.0) / 1000.0 },
        rounds: Rounds {
            timed: u32::try_from(order.len()).unwrap_or(u32::MAX).saturating_sub(plan.warmup),
            warmup: plan.warmup,
            memory: plan.memory_runs,
            ended,
            precision: plan.until.map(|until| until.precision),
            budget_s: plan.until.map(|until| until.budget.as_secs()),
        },
        seed: plan.seed,
        order: order.iter().map(|round| round.iter().map(|at| plan.arms[*at].name.clone()).collect()).collect(),
        unequal,
        comparisons: comparisons(&arms, plan.seed),
        arms,
    })
}

/// What the rounds work on.
struct Under<'a> {
    arms: &'a mut [ArmRecord],
    agreement: &'a mut Agreement,
    random: &'a mut Random,
    units: &'a mut BTreeMap<String, String>,
}

/// The deed that all runs must repeat, and differences that the plan allows.
#[derive(Default)]
struct Agreement {
    first: Option<(String, Deed)>,
    allowed: Vec<Disagreement>,
}

impl Agreement {
    /// Holds a run against the first one.
    fn hold(&mut self, plan: &Plan, arm: &Arm, run: String, seen: &Observation) -> Result<(), CompareError> {
        if seen.image != plan.image {
            let (arm, found) = (arm.name.clone(), seen.image.clone());
            return Err(CompareError::Image { arm, found, expected: plan.image.clone() });
        }
        let Some((first_run, first)) = &self.first else {
            self.first = Some((run, seen.deed.clone()));
            return Ok(());
        };
        match disagreement((first_run, first), (&run, &seen.deed)) {
            Some(found) if !plan.allow_difference => Err(CompareError::Differ(found)),
            Some(found) => {
                if self.allowed.is_empty() {
                    self.allowed.push(found);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn proved(arm: &Arm, plan: &Plan, given: &Given, runner: &mut dyn Runner) -> Result<ArmRecord, CompareError> {
    let evidence = runner.evidence(arm).map_err(|e| failed(arm, "proof of its settings".to_owned(), e))?;
    let controls = controls(arm, plan, (&given.boot_id, given.host.kernel.as_deref()), &evidence);
    if let Some(control) = controls.iter().find(|c| !c.passed) {
        return Err(CompareError::Control { arm: arm.name.clone(), control: control.clone() });
    }
    Ok(ArmRecord {
        arm: arm.clone(),
        controls,
        probes: Vec::new(),
        python: evidence.python,
        disk_bytes: disk_bytes(arm, given),
        runs: Vec::new(),
        memory_runs: Vec::new(),
        density: None,
        reach: None,
        summary: Summary::default(),
    })
}

/// What the arm needs on disk: a virtual environment has no image, and QEMU is in our monitor's place.
fn disk_bytes(arm: &Arm, given: &Given) -> BTreeMap<String, u64> {
    let brought = |path: Option<&PathBuf>| given.brought.get(path?).copied();
    if arm.venv.is_some() {
        return present([("venv", brought(arm.venv.as_ref()))]);
    }
    let mut bytes = given.disk_bytes.get(&arm.isolation).cloned().unwrap_or_default();
    if arm.is_qemus() {
        bytes.remove(MONITOR);
        bytes.extend(present([("QEMU", brought(arm.runtime.as_ref()))]));
    }
    bytes
}

/// Our monitor among what a microVM needs on disk.
pub const MONITOR: &str = "monitor";

/// Adds the proof that virtual environments and the image run as one user, or refuses them.
fn same_user(arms: &mut [ArmRecord]) -> Result<(), CompareError> {
    for (at, control) in venv::same_user(arms) {
        let record = &mut arms[at];
        if !control.passed {
            return Err(CompareError::Control { arm: record.arm.name.clone(), control });
        }
        record.controls.push(control);
    }
    Ok(())
}

fn failed(arm: &Arm, what: String, source: RunnerError) -> CompareError {
    CompareError::Arm { arm: arm.name.clone(), what, source }
}

fn timed(
    plan: &Plan,
    runner: &mut dyn Runner,
    watch: &mut dyn FnMut(&Step),
    under: &mut Under<'_>,
) -> Result<(Vec<Vec<usize>>, Ended), CompareError> {
    let least = plan.warmup.saturating_add(plan.runs);
    let mut order: Vec<Vec<usize>> = Vec::new();
    let began = Instant::now();
    for round in 0u32.. {
        if let Some(ended) = ended(plan, round, under.arms, began) {
            return Ok((order, ended));
        }
        let turns = schedule::round(plan.arms.len(), under.random);
        let mut times = Vec::new();
        for at in &turns {
            let arm = &plan.arms[*at];
            let name = format!("arm '{}', round {}", arm.name, round + 1);
            let seen = runner.run(arm, false).map_err(|e| failed(arm, format!("round {}", round + 1), e))?;
            under.agreement.hold(plan, arm, name, &seen)?;
            let run = run(round, round < plan.warmup, &seen);
            under.units.extend(seen.measured.iter().map(|(name, measured)| (name.clone(), measured.unit.clone())));
            times.push((arm.name.clone(), run.total_ms));
            under.arms[*at].runs.push(run);
        }
        order.push(turns);
        watch(&Step::Timed(round + 1, least.max(round + 1), times));
    }
    Ok((order, Ended::Rounds))
}

/// Whether the rounds so far are enough, and why.
fn ended(plan: &Plan, rounds: u32, arms: &[ArmRecord], began: Instant) -> Option<Ended> {
    if rounds < plan.warmup.saturating_add(plan.runs) {
        return None;
    }
    let Some(until) = plan.until else { return Some(Ended::Rounds) };
    // The more rounds there are the less one of them changes, and the longer it takes to see.
    let looks = rounds.is_multiple_of((rounds / 10).max(1));
    // Fewer rounds than a verdict takes say nothing: the interval of a single one has no width at all.
    let enough = rounds.saturating_sub(plan.warmup) as usize >= LEAST_ROUNDS;
    if enough && looks && is_narrow(plan, arms, until.precision) {
        return Some(Ended::Precision);
    }
    (began.elapsed() >= until.budget || rounds >= MOST_ROUNDS).then_some(Ended::Budget)
}

/// Whether the intervals of what is asked for are narrow in every arm: of the measuring programs, or of the start if there are none. It looks
/// at their width only; a verdict that appears is no reason to stop, or every comparison would find one.
fn is_narrow(plan: &Plan, arms: &[ArmRecord], precision: f64) -> bool {
    let Some((base, others)) = arms.split_first() else { return true };
    let last = base.runs.last();
    let mut figures: Vec<String> =
        last.into_iter().flat_map(|run| run.measured_ns.keys().map(|name| format!("measured_ns.{name}"))).collect();
    if figures.is_empty() {
        let first_byte = last.is_some_and(|run| run.first_byte_ms.is_some());
        figures.push(if first_byte { "first_byte_ms" } else { "total_ms" }.to_owned());
    }
    others.iter().all(|arm| {
        figures.iter().all(|figure| {
            let ratio = ratio(&record::rounds(base, arm, figure), plan.seed);
            ratio.is_some_and(|ratio| ratio.is_within(precision))
        })
    })
}

fn measured(
    plan: &Plan,
    runner: &mut dyn Runner,
    watch: &mut dyn FnMut(&Step),
    under: &mut Under<'_>,
) -> Result<(), CompareError> {
    let order = rounds(plan.arms.len(), plan.memory_runs, under.random);
    for (round, turns) in (0u32..).zip(&order) {
        for at in turns {
            let arm = &plan.arms[*at];
            let name = format!("arm '{}', memory round {}", arm.name, round + 1);
            let what = format!("memory round {}", round + 1);
            let seen = runner.run(arm, true).map_err(|e| failed(arm, what.clone(), e))?;
            under.agreement.hold(plan, arm, name, &seen)?;
            let idle = runner.idle(arm).map_err(|e| failed(arm, format!("{what}, idle"), e))?;
            let kinds = [
                ("peak", seen.peak.map(|m| m.total())),
                ("idle", idle.map(|m| m.total())),
                ("cgroup_peak", seen.usage.memory_peak_bytes),
            ];
            under.arms[*at].memory_runs.push(MemoryRun {
                round,
                memory_bytes: present(kinds),
                peak_parts: seen.peak,
                idle_parts: idle,
                exit_code: seen.deed.exit_code,
            });
        }
        watch(&Step::Memory(round + 1, plan.memory_runs));
    }
    Ok(())
}

/// Idle sandboxes of one arm after another, if the plan wants them.
fn crowded(
    plan: &Plan,
    given: &Given,
    runner: &mut dyn Runner,
    watch: &mut dyn FnMut(&Step),
    arms: &mut [ArmRecord],
) -> Result<(), CompareError> {
    let Some(limits) = &plan.density else { return Ok(()) };
    for record in arms {
        let name = record.arm.name.clone();
        let mut crowd = runner.crowd(&record.arm);
        let swept = density::sweep(limits, given.host.memory_bytes, &mut *crowd, &mut |count| {
            watch(&Step::Density(name.clone(), count));
        });
        let ended_badly = crowd.end();
        drop(crowd);
        let swept = swept.map_err(|e| failed(&record.arm, "idle sandboxes".to_owned(), e))?;
        record.density = Some(Sweep { ended_badly, ..swept });
    }
    Ok(())
}

fn present<const N: usize>(kinds: [(&str, Option<u64>); N]) -> BTreeMap<String, u64> {
    kinds.into_iter().filter_map(|(kind, bytes)| Some((kind.to_owned(), bytes?))).collect()
}

fn run(round: u32, warmup: bool, seen: &Observation) -> Run {
    let since = |moment| Some(milliseconds(seen.moments.at(moment)?.saturating_sub(seen.moments.at(Moment::Exec)?)));
    Run {
        round,
        warmup,
        total_ms: since(Moment::Gone).unwrap_or(f64::NAN),
        first_byte_ms: since(Moment::FirstByte),
        phases_ms: seen
            .moments
            .phases_ms()
            .into_iter()
            .map(|(p, ms)| (p.name().to_owned(), rounded(ms, 1e3)))
            .collect(),
        memory_bytes: present([("cgroup_peak", seen.usage.memory_peak_bytes)]),
        measured_ns: seen.measured.iter().map(|(name, m)| (name.clone(), rounded(m.ns_each, 1e3))).collect(),
        exit_code: seen.deed.exit_code,
    }
}

#[allow(clippy::cast_precision_loss, reason = "2^53 ns are 104 days")]
fn milliseconds(ns: u64) -> f64 {
    rounded(ns as f64 / 1e6, 1e3)
}

/// What is not equal between these arms by their nature.
fn unequal(plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    let has = |isolation| plan.arms.iter().any(|a| a.isolation == isolation);
    if has(Isolation::MicroVm) && has(Isolation::Container) {
        found.push("A microVM runs its own kernel, a container the host's.".to_owned());
        found.push(format!(
            "Memory of {}: a microVM's whole machine, its kernel and page cache included; a container's limit.",
            plan.memory
        ));
        found.push(
            "The image's page cache: in a microVM's memory and counted; on the host and not counted for a container."
                .to_owned(),
        );
        if !plan.cpus.0.is_multiple_of(1000) {
            found.push(format!("Processors: {} vCPUs in a microVM under a limit of {}.", plan.cpus.ceil(), plan.cpus));
        }
    }
    if plan.arms.iter().any(|a| a.isolation == Isolation::MicroVm && !a.cold) {
        found.push(
            "A microVM that is not cold goes on from a template, which an earlier run has left: one boot is not counted."
                .to_owned(),
        );
    }
    if plan.arms.iter().any(|a| a.kernel.is_some()) {
        found.push("The arms boot different guest kernels.".to_owned());
    }
    if let Some(arm) = plan.arms.iter().find(|a| a.isolation == Isolation::Process && a.venv.is_none()) {
        found.push(format!(
            "Arm '{}' ISOLATES NOTHING: it is the command on this host, with its processes, network, devices and, as root, \
            all rights; only its root directory is the image's, and its limits are those of the other arms.",
            arm.name
        ));
    }
    if let Some(arm) = plan.arms.iter().find(|a| a.is_qemus()) {
        found.push(format!(
            "Arm '{}' is the same kernel, agent and image in a machine of QEMU's, which runs as its caller, without the walls \
            of Duplex's monitor; its start is part of the guest kernel's, for QEMU does not tell when its machine begins.",
            arm.name
        ));
    }
    if plan.arms.iter().any(Arm::is_outside_container) {
        found.push(
            "An outside runtime is started as a program, twice for each run; ours is part of the process that keeps the \
            container. Its container's users are the host's, and ours are a user namespace's of their own."
                .to_owned(),
        );
    }
    if let Some(arm) = plan.arms.iter().find(|a| a.brings_kernel()) {
        found.push(format!(
            "Arm '{}' answers the command's system calls by a kernel of its own, a process of this host: its memory is counted, \
            and has no size beside the limit.",
            arm.name
        ));
    }
    if plan.arms.iter().any(|a| a.read_only) && plan.arms.iter().any(|a| !a.read_only) {
        found.push("Some arms refuse writes to the root file system.".to_owned());
    }
    if plan.arms.iter().any(|a| a.hardened) {
        found.push(
            "A hardened container may do less: it has no capabilities, fewer system calls and fewer rights to files."
                .to_owned(),
        );
    }
    found
}

#[cfg(test)]
pub(super) mod tests;
