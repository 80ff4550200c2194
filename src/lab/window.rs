//! Flow control of one stream, by credit: a sender sends only what its reader has said it can take, so a slow reader of one stream
//! never holds up the channel that all streams share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Credit at the start of every stream, bytes.
pub(super) const INITIAL: u32 = 256 << 10;

/// The sender's side.
#[derive(Debug)]
pub(super) struct Window {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    credit: usize,
    closed: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self::new(INITIAL)
    }
}

impl Window {
    /// A window with `credit` bytes.
    pub(super) fn new(credit: u32) -> Self {
        let state = State { credit: usize::try_from(credit).unwrap_or(usize::MAX), closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits until something may be sent; how much, at most `want`. `None` when the reader is gone.
    pub(super) fn take(&self, want: usize) -> Option<usize> {
        let mut state = self.lock();
        while state.credit == 0 && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        let taken = state.credit.min(want);
        state.credit -= taken;
        Some(taken)
    }

    /// Gives back what was taken and not sent, or adds what the reader grants.
    pub(super) fn add(&self, bytes: usize) {
        let mut state = self.lock();
        state.credit = state.credit.saturating_add(bytes);
        self.changed.notify_all();
    }

    /// The reader is gone: nobody waits any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reader's side: says when it is worth telling the sender about room.
#[derive(Debug, Default)]
pub(super) struct Grants {
    owed: u32,
}

impl Grants {
    /// `bytes` were consumed. The credit to send now, if a quarter of the window has come together.
    pub(super) fn consumed(&mut self, bytes: usize) -> Option<u32> {
        self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        (self.owed >= INITIAL / 4).then(|| std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_window_waits_for_credit() {
        let window = Arc::new(Window::new(3));
        assert_eq!(window.take(10), Some(3));
        let waiting = {
            let window = Arc::clone(&window);
            std::thread::spawn(move || window.take(10))
        };
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        window.add(4);
        assert_eq!(waiting.join().unwrap(), Some(4));
    }

    #[test]
    fn closing_frees_the_waiting() {
        let window = Arc::new(Window::new(0));
        let waiting = {
            let window = Arc::clone(&window);
            std::thread::spawn(move || window.take(1))
        };
        window.close();
        assert_eq!(waiting.join().unwrap(), None);
        assert_eq!(window.take(1), None);
    }

    proptest! {
        /// Whatever the sizes, sender and reader never wait for each other for ever, and never more than a window is on its way.
        #[test]
        fn credit_neither_leaks_nor_grows(steps in proptest::collection::vec((1_usize..70_000, 1_usize..70_000), 1..200)) {
            let window = Window::default();
            let mut grants = Grants::default();
            let full = usize::try_from(INITIAL).unwrap();
            let mut under_way = 0;
            for (send, read) in steps {
                if under_way < full - full / 4 {
                    under_way += window.take(send).unwrap();
                }
                prop_assert!(under_way <= full);
                let consumed = read.min(under_way);
                under_way -= consumed;
                if let Some(credit) = grants.consumed(consumed) {
                    window.add(usize::try_from(credit).unwrap());
                }
            }
            if let Some(credit) = grants.consumed(under_way) {
                window.add(usize::try_from(credit).unwrap());
            }
            prop_assert!(window.take(1).is_some());
        }
    }
}
