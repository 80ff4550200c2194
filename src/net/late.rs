//! passt for a machine that publishes no port: it starts with the first frame that the guest sends. Many a sandbox sends none, and is spared the
//! process, its memory and its share of the start.
//!
//! ```text
//! waiting --a frame--> started --its sandbox ends--> ended
//!    |         \------> failed: why, in words
//!    \--the monitor or the sandbox ends--> ended
//! ```
//!
//! The wire holds the frames meanwhile. What closes addresses holds from the beginning, so that a host where it cannot be is told at the start.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::helper::{Helper, NETWORK_GONE};
use super::{NetError, PASST, Plan};
use crate::sys::egress;

/// What became of it.
#[derive(Debug)]
enum State {
    Waiting,
    Started(Helper),
    /// Why it is not there.
    Failed(String),
}

/// passt, now or later.
#[derive(Debug)]
pub struct Late {
    state: Arc<Mutex<State>>,
    /// Its end is the waiting's.
    waits: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Late {
    /// Waits for a frame at passt's end of the wire. passt will be born in `cgroup`.
    ///
    /// # Errors
    /// [`NetError`]; nothing is left then.
    pub fn new(plan: Plan, wire: UnixStream, cgroup: OwnedFd) -> Result<Self, NetError> {
        Helper::find(PASST)?;
        egress::close(cgroup.as_fd(), &plan.open).map_err(NetError::Close)?;
        let start = move |wire: &UnixStream| Helper::passt_in_closed(&plan, wire.as_fd(), cgroup.as_fd());
        Self::with(wire, start).map_err(NetError::Resource)
    }

    fn with(
        wire: UnixStream,
        start: impl FnOnce(&UnixStream) -> Result<Helper, NetError> + Send + 'static,
    ) -> io::Result<Self> {
        let (heard, waits) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let state = Arc::new(Mutex::new(State::Waiting));
        let result = Arc::clone(&state);
        let wait = move || {
            if frame_comes(&wire, &heard) {
                let started = start(&wire);
                *lock(&result) = started.map_or_else(|error| State::Failed(chain(&error)), State::Started);
            }
        };
        let thread = thread::Builder::new().name("network-wait".into()).spawn(wait)?;
        Ok(Self { state, waits: Some(waits), thread: Some(thread) })
    }

    /// As [`Helper::failure`].
    pub fn failure(&self) -> Option<String> {
        match &*lock(&self.state) {
            State::Waiting => None,
            State::Started(helper) => helper.failure(),
            State::Failed(why) => Some(format!("{NETWORK_GONE}: {why}")),
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.waits.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until there is something to be read from the wire; not so if either end comes first.
fn frame_comes(wire: &UnixStream, heard: &OwnedFd) -> bool {
    loop {
        let mut fds = [PollFd::new(heard, PollFlags::IN), PollFd::new(wire, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {
                let [heard, wire] = fds.map(|fd| fd.revents());
                // What a monitor left behind that is gone needs no answer.
                return heard.is_empty() && wire.contains(PollFlags::IN) && !wire.contains(PollFlags::HUP);
            }
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn chain(error: &NetError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A machine's end of the wire, and who waits at the other: told when something is to be started, which never succeeds here.
    fn waiting() -> (UnixStream, Late, mpsc::Receiver<()>) {
        let (guest, wire) = UnixStream::pair().unwrap();
        let (tell, told) = mpsc::channel();
        let start = move |_: &UnixStream| {
            tell.send(()).unwrap();
            Err(NetError::Spawn { program: "/passt".into(), source: io::Error::from_raw_os_error(libc::ENOMEM) })
        };
        (guest, Late::with(wire, start).unwrap(), told)
    }

    #[test]
    fn the_first_frame_starts_it_and_what_goes_wrong_is_told() {
        let (mut guest, late, told) = waiting();
        assert_eq!(late.failure(), None);
        assert_eq!(told.recv_timeout(Duration::from_millis(20)), Err(mpsc::RecvTimeoutError::Timeout));
        guest.write_all(&[0, 0, 0, 1, 7]).unwrap();
        told.recv_timeout(LONG).unwrap();
        let words = loop {
            if let Some(words) = late.failure() {
                break words;
            }
            thread::sleep(Duration::from_millis(1));
        };
        assert!(words.contains("Cannot run /passt: Cannot allocate memory"), "{words}");
        drop(late);
        assert!(guest.write_all(&[0]).is_err(), "nobody holds the other end");
    }

    #[test]
    fn the_end_of_either_side_starts_nothing() {
        let (guest, late, told) = waiting();
        drop(late);
        assert_eq!(told.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
        drop(guest);
        let (guest, late, told) = waiting();
        drop(guest);
        assert_eq!(told.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
        assert_eq!(late.failure(), None);
    }
}
