//! Docker's rules for `--cap-add` and `--cap-drop`.

use std::collections::BTreeSet;

use super::MeaningError;
use crate::cli::args::RunArgs;
use crate::spec::{Capability, DEFAULT_CAPABILITIES};

/// The capabilities of the command: the default ones, all if `ALL` is added, none if `ALL` is dropped or it is hardened; then names are
/// dropped and added.
pub(crate) fn capabilities(args: &RunArgs) -> Result<Vec<Capability>, MeaningError> {
    let (add_all, add) = parse(&args.cap_add)?;
    let (drop_all, drop) = parse(&args.cap_drop)?;
    let mut set: BTreeSet<Capability> = if add_all {
        (0u8..).zip(Capability::NAMES).map(|(number, _)| Capability(number)).collect()
    } else if drop_all || args.hardened {
        BTreeSet::new()
    } else {
        DEFAULT_CAPABILITIES.into_iter().collect()
    };
    set.retain(|c| !drop.contains(c));
    set.extend(add);
    Ok(set.into_iter().collect())
}

fn parse(names: &[String]) -> Result<(bool, Vec<Capability>), MeaningError> {
    let mut all = false;
    let mut found = Vec::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if plain == "ALL" {
            all = true;
            continue;
        }
        let number = (0u8..).zip(Capability::NAMES).find(|(_, n)| *n == plain).map(|(number, _)| number);
        found.push(Capability(number.ok_or_else(|| MeaningError::Capability(name.clone()))?));
    }
    Ok((all, found))
}
