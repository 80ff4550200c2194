//! Signals to `duplex run` are the command's.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::{Handle, Signals};

use super::terminal;
use crate::sandbox::Remote;
use crate::sys::signals::is_ignored;

/// Signals that are passed on.
const PASSED: [i32; 6] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
/// So many requests to end end the sandbox whatever its command thinks.
const PATIENCE: u32 = 3;

/// Signals from now on are kept, and passed on once there is somebody to pass them to.
#[derive(Debug)]
pub(crate) struct Proxy(Signals);

impl Proxy {
    /// Takes the signals over. One that the caller has set to be ignored (nohup) stays ignored.
    pub(crate) fn new(with_terminal: bool) -> io::Result<Self> {
        let window = with_terminal.then_some(SIGWINCH);
        let taken = PASSED.into_iter().filter(|s| !is_ignored(*s)).chain(window);
        Signals::new(taken).map(Self)
    }

    /// Passes them on until the handle is closed. The third request to end kills, and so does one that cannot be delivered, such as to a guest that
    /// does not boot.
    pub(crate) fn pass_to(mut self, remote: Box<dyn Remote>) -> Handle {
        let handle = self.0.handle();
        thread::spawn(move || {
            let mut asked = 0;
            for signal in self.0.forever() {
                if signal == SIGWINCH {
                    if let Some(size) = terminal::size() {
                        let _ = remote.resize(size);
                    }
                    continue;
                }
                let ends = !matches!(signal, SIGUSR1 | SIGUSR2);
                asked += u32::from(matches!(signal, SIGTERM | SIGINT));
                let number = u8::try_from(signal).unwrap_or(0);
                let delivered = remote.signal(number).is_ok();
                if asked >= PATIENCE || (ends && !delivered) {
                    let _ = remote.signal(u8::try_from(SIGKILL).unwrap_or(9));
                }
            }
        });
        handle
    }
}
