//! A result beside an earlier one: what got worse by more than is allowed.
//!
//! On hardware times are held against the earlier times. In the lab, where a time depends on who else uses the machine, what an arm takes is
//! first divided by what the first arm of the same result takes, in both results. Memory, also that of idle sandboxes ([`density`]), and bytes
//! on disk are compared as they are.

use serde::Deserialize;

use super::plan::{Arm, Plan};
use super::record::{ArmRecord, Record, Run, SCHEMA, SCHEMA_1};
use super::stats::{Ratio, change};
use super::verdict::{LEAST_MEMORY_ROUNDS, LEAST_ROUNDS};
use super::words::{known, memory_label};

mod density;

/// Why a file is not a baseline, or not one of this comparison.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// Not a result of any version.
    #[error("It is not a result of 'duplex compare --json'")]
    NotAResult(#[source] serde_json::Error),
    /// A layout that this program does not know.
    #[error(
        "Its layout is '{found}', and this Duplex reads '{SCHEMA}' and '{SCHEMA_1}': make it anew with this Duplex"
    )]
    Layout {
        /// What it says of itself.
        found: String,
    },
    /// It says a layout and has another.
    #[error("It does not have the layout '{SCHEMA}' that it names")]
    Broken(#[source] serde_json::Error),
    /// Something that must be the same is not.
    #[error("Its {what} is {was}, and here it is {is}: only like can be compared with like")]
    Unlike {
        /// What.
        what: &'static str,
        /// In the file.
        was: String,
        /// Here.
        is: String,
    },
    /// Nothing in common.
    #[error("It has none of the arms {0}")]
    NoArm(String),
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It grew by more than is allowed, and by more than chance.
    Regressed,
    /// The whole interval is within what is allowed.
    Held,
    /// A regression could hide in the interval, or there are too few samples.
    CannotTell,
}

impl Fate {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Regressed => "regressed",
            Self::Held => "held",
            Self::CannotTell => "cannot tell",
        }
    }
}

/// One figure of one arm, now over then.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The arm.
    pub arm: String,
    /// The figure, as in comparisons; `disk_bytes` and `density.<figure>` beside them.
    pub figure: String,
    /// Now over then.
    pub ratio: Ratio,
    /// What became of it.
    pub fate: Fate,
}

/// A result beside its baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Against {
    /// When the baseline was made, in seconds since 1970.
    pub began_unix_s: u64,
    /// How much may grow: 0.1 is a tenth.
    pub allowed: f64,
    /// Times were divided by those of this arm before.
    pub relative_to: Option<String>,
    /// What differs between the two beside the figures, in sentences.
    pub unequal: Vec<String>,
    /// All figures that both have.
    pub changes: Vec<Change>,
}

impl Against {
    /// The figures that regressed.
    pub fn regressed(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|c| c.fate == Fate::Regressed)
    }
}

/// Reads a result. One of an unknown layout is refused by its name before anything else of it is looked at.
pub fn read(text: &[u8]) -> Result<Record, BaselineError> {
    #[derive(Deserialize)]
    struct Layout {
        schema: String,
    }
    let layout: Layout = serde_json::from_slice(text).map_err(BaselineError::NotAResult)?;
    if ![SCHEMA, SCHEMA_1].contains(&layout.schema.as_str()) {
        return Err(BaselineError::Layout { found: layout.schema });
    }
    let mut record: Record = serde_json::from_slice(text).map_err(BaselineError::Broken)?;
    // What an older layout does not say of its samples follows from them.
    record.arms.iter_mut().for_each(ArmRecord::summarize);
    Ok(record)
}

/// Refuses an earlier result of something else than this plan.
pub fn fits(earlier: &Record, plan: &Plan, lab: bool) -> Result<(), BaselineError> {
    let unlike = |what, was: String, is: String| Err(BaselineError::Unlike { what, was, is });
    let place = |lab| if lab { "the lab" } else { "a host of its own" }.to_owned();
    if earlier.host.lab != lab {
        return unlike("place", place(earlier.host.lab), place(lab));
    }
    if earlier.command != plan.command || earlier.workloads != plan.workloads {
        return unlike("command", format!("{:?}", earlier.command), format!("{:?}", plan.command));
    }
    let cpus = f64::from(plan.cpus.0) / 1000.0;
    if earlier.limits.memory_bytes != plan.memory.0 {
        return unlike(
            "memory limit",
            format!("{} bytes", earlier.limits.memory_bytes),
            format!("{} bytes", plan.memory.0),
        );
    }
    if (earlier.limits.cpus - cpus).abs() > 1e-6 {
        return unlike("processor limit", earlier.limits.cpus.to_string(), cpus.to_string());
    }
    let twin = |arm: &Arm| earlier.arms.iter().find(|a| a.arm.name == arm.name);
    if let Some((now, then)) = plan.arms.iter().filter_map(|a| Some((a, twin(a)?))).find(|(a, b)| **a != b.arm) {
        return unlike("arm of the same name", format!("{:?}", then.arm), format!("{now:?}"));
    }
    if lab && earlier.arms.first().map(|a| &a.arm) != plan.arms.first() {
        let first = |arm: Option<&Arm>| arm.map_or_else(String::new, |a| format!("'{}'", a.name));
        return unlike("first arm", first(earlier.arms.first().map(|a| &a.arm)), first(plan.arms.first()));
    }
    if !plan.arms.iter().any(|arm| twin(arm).is_some()) {
        let names: Vec<&str> = plan.arms.iter().map(|a| a.name.as_str()).collect();
        return Err(BaselineError::NoArm(names.join(", ")));
    }
    Ok(())
}

/// The result beside an earlier one that [`fits`].
pub fn against(record: &Record, earlier: &Record, allowed: f64) -> Against {
    let relative = record.host.lab;
    let mut changes = Vec::new();
    for (at, arm) in record.arms.iter().enumerate() {
        let Some(then) = earlier.arms.iter().find(|a| a.arm.name == arm.arm.name) else { continue };
        let bases = [record.arms.first(), earlier.arms.first()].map(|base| base.filter(|_| relative));
        // In the lab the first arm is the measure, and has none itself.
        if !(relative && at == 0) {
            let programs = arm.summary.measured_ns.keys().map(|program| format!("measured_ns.{program}"));
            for figure in ["first_byte_ms", "total_ms"].map(str::to_owned).into_iter().chain(programs) {
                let [now, then] = [(bases[0], arm), (bases[1], then)].map(|(base, arm)| times(base, arm, &figure));
                let ratio = change(&then, &now, record.seed);
                changes.extend(ratio.map(|r| judged(arm, &figure, r, enough(&now, &then, LEAST_ROUNDS), allowed)));
            }
        }
        for kind in ["idle", "peak"] {
            let [now, then] = [arm, then].map(|arm| sizes(arm, kind));
            let ratio = change(&then, &now, record.seed);
            let enough = enough(&now, &then, LEAST_MEMORY_ROUNDS);
            changes.extend(ratio.map(|r| judged(arm, &format!("memory_bytes.{kind}"), r, enough, allowed)));
        }
        changes.extend(disk(arm, then).map(|r| judged(arm, "disk_bytes", r, true, allowed)));
        changes.extend(density::changes(arm, then, allowed));
    }
    Against {
        began_unix_s: earlier.began_unix_s,
        allowed,
        relative_to: record.arms.first().filter(|_| relative).map(|a| a.arm.name.clone()),
        unequal: unequal(record, earlier),
        changes,
    }
}

fn enough<T>(now: &[T], then: &[T], least: usize) -> bool {
    now.len() >= least && then.len() >= least
}

fn judged(arm: &ArmRecord, figure: &str, ratio: Ratio, enough: bool, allowed: f64) -> Change {
    let most = 1.0 + allowed;
    let fate = if !enough {
        Fate::CannotTell
    } else if ratio.ratio > most && ratio.low > 1.0 {
        Fate::Regressed
    } else if ratio.high <= most {
        Fate::Held
    } else {
        Fate::CannotTell
    };
    Change { arm: arm.arm.name.clone(), figure: figure.to_owned(), ratio, fate }
}

/// The figure of every counted run, with that of the first arm in its round; with 1 where times count as they are.
fn times(base: Option<&ArmRecord>, arm: &ArmRecord, figure: &str) -> Vec<(f64, f64)> {
    let measure = |run: &Run| match base {
        None => Some(1.0),
        Some(base) => base.runs.iter().find(|r| r.round == run.round)?.figure(figure),
    };
    arm.runs.iter().filter(|r| !r.warmup).filter_map(|run| Some((measure(run)?, run.figure(figure)?))).collect()
}

#[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
fn sizes(arm: &ArmRecord, kind: &str) -> Vec<(f64, f64)> {
    arm.memory_runs.iter().filter_map(|run| Some((1.0, *run.memory_bytes.get(kind)? as f64))).collect()
}

#[allow(clippy::cast_precision_loss, reason = "2^53 bytes are 8 PiB")]
fn disk(now: &ArmRecord, then: &ArmRecord) -> Option<Ratio> {
    let [now, then] = [now, then].map(|arm| arm.summary.disk_bytes as f64);
    let ratio = now / then;
    (then > 0.0).then_some(Ratio { ratio, low: ratio, high: ratio, confidence: 1.0 })
}

/// What else is not the same: it may explain a change.
fn unequal(now: &Record, then: &Record) -> Vec<String> {
    let facts = [
        ("processor", known(&then.host.cpu_model), known(&now.host.cpu_model)),
        ("host's kernel", known(&then.host.kernel), known(&now.host.kernel)),
        ("kind of KVM", &then.host.kvm, &now.host.kvm),
        ("version of Duplex", &then.duplex.version, &now.duplex.version),
        ("image", then.image.digest.short(), now.image.digest.short()),
    ];
    let differ = facts.iter().filter(|(_, a, b)| a != b);
    let facts = differ.map(|(what, a, b)| format!("The {what} is another: {a} then, {b} now."));
    facts.chain(density::unequal(now, then)).collect()
}

/// What became of it all, in a sentence.
pub fn summary(against: &Against) -> String {
    let percent = against.allowed * 100.0;
    let told = |c: &Change| format!("{} of {} ({:.2} x)", label(&c.figure), c.arm, c.ratio.ratio);
    let worse: Vec<String> = against.regressed().map(told).collect();
    let open = against.changes.iter().filter(|c| c.fate == Fate::CannotTell).count();
    let beside = "Beside the earlier result";
    match (worse.is_empty(), open) {
        (false, _) => format!("{beside} these are worse by more than {percent} %: {}.", worse.join(", ")),
        (true, 0) => format!("{beside} nothing is worse by more than {percent} %."),
        (true, n) => {
            format!("{beside} nothing is seen to be worse by more than {percent} %; {n} figures cannot tell.")
        }
    }
}

/// What a figure is, beside those of comparisons.
pub(super) fn label(figure: &str) -> &str {
    match figure.split_once('.') {
        Some(("memory_bytes", kind)) => memory_label(kind),
        Some(("density", _)) => {
            density::FIGURES.iter().find(|(name, _)| *name == figure).map_or(figure, |(_, label)| label)
        }
        _ if figure == "disk_bytes" => "bytes on disk",
        _ => super::words::figure_label(figure),
    }
}

#[cfg(test)]
mod tests;
