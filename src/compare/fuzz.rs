//! A target of fuzzing: the result of an earlier comparison, whose file a person names.

use super::{baseline, report};

/// A result: what is read is written and read again the same, stands beside itself without a change, and becomes a page.
pub(crate) fn comparison(data: &[u8]) {
    let Ok(record) = baseline::read(data) else { return };
    let text = serde_json::to_vec(&record).unwrap();
    let again = baseline::read(&text).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&record).unwrap());
    let against = baseline::against(&record, &again, 5.0);
    assert!(against.regressed().next().is_none(), "worse than itself");
    let _ = report::report(&record, Some(&against));
}
