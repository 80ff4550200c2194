//! The caller's terminal.

use std::io;
use std::panic;
use std::sync::Arc;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::spec::TerminalSize;

/// Standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    isatty(io::stdin())
}

/// Size of the terminal on standard output or input, if one of them is one.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Raw mode of the terminal on standard input: every key goes to the sandbox as it is. Ends when this is dropped, and on a panic.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Arc<Termios>,
}

impl Raw {
    /// Enters raw mode.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = Arc::new(tcgetattr(io::stdin())?);
        let mut raw = Termios::clone(&before);
        raw.make_raw();
        let restored = Arc::clone(&before);
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &restored);
            default(info);
        }));
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
