//! The threads that run the processors.
//!
//! ```text
//! enter the role -> run -> handle the exit -> run ... -> the machine ends (by this processor or another) -> done
//!                    ^        |
//!                    '- gate -'   (waits here until all are confined and while the machine is paused, and is saved here)
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::bus::Bus;
use super::events::Wake;
use super::kvm::{Bound, Exit, Kicker, KvmError, Vcpu, VcpuState};
use super::role::{EnterRole, Parts, Role};
use crate::spec::{MachineExit, READY_PORT};

/// How the machine ends: the first word counts.
#[derive(Debug)]
pub struct Ending {
    ended: AtomicBool,
    exit: Mutex<Option<MachineExit>>,
    wake: Arc<Wake>,
}

impl Ending {
    /// Not yet. `wake` is signalled when it does.
    pub fn new(wake: Arc<Wake>) -> Self {
        Self { ended: AtomicBool::new(false), exit: Mutex::new(None), wake }
    }

    /// Ends the machine, unless it has ended already.
    pub fn end(&self, exit: MachineExit) {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(exit);
        self.ended.store(true, Ordering::SeqCst);
        self.wake.ring();
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// How it ended.
    pub fn exit(&self) -> Option<MachineExit> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What every processor passes before it enters the guest. Lock order: its lock is taken last.
#[derive(Debug)]
pub struct Gate {
    /// A look at `queue.closed` without its lock.
    closed: AtomicBool,
    queue: Mutex<Queue>,
    opened: Condvar,
    wake: Arc<Wake>,
}

#[derive(Debug, Default)]
struct Queue {
    closed: bool,
    waiting: usize,
    /// Threads that will not enter the guest again.
    done: usize,
    saving: Saving,
}

/// Whether processors that come to wait are saved.
#[derive(Debug, Default)]
enum Saving {
    #[default]
    No,
    /// When the guest says that it is ready.
    WhenReady,
    /// Now: those that have been.
    Now(BTreeMap<u8, Result<VcpuState, KvmError>>),
}

impl Gate {
    /// Open. `wake` is signalled when a processor comes to wait.
    pub fn new(wake: Arc<Wake>) -> Self {
        Self { closed: AtomicBool::new(false), queue: Mutex::default(), opened: Condvar::new(), wake }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, closed: bool) {
        let mut queue = self.lock();
        queue.closed = closed;
        self.closed.store(closed, Ordering::SeqCst);
        self.opened.notify_all();
    }

    /// Processors that are kicked from now on wait.
    pub fn close(&self) {
        self.set(true);
    }

    /// Lets them go on.
    pub fn open(&self) {
        self.set(false);
    }

    /// How many processors wait, if it is closed.
    pub fn waiting(&self) -> Option<usize> {
        let queue = self.lock();
        queue.closed.then_some(queue.waiting)
    }

    /// Waits while it is closed, as one that does not count yet.
    fn hold(&self) {
        drop(self.opened.wait_while(self.lock(), |q| q.closed).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until so many threads will not enter the guest again.
    pub fn until_done(&self, count: usize) {
        drop(self.opened.wait_while(self.lock(), |q| q.done < count).unwrap_or_else(PoisonError::into_inner));
    }

    /// Closes when the guest says that it is ready, to save all processors.
    pub fn save_when_ready(&self) {
        self.lock().saving = Saving::WhenReady;
    }

    /// Closes, to save all processors. False if it is closed already, or waits for the guest to be ready.
    pub fn save_now(&self) -> bool {
        let mut queue = self.lock();
        let free = !queue.closed && matches!(queue.saving, Saving::No);
        if free {
            queue.saving = Saving::Now(BTreeMap::new());
            queue.closed = true;
            self.closed.store(true, Ordering::SeqCst);
        }
        free
    }

    /// The guest says that it is ready. False if nobody waits for that.
    fn ready(&self) -> bool {
        let waits = |queue: &Queue| matches!(queue.saving, Saving::WhenReady);
        let waited = waits(&self.lock());
        if waited {
            self.lock().saving = Saving::Now(BTreeMap::new());
            self.close();
            self.wake.ring();
        }
        waited
    }

    /// Processors are being saved: those that still run are to be kicked.
    pub fn is_saving(&self) -> bool {
        matches!(self.lock().saving, Saving::Now(_))
    }

    /// The states of so many processors, once, when all of them wait.
    pub fn take_saved(&self, count: usize) -> Option<Vec<Result<VcpuState, KvmError>>> {
        let mut queue = self.lock();
        let Saving::Now(saved) = &mut queue.saving else { return None };
        if saved.len() < count {
            return None;
        }
        let saved = std::mem::take(saved);
        queue.saving = Saving::No;
        Some(saved.into_values().collect())
    }

    /// Waits while it is closed. True if it was. `save` takes the state of processor `index`.
    fn pass(&self, index: u8, save: impl FnOnce() -> Result<VcpuState, KvmError>) -> bool {
        if !self.closed.load(Ordering::SeqCst) {
            return false;
        }
        let state = self.is_saving().then(save);
        let mut queue = self.lock();
        if let (Saving::Now(saved), Some(state)) = (&mut queue.saving, state) {
            saved.insert(index, state);
        }
        queue.waiting += 1;
        self.wake.ring();
        let mut queue = self.opened.wait_while(queue, |q| q.closed).unwrap_or_else(PoisonError::into_inner);
        queue.waiting -= 1;
        true
    }
}

/// What a processor's thread shares with the others.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// What it reaches outside memory.
    pub bus: Arc<Bus>,
    /// How the machine ends.
    pub ending: Arc<Ending>,
    /// What it passes before it enters the guest.
    pub gate: Arc<Gate>,
    /// Confines it.
    pub enter: EnterRole,
    /// What the machine has.
    pub parts: Parts,
}

/// Starts the thread of a processor. It waits for the gate before the guest runs.
///
/// # Errors
/// If the host has no thread for it.
pub fn start(index: u8, mut vcpu: Vcpu, around: Surroundings) -> io::Result<Kicker<()>> {
    let thread = thread::Builder::new().name(format!("vcpu{index}")).stack_size(128 << 10).spawn(move || {
        let done = Done(&around.gate);
        match around.enter.enter(Role::Vcpu(index), around.parts) {
            Ok(()) => work(index, &mut vcpu.bind(), &around),
            Err(e) => {
                around.ending.end(MachineExit::KvmFault(format!("processor {index} could not be confined: {e}")));
            }
        }
        drop(done);
        if around.enter.stays {
            loop {
                thread::park();
            }
        }
    })?;
    Ok(Kicker::new(thread))
}

/// Tells, when it is dropped, that a thread will not enter the guest again.
struct Done<'a>(&'a Gate);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.lock().done += 1;
        self.0.opened.notify_all();
    }
}

/// Runs the processor until the machine ends.
fn work(index: u8, vcpu: &mut Bound<'_>, around: &Surroundings) {
    let Surroundings { bus, ending, gate, .. } = around;
    gate.hold();
    while !ending.has_ended() {
        if gate.pass(index, || vcpu.save()) {
            vcpu.was_stopped();
            continue;
        }
        if let Some(exit) = step(vcpu, bus, gate) {
            ending.end(exit);
        }
    }
}

/// Runs the guest once and answers its exit. Returns how the machine ends, if this ends it.
fn step(vcpu: &mut Bound<'_>, bus: &Bus, gate: &Gate) -> Option<MachineExit> {
    match vcpu.run() {
        // A machine that is saved gets its devices when that is done.
        Exit::Out(READY_PORT, _) => {
            if !gate.ready() {
                bus.fill();
            }
        }
        Exit::Out(port, data) => return bus.port_out(port, data),
        Exit::In(port, data) => bus.port_in(port, data),
        Exit::Read(addr, data) => bus.read(addr, data),
        Exit::Write(addr, data) => bus.write(addr, data),
        Exit::Interrupted => {}
        // A kernel whose reset line failed may fall back to a triple fault after its last words.
        Exit::Shutdown => return Some(bus.ports.panic().map_or(MachineExit::TripleFault, MachineExit::Panic)),
        Exit::Fault(words) => return Some(MachineExit::KvmFault(words)),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwanted() -> Result<VcpuState, KvmError> {
        panic!("nobody wants it saved")
    }

    #[test]
    fn a_gate_saves_whoever_waits_once_the_guest_is_ready() {
        let gate = Arc::new(Gate::new(Arc::new(Wake::new().unwrap())));
        assert!(!gate.ready(), "nobody waits for it");
        gate.save_when_ready();
        assert!(!gate.is_saving() && !gate.pass(0, unwanted));
        assert!(gate.ready() && !gate.ready(), "once");
        let held: Vec<_> = (0..3)
            .map(|index| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || gate.pass(index, || Err(KvmError::Version(index.into()))))
            })
            .collect();
        let states = loop {
            if let Some(states) = gate.take_saved(3) {
                break states;
            }
            thread::yield_now();
        };
        let order: Vec<_> = states.iter().map(|s| s.as_ref().unwrap_err().to_string()).collect();
        let expected: Vec<_> = (0..3).map(|index| KvmError::Version(index).to_string()).collect();
        assert_eq!(order, expected);
        assert!(gate.take_saved(3).is_none() && !gate.is_saving());
        gate.open();
        assert!(held.into_iter().all(|thread| thread.join().unwrap()));
    }

    #[test]
    fn a_gate_saves_at_once_unless_it_is_closed() {
        let gate = Arc::new(Gate::new(Arc::new(Wake::new().unwrap())));
        gate.close();
        assert!(!gate.save_now(), "it is paused");
        gate.open();
        assert!(gate.save_now() && gate.is_saving() && !gate.save_now());
        let held = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.pass(0, || Err(KvmError::Version(7))))
        };
        while gate.waiting() != Some(1) {
            thread::yield_now();
        }
        assert_eq!(gate.take_saved(1).unwrap().len(), 1);
        gate.open();
        assert!(held.join().unwrap());
        gate.save_when_ready();
        assert!(!gate.save_now(), "its guest is not ready");
    }

    #[test]
    fn a_closed_gate_holds_until_it_opens() {
        let gate = Arc::new(Gate::new(Arc::new(Wake::new().unwrap())));
        assert!(!gate.pass(0, unwanted), "an open gate holds nobody");
        assert_eq!(gate.waiting(), None);
        gate.close();
        let held: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || gate.pass(0, unwanted))
            })
            .collect();
        while gate.waiting() != Some(3) {
            thread::yield_now();
        }
        gate.open();
        assert!(held.into_iter().all(|thread| thread.join().unwrap()));
        assert!(!gate.pass(0, unwanted));
    }
}
