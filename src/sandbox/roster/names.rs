//! Names for sandboxes that their users gave none.

const QUALITIES: [&str; 32] = [
    "able", "bold", "brave", "brisk", "calm", "clear", "crisp", "eager", "early", "fair", "fleet", "fond", "frank",
    "glad", "grand", "keen", "kind", "light", "lively", "lucid", "merry", "mild", "neat", "noble", "plain", "proud",
    "quick", "quiet", "sharp", "sunny", "swift", "warm",
];

const HOUSES: [&str; 32] = [
    "abbey", "arcade", "attic", "barn", "bower", "cabin", "castle", "chalet", "chapel", "cottage", "dome", "farm",
    "forge", "gable", "garden", "hall", "harbour", "hut", "inn", "kiosk", "lodge", "loft", "manor", "mill", "nook",
    "orchard", "pier", "porch", "studio", "tower", "villa", "wharf",
];

/// Names in random order, short ones first. Without randomness to be had they begin at the same one.
pub(super) fn random() -> impl Iterator<Item = String> {
    let mut bytes = [0_u8; 512];
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    let pairs = bytes.chunks(4).map(|b| <[u8; 4]>::try_from(b).unwrap_or_default()).collect::<Vec<_>>();
    pairs.into_iter().enumerate().map(|(at, [quality, house, high, low])| {
        let pick = |list: &[&'static str; 32], n: u8| list.get(usize::from(n % 32)).copied().unwrap_or("plain");
        let name = format!("{}_{}", pick(&QUALITIES, quality), pick(&HOUSES, house));
        if at < 16 { name } else { format!("{name}{}", u16::from_le_bytes([high, low])) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_enough() {
        let names: Vec<String> = random().collect();
        assert_eq!(names.len(), 128);
        assert!(names.iter().all(|n| crate::sandbox::names::check(n).is_ok()));
        let lists: std::collections::BTreeSet<_> = QUALITIES.iter().chain(&HOUSES).collect();
        assert_eq!(lists.len(), 64);
    }
}
