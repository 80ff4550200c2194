//! Numbers about samples: medians with spread, and the interval of a ratio.

use serde::{Deserialize, Serialize};

use super::random::Random;

/// Where samples lie. Quantiles interpolate between neighbours (Hyndman and Fan 1996, type 7).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many samples.
    pub n: usize,
    /// Their median.
    pub median: f64,
    /// Median of the distances from the median.
    pub mad: f64,
    /// First quartile.
    pub q1: f64,
    /// Third quartile.
    pub q3: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// 90th percentile.
    #[serde(default)]
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    #[serde(default)]
    pub p99: f64,
    /// How many lie far from the others; they count like all.
    #[serde(default)]
    pub outliers: usize,
}

impl Spread {
    /// The spread of these samples; `None` if there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples);
        let median = quantile(&sorted, 0.5)?;
        let distances: Vec<f64> = sorted.iter().map(|s| (s - median).abs()).collect();
        let at = |q| Some(rounded(quantile(&sorted, q)?, 1e3));
        let mut spread = Self {
            n: sorted.len(),
            median: at(0.5)?,
            mad: rounded(quantile(&self::sorted(&distances), 0.5)?, 1e3),
            q1: at(0.25)?,
            q3: at(0.75)?,
            min: at(0.0)?,
            max: at(1.0)?,
            p90: at(0.9)?,
            p95: at(0.95)?,
            p99: at(0.99)?,
            outliers: 0,
        };
        spread.outliers = sorted.iter().filter(|sample| is_outlier(**sample, &spread)).count();
        Some(spread)
    }
}

/// Whether a sample lies far outside the middle half (Tukey 1977: further than one and a half of its widths). It is counted like all others.
pub(super) fn is_outlier(sample: f64, spread: &Spread) -> bool {
    let reach = 1.5 * (spread.q3 - spread.q1);
    sample < spread.q1 - reach || sample > spread.q3 + reach
}

/// To one part of `parts`: milliseconds to whole microseconds, ratios to four digits. More is noise, and does not read well.
pub(crate) fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|s| s.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Quantile of sorted samples.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 <= q <= 1: an index within the samples"
    )]
    let below = (last as f64 * q).floor() as usize;
    let part = last as f64 * q - below as f64;
    let low = *sorted.get(below)?;
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    Some(low + (high - low) * part)
}

/// A ratio of medians with its bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Median of the arm over median of the baseline.
    pub ratio: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Share of the bootstrap's ratios that lie between `low` and `high`.
    pub confidence: f64,
}

/// Share of the bootstrap's ratios in an interval: wide on purpose, a comparison states many.
pub(super) const CONFIDENCE: f64 = 0.99;
/// Resamples of the bootstrap.
const RESAMPLES: usize = 4000;

/// The ratio of the medians of rounds that have both samples, (baseline, arm) in pairs. Rounds are resampled whole, so drift that both
/// arms saw does not widen the interval. `None` without rounds or with a baseline of 0.
pub(super) fn ratio(rounds: &[(f64, f64)], seed: u64) -> Option<Ratio> {
    let mut random = Random::new(seed);
    let ratio = ratio_of_medians(rounds)?;
    let mut drawn = Vec::with_capacity(rounds.len());
    interval(ratio, || {
        resample(rounds, &mut random, &mut drawn);
        ratio_of_medians(&drawn)
    })
}

/// How a [`ratio`] of one result stands to that of another: now over then, each resampled for itself.
pub(super) fn change(then: &[(f64, f64)], now: &[(f64, f64)], seed: u64) -> Option<Ratio> {
    let mut random = Random::new(seed);
    let of = |then: &[(f64, f64)], now: &[(f64, f64)]| {
        let then = ratio_of_medians(then)?;
        (then > 0.0).then_some(ratio_of_medians(now)? / then)
    };
    let change = of(then, now)?;
    let (mut some, mut others) = (Vec::with_capacity(then.len()), Vec::with_capacity(now.len()));
    interval(change, || {
        resample(then, &mut random, &mut some);
        resample(now, &mut random, &mut others);
        of(&some, &others)
    })
}

fn ratio_of_medians(rounds: &[(f64, f64)]) -> Option<f64> {
    let median = |of: fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).filter(|s| s.is_finite()).collect());
    let base = median(|r| r.0)?;
    (base > 0.0).then_some(median(|r| r.1)? / base)
}

/// The median without sorting: a bootstrap takes thousands.
fn median(mut samples: Vec<f64>) -> Option<f64> {
    let middle = samples.len() / 2;
    let even = samples.len().is_multiple_of(2);
    if samples.is_empty() {
        return None;
    }
    let (below, upper, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = below.iter().copied().max_by(f64::total_cmp).filter(|_| even);
    Some(lower.map_or(*upper, |lower| lower + (*upper - lower) * 0.5))
}

impl Ratio {
    /// Whether the interval reaches at most this share of the ratio to either side.
    pub fn is_within(&self, precision: f64) -> bool {
        (self.high - self.low) / 2.0 <= precision * self.ratio
    }
}

fn resample(rounds: &[(f64, f64)], random: &mut Random, drawn: &mut Vec<(f64, f64)>) {
    drawn.clear();
    drawn.extend((0..rounds.len()).filter_map(|_| rounds.get(random.below(rounds.len()))));
}

/// The interval of a ratio that holds the middle of what resampling makes of it.
fn interval(ratio: f64, mut resampled: impl FnMut() -> Option<f64>) -> Option<Ratio> {
    let ratios: Vec<f64> = (0..RESAMPLES).filter_map(|_| resampled()).collect();
    let ratios = sorted(&ratios);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |q| Some(rounded(quantile(&ratios, q)?, 1e4));
    Some(Ratio { ratio: rounded(ratio, 1e4), low: at(tail)?, high: at(1.0 - tail)?, confidence: CONFIDENCE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_known_samples() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0, 10.0]).unwrap();
        assert_eq!((spread.n, spread.median, spread.min, spread.max), (5, 3.0, 1.0, 10.0));
        assert_eq!((spread.q1, spread.q3, spread.mad), (2.0, 4.0, 1.0));
        assert!((spread.p95 - 8.8).abs() < 1e-9);
        assert!((spread.p90 - 7.6).abs() < 1e-9 && (spread.p99 - 9.76).abs() < 1e-9);
        assert_eq!(spread.outliers, 1, "10 lies further than 1.5 x 2 above 4");
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[7.0]).unwrap().p95, 7.0);
    }

    #[test]
    fn a_ratio_lies_in_its_interval() {
        let rounds: Vec<(f64, f64)> = (0..10).map(|n| (100.0 + f64::from(n), 200.0 + f64::from(n * 3 % 7))).collect();
        let ratio = ratio(&rounds, 1).unwrap();
        assert!(ratio.low <= ratio.ratio && ratio.ratio <= ratio.high, "{ratio:?}");
        assert!(ratio.low > 1.8 && ratio.high < 2.1, "{ratio:?}");
    }

    #[test]
    fn drift_that_both_arms_see_does_not_widen_the_interval_much() {
        let rounds: Vec<(f64, f64)> =
            (0..20).map(|n| (100.0 + 10.0 * f64::from(n), 110.0 + 11.0 * f64::from(n))).collect();
        let ratio = ratio(&rounds, 1).unwrap();
        assert!((ratio.ratio - 1.1).abs() < 1e-9 && ratio.high - ratio.low < 1e-9, "{ratio:?}");
    }

    #[test]
    fn no_ratio_without_a_baseline() {
        assert_eq!(ratio(&[], 1), None);
        assert_eq!(ratio(&[(0.0, 1.0)], 1), None);
    }
}
