//! Sessions: further processes beside the command, each served by a thread of its own from its birth to the word of its end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duplex_wire::{FailureKind, Task, TerminalSize, ToHost, port};

use crate::enter::{Entered, enter};
use crate::host::Speaker;
use crate::inside::set_terminal_size;
use crate::stdio::{self, AgentEnds, HostEnds, thread};
use crate::sys;
use crate::trouble::{Doing, Trouble};

/// SIGKILL.
const KILL: u8 = 9;

/// All that run.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<BTreeMap<u32, Session>>>);

/// One that runs.
struct Session {
    process: Arc<OwnedFd>,
    terminal: Option<Arc<OwnedFd>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Session>> {
        // The table is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session beside the process behind `first`. Its own thread tells the host what becomes of it.
    pub(crate) fn open(&self, session: u32, task: Task, first: OwnedFd, host: &Speaker) -> Result<(), Trouble> {
        let (sessions, host) = (self.clone(), host.clone());
        let serve = move || {
            let told = match sessions.start(session, &task, &first, &host) {
                Ok(Ok(streams)) => sessions.serve(session, streams, &host),
                Ok(Err((kind, text))) => host.tell(&ToHost::Refused { session, kind, text }),
                Err(trouble) => {
                    host.tell(&ToHost::Refused { session, kind: FailureKind::Other, text: trouble.chain() })
                }
            };
            // A host that cannot be told is gone, and the machine with it.
            drop(told);
        };
        thread("session", serve).map(drop)
    }

    fn start(
        &self,
        session: u32,
        task: &Task,
        first: &OwnedFd,
        host: &Speaker,
    ) -> Result<Result<stdio::Streams, (FailureKind, String)>, Trouble> {
        let ports =
            port::of_session(session).ok_or_else(|| Trouble::new("open a session", "its number is too high"))?;
        let host_ends = HostEnds::connect_session(task.connected(), ports)?;
        let (child_ends, agent_ends): (_, AgentEnds) = stdio::pipes(task.connected())?;
        let (process, terminal) = match enter(task, first.as_fd(), child_ends)? {
            Entered::Running { process, terminal } => (Arc::new(process), terminal.map(Arc::new)),
            Entered::Failed(failure) => return Ok(Err((failure.kind, failure.text))),
        };
        let streams = agent_ends.connect_session(host_ends, terminal.as_deref())?;
        self.lock().insert(session, Session { process, terminal });
        host.tell(&ToHost::Opened { session })?;
        Ok(Ok(streams))
    }

    /// To the end. The process is reaped as soon as it ends: the command's own end waits for that (pid_namespaces(7)).
    fn serve(&self, session: u32, streams: stdio::Streams, host: &Speaker) -> Result<(), Trouble> {
        let process = self.lock().get(&session).map(|s| Arc::clone(&s.process));
        // One that was ended before it was served is reaped with the machine.
        let process = process.ok_or_else(|| Trouble::new("serve a session", "it is not there"))?;
        let ending = sys::reap(&process).doing(|| "reap a session's process".into());
        self.lock().remove(&session);
        streams.finish();
        host.tell(&ToHost::Closed { session, ending: ending? })
    }

    /// Sends a session's process a signal. One that has ended needs none.
    pub(crate) fn signal(&self, session: u32, signal: u8) -> Result<(), Trouble> {
        let process = self.lock().get(&session).map(|s| Arc::clone(&s.process));
        let sent = process.map_or(Ok(()), |process| sys::signal(&process, signal));
        sent.or_else(|e| if e.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(e) })
            .doing(|| format!("send a session signal {signal}"))
    }

    /// Ends all: whoever asked for them is not there any more.
    pub(crate) fn end_all(&self) {
        for session in std::mem::take(&mut *self.lock()).into_values() {
            // One that has ended needs no signal.
            let _ = sys::signal(&session.process, KILL);
        }
    }

    /// Sets the size of a session's terminal.
    pub(crate) fn resize(&self, session: u32, size: TerminalSize) -> Result<(), Trouble> {
        let terminal = self.lock().get(&session).and_then(|s| s.terminal.clone());
        terminal.map_or(Ok(()), |terminal| set_terminal_size(&*terminal, size))
    }
}
