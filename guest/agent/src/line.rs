//! The command's streams to the host, which others may take the place of: a machine that is saved while the command is held may go on many times, each
//! time with streams of its own.
//!
//! ```text
//! open --hold--> held --release--> open            here the streams are the same as before
//!                  '--replace, release--> open     the machine goes on elsewhere: who met the end of a stream takes the new one
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// All of them, by the host's port.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    held: bool,
    turn: u32,
    streams: BTreeMap<u32, Arc<File>>,
}

/// One of them.
pub(crate) struct Line {
    lines: Lines,
    port: u32,
    turn: u32,
    stream: Arc<File>,
}

impl Lines {
    /// Open.
    pub(crate) fn new(streams: impl IntoIterator<Item = (u32, File)>) -> Self {
        let streams = streams.into_iter().map(|(port, stream)| (port, Arc::new(stream))).collect();
        Self(Arc::new(Shared { state: Mutex::new(State { held: false, turn: 0, streams }), changed: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream of a port, if there is one.
    pub(crate) fn line(&self, port: u32) -> Option<Line> {
        let state = self.lock();
        let stream = Arc::clone(state.streams.get(&port)?);
        Some(Line { lines: self.clone(), port, turn: state.turn, stream })
    }

    /// From now on the end of a stream may be no end.
    pub(crate) fn hold(&self) {
        self.lock().held = true;
    }

    /// Other streams take the place of all.
    pub(crate) fn replace(&self, streams: impl IntoIterator<Item = (u32, File)>) {
        let mut state = self.lock();
        state.turn = state.turn.wrapping_add(1);
        state.streams = streams.into_iter().map(|(port, stream)| (port, Arc::new(stream))).collect();
    }

    /// The end of a stream is the end.
    pub(crate) fn release(&self) {
        self.lock().held = false;
        self.0.changed.notify_all();
    }
}

impl Line {
    /// The stream as it is now.
    pub(crate) fn stream(&self) -> &File {
        &self.stream
    }

    /// The stream has ended. Waits until it is known whether there is another one in its place, and takes it; false if there is none.
    pub(crate) fn another(&mut self) -> bool {
        let state = self.lines.lock();
        let turn = self.turn;
        let waited = self.lines.0.changed.wait_while(state, |state| state.held && state.turn == turn);
        let state = waited.unwrap_or_else(PoisonError::into_inner);
        match state.streams.get(&self.port).filter(|_| state.turn != turn) {
            Some(stream) => {
                (self.turn, self.stream) = (state.turn, Arc::clone(stream));
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, File) {
        let (host, guest) = UnixStream::pair().unwrap();
        (host, File::from(OwnedFd::from(guest)))
    }

    #[test]
    fn an_end_is_the_end_unless_the_command_is_held() {
        let (_host, guest) = pair();
        let lines = Lines::new([(1, guest)]);
        let mut line = lines.line(1).unwrap();
        assert!(lines.line(2).is_none());
        assert!(!line.another());
        lines.hold();
        let waiting = std::thread::spawn(move || line.another());
        lines.release();
        assert!(!waiting.join().unwrap(), "it went on where it was");
    }

    #[test]
    fn another_stream_takes_the_place_of_one_that_ended() {
        let (_first, guest) = pair();
        let lines = Lines::new([(1, guest)]);
        let mut line = lines.line(1).unwrap();
        lines.hold();
        let (mut host, guest) = pair();
        let waiting = std::thread::spawn(move || {
            assert!(line.another());
            line.stream().write_all(b"on").unwrap();
            line
        });
        lines.replace([(1, guest)]);
        lines.release();
        let mut line = waiting.join().unwrap();
        let mut heard = [0; 2];
        host.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"on");
        assert!(!line.another(), "once");
    }
}
