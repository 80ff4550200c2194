//! The runner tells the truth: a need that is not met is a named skip, a panic a failure.

use crate::runner::{Case, Need, Verdict, missing, processes};

pub(crate) const CASES: &[Case] = &[Case { name: "runner::unmet_needs_have_reasons", needs: &[], run: unmet_needs }];

fn unmet_needs() -> Verdict {
    let words = missing(Need::Program("no-such-program-anywhere")).expect("it is not there");
    assert!(words.contains("no-such-program-anywhere"), "{words}");
    assert!(missing(Need::Program("sh")).is_none());
    assert!(missing(Need::File("/nowhere/at/all")).is_some_and(|w| w.contains("/nowhere/at/all")));
    let (me, lines) = (format!("{} < ", std::process::id()), processes());
    assert!(lines.iter().any(|line| line.starts_with(&me) && line.contains("signals [")), "{lines:?}");
    assert_ne!(missing(Need::Host).is_none(), missing(Need::Outside).is_none(), "a case has one home");
    Ok(())
}
