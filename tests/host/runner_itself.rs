//! The runner tells the truth: a need that is not met is a named skip, a panic a failure.

use crate::runner::{Case, Need, Part, Verdict, missing, processes};

pub(crate) const CASES: &[Case] = &[
    Case { name: "runner::unmet_needs_have_reasons", needs: &[], run: unmet_needs },
    Case { name: "runner::parts_are_the_whole", needs: &[], run: parts_are_the_whole },
];

/// No case is in two parts or in none, whatever their number.
fn parts_are_the_whole() -> Verdict {
    const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
    let case = |(at, name): (usize, &&'static str)| {
        let needs: &[Need] = [&[Need::Alone], &[Need::Root, Need::Store][..], &[]][at % 3];
        Case { name, needs, run: || Ok(()) }
    };
    let cases: Vec<Case> = NAMES.iter().enumerate().map(case).collect();
    for of in 1..=9 {
        let part = |number: usize| Part::parse(&format!("{number}/{of}")).unwrap().of(&cases);
        let mut names: Vec<&str> = (1..=of).flat_map(part).map(|case| case.name).collect();
        names.sort_unstable();
        assert_eq!(names, NAMES, "{of} parts");
        let stored = |case: &Case| case.needs.contains(&Need::Store);
        assert!((2..=of).all(|number| !part(number).iter().any(stored)), "{of} parts: one lab has the store");
    }
    for text in ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3"] {
        assert!(Part::parse(text).is_none(), "{text}");
    }
    Ok(())
}

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
