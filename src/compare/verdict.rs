//! What an interval allows to say.

use serde::{Deserialize, Serialize};

use super::stats::Ratio;

/// Fewest rounds that allow a verdict on times.
pub(super) const LEAST_ROUNDS: usize = 5;
/// Fewest rounds that allow a verdict on memory, which hardly varies: the interval of three rounds spans all of them.
pub(super) const LEAST_MEMORY_ROUNDS: usize = 3;
/// Widest interval (upper over lower end) in which "no difference" means something: a wider one could hide a difference of a quarter.
const WIDEST: f64 = 1.25;

/// What is measured, and in which words a difference is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Milliseconds: slower and faster.
    Time,
    /// Bytes: more and less.
    Size,
}

/// What the samples say about an arm beside the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The whole interval of the ratio is above 1.
    #[serde(rename = "slower")]
    Slower,
    /// The whole interval is below 1.
    #[serde(rename = "faster")]
    Faster,
    /// The whole interval is above 1.
    #[serde(rename = "more")]
    More,
    /// The whole interval is below 1.
    #[serde(rename = "less")]
    Less,
    /// The interval holds 1 and is narrow.
    #[serde(rename = "no difference seen")]
    NoDifferenceSeen,
    /// Too few rounds, or an interval so wide that a difference could hide in it.
    #[serde(rename = "cannot tell")]
    CannotTell,
}

impl Verdict {
    /// The verdict on this ratio from so many rounds.
    pub fn on(kind: Kind, rounds: usize, ratio: &Ratio) -> Self {
        let (above, below, least) = match kind {
            Kind::Time => (Self::Slower, Self::Faster, LEAST_ROUNDS),
            Kind::Size => (Self::More, Self::Less, LEAST_MEMORY_ROUNDS),
        };
        if rounds < least {
            Self::CannotTell
        } else if ratio.low > 1.0 {
            above
        } else if ratio.high < 1.0 {
            below
        } else if ratio.high <= ratio.low * WIDEST {
            Self::NoDifferenceSeen
        } else {
            Self::CannotTell
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::More => "more",
            Self::Less => "less",
            Self::NoDifferenceSeen => "no difference seen",
            Self::CannotTell => "cannot tell",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::super::stats;
    use super::*;

    /// Noise around 1, roughly normal (sum of twelve uniform numbers), of this relative standard deviation.
    fn noise(random: &mut Random, sd: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64).sum();
        1.0 + (sum - 6.0) * sd
    }

    fn simulated(seed: u64, factor: f64, sd: f64) -> Verdict {
        let mut random = Random::new(seed);
        let rounds: Vec<(f64, f64)> =
            (0..10).map(|_| (100.0 * noise(&mut random, sd), 100.0 * factor * noise(&mut random, sd))).collect();
        Verdict::on(Kind::Time, rounds.len(), &stats::ratio(&rounds, seed).unwrap())
    }

    fn count(verdict: Verdict, factor: f64, sd: f64) -> usize {
        (0..100).filter(|seed| simulated(*seed, factor, sd) == verdict).count()
    }

    #[test]
    fn an_arm_beside_itself_shows_no_difference() {
        let same = count(Verdict::NoDifferenceSeen, 1.0, 0.03);
        assert!(same >= 95, "{same} of 100");
    }

    #[test]
    fn a_slowdown_of_a_tenth_is_seen() {
        let slower = count(Verdict::Slower, 1.1, 0.02);
        assert!(slower >= 99, "{slower} of 100");
        let faster = count(Verdict::Faster, 0.9, 0.02);
        assert!(faster >= 99, "{faster} of 100");
    }

    /// Times as real ones are: a little noise, and one in fifteen is late by up to as much again.
    fn real(random: &mut Random) -> f64 {
        let late = if random.below(15) == 0 { (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 } else { 0.0 };
        noise(random, 0.03) + late
    }

    /// Rounds until the interval is narrow, as `--precision` takes them, of such times; one arm is slower by this factor.
    fn until_narrow(seed: u64, factor: f64) -> Verdict {
        let mut random = Random::new(seed);
        let mut rounds: Vec<(f64, f64)> = Vec::new();
        for most in [10, 15, 22, 33, 50] {
            rounds.resize_with(most, || (real(&mut random), factor * real(&mut random)));
            if stats::ratio(&rounds, seed).unwrap().is_within(0.05) {
                break;
            }
        }
        Verdict::on(Kind::Time, rounds.len(), &stats::ratio(&rounds, seed).unwrap())
    }

    #[test]
    fn rounds_that_go_on_until_the_interval_is_narrow_do_not_find_what_is_not_there_and_find_what_is() {
        let same = (0..100).filter(|seed| until_narrow(*seed, 1.0) == Verdict::NoDifferenceSeen).count();
        assert!(same >= 95, "{same} of 100 see no difference between an arm and itself");
        let slower = (0..100).filter(|seed| until_narrow(*seed, 1.1) == Verdict::Slower).count();
        assert!(slower >= 99, "{slower} of 100 see a tenth");
    }

    #[test]
    fn noise_that_could_hide_a_difference_is_no_verdict() {
        let cannot = count(Verdict::CannotTell, 1.0, 0.4);
        assert!(cannot >= 90, "{cannot} of 100");
        let few = Ratio { ratio: 2.0, low: 1.9, high: 2.1, confidence: 0.99 };
        assert_eq!(Verdict::on(Kind::Time, LEAST_ROUNDS - 1, &few), Verdict::CannotTell);
        assert_eq!(Verdict::on(Kind::Size, LEAST_MEMORY_ROUNDS, &few), Verdict::More);
        assert_eq!(Verdict::on(Kind::Size, LEAST_MEMORY_ROUNDS - 1, &few), Verdict::CannotTell);
    }
}
