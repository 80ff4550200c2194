//! `duplex pull`, and fetching for other verbs.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::cli::Context;
use crate::cli::args::{BudgetArgs, PullArgs};
use crate::cli::engine;
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::output::{bar, note, print};
use crate::image::layer::Budget;
use crate::image::{Event, Image, Progress, PullError, Reference, RegistryOptions, ResolveError, Store};

/// Fetches an image from its registry.
pub(crate) fn pull(context: &Context, args: &PullArgs) -> Result<u8, Failure> {
    let reference: Reference = args.image.parse().map_err(failed)?;
    let store = engine::store(&context.installation).map_err(failed)?.with_budget(budget(&args.budget));
    let watch = Watch::new(args.quiet);
    let options = RegistryOptions { stall: Duration::from_secs(args.stall) };
    let added = store.pull(&reference, &options, &watch);
    drop(watch);
    let added = added.map_err(failed)?;
    if args.quiet {
        print(&format!("{}\n", added.manifest))?;
    } else {
        let words = if added.new { "Downloaded newer image for" } else { "Image is up to date for" };
        print(&format!("Digest: {}\nStatus: {words} {reference}\n", added.manifest))?;
    }
    Ok(Code::Done as u8)
}

/// The limits that were asked for.
pub(crate) fn budget(args: &BudgetArgs) -> Budget {
    let mut budget = Budget::default();
    for limit in &args.limits {
        // Its name and value are known to be good since the command line was read.
        let _ = budget.set(&limit.name, limit.value);
    }
    budget
}

/// An image that another verb needs cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

/// An image from the store, or from its registry if the store does not have it.
pub(crate) fn resolve_or_fetch(store: &Store, reference: &Reference) -> Result<Image, FetchError> {
    match store.resolve(reference) {
        Err(ResolveError::Unknown { .. }) => {
            note(&format!("image '{reference}' is not here: fetching it"));
            fetch(store, reference)
        }
        other => Ok(other?),
    }
}

/// An image from its registry. The embedded one is never fetched.
pub(crate) fn fetch(store: &Store, reference: &Reference) -> Result<Image, FetchError> {
    let watch = Watch::new(false);
    let pulled = store.pull(reference, &RegistryOptions::default(), &watch);
    drop(watch);
    match pulled {
        Ok(_) | Err(PullError::Embedded(_)) => Ok(store.resolve(reference)?),
        Err(error) => Err(error.into()),
    }
}

/// Shows how far a pull or load is: a bar for bytes on a terminal, a line per layer elsewhere.
pub(crate) struct Watch {
    quiet: bool,
    bar: Option<ProgressBar>,
    layers: Mutex<Vec<Layer>>,
}

#[derive(Clone, Copy, Default)]
struct Layer {
    size: u64,
    read: u64,
}

impl Watch {
    /// Says nothing at all if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = if quiet { None } else { bar(0, "{msg:24!} {wide_bar} {bytes}/{total_bytes} {eta:>4}") };
        Self { quiet, bar, layers: Mutex::new(Vec::new()) }
    }

    fn layer(&self, layer: usize, change: impl FnOnce(&mut Layer)) {
        let Ok(mut layers) = self.layers.lock() else { return };
        if layers.len() <= layer {
            layers.resize(layer + 1, Layer::default());
        }
        if let Some(layer) = layers.get_mut(layer) {
            change(layer);
        }
        if let Some(bar) = &self.bar {
            bar.set_length(layers.iter().map(|l| l.size).sum());
            bar.set_position(layers.iter().map(|l| l.read.min(l.size)).sum());
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.set_message(text.to_owned()),
            None => note(text),
        }
    }
}

impl Progress for Watch {
    fn note(&self, event: Event<'_>) {
        match event {
            Event::Found { manifest, layers } => {
                let plural = if layers == 1 { "" } else { "s" };
                self.line(&format!("{}: {layers} layer{plural}", manifest.short()));
            }
            Event::Present { diff_id, .. } => self.line(&format!("{}: already here", diff_id.short())),
            Event::Waiting { diff_id, .. } => self.line(&format!("{}: waiting for another process", diff_id.short())),
            Event::Begun { layer, diff_id, size } => {
                self.layer(layer, |l| l.size = size);
                self.line(&format!("{}: reading", diff_id.short()));
            }
            Event::Read { layer, bytes } => self.layer(layer, |l| l.read = bytes),
            Event::Stored { layer, diff_id } => {
                self.layer(layer, |l| l.read = l.size);
                self.line(&format!("{}: stored", diff_id.short()));
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
