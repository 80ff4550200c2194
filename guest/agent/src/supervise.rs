//! The life of a running command: the host's signals go in, its end comes out.

use std::time::{Duration, Instant};

use duplex_wire::{Answer, Effect, Ending, FailureKind, LOOK_AGAIN, Question, ToGuest, ToHost, effect};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::host::{Heard, Host};
use crate::inside::set_terminal_size;
use crate::launch::Command;
use crate::session::Sessions;
use crate::slots::Slots;
use crate::stdio::HostEnds;
use crate::trouble::{Doing, Trouble};
use crate::{boot, cgroup, enter, status, sys};

/// When devices are looked for that no command waits for: one that ends before does not pay for them.
const LATER: Duration = Duration::from_secs(1);

/// SIGKILL.
const KILL: u8 = 9;

/// Serves the host until the command's first process ends. Its namespace ends with it, so all its other processes are gone too, and all
/// their output is in the pipes. Returns when the output is with the host.
pub(crate) fn to_the_end(command: Command, host: &mut Host, mut slots: Option<Slots>) -> Result<Ending, Trouble> {
    let mut state = State::default();
    let due = Instant::now() + LATER;
    loop {
        let left = due.saturating_duration_since(Instant::now());
        // Without them the command goes on.
        let rest = slots.take_if(|_| left.is_zero()).map_or(Ok(()), Slots::rest);
        rest.or_else(|trouble| host.tell(&ToHost::Log { text: trouble.chain() }))?;
        let left = slots.as_ref().and_then(|_| Timespec::try_from(left).ok());
        while let Some(message) = host.heard_already()? {
            obey(&command, message, host, &mut state)?;
        }
        let (ended, spoken) = {
            let mut fds = [PollFd::new(&command.process, PollFlags::IN), PollFd::new(host, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).doing(|| "wait for the command".into()),
            }
            let [process, control] = fds;
            (!process.revents().is_empty(), !control.revents().is_empty())
        };
        if ended {
            break;
        }
        if spoken {
            match host.hear() {
                Ok(Heard::Message(message)) => obey(&command, message, host, &mut state)?,
                // The connection of a machine that goes on elsewhere has ended.
                Ok(Heard::End) | Err(_) if state.held => go_on(&command, host, &mut state)?,
                Ok(Heard::End) => return Err(Trouble::new("go on", "the host is gone")),
                Err(trouble) => return Err(trouble),
            }
        }
    }
    let ending = sys::reap(&command.process).doing(|| "reap the command".into())?;
    let ending = match (ending, state.ended_by) {
        (Ending::Signal(KILL), Some(signal)) => Ending::Signal(signal),
        (ending, _) => ending,
    };
    command.output.flush();
    Ok(ending)
}

/// What there is beside the command.
#[derive(Default)]
struct State {
    ended_by: Option<u8>,
    sessions: Sessions,
    /// The command's processes do not run, and the machine may be saved.
    held: bool,
}

/// Goes on as another sandbox: new randomness, time, names and streams before the command's next instruction.
fn go_on(command: &Command, host: &mut Host, state: &mut State) -> Result<(), Trouble> {
    host.connect_anew()?;
    let orders = host.receive_go_on()?;
    boot::seed_entropy(&orders.seed)?;
    boot::set_clock(orders.realtime_ns)?;
    state.sessions.end_all();
    boot::set_hostname(&orders.names.hostname)?;
    enter::rename(orders.names, &command.process)?;
    let lines = command.output.lines();
    lines.replace(HostEnds::connect(command.connected)?.by_port());
    release(command, state)?;
    host.tell(&ToHost::Started)
}

/// Holds the command's processes, so that the machine may be saved.
fn hold(command: &Command, state: &mut State) -> Result<(), Trouble> {
    if !state.held {
        cgroup::hold()?;
        command.output.lines().hold();
        state.held = true;
    }
    Ok(())
}

fn release(command: &Command, state: &mut State) -> Result<(), Trouble> {
    command.output.lines().release();
    state.held = false;
    cgroup::release()
}

fn obey(command: &Command, message: ToGuest, host: &mut Host, state: &mut State) -> Result<(), Trouble> {
    let sessions = state.sessions.clone();
    let done = match (message, &command.terminal) {
        (ToGuest::Signal(signal), _) => deliver(command, signal, &mut state.ended_by),
        (ToGuest::Resize(size), Some(terminal)) => set_terminal_size(terminal, size),
        (ToGuest::Resize(_), None) => Err(Trouble::new("set the terminal's size", "the command has no terminal")),
        (ToGuest::GoOn(_), _) => Err(Trouble::new("go on", "the command goes on already")),
        (ToGuest::Ask { number, question: question @ (Question::Hold | Question::Release) }, _) => {
            let done = if question == Question::Hold { hold(command, state) } else { release(command, state) };
            let answer = done.map(|()| Answer::Done).map_err(|trouble| trouble.chain());
            return host.tell(&ToHost::Answer { number, answer });
        }
        (ToGuest::Start(_), _) => Err(Trouble::new("start", "the command runs already")),
        (ToGuest::Open { session, task }, _) => {
            let first = command.process.try_clone().doing(|| "duplicate a handle".into());
            let opened = first.and_then(|first| sessions.open(session, *task, first, host.speaker()));
            return opened.or_else(|trouble| {
                host.tell(&ToHost::Refused { session, kind: FailureKind::Other, text: trouble.chain() })
            });
        }
        (ToGuest::SessionSignal { session, signal }, _) => sessions.signal(session, signal),
        (ToGuest::SessionResize { session, size }, _) => sessions.resize(session, size),
        (ToGuest::Ask { number, question }, _) => {
            return status::answer(number, question, host.speaker())
                .or_else(|trouble| host.tell(&ToHost::Answer { number, answer: Err(trouble.chain()) }));
        }
    };
    done.or_else(|trouble| host.tell(&ToHost::Log { text: trouble.chain() }))
}

/// Sends a signal with the effect that it would have outside of a namespace.
fn deliver(command: &Command, signal: u8, ended_by: &mut Option<u8>) -> Result<(), Trouble> {
    let pid = sys::pid_of(&command.process).doing(|| "find the command's process".into())?;
    let text = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let look = || (text("status"), text("syscall"));
    let sent = match effect(signal, look, || std::thread::sleep(LOOK_AGAIN)) {
        Effect::Send => signal,
        Effect::End => {
            ended_by.get_or_insert(signal);
            KILL
        }
    };
    sys::signal(&command.process, sent).doing(|| format!("send signal {signal}"))
}
