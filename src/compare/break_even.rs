//! From which length of a run on the cost of another kind of walls is a small part of it.
//!
//! A run is what does not depend on its length (start and end) and its work. With the fixed part `s` and the work `w` of the baseline, the fixed
//! part `s + d` of the arm, and its work `r * w`, the arm takes at most a share `x` longer than the baseline's run of length `t = s + w` when
//!
//! ```text
//! d + (r - 1) * (t - s) <= x * t      so      t >= (d - (r - 1) * s) / (x - (r - 1))
//! ```

use super::record::{ArmRecord, Record, Run};
use super::stats::{Spread, ratio};
use super::verdict::{Kind, Verdict};
use super::words::milliseconds;

/// The shares for which the length is told.
const SHARES: [f64; 3] = [0.10, 0.05, 0.01];

/// Work that takes less than this part of the fixed time is too short to tell how fast the arm works.
const LEAST_WORK: f64 = 1.0;

/// What is known of an arm's work beside the baseline's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    /// The samples do not tell, and equal work is assumed.
    Assumed,
    /// No difference was seen.
    Same,
    /// It takes so many times as long.
    Ratio(f64),
}

/// The sentence about this arm; `None` when the samples are too few for any.
pub(super) fn break_even(record: &Record, base: &ArmRecord, arm: &ArmRecord) -> Option<String> {
    // A list of programs is no run whose length means something.
    if !record.workloads.is_empty() {
        return None;
    }
    let pairs = pairs(base, arm, fixed);
    let fixed_ratio = ratio(&pairs, record.seed)?;
    let (a, b) = (&base.arm.name, &arm.arm.name);
    let start = median(&pairs.iter().map(|p| p.0).collect::<Vec<_>>())?;
    let extra = median(&pairs.iter().map(|p| p.1 - p.0).collect::<Vec<_>>())?;
    match Verdict::on(Kind::Time, pairs.len(), &fixed_ratio) {
        Verdict::Slower => {}
        Verdict::Faster => {
            return Some(format!("Start and end of {b} take less than those of {a}, from the shortest run on."));
        }
        _ => return Some(format!("No break-even: that {b} costs more per run than {a} is not shown.")),
    }
    let work = work(record, base, arm, start);
    let factor = if let Work::Ratio(ratio) = work { ratio - 1.0 } else { 0.0 };
    // A time of the lab means nothing; a multiple of another does.
    let lab = record.host.lab;
    let mut parts = Vec::new();
    for share in SHARES {
        let percent = (share * 100.0).round();
        match length(start, extra, factor, share) {
            Some(ms) if lab => {
                parts.push(format!("below {percent} % of runs {:.0} times as long", (ms / start).ceil()))
            }
            Some(ms) => parts.push(format!("below {percent} % of runs of {}", span(ms))),
            None => {
                parts.push(format!("never below {percent} %"));
                break;
            }
        }
    }
    let cost =
        if lab { format!("{:.2} times one of {a} without its work", extra / start) } else { milliseconds(extra) };
    let about = match work {
        Work::Assumed => "if the work itself takes equally long".to_owned(),
        Work::Same => "with no difference seen in the work itself".to_owned(),
        Work::Ratio(ratio) => format!("with work that takes {ratio:.2} x the time"),
    };
    Some(format!("Break-even: what {b} adds to a run, {cost}, is {}, {about}.", parts.join(", ")))
}

/// The shortest run in which the arm takes at most this share longer.
fn length(start: f64, extra: f64, factor: f64, share: f64) -> Option<f64> {
    (share > factor).then(|| ((extra - factor * start) / (share - factor)).max(start))
}

fn fixed(run: &Run) -> Option<f64> {
    Some(run.total_ms - run.phases_ms.get("work")?)
}

fn pairs(base: &ArmRecord, arm: &ArmRecord, of: fn(&Run) -> Option<f64>) -> Vec<(f64, f64)> {
    let counted = base.runs.iter().filter(|r| !r.warmup);
    counted.filter_map(|a| Some((of(a)?, of(arm.runs.iter().find(|b| b.round == a.round)?)?))).collect()
}

fn median(samples: &[f64]) -> Option<f64> {
    Spread::of(samples).map(|spread| spread.median)
}

fn work(record: &Record, base: &ArmRecord, arm: &ArmRecord, start: f64) -> Work {
    let long = base.summary.phases_ms.get("work").is_some_and(|s| s.median >= LEAST_WORK * start);
    let same = |figure: &str| record.comparisons.iter().find(|c| c.arm == arm.arm.name && c.figure == figure);
    match same("phases_ms.work").filter(|_| long) {
        Some(c) if c.verdict == Verdict::NoDifferenceSeen => Work::Same,
        Some(c) if matches!(c.verdict, Verdict::Slower | Verdict::Faster) => Work::Ratio(c.ratio.ratio),
        _ => Work::Assumed,
    }
}

/// A length of time in the unit that people would use.
fn span(ms: f64) -> String {
    match ms {
        v if v >= 7_200_000.0 => format!("{:.1} h", v / 3_600_000.0),
        v if v >= 120_000.0 => format!("{:.1} min", v / 60_000.0),
        v if v >= 1000.0 => format!("{:.1} s", v / 1000.0),
        v => format!("{v:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::drive::tests::recorded;

    /// A record of two arms whose fixed parts and work take so long, with a little regular noise.
    fn record(lab: bool, fixed: [f64; 2], work: [f64; 2]) -> Record {
        let mut record = recorded();
        record.host.lab = lab;
        for (arm, (fixed, work)) in record.arms.iter_mut().zip(fixed.into_iter().zip(work)) {
            for run in &mut arm.runs {
                let noise = 1.0 + f64::from(run.round * 7 % 5) / 1000.0;
                run.phases_ms.insert("work".to_owned(), work * noise);
                run.total_ms = (fixed + work) * noise;
            }
            arm.summarize();
        }
        record.comparisons = crate::compare::record::comparisons(&record.arms, record.seed);
        record
    }

    fn sentence(record: &Record) -> String {
        break_even(record, &record.arms[0], &record.arms[1]).unwrap()
    }

    #[test]
    fn the_length_solves_the_equation() {
        for (start, extra, factor, share) in
            [(100.0, 50.0, 0.0, 0.1), (100.0, 50.0, 0.03, 0.05), (80.0, 5.0, -0.1, 0.01)]
        {
            let t = length(start, extra, factor, share).unwrap();
            let over = |t: f64| (extra + factor * (t - start)) / t;
            assert!(
                over(t) <= share + 1e-9 && (t <= start || over(t * 0.99) > share),
                "{start} {extra} {factor} {share}: {t}"
            );
        }
        assert_eq!(length(100.0, 50.0, 0.2, 0.1), None, "work that is a fifth slower never gets below a tenth");
    }

    #[test]
    fn the_sentence_tells_times_on_hardware_and_multiples_in_the_lab() {
        let text = sentence(&record(false, [100.0, 150.0], [1.0, 1.0]));
        assert!(
            text.contains("adds to a run, 50.1 ms, is below 10 % of runs of 501 ms") && text.contains("if the work"),
            "{text}"
        );
        let text = sentence(&record(true, [100.0, 150.0], [1.0, 1.0]));
        assert!(
            text.contains("0.50 times") && text.contains("below 10 % of runs 5 times as long") && !text.contains(" ms"),
            "{text}"
        );
    }

    #[test]
    fn the_work_counts_when_it_was_long_enough_to_see() {
        let text = sentence(&record(false, [100.0, 150.0], [1000.0, 1030.0]));
        assert!(text.contains("never below 1 %") && text.contains("1.03 x the time"), "{text}");
        let text = sentence(&record(false, [100.0, 150.0], [1000.0, 1000.0]));
        assert!(text.contains("no difference seen in the work"), "{text}");
    }

    #[test]
    fn without_a_difference_there_is_no_break_even() {
        let text = sentence(&record(false, [100.0, 100.0], [1.0, 1.0]));
        assert!(text.starts_with("No break-even"), "{text}");
        let text = sentence(&record(false, [100.0, 50.0], [1.0, 1.0]));
        assert!(text.contains("less than those of"), "{text}");
    }
}
