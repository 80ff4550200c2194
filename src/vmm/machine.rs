//! A machine's life: built, running, ended.
//!
//! ```text
//! spec --assemble--> ready --Running sent--> running --a vCPU's last exit, Kill, or the caller gone--> ended --Exited sent
//!          \_ Failed sent
//! ```
//!
//! Where the caller wants it, and for a template when the guest says that it is ready, all processors are taken out and the machine is written to a file
//! (`snapshot`); it then goes on.
//!
//! While it runs, `Pause` and `Resume` take the processors out of the guest and let them in again: guest memory then changes by what devices had
//! been asked for before, and by nothing else.
//!
//! The main thread is the event loop; each processor has a thread. Whoever ends the machine says so in [`Ending`]; the event loop then takes
//! the processors out of the guest, hands over what the guest had sent, and reports.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::assemble::{AssembleError, Machine, assemble};
use super::bus::Bus;
use super::control::{Control, Incoming};
use super::events::{Interest, Poller, Readiness, Token, Wake};
use super::kvm::{Kicker, ready_for_kicks};
use super::role::{EnterRole, Parts, Role};
use super::snapshot::{Kept, Saver};
use super::vcpu::{self, Ending, Gate, Surroundings};
use super::virtio::mmio::MmioDevice;
use super::virtio::vsock::WaitingStreams;
use crate::spec::{MachineEvent, MachineExit, MachineSpec, RequestToMonitor};
use crate::sys::clock::monotonic_ns;

/// How long the host may take to read what an orderly ended guest had sent, before it is dropped.
const DELIVERY: Duration = Duration::from_secs(10);

/// Why a machine did not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be made.
    #[error("The machine cannot be made")]
    Assemble(#[from] AssembleError),
    /// The event loop could not be set up or failed.
    #[error("The monitor cannot wait for events")]
    Events(#[source] io::Error),
    /// A thread is missing.
    #[error("The thread of processor {0} cannot be started")]
    Thread(u8, #[source] io::Error),
    /// The caller's confinement failed.
    #[error("The monitor cannot be confined")]
    Confine(#[source] io::Error),
}

/// An error and its causes, one text each.
pub fn causes(error: &dyn Error) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes
}

/// Runs the machine to its end and reports on the control socket. Returns how it ended, or what kept it from running.
///
/// # Errors
/// [`RunError`]; it has been reported as [`MachineEvent::Failed`].
pub fn run(spec: &MachineSpec, control: &Control, enter: &EnterRole) -> Result<MachineExit, RunError> {
    let result = run_to_end(spec, control, enter);
    if let Err(e) = &result {
        // A caller that is gone needs no report.
        let _ = control.tell(&MachineEvent::Failed { causes: causes(e) });
    }
    result
}

fn run_to_end(spec: &MachineSpec, control: &Control, enter: &EnterRole) -> Result<MachineExit, RunError> {
    let poller = Arc::new(Poller::new().map_err(RunError::Events)?);
    let wake = Arc::new(Wake::new().map_err(RunError::Events)?);
    poller.add(control.fd(), Token::Control, Interest::READ).map_err(RunError::Events)?;
    poller.add_wake(&wake).map_err(RunError::Events)?;
    let machine = assemble(spec, &poller, &wake)?;
    ready_for_kicks().map_err(RunError::Events)?;
    let ending = Arc::new(Ending::new(wake.clone()));
    let Machine { vcpus, bus, waiting, saver, template } = machine;
    let gate = Arc::new(Gate::new(wake.clone()));
    if template.is_some() {
        gate.save_when_ready();
    }
    let parts = Parts::of(spec);
    let around =
        Surroundings { bus: bus.clone(), ending: ending.clone(), gate: gate.clone(), enter: enter.clone(), parts };
    let _ = control.tell(&MachineEvent::Running { at_ns: monotonic_ns() });
    // No guest runs before this thread, too, has given its rights away.
    gate.close();
    let mut threads = Vec::new();
    for (index, vcpu) in (0_u8..).zip(vcpus) {
        match vcpu::start(index, vcpu, around.clone()) {
            Ok(thread) => threads.push(thread),
            Err(e) => {
                stop(&ending, &gate, threads, enter);
                return Err(RunError::Thread(index, e));
            }
        }
    }
    let file = Cell::new(template.map(|file| (file, Kept::WithoutDevices)));
    let processors = Processors { gate: &gate, threads, told: Cell::new(true), saver, file };
    let (poller, wake, bus) = (&*poller, &*wake, &*bus);
    let mut server = Server { control, poller, wake, bus, waiting: &waiting, ending: &ending, processors };
    let entered = enter.enter(Role::EventLoop, parts).map_err(RunError::Confine);
    let served = entered.and_then(|()| {
        gate.open();
        server.serve()
    });
    stop(&ending, &gate, std::mem::take(&mut server.processors.threads), enter);
    served?;
    let exit = ending.exit().unwrap_or(MachineExit::Killed);
    if !matches!(exit, MachineExit::Killed) {
        server.deliver();
    }
    // Told before the machine is taken apart, which takes a while. A caller that is gone needs no report.
    let _ = control.tell(&MachineEvent::Exited { exit: exit.clone(), at_ns: monotonic_ns() });
    Ok(exit)
}

fn stop(ending: &Ending, gate: &Gate, threads: Vec<Kicker<()>>, enter: &EnterRole) {
    // Keeps an earlier word.
    ending.end(MachineExit::Killed);
    gate.open();
    threads.iter().for_each(Kicker::kick);
    gate.until_done(threads.len());
    if !enter.stays {
        for thread in threads {
            // A thread that panicked has ended as well.
            let _ = thread.end();
        }
    }
}

/// The event loop.
struct Server<'a> {
    control: &'a Control,
    poller: &'a Poller,
    wake: &'a Wake,
    bus: &'a Bus,
    waiting: &'a WaitingStreams,
    ending: &'a Ending,
    processors: Processors<'a>,
}

/// The processors as the event loop stops them.
struct Processors<'a> {
    gate: &'a Gate,
    threads: Vec<Kicker<()>>,
    /// The caller knows that they are out, or does not want to.
    told: Cell<bool>,
    /// Writes the machine.
    saver: Option<Saver>,
    /// Where to.
    file: Cell<Option<(OwnedFd, Kept)>>,
}

impl Processors<'_> {
    fn pause(&self) {
        self.told.set(false);
        self.gate.close();
        self.threads.iter().for_each(Kicker::kick);
    }

    fn resume(&self) {
        self.told.set(true);
        self.gate.open();
    }

    /// Begins to write the machine to this file, or tells why it is not written.
    fn begin_to_save(&self, file: OwnedFd) -> Result<(), &'static str> {
        if self.saver.is_none() {
            return Err(
                "A machine whose devices are there from the start, or whose memory others have, cannot be saved",
            );
        }
        if !self.gate.save_now() {
            return Err("The machine is paused, or being saved");
        }
        self.file.set(Some((file, Kept::WithDevices)));
        self.threads.iter().for_each(Kicker::kick);
        Ok(())
    }

    /// The guest is to be saved: kicks those that still run, or, when all are out, writes the machine. `None` if there is nothing to tell.
    fn save(&self, bus: &Bus) -> Option<Vec<String>> {
        if !self.gate.is_saving() {
            return None;
        }
        let Some(states) = self.gate.take_saved(self.threads.len()) else {
            self.threads.iter().for_each(Kicker::kick);
            return None;
        };
        let (saved, stays) = match (&self.saver, self.file.take()) {
            (Some(saver), Some((file, kept))) => {
                let saved = saver.save(&file, states, (bus, kept));
                let stays = saved.is_ok() && kept == Kept::WithDevices;
                (saved, stays)
            }
            _ => (Ok(()), false),
        };
        bus.fill();
        if !stays {
            self.gate.open();
        }
        Some(saved.map_or_else(|e| causes(&e), |()| Vec::new()))
    }

    /// All are out, which is news.
    fn are_out(&self) -> bool {
        !self.told.get() && self.gate.waiting() == Some(self.threads.len()) && !self.told.replace(true)
    }
}

impl Server<'_> {
    /// Serves until the machine ends.
    fn serve(&self) -> Result<(), RunError> {
        while !self.ending.has_ended() {
            self.turn(None)?;
        }
        Ok(())
    }

    /// Waits once and serves what came.
    fn turn(&self, timeout: Option<Duration>) -> Result<(), RunError> {
        let mut events = self.poller.wait(timeout).map_err(RunError::Events)?;
        // Requests first: a stream is held before the guest hears, on another stream, that it may connect to it.
        events.sort_by_key(|(token, _)| *token != Token::Control);
        for (token, readiness) in events {
            match token {
                Token::Control => self.requests(),
                Token::Wake => {
                    self.wake.hear();
                    self.bus.devices().iter().for_each(|device| device.resume());
                    self.tell_losses();
                    self.tell_pause();
                    if let Some(causes) = self.processors.save(self.bus) {
                        let _ = self.control.tell(&MachineEvent::Saved { causes });
                    }
                }
                Token::Device { device, source } => self.device(device, source, readiness),
            }
        }
        Ok(())
    }

    fn device(&self, device: u32, source: u32, readiness: Readiness) {
        if let Some(device) = self.bus.device(device) {
            device.ready(source, readiness);
        }
    }

    /// A caller that is gone needs no report.
    fn tell_losses(&self) {
        for why in self.bus.devices().iter().filter_map(MmioDevice::take_loss) {
            let _ = self.control.tell(&MachineEvent::ShareLost { why });
        }
    }

    /// A caller that is gone needs no report.
    fn tell_pause(&self) {
        if self.processors.are_out() {
            let _ = self.control.tell(&MachineEvent::Paused);
        }
    }

    fn requests(&self) {
        loop {
            match self.control.receive() {
                Incoming::Request(RequestToMonitor::Kill, _) | Incoming::Closed => {
                    return self.ending.end(MachineExit::Killed);
                }
                Incoming::Request(RequestToMonitor::AddStream { port }, Some(fd)) => {
                    // A table that is full closes the stream, which its owner sees.
                    let _ = self.waiting.add(port, fd);
                }
                Incoming::Request(RequestToMonitor::Pause, _) => {
                    self.processors.pause();
                    self.tell_pause();
                }
                Incoming::Request(RequestToMonitor::Resume, _) => {
                    self.processors.resume();
                    let _ = self.control.tell(&MachineEvent::Resumed);
                }
                Incoming::Request(RequestToMonitor::Save, Some(file)) => {
                    if let Err(why) = self.processors.begin_to_save(file) {
                        let _ = self.control.tell(&MachineEvent::Saved { causes: vec![why.to_owned()] });
                    }
                }
                Incoming::Request(RequestToMonitor::AddStream { .. } | RequestToMonitor::Save, None)
                | Incoming::Unknown => {}
                Incoming::Nothing => return,
            }
        }
    }

    /// After the guest's end: waits until the host has taken what the guest had sent.
    fn deliver(&self) {
        let deadline = Instant::now() + DELIVERY;
        let left = || self.bus.devices().iter().map(|device| device.undelivered()).sum::<u64>();
        while left() > 0 && Instant::now() < deadline {
            if self.turn(Some(Duration::from_millis(100))).is_err() || self.ending.exit() == Some(MachineExit::Killed) {
                return;
            }
        }
    }
}
