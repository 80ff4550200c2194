//! What the embedded image's `measure` and the images of applications print: one line of numbers for each program, among words that must be the
//! same in every arm.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::agree::Captured;
use crate::spec::Digest;

/// What the first line begins with; the names follow.
const FIRST: &str = "Measuring ";
/// What a line of numbers begins with.
const MARK: &str = "#measure";

/// One program's number.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Nanoseconds for one of what it counts, by the sandbox's own monotonic clock.
    pub ns_each: f64,
    /// What it counts.
    pub unit: String,
}

/// Takes the times out of the output, so that what is left must agree between arms. `None` when a number is missing of a program that the
/// first line names, or there is no such line.
pub(super) fn take(stdout: &mut Captured) -> Option<BTreeMap<String, Measured>> {
    let text = String::from_utf8(stdout.head.clone()).ok().filter(|text| text.len() as u64 == stdout.len)?;
    let mut found = BTreeMap::new();
    let mut rest = String::new();
    for line in text.lines() {
        match number(line) {
            Some((name, measured, same)) => {
                found.insert(name, measured);
                rest.push_str(&same);
            }
            None => rest.push_str(line),
        }
        rest.push('\n');
    }
    let wanted: Vec<&str> = text.lines().next()?.strip_prefix(FIRST)?.split(' ').collect();
    if wanted.iter().any(|name| !found.contains_key(*name)) || found.len() != wanted.len() {
        return None;
    }
    let head = rest.into_bytes();
    *stdout = Captured { len: head.len() as u64, sha256: Digest::from_sha256(Sha256::digest(&head).into()), head };
    Some(found)
}

/// Name and number of a line, and the line without its time.
#[allow(clippy::cast_precision_loss, reason = "counts and nanoseconds are far below 2^53")]
fn number(line: &str) -> Option<(String, Measured, String)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [MARK, name, count, unit, ns, check] = words[..] else { return None };
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n > 0).map(|n| n as f64);
    let ns_each = number(ns)? / number(count)?;
    let same = format!("{MARK} {name} {count} {unit} - {check}");
    Some((name.to_owned(), Measured { ns_each, unit: unit.to_owned() }, same))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(text: &str) -> Captured {
        let sha256 = Digest::from_sha256(Sha256::digest(text).into());
        Captured { head: text.as_bytes().to_vec(), len: text.len() as u64, sha256 }
    }

    const GOOD: &str = "Measuring syscall tcp-latency\n#measure syscall 1000 call 250000 00\n#measure tcp-latency 10 round-trip 99 05\n";

    #[test]
    fn times_are_taken_out_and_all_else_stays_to_be_compared() {
        let (mut one, mut two) = (captured(GOOD), captured(&GOOD.replace("250000", "777")));
        let found = take(&mut one).unwrap();
        assert_eq!(found["syscall"], Measured { ns_each: 250.0, unit: "call".to_owned() });
        assert_eq!(found.len(), 2);
        assert!(take(&mut two).is_some());
        assert_eq!(one, two, "other times are no difference");
        let mut other = captured(&GOOD.replace(" 05", " 06"));
        assert!(take(&mut other).is_some());
        assert_ne!(one.sha256, other.sha256, "another result is one");
    }

    #[test]
    fn what_lacks_a_number_is_no_measurement() {
        for (from, to) in [
            ("Measuring ", "Hello "),
            (" 99 05", " x 05"),
            (" 99 05", " 0 05"),
            (" 1000 call", " 0 call"),
            ("syscall tcp-latency", "syscall tcp-latency more"),
            ("syscall tcp-latency", "syscall"),
        ] {
            assert_eq!(take(&mut captured(&GOOD.replacen(from, to, 1))), None, "{from} -> {to}");
        }
        assert_eq!(take(&mut captured("")), None);
        let mut cut = captured(GOOD);
        cut.len += 1;
        assert_eq!(take(&mut cut), None, "more than what was kept");
    }
}
