//! In which order the arms take turns.

use super::random::Random;

/// Rounds in which every arm has one turn, in an order of its own per round: whatever drifts over the whole comparison touches all
/// arms alike, and none always runs behind the same other.
pub(super) fn rounds(arms: usize, rounds: u32, random: &mut Random) -> Vec<Vec<usize>> {
    (0..rounds).map(|_| round(arms, random)).collect()
}

/// The next one of them.
pub(super) fn round(arms: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..arms).collect();
    random.shuffle(&mut order);
    order
}

/// The same from a seed, for what is measured side by side outside a comparison.
pub fn turns(arms: usize, count: u32, seed: u64) -> Vec<Vec<usize>> {
    rounds(arms, count, &mut Random::new(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arm_runs_once_a_round_in_an_order_that_the_seed_fixes() {
        let a = rounds(2, 50, &mut Random::new(9));
        assert_eq!(a, rounds(2, 50, &mut Random::new(9)));
        assert_ne!(a, rounds(2, 50, &mut Random::new(10)));
        let first_is_zero = a.iter().filter(|r| r[0] == 0).count();
        assert!((10..=40).contains(&first_is_zero), "{first_is_zero} of 50 rounds begin with arm 0");
        assert!(a.iter().all(|r| r.contains(&0) && r.contains(&1) && r.len() == 2));
    }
}
