//! What stops the agent: what it tried, and what the kernel said.

use std::io;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {doing}")]
pub(crate) struct Trouble {
    doing: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Trouble {
    /// A step that failed for this reason.
    pub(crate) fn new(doing: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { doing: doing.into(), source: source.into() }
    }

    /// The step and its causes in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = format!("{self}: {}", self.source);
        let mut cause = self.source.source();
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        text
    }
}

/// Names the step in which a system call failed.
pub(crate) trait Doing<T> {
    /// Names the step.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Trouble>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Trouble> {
        self.map_err(|e| Trouble::new(doing(), e.into()))
    }
}

/// Writes the trouble to the kernel's console, the last way out when the host cannot be told.
pub(crate) fn to_console(trouble: &Trouble) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "duplex-agent: {}", trouble.chain());
}
