//! What the walls of the arms let through.

use maud::{Markup, html};

use crate::compare::probes::{Probe, Reached, meaning};
use crate::compare::record::ArmRecord;
use crate::compare::words::probes_in_words;

/// Every probe in every arm, if there are any.
pub(super) fn walls(arms: &[ArmRecord]) -> Markup {
    let Some(first) = arms.first().filter(|arm| !arm.probes.is_empty()) else { return html! {} };
    let count = |arm: &ArmRecord, reached| arm.probes.iter().filter(|p| p.reached == reached).count();
    html! {
        section #walls {
            h2 { "What the walls let through" }
            p { (probes_in_words(first.probes.len())) }
            div .wide { table #probes {
                thead { tr { th {} th .words { "tried" } @for arm in arms { th .words { (arm.arm.name) } } } }
                tbody {
                    @for reached in [Reached::Reachable, Reached::Contained, Reached::Blocked] {
                        tr {
                            td { (reached.words()) } td {}
                            @for arm in arms { td .words { (count(arm, reached)) } }
                        }
                    }
                }
                tbody { @for probe in &first.probes { (row(probe, arms)) } }
            } }
        }
    }
}

fn row(probe: &Probe, arms: &[ArmRecord]) -> Markup {
    let of = |arm: &ArmRecord| arm.probes.iter().find(|p| p.name == probe.name).cloned();
    html! { tr {
        td { (probe.name) }
        td .long { (meaning(&probe.name).unwrap_or_default()) }
        @for arm in arms {
            td .words { @match of(arm) { Some(probe) => (pill(&probe)), None => "-" } }
        }
    } }
}

fn pill(probe: &Probe) -> Markup {
    let class = match probe.reached {
        Reached::Reachable => "verdict up",
        Reached::Contained => "verdict open",
        Reached::Blocked => "verdict down",
    };
    html! { span class=(class) title=(probe.found) { (probe.reached.words()) } }
}
