//! A running machine as one conversation with two peers: the agent tells of the command, the monitor tells of the machine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use duplex_wire::{GoOn, Mount, Names, Root, Start, ToHost};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::board::Board;
use super::monitor::{MachineEnd, Monitor, Reach, pidfd_of};
use super::outcome::{AgentEnd, Evidence, judge};
use super::{Cause, MicroVmError};
use crate::sandbox::agent::{AgentError, Client, Heard};
use crate::sandbox::network::Briefing;
use crate::spec::{MachineEvent, MachineExit, Moment, Moments, Outcome, SandboxSpec};
use crate::sys::clock::monotonic_ns;

/// Bytes of randomness that a guest is given.
const SEED: usize = 64;

/// What the agent is told of its sandbox.
#[derive(Debug)]
pub(super) struct Orders<'a> {
    pub(super) spec: &'a SandboxSpec,
    pub(super) briefing: &'a Briefing,
    pub(super) mounts: &'a [Mount],
}

/// Both peers and what they have said.
#[derive(Debug)]
pub(super) struct Life {
    agent: Client,
    monitor: Monitor,
    reach: Arc<Reach>,
    board: Arc<Board>,
    evidence: Evidence,
    greeted: bool,
    started: bool,
    agent_gone: bool,
    gone: bool,
    saved: Option<Vec<String>>,
}

impl Life {
    /// Of a monitor that has just been born.
    pub(super) fn new(agent: Client, monitor: Monitor, reach: Arc<Reach>, board: Arc<Board>) -> Self {
        let evidence = Evidence::default();
        let (greeted, started, agent_gone, gone) = (false, false, false, false);
        Self { agent, monitor, reach, board, evidence, greeted, started, agent_gone, gone, saved: None }
    }

    /// Waits until the command runs or never will: a machine that is never made ([`Life::why_not_made`]) or ends on the way is no error here.
    pub(super) fn until_started(
        &mut self,
        orders: &Orders<'_>,
        patience: Duration,
        moments: &Mutex<Moments>,
    ) -> Result<(), MicroVmError> {
        let deadline = Instant::now() + patience;
        let mut asked = false;
        while !self.started && self.evidence.agent.is_none() && !self.gone {
            if !self.listen(Some(deadline), moments)? {
                self.reach.end();
                return Err(MicroVmError::Silent(patience));
            }
            if self.greeted && !asked {
                asked = true;
                match orders.spec.from {
                    Some(_) => self.agent.go_on(go_on_message(orders)?)?,
                    None => self.agent.start(start_message(orders)?)?,
                }
            }
        }
        Ok(())
    }

    /// Why there is no machine, if the monitor could not make it.
    pub(super) fn why_not_made(&self) -> Option<Cause> {
        match &self.evidence.machine {
            Some(MachineEnd::Failed(causes)) => Some(Cause::chain(causes)),
            _ => None,
        }
    }

    /// The machine has been written to its template, or why not.
    pub(super) fn saved(&self) -> Option<&[String]> {
        self.saved.as_deref()
    }

    /// Waits until the command has ended or the machine is gone. No deadline: a command may run for ever.
    pub(super) fn until_ended(&mut self, moments: &Mutex<Moments>) -> Result<(), MicroVmError> {
        while self.evidence.agent.is_none() && !self.gone {
            self.listen(None, moments)?;
        }
        Ok(())
    }

    /// The agent has told of the command's end: all its output is on its way.
    pub(super) fn command_has_ended(&self) -> bool {
        matches!(self.evidence.agent, Some(AgentEnd::Exited { .. }))
    }

    /// Lets the machine go and waits until it is gone. One that does not go is ended.
    pub(super) fn until_gone(&mut self, moments: &Mutex<Moments>, patience: Duration) -> Result<(), MicroVmError> {
        self.agent.finish();
        let deadline = Instant::now() + patience;
        while !self.gone {
            if !self.listen(Some(deadline), moments)? {
                return if self.end(patience) { Ok(()) } else { Err(MicroVmError::Immortal) };
            }
        }
        Ok(())
    }

    /// Ends the machine without asking it. False if the kernel does not let it go in time.
    pub(super) fn end(&mut self, patience: Duration) -> bool {
        self.gone = self.gone || self.monitor.end(&self.reach, patience);
        self.gone
    }

    /// How it all ended.
    pub(super) fn outcome(&mut self, host_oom: bool) -> Outcome {
        self.evidence.host_oom = host_oom;
        self.evidence.killed = self.reach.was_killed();
        judge(&self.evidence)
    }

    /// Waits until a peer says something or ends, and takes it in. False if the deadline came first.
    fn listen(&mut self, deadline: Option<Instant>, moments: &Mutex<Moments>) -> Result<bool, MicroVmError> {
        let process = pidfd_of(&self.reach);
        let agent = (!self.agent_gone).then(|| PollFd::new(&self.agent, PollFlags::IN));
        let control = self.monitor.control().map(|c| PollFd::new(c, PollFlags::IN));
        let end = process.as_ref().map(|p| PollFd::new(p, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> = [agent, control, end].into_iter().flatten().collect();
        let left = deadline.map(|d| Timespec::try_from(d.saturating_duration_since(Instant::now())));
        let left = left.transpose().map_err(|e| MicroVmError::Resource(std::io::Error::other(e)))?;
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(e) => return Err(MicroVmError::Resource(e.into())),
        }
        self.hear_agent(moments);
        self.hear_monitor(moments);
        if let Some(end) = self.monitor.reap(&self.reach, Instant::now()) {
            // What was said before the end counts.
            self.hear_agent(moments);
            self.hear_monitor(moments);
            if end == MachineEnd::Stopped {
                self.evidence.machine = Some(end);
            } else {
                self.evidence.machine.get_or_insert(end);
            }
            // A machine that was killed says nothing; its command ended no later than now.
            note(moments, Moment::Exited, monotonic_ns());
            self.gone = true;
        }
        Ok(true)
    }

    fn hear_agent(&mut self, moments: &Mutex<Moments>) {
        while !self.agent_gone {
            match self.agent.hear() {
                Ok(Heard::Message(message)) => match self.board.take_in(&message) {
                    Ok(true) => {}
                    Ok(false) => self.take_in(message, moments),
                    Err(error) => self.outlaw(&error),
                },
                Ok(Heard::Nothing) => return,
                Ok(Heard::End) => self.agent_gone = true,
                Err(error) => self.outlaw(&error),
            }
        }
    }

    /// The agent has broken the rules: its machine ends.
    fn outlaw(&mut self, error: &AgentError) {
        self.agent_gone = true;
        let why = std::error::Error::source(error).map_or(error.to_string(), |s| format!("{error}: {s}"));
        self.evidence.machine.get_or_insert(MachineEnd::Outlawed(why));
        self.reach.end();
    }

    fn take_in(&mut self, message: ToHost, moments: &Mutex<Moments>) {
        match message {
            ToHost::Hello { .. } => {
                self.greeted = true;
                note(moments, Moment::AgentReady, monotonic_ns());
            }
            ToHost::Started => {
                self.started = true;
                self.board.begin();
                note(moments, Moment::Started, monotonic_ns());
            }
            ToHost::Exited { ending, oom } => {
                note(moments, Moment::Exited, monotonic_ns());
                self.evidence.agent = Some(AgentEnd::Exited { ending, oom });
            }
            ToHost::StartFailed { kind, text } => {
                note(moments, Moment::Exited, monotonic_ns());
                self.evidence.agent = Some(AgentEnd::StartFailed { kind, text });
            }
            ToHost::Log { text } => self.evidence.logs.push(text),
            // The board's.
            ToHost::Opened { .. } | ToHost::Refused { .. } | ToHost::Closed { .. } | ToHost::Answer { .. } => {}
        }
    }

    fn hear_monitor(&mut self, moments: &Mutex<Moments>) {
        while let Some(event) = self.monitor.hear() {
            match event {
                MachineEvent::Running { at_ns } => note(moments, Moment::MachineReady, at_ns),
                MachineEvent::Exited { exit, at_ns } => {
                    // A machine that takes the command with it ends the command.
                    note(moments, Moment::Exited, at_ns.min(monotonic_ns()));
                    self.say(MachineEnd::Said(exit));
                }
                MachineEvent::Failed { causes } => self.say(MachineEnd::Failed(causes)),
                MachineEvent::Saved { causes } if self.started => self.board.set_saved(causes),
                MachineEvent::Saved { causes } => self.saved = Some(causes),
                MachineEvent::Paused => self.board.set_paused(true),
                MachineEvent::Resumed => self.board.set_paused(false),
                // Whoever waits for it in the guest waits for ever.
                MachineEvent::ShareLost { why } => {
                    self.say(MachineEnd::ShareLost(why));
                    self.reach.end();
                }
            }
        }
    }

    /// The first word of the monitor about the end counts; a kill that we sent is no news.
    fn say(&mut self, end: MachineEnd) {
        if end != MachineEnd::Said(MachineExit::Killed) {
            self.evidence.machine.get_or_insert(end);
        }
    }
}

fn note(moments: &Mutex<Moments>, moment: Moment, at_ns: u64) {
    moments.lock().unwrap_or_else(PoisonError::into_inner).note(moment, at_ns);
}

/// Fresh randomness.
fn seed() -> Result<Vec<u8>, MicroVmError> {
    let mut seed = vec![0; SEED];
    let filled = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty());
    filled.map_err(|e| MicroVmError::Resource(e.into()))?;
    Ok(seed)
}

/// The time of now, in nanoseconds since 1970.
fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// The orders of an agent that goes on as this sandbox.
fn go_on_message(orders: &Orders<'_>) -> Result<GoOn, MicroVmError> {
    let Orders { spec, briefing, .. } = orders;
    let names = Names {
        hostname: spec.hostname.clone(),
        hosts: briefing.files.hosts.clone(),
        resolv_conf: briefing.files.resolv_conf.clone(),
    };
    Ok(GoOn { names, seed: seed()?, realtime_ns: now_ns() })
}

/// The agent's orders, with fresh randomness and the time of now.
fn start_message(orders: &Orders<'_>) -> Result<Start, MicroVmError> {
    let Orders { spec, briefing, mounts } = orders;
    Ok(Start {
        process: spec.process.clone(),
        init: spec.init,
        hostname: spec.hostname.clone(),
        root: Root { disk: "vda".to_owned(), read_only: spec.read_only },
        hosts: briefing.files.hosts.clone(),
        resolv_conf: briefing.files.resolv_conf.clone(),
        pids: spec.limits.pids,
        seed: seed()?,
        realtime_ns: now_ns(),
        tmpfs: spec.tmpfs.clone(),
        sysctls: spec.sysctls.clone(),
        networks: briefing.guest.clone(),
        mounts: mounts.to_vec(),
    })
}
