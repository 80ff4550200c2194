//! What the arms reach, in words: the same rows in every form of the result.

use super::{Counts, Reach, SetUserId};
use crate::compare::record::ArmRecord;

/// Most reasons for exits that have a row.
const REASONS: usize = 6;
/// Most paths that are named in a row.
const PATHS: usize = 4;

/// What the rows are of.
const MEANING: &str = "Reach: the command once more in every arm, untimed and watched. System calls are those of the host's kernel by the processes \
    of the sandbox's cgroup, from the first program executed there: in a container the command's own, which chooses them within its filter; in a \
    microVM its monitor's, which nothing inside chooses, of a fixed list; under runsc its kernel's, which is such a process. Exits are a virtual \
    machine's returns to the host.";

/// And of functions, where they were counted.
const FUNCTIONS: &str = " The kernel's functions are those that these processes were in, in one more run; what interrupts did meanwhile is among \
    them. It is what this command reached, and not the most that a hostile one could: in a container it chooses, within the filter; in a microVM it \
    is for the most part KVM and what the monitor does for any command.";

/// What the rows of these arms are of.
pub(in crate::compare) fn meaning(arms: &[ArmRecord]) -> String {
    [MEANING, if functions(arms) { FUNCTIONS } else { "" }].concat()
}

/// Whether functions of the kernel were counted anywhere.
fn functions(arms: &[ArmRecord]) -> bool {
    arms.iter().any(|arm| arm.reach.as_ref().is_some_and(|reach| reach.kernel_functions.is_some()))
}

/// A row: what it is, and of each arm what was found.
pub(in crate::compare) struct Row {
    pub(in crate::compare) name: String,
    pub(in crate::compare) cells: Vec<String>,
}

/// Every row of these arms; none if nothing was asked for.
pub(in crate::compare) fn rows(arms: &[ArmRecord]) -> Vec<Row> {
    if arms.iter().all(|arm| arm.reach.is_none()) {
        return Vec::new();
    }
    let row = |name: &str, cell: &dyn Fn(&Reach) -> Option<String>| Row {
        name: name.to_owned(),
        cells: arms.iter().map(|arm| arm.reach.as_ref().and_then(cell).unwrap_or_else(|| "-".to_owned())).collect(),
    };
    let counted = |counts: &Option<Counts>| {
        counts.as_ref().map(|counts| {
            let more = if counts.unsorted > 0 { "over " } else { "" };
            format!("{} of {more}{} kinds", grouped(counts.total), grouped(counts.distinct))
        })
    };
    let mut rows = vec![row("host's system calls", &|reach| counted(&reach.system_calls))];
    if functions(arms) {
        rows.push(row("its kernel's functions", &|reach| counted(&reach.kernel_functions)));
    }
    rows.push(row("exits to the host", &|reach| counted(&reach.vm_exits)));
    for reason in reasons(arms) {
        let of = |reach: &Reach| {
            let counts = reach.vm_exits.as_ref()?;
            Some(grouped(counts.by_kind.get(&reason).copied().unwrap_or(0)))
        };
        rows.push(row(&format!("  {reason}"), &of));
    }
    rows.push(row("set-user-id root becomes", &|reach| reach.set_user_id.as_ref().map(gain)));
    rows.push(row("may write on the host", &|reach| reach.writable_host_paths.as_deref().map(paths)));
    rows
}

/// What was not measured, arm by arm.
pub(in crate::compare) fn not_measured(arms: &[ArmRecord]) -> Vec<String> {
    let of = |arm: &ArmRecord| {
        let missing = arm.reach.as_ref().map_or(&[][..], |reach| &reach.not_measured);
        missing.iter().map(|why| format!("Not measured of {}: {why}.", arm.arm.name)).collect::<Vec<_>>()
    };
    arms.iter().flat_map(of).collect()
}

/// The most frequent reasons of all arms together.
fn reasons(arms: &[ArmRecord]) -> Vec<String> {
    let mut sum = Counts::default();
    for counts in arms.iter().filter_map(|arm| arm.reach.as_ref()?.vm_exits.as_ref()) {
        for (kind, count) in &counts.by_kind {
            let all = sum.by_kind.entry(kind.clone()).or_default();
            *all = all.saturating_add(*count);
        }
    }
    sum.most(REASONS).into_iter().map(|(kind, _)| kind.to_owned()).collect()
}

fn gain(gain: &SetUserId) -> String {
    match gain {
        SetUserId { becomes_root: false, .. } => "nothing".to_owned(),
        SetUserId { capabilities, of_host: true, .. } => format!("host's root, {capabilities} rights"),
        SetUserId { capabilities, .. } => format!("its own root, {capabilities} rights"),
    }
}

fn paths(paths: &[String]) -> String {
    match paths {
        [] => "nowhere".to_owned(),
        few if few.len() <= PATHS => few.join(" "),
        many => format!(
            "{} and {} more",
            many.iter().take(PATHS).map(String::as_str).collect::<Vec<_>>().join(" "),
            many.len() - PATHS
        ),
    }
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::drive::tests::recorded;

    #[test]
    fn what_is_not_measured_is_no_zero() {
        let mut arms = recorded().arms;
        let shown = |arms: &[ArmRecord]| {
            rows(arms).into_iter().map(|row| format!("{}: {}", row.name, row.cells.join(" | "))).collect::<Vec<_>>()
        };
        let expected = [
            "host's system calls: 1,300 of 2 kinds | 40 of 1 kinds",
            "its kernel's functions: 12 of 2 kinds | 9 of 1 kinds",
            "exits to the host: - | 77 of 2 kinds",
            "  hlt: - | 70",
            "  port i/o: - | 7",
            "set-user-id root becomes: host's root, 14 rights | its own root, 14 rights",
            "may write on the host: nowhere | nowhere",
        ];
        assert_eq!(shown(&arms), expected);
        assert_eq!(not_measured(&arms), [""; 0]);
        let calls = |reach: &mut Reach| reach.system_calls.as_mut().unwrap().unsorted = 5;
        arms[0].reach.iter_mut().for_each(calls);
        assert_eq!(shown(&arms)[0], "host's system calls: 1,300 of over 2 kinds | 40 of 1 kinds");
        arms[1].reach = Some(Reach { not_measured: vec!["exits: no tracefs".to_owned()], ..Reach::default() });
        assert!(shown(&arms).iter().all(|row| row.ends_with("| -")), "{:?}", shown(&arms));
        assert_eq!(not_measured(&arms), ["Not measured of microvm: exits: no tracefs."]);
        assert!(meaning(&arms).contains("one more run"));
        arms.iter_mut().filter_map(|arm| arm.reach.as_mut()).for_each(|reach| reach.kernel_functions = None);
        assert!(!meaning(&arms).contains("one more run") && !shown(&arms).iter().any(|row| row.contains("functions")));
        arms.iter_mut().for_each(|arm| arm.reach = None);
        assert_eq!(shown(&arms), [""; 0]);
    }

    #[test]
    fn numbers_and_paths_are_short() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let many: Vec<String> = ["/dev", "/proc", "/sys", "/a", "/b"].map(str::to_owned).into();
        assert_eq!(paths(&many), "/dev /proc /sys /a and 1 more");
        assert_eq!(paths(&many[..2]), "/dev /proc");
    }
}
