//! `duplex rmi`.

use std::collections::BTreeSet;

use crate::cli::args::RmiArgs;
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::keeping::roster;
use crate::cli::output::{print, say};
use crate::cli::{Context, engine};
use crate::image::{Reference, Removed, Store};
use crate::spec::Digest;

/// Removes images. One that cannot go does not keep the others.
pub(crate) fn rmi(context: &Context, args: &RmiArgs) -> Result<u8, Failure> {
    let store = engine::store(&context.installation).map_err(failed)?;
    // A sandbox that has ended may start again.
    let in_use = roster(context).and_then(|roster| roster.images()).map_err(failed)?;
    let mut code = Code::Done;
    for name in &args.images {
        match remove(&store, name, &in_use) {
            Ok(removed) => print(&removed.iter().map(line).collect::<String>())?,
            Err(failure) => {
                say(failure.render().trim_end());
                code = failure.code;
            }
        }
    }
    Ok(code as u8)
}

fn remove(store: &Store, name: &str, in_use: &BTreeSet<Digest>) -> Result<Vec<Removed>, Failure> {
    let reference: Reference = name.parse().map_err(failed)?;
    store.remove(&reference, in_use).map_err(failed)
}

fn line(removed: &Removed) -> String {
    match removed {
        Removed::Untagged(reference) => format!("Untagged: {reference}\n"),
        Removed::Image(digest) | Removed::Layer(digest) => format!("Deleted: {digest}\n"),
    }
}
