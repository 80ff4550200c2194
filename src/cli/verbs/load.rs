//! `duplex load`.

use std::io;

use crate::cli::Context;
use crate::cli::args::LoadArgs;
use crate::cli::engine;
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::output::print;
use crate::cli::terminal::stdin_is_terminal;
use crate::image::Added;

use super::pull::{Watch, budget};

/// Nothing to read.
#[derive(Debug, thiserror::Error)]
#[error("Standard input is a terminal, not an archive: name a file with -i FILE, or redirect one")]
struct NoArchive;

/// Takes in the images of an archive.
pub(crate) fn load(context: &Context, args: &LoadArgs) -> Result<u8, Failure> {
    if args.input.is_none() && stdin_is_terminal() {
        return Err(failed(NoArchive));
    }
    let store = engine::store(&context.installation).map_err(failed)?.with_budget(budget(&args.budget));
    let watch = Watch::new(args.quiet);
    let added = match &args.input {
        Some(path) => store.load(path, &watch),
        None => store.load_stream("standard input", &mut io::stdin().lock(), &watch),
    };
    drop(watch);
    let added = added.map_err(failed)?;
    print(&added.iter().flat_map(lines).collect::<String>())?;
    Ok(Code::Done as u8)
}

fn lines(added: &Added) -> Vec<String> {
    if added.names.is_empty() {
        return vec![format!("Loaded image ID: {}\n", added.manifest)];
    }
    added.names.iter().map(|name| format!("Loaded image: {name}\n")).collect()
}
