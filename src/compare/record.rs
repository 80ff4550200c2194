//! The result as data: what `--json` writes. The layout is frozen: `tests/golden/compare.v2.json` fails when it moves, and a change that
//! takes away or renames needs a new [`SCHEMA`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::control::Control;
use super::density::Sweep;
use super::facts::HostFacts;
use super::meters::MemorySample;
use super::plan::Arm;
use super::probes::Probe;
use super::reach::Reach;
use super::stats::{Ratio, Spread, ratio};
use super::venv::Python;
use super::verdict::{Kind, Verdict};
use crate::spec::{Digest, Phase};

/// Name and version of the layout.
pub const SCHEMA: &str = "duplex.compare.v2";
/// The layout before it, without what [`ArmRecord::summarize`] works out anew and what was not measured then.
pub(super) const SCHEMA_1: &str = "duplex.compare.v1";

/// A whole comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: String,
    /// The program that measured.
    pub duplex: Build,
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
    /// The host.
    pub host: HostFacts,
    /// The image.
    pub image: ImageRecord,
    /// The command and its arguments; empty is the image's own.
    pub command: Vec<String>,
    /// The measuring programs that the command was, if it was `measure`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<String>,
    /// What each of them counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub units: BTreeMap<String, String>,
    /// Limits of every arm.
    pub limits: LimitsRecord,
    /// How many rounds.
    pub rounds: Rounds,
    /// Seed of the order.
    pub seed: u64,
    /// Names of the arms in the order in which they ran, round by round.
    pub order: Vec<Vec<String>>,
    /// What is not equal between the arms, in sentences.
    pub unequal: Vec<String>,
    /// The arms; the first is the baseline.
    pub arms: Vec<ArmRecord>,
    /// Every other arm beside the baseline, figure by figure.
    pub comparisons: Vec<Comparison>,
}

/// The program that measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Version.
    pub version: String,
    /// Revision of the sources, where the build knew it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// The image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// As the user named it.
    pub reference: String,
    /// Digest of the manifest that every arm ran.
    pub digest: Digest,
}

/// Limits of every arm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitsRecord {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: f64,
}

/// How many rounds of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// Timed and counted.
    pub timed: u32,
    /// Timed before them and not counted.
    pub warmup: u32,
    /// For memory.
    pub memory: u32,
    /// Why there were no more.
    #[serde(default)]
    pub ended: Ended,
    /// How narrow the intervals of the start were to become, as a share of their ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<f64>,
    /// How long that was allowed to take, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_s: Option<u64>,
}

/// Why the timed rounds ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// As many as were asked for.
    #[default]
    Rounds,
    /// The intervals were narrow enough.
    Precision,
    /// The time was over before they were.
    Budget,
}

/// One arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmRecord {
    /// Name, isolation and settings.
    #[serde(flatten)]
    pub arm: Arm,
    /// Proofs that the settings took effect.
    pub controls: Vec<Control>,
    /// What its walls let through, if that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// The Python that answers in it, where a virtual environment is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<Python>,
    /// Bytes on disk that the arm needs, by part.
    pub disk_bytes: BTreeMap<String, u64>,
    /// The timed runs, those for warming up included.
    pub runs: Vec<Run>,
    /// The runs that measured memory.
    pub memory_runs: Vec<MemoryRun>,
    /// How many idle sandboxes there could be, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<Sweep>,
    /// What it reaches of the host, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
    /// Numbers about the runs that count.
    pub summary: Summary,
}

/// One timed run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its round, from 0, warm-up rounds included.
    pub round: u32,
    /// It is kept and not counted.
    pub warmup: bool,
    /// From exec of `duplex run` to its end.
    pub total_ms: f64,
    /// From exec of `duplex run` to the first byte on its standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// Length of every phase that the arm has.
    pub phases_ms: BTreeMap<String, f64>,
    /// `cgroup_peak`: highest charge of the sandbox's cgroup (guest memory or the container's processes, page cache and tmpfs included).
    pub memory_bytes: BTreeMap<String, u64>,
    /// What the measuring programs said, in nanoseconds for one of what they count.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measured_ns: BTreeMap<String, f64>,
    /// Exit code of `duplex run`.
    pub exit_code: u8,
}

/// One run that measured memory, with an idle sandbox beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryRun {
    /// Its round, from 0.
    pub round: u32,
    /// `peak`: highest sample while the command ran; `idle`: an embedded image that waits for input; `cgroup_peak` as in [`Run`].
    pub memory_bytes: BTreeMap<String, u64>,
    /// What `peak` is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_parts: Option<MemorySample>,
    /// What `idle` is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_parts: Option<MemorySample>,
    /// Exit code of `duplex run`.
    pub exit_code: u8,
}

/// Numbers about the runs that count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Of `total_ms`.
    pub total_ms: Option<Spread>,
    /// Of `first_byte_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<Spread>,
    /// Of every phase.
    pub phases_ms: BTreeMap<String, Spread>,
    /// Of every measuring program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measured_ns: BTreeMap<String, Spread>,
    /// Of every kind of memory.
    pub memory_bytes: BTreeMap<String, Spread>,
    /// Sum of `disk_bytes`.
    pub disk_bytes: u64,
}

/// One figure of one arm beside the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The arm.
    pub arm: String,
    /// The baseline.
    pub baseline: String,
    /// `total_ms`, `first_byte_ms`, `phases_ms.<phase>`, `measured_ns.<program>` or `memory_bytes.<kind>`.
    pub figure: String,
    /// Rounds in which both arms have it.
    pub rounds: usize,
    /// Their ratio.
    #[serde(flatten)]
    pub ratio: Ratio,
    /// In words.
    pub verdict: Verdict,
}

impl Run {
    /// The value of a figure, if the run has it.
    pub fn figure(&self, figure: &str) -> Option<f64> {
        match figure.split_once('.') {
            Some(("phases_ms", phase)) => self.phases_ms.get(phase).copied(),
            Some(("measured_ns", program)) => self.measured_ns.get(program).copied(),
            _ if figure == "total_ms" => Some(self.total_ms),
            _ if figure == "first_byte_ms" => self.first_byte_ms,
            _ => None,
        }
    }
}

/// Kinds of memory in the order of tables.
pub(super) const MEMORY: [&str; 3] = ["idle", "peak", "cgroup_peak"];

/// Figures of timed runs in the order of tables.
pub(super) fn time_figures() -> Vec<String> {
    let phases = Phase::ALL.iter().map(|(phase, _)| format!("phases_ms.{}", phase.name()));
    ["first_byte_ms".to_owned(), "total_ms".to_owned()].into_iter().chain(phases).collect()
}

impl ArmRecord {
    /// Fills in the summary from the runs.
    pub fn summarize(&mut self) {
        let counted: Vec<&Run> = self.runs.iter().filter(|r| !r.warmup).collect();
        let spread = |figure: &str| Spread::of(&counted.iter().filter_map(|r| r.figure(figure)).collect::<Vec<_>>());
        let phases = Phase::ALL.iter().map(|(phase, _)| phase.name());
        let memory =
            |kind: &str| Spread::of(&self.memory_runs.iter().filter_map(|r| memory(r, kind)).collect::<Vec<_>>());
        self.summary = Summary {
            total_ms: spread("total_ms"),
            first_byte_ms: spread("first_byte_ms"),
            phases_ms: phases.filter_map(|p| Some((p.to_owned(), spread(&format!("phases_ms.{p}"))?))).collect(),
            measured_ns: programs(&counted)
                .into_iter()
                .filter_map(|p| Some((p.clone(), spread(&format!("measured_ns.{p}"))?)))
                .collect(),
            memory_bytes: MEMORY.into_iter().filter_map(|kind| Some((kind.to_owned(), memory(kind)?))).collect(),
            disk_bytes: self.disk_bytes.values().fold(0, |sum, bytes| sum.saturating_add(*bytes)),
        };
    }
}

/// The measuring programs of these runs.
fn programs(runs: &[&Run]) -> BTreeSet<String> {
    runs.iter().flat_map(|run| run.measured_ns.keys().cloned()).collect()
}

#[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
fn memory(run: &MemoryRun, kind: &str) -> Option<f64> {
    run.memory_bytes.get(kind).map(|bytes| *bytes as f64)
}

/// Every arm beside the first, in every figure that both have.
pub(super) fn comparisons(arms: &[ArmRecord], seed: u64) -> Vec<Comparison> {
    let Some((base, others)) = arms.split_first() else { return Vec::new() };
    let mut found = Vec::new();
    for arm in others {
        let programs = base.summary.measured_ns.keys().map(|program| format!("measured_ns.{program}"));
        for figure in time_figures().into_iter().chain(programs) {
            let rounds = rounds(base, arm, &figure);
            found.extend(comparison((base, arm), figure, Kind::Time, &rounds, seed));
        }
        for kind in MEMORY {
            let rounds: Vec<(f64, f64)> = base
                .memory_runs
                .iter()
                .filter_map(|b| {
                    let other = arm.memory_runs.iter().find(|r| r.round == b.round)?;
                    Some((memory(b, kind)?, memory(other, kind)?))
                })
                .collect();
            found.extend(comparison((base, arm), format!("memory_bytes.{kind}"), Kind::Size, &rounds, seed));
        }
    }
    found
}

/// The figure in every counted round that both arms have, (baseline, arm).
pub(super) fn rounds(base: &ArmRecord, arm: &ArmRecord, figure: &str) -> Vec<(f64, f64)> {
    let counted = base.runs.iter().filter(|r| !r.warmup);
    counted
        .filter_map(|b| {
            let other = arm.runs.iter().find(|r| r.round == b.round)?;
            Some((b.figure(figure)?, other.figure(figure)?))
        })
        .collect()
}

fn comparison(
    (base, arm): (&ArmRecord, &ArmRecord),
    figure: String,
    kind: Kind,
    rounds: &[(f64, f64)],
    seed: u64,
) -> Option<Comparison> {
    let ratio = ratio(rounds, seed)?;
    Some(Comparison {
        arm: arm.arm.name.clone(),
        baseline: base.arm.name.clone(),
        figure,
        rounds: rounds.len(),
        ratio,
        verdict: Verdict::on(kind, rounds.len(), &ratio),
    })
}
