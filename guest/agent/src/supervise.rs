//! The life of a running command: the host's signals go in, its end comes out.

use duplex_wire::{Effect, Ending, ToGuest, ToHost, effect};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::host::{Heard, Host};
use crate::inside::set_terminal_size;
use crate::launch::Command;
use crate::sys;
use crate::trouble::{Doing, Trouble};

/// SIGKILL.
const KILL: u8 = 9;

/// Serves the host until the command's first process ends. Its namespace ends with it, so all its other processes are gone too, and all
/// their output is in the pipes. Returns when the output is with the host.
pub(crate) fn to_the_end(command: Command, host: &mut Host) -> Result<Ending, Trouble> {
    let mut ended_by = None;
    loop {
        while let Some(message) = host.heard_already()? {
            obey(&command, &message, host, &mut ended_by)?;
        }
        let (ended, spoken) = {
            let mut fds = [PollFd::new(&command.process, PollFlags::IN), PollFd::new(host, PollFlags::IN)];
            match poll(&mut fds, None) {
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
            match host.hear()? {
                Heard::Message(message) => obey(&command, &message, host, &mut ended_by)?,
                Heard::End => return Err(Trouble::new("go on", "the host is gone")),
            }
        }
    }
    let ending = match (reap(&command)?, ended_by) {
        (Ending::Signal(KILL), Some(signal)) => Ending::Signal(signal),
        (ending, _) => ending,
    };
    command.output.flush();
    Ok(ending)
}

fn obey(command: &Command, message: &ToGuest, host: &mut Host, ended_by: &mut Option<u8>) -> Result<(), Trouble> {
    let done = match (message, &command.terminal) {
        (ToGuest::Signal(signal), _) => deliver(command, *signal, ended_by),
        (ToGuest::Resize(size), Some(terminal)) => set_terminal_size(terminal, *size),
        (ToGuest::Resize(_), None) => Err(Trouble::new("set the terminal's size", "the command has no terminal")),
        (ToGuest::Start(_), _) => Err(Trouble::new("start", "the command runs already")),
    };
    done.or_else(|trouble| host.tell(&ToHost::Log { text: trouble.chain() }))
}

/// Sends a signal with the effect that it would have outside of a namespace.
fn deliver(command: &Command, signal: u8, ended_by: &mut Option<u8>) -> Result<(), Trouble> {
    let pid = sys::pid_of(&command.process).doing(|| "find the command's process".into())?;
    let text = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let sent = match effect(signal, &text("status"), &text("syscall")) {
        Effect::Send => signal,
        Effect::End => {
            ended_by.get_or_insert(signal);
            KILL
        }
    };
    sys::signal(&command.process, sent).doing(|| format!("send signal {signal}"))
}

fn reap(command: &Command) -> Result<Ending, Trouble> {
    use std::os::fd::AsFd;
    loop {
        match waitid(WaitId::PidFd(command.process.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let code = status.exit_status().and_then(|c| u8::try_from(c & 0xff).ok()).map(Ending::Code);
                let signal = status.terminating_signal().and_then(|s| u8::try_from(s).ok()).map(Ending::Signal);
                return code.or(signal).ok_or_else(|| Trouble::new("reap the command", "it has no status"));
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).doing(|| "reap the command".into()),
        }
    }
}
