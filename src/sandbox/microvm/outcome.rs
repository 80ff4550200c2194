//! How a command ended, from what agent, monitor and host know of it.

use duplex_wire::{Ending, FailureKind};

use super::monitor::{MachineEnd, clean};
use crate::spec::{Exit, MachineExit, Outcome};

/// The agent's last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AgentEnd {
    /// The command ended.
    Exited { ending: Ending, oom: bool },
    /// It never began.
    StartFailed { kind: FailureKind, text: String },
}

/// All that is known at the end.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// The agent's last word.
    pub(super) agent: Option<AgentEnd>,
    /// The machine's end.
    pub(super) machine: Option<MachineEnd>,
    /// The user sent SIGKILL.
    pub(super) killed: bool,
    /// The host killed a process of the sandbox's cgroup for want of memory.
    pub(super) host_oom: bool,
    /// What the agent logged.
    pub(super) logs: Vec<String>,
}

/// The verdict: the agent's word if it gave one, then the user's wish, then what happened to the machine. A monitor that tried what it must not
/// is told whatever the agent says: both may have been the guest's.
pub(super) fn judge(evidence: &Evidence) -> Outcome {
    if evidence.machine == Some(MachineEnd::Stopped) {
        return Outcome { exit: Exit::SandboxFailed, oom: false, reason: Some(machine_reason(evidence)) };
    }
    match &evidence.agent {
        Some(AgentEnd::Exited { ending, oom }) => {
            let exit = match *ending {
                Ending::Code(code) => Exit::Code(code),
                Ending::Signal(signal) => Exit::Signal(signal),
            };
            let reason = oom.then(|| {
                "The guest ran out of memory and its kernel killed a process: give it more with --memory".to_owned()
            });
            Outcome { exit, oom: *oom, reason }
        }
        Some(AgentEnd::StartFailed { kind, text }) => {
            let exit = match kind {
                FailureKind::NotFound => Exit::NotFound,
                FailureKind::CannotExecute => Exit::CannotExecute,
                FailureKind::Other => Exit::SandboxFailed,
            };
            Outcome { exit, oom: false, reason: Some(clean(text)) }
        }
        None if evidence.killed => Outcome { exit: Exit::Signal(9), oom: false, reason: None },
        None => {
            let mut reason = machine_reason(evidence);
            for line in &evidence.logs {
                reason.push_str("\nThe agent: ");
                reason.push_str(&clean(line));
            }
            Outcome { exit: Exit::SandboxFailed, oom: evidence.host_oom, reason: Some(reason) }
        }
    }
}

fn machine_reason(evidence: &Evidence) -> String {
    if evidence.host_oom {
        return "The host killed the monitor for want of memory".to_owned();
    }
    match &evidence.machine {
        Some(MachineEnd::Said(exit)) => match exit {
            MachineExit::Shutdown => "The guest shut down before the command had ended".to_owned(),
            MachineExit::AgentFailed(code) => format!("The guest's agent gave up (code {code:#04x})"),
            MachineExit::Reset => "The guest reset itself before the command had ended".to_owned(),
            MachineExit::Panic(text) => format!("The guest kernel panicked: {}", clean(text)),
            MachineExit::TripleFault => "A triple fault ended the guest".to_owned(),
            MachineExit::Killed => "The monitor was told to end the machine".to_owned(),
            MachineExit::KvmFault(text) => format!("KVM could not go on: {}", clean(text)),
        },
        Some(MachineEnd::Failed(causes)) => clean(&causes.join(": ")),
        Some(MachineEnd::Died { how, stderr }) if stderr.is_empty() => format!("The monitor {how}"),
        Some(MachineEnd::Died { how, stderr }) => format!("The monitor {how}: {stderr}"),
        Some(MachineEnd::Stopped) => {
            "The monitor was stopped by its own filter of system calls (SIGSYS): it made one that it never makes, by a fault of its own or because the guest had taken it over".to_owned()
        }
        Some(MachineEnd::Outlawed(why)) => format!("The guest was ended: {}", clean(why)),
        Some(MachineEnd::ShareLost(why)) => format!("The machine was ended: {}", clean(why)),
        None => "The machine ended and nobody knows why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(evidence: &Evidence) -> (u8, Option<String>) {
        let outcome = judge(evidence);
        (outcome.exit.code(), outcome.reason)
    }

    fn said(exit: MachineExit) -> Evidence {
        Evidence { machine: Some(MachineEnd::Said(exit)), ..Evidence::default() }
    }

    #[test]
    fn the_agents_word_counts_first() {
        let mut evidence = said(MachineExit::Shutdown);
        evidence.killed = true;
        evidence.agent = Some(AgentEnd::Exited { ending: Ending::Code(42), oom: false });
        assert_eq!(exit(&evidence), (42, None));
        evidence.agent = Some(AgentEnd::Exited { ending: Ending::Signal(9), oom: true });
        let outcome = judge(&evidence);
        assert!(outcome.oom && outcome.exit.code() == 137 && outcome.reason.unwrap().contains("--memory"));
        for (kind, code) in [(FailureKind::NotFound, 127), (FailureKind::CannotExecute, 126), (FailureKind::Other, 125)]
        {
            evidence.agent = Some(AgentEnd::StartFailed { kind, text: "why\x1b".into() });
            assert_eq!(exit(&evidence), (code, Some("why\u{fffd}".into())));
        }
    }

    #[test]
    fn every_end_of_a_machine_has_its_own_words() {
        let ends = [
            MachineExit::Shutdown,
            MachineExit::AgentFailed(17),
            MachineExit::Reset,
            MachineExit::Panic("VFS: no root".into()),
            MachineExit::TripleFault,
            MachineExit::Killed,
            MachineExit::KvmFault("entry failed".into()),
        ];
        let mut words: Vec<String> = ends.into_iter().map(|e| exit(&said(e)).1.unwrap()).collect();
        words.push(exit(&Evidence { host_oom: true, ..Evidence::default() }).1.unwrap());
        let died = MachineEnd::Died { how: "exited with code 101".into(), stderr: "panicked".into() };
        words.push(exit(&Evidence { machine: Some(died), ..Evidence::default() }).1.unwrap());
        words.push(exit(&Evidence::default()).1.unwrap());
        words.push(exit(&Evidence { machine: Some(MachineEnd::Stopped), ..Evidence::default() }).1.unwrap());
        let count = words.len();
        words.sort();
        words.dedup();
        assert_eq!(words.len(), count);
    }

    /// What the agent says of a machine whose monitor was taken over is the attacker's word.
    #[test]
    fn a_monitor_that_tried_too_much_is_told_whatever_the_agent_says() {
        let agent = Some(AgentEnd::Exited { ending: Ending::Code(0), oom: false });
        let evidence = Evidence { machine: Some(MachineEnd::Stopped), agent, ..Evidence::default() };
        let (code, reason) = exit(&evidence);
        assert!(code == 125 && reason.unwrap().contains("own filter"));
    }

    #[test]
    fn a_wish_to_kill_explains_a_dead_machine() {
        let died = MachineEnd::Died { how: "was ended by signal 9".into(), stderr: String::new() };
        let mut evidence = Evidence { machine: Some(died), killed: true, ..Evidence::default() };
        assert_eq!(exit(&evidence), (137, None));
        evidence.killed = false;
        assert_eq!(exit(&evidence).0, 125);
    }
}
