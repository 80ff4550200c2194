//! What the arms reach of the host while their command runs.

use maud::{Markup, html};

use crate::compare::reach::words::{meaning, not_measured, rows};
use crate::compare::record::ArmRecord;

/// Every row in every arm, if there are any.
pub(super) fn reach(arms: &[ArmRecord]) -> Markup {
    let rows = rows(arms);
    if rows.is_empty() {
        return html! {};
    }
    html! {
        section #reach {
            h2 { "What it reaches of the host" }
            p { (meaning(arms)) }
            div .wide { table {
                thead { tr { th {} @for arm in arms { th { (arm.arm.name) } } } }
                tbody { @for row in &rows { tr { td { (row.name) } @for cell in &row.cells { td { (cell) } } } } }
            } }
            @for line in not_measured(arms) { p .faint { (line) } }
        }
    }
}
