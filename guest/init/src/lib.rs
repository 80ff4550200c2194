//! The first process of a sandbox with `--init`: it hands signals on to the command and reaps what others leave behind. No program of the image's
//! is needed: the process that would have become the command splits in two, and the child becomes it.
//!
//! ```text
//! first process (1) -- fork --> command (2)
//!   |  signals  -------------------> |
//!   |  reaps every orphan            |
//!   | <------ its end -------------- |
//!   exits as it did, 128+n for signal n; all other processes end with it
//! ```
#![deny(unsafe_code)]

mod sys;

use std::io;

/// What the first process is called.
const NAME: &std::ffi::CStr = c"init";

/// Splits this process, which has one thread: returns in the child, with its signals as they were, in a process group of its own and in the
/// foreground of its terminal if it has one. This process serves the child to its end, without any descriptor but its standard streams.
///
/// # Errors
/// If there is no child; the caller is what it was then.
pub fn split() -> io::Result<()> {
    // What comes before the first wait waits.
    let before = sys::block_all()?;
    match sys::fork() {
        Ok(None) => {
            sys::lead();
            sys::set_mask(&before)
        }
        Ok(Some(child)) => serve(child),
        Err(error) => {
            sys::set_mask(&before)?;
            Err(error)
        }
    }
}

fn serve(child: libc::pid_t) -> ! {
    sys::close_all_but_streams();
    sys::name(NAME);
    sys::name_arguments(NAME);
    // Nothing inside may look into what this process was before.
    sys::close_to_others();
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => {
                while let Some((pid, code)) = sys::reap() {
                    if pid == child {
                        sys::exit(code);
                    }
                }
            }
            // One that has just ended is reaped in a moment.
            signal => sys::send(child, signal),
        }
    }
}
