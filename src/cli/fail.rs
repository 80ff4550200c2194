//! Failures for people: what, why, how to mend it; and exit codes.

use std::error::Error;
use std::fmt::Write;
use std::io;

use crate::image::decompress::DecompressError;
use crate::image::layer::{Budget, LayerError, Misplaced};
use crate::image::tar::{Refusal, is_plain};
use crate::image::{IngestError, RegistryError, SourceError};

/// Exit codes of Duplex itself. `run` exits with the command's own code where there is one, 126 if the command cannot be executed, 127 if it
/// was not found, and 128+n if signal n ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Done.
    Done = 0,
    /// A verb failed; `doctor` found something that Duplex cannot work without.
    Failed = 1,
    /// `compare` ran the arms and they cannot be compared.
    Refused = 2,
    /// `compare --baseline`: an arm got worse by more than is allowed.
    Regressed = 3,
    /// The command line is wrong; or `run` failed before or around the command.
    Duplex = 125,
    /// A signal asked for the end, and the verb ended in order.
    Interrupted = 130,
}

/// Longest text of one cause that is shown, in bytes.
const MOST_WORDS: usize = 4000;

/// Why a verb failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) code: Code,
    /// The error with its causes.
    pub(crate) error: Box<dyn Error + Send + Sync>,
    /// How to mend it, where the error does not say so itself.
    pub(crate) mend: Option<String>,
}

impl Failure {
    /// A failure with the mend that its causes suggest.
    pub(crate) fn new(code: Code, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error = error.into();
        let mend = mend(error.as_ref());
        Self { code, error, mend }
    }

    /// The same with another mend.
    pub(crate) fn mended_by(self, mend: &str) -> Self {
        Self { mend: Some(mend.to_owned()), ..self }
    }

    /// As it is printed: the error, its causes numbered, the mend.
    pub(crate) fn render(&self) -> String {
        let mut text = format!("Error: {}\n", clean(&self.error.to_string()));
        let mut last = self.error.to_string();
        let mut number = 0;
        for cause in causes(self.error.as_ref()).skip(1) {
            let words = cause.to_string();
            // A transparent error repeats its source.
            if words != last {
                number += 1;
                let _ = writeln!(text, "  {number}: {}", clean(&words).replace('\n', "\n     "));
            }
            last = words;
        }
        if let Some(mend) = &self.mend {
            let _ = writeln!(text, "Hint: {mend}");
        }
        text
    }
}

/// Words that may hold what an image or a registry said: nothing in them commands a terminal, and they are not endless.
fn clean(words: &str) -> String {
    let mut text = String::new();
    for c in words.chars() {
        if text.len() >= MOST_WORDS {
            return text + " ...";
        }
        if c == '\n' || is_plain(c) { text.push(c) } else { text.extend(c.escape_default()) }
    }
    text
}

/// For `map_err`: a failure of a verb other than `run`.
pub(crate) fn failed<E: Into<Box<dyn Error + Send + Sync>>>(error: E) -> Failure {
    Failure::new(Code::Failed, error)
}

/// For `map_err`: a failure of `run`.
pub(crate) fn run_failed<E: Into<Box<dyn Error + Send + Sync>>>(error: E) -> Failure {
    Failure::new(Code::Duplex, error)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&e| e.source())
}

/// What the system's refusals, wherever they are in the chain, ask of the user.
fn mend(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(name) = causes(error).find_map(passed_limit) {
        return Some(format!(
            "if the image is what you expect it to be, 'duplex pull' and 'duplex load' take another limit: --limit {name}=VALUE"
        ));
    }
    let kind = causes(error).find_map(|cause| {
        let system = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let raw = cause.downcast_ref::<rustix::io::Errno>().map(|e| e.kind());
        system.or(raw).filter(|k| hint(*k).is_some())
    })?;
    let said = causes(error).any(|cause| cause.to_string().contains(kind_words(kind)));
    if said { None } else { hint(kind).map(str::to_owned) }
}

/// The limit of an image's budget that this error says was passed, by its name.
fn passed_limit(cause: &(dyn Error + 'static)) -> Option<&'static str> {
    let of_layer = |layer: &LayerError| matches!(layer, LayerError::TooMuchData { .. }).then_some("data_bytes");
    let of_unpacking = |error: &DecompressError| match error {
        DecompressError::TooLarge { .. } => Some("inflated_bytes"),
        DecompressError::Ratio { .. } => Some("ratio"),
        _ => None,
    };
    let of_refusal = |refusal: &Refusal| match refusal {
        Refusal::Exceeds(name, _) => Budget::names().find(|known| known == name),
        _ => None,
    };
    let of_image = |error: &IngestError| {
        let time = matches!(
            error,
            IngestError::Source(SourceError::Time { .. } | SourceError::Registry(RegistryError::Time { .. }))
        );
        time.then_some("time")
    };
    let misplaced = cause.downcast_ref::<Misplaced>().and_then(|misplaced| match misplaced {
        Misplaced::Refused(refusal) => of_refusal(refusal),
        _ => None,
    });
    misplaced
        .or_else(|| cause.downcast_ref::<Refusal>().and_then(of_refusal))
        .or_else(|| cause.downcast_ref::<DecompressError>().and_then(of_unpacking))
        .or_else(|| cause.downcast_ref::<Box<LayerError>>().and_then(|layer| of_layer(layer)))
        .or_else(|| cause.downcast_ref::<Box<IngestError>>().and_then(|error| of_image(error)))
}

fn hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::PermissionDenied => Some("run it as root, or see 'duplex doctor' for what this user may do"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space: 'duplex images' lists what 'duplex rmi' could remove, --root moves the store")
        }
        io::ErrorKind::ReadOnlyFilesystem => Some("choose a folder that can be written with --root or DUPLEX_STATE"),
        _ => None,
    }
}

/// Words by which an error that names its own mend is known.
fn kind_words(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free",
        _ => "root",
    }
}

#[cfg(test)]
mod tests;
