//! The threads that run the processors.
//!
//! ```text
//! bind -> run -> handle the exit -> run ... -> the machine ends (by this processor or another) -> thread ends
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::bus::Bus;
use super::events::Wake;
use super::kvm::{Bound, Exit, Kicker, Vcpu};
use super::role::{EnterRole, Role};
use crate::spec::MachineExit;

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

/// Starts the thread of a processor.
///
/// # Errors
/// If the host has no thread for it.
pub fn start(
    index: u8,
    mut vcpu: Vcpu,
    bus: Arc<Bus>,
    ending: Arc<Ending>,
    enter: EnterRole,
) -> io::Result<Kicker<()>> {
    let thread = thread::Builder::new().name(format!("vcpu{index}")).stack_size(128 << 10).spawn(move || {
        if let Err(e) = enter.enter(Role::Vcpu(index)) {
            return ending.end(MachineExit::KvmFault(format!("processor {index} could not be confined: {e}")));
        }
        let mut bound = vcpu.bind();
        while !ending.has_ended() {
            if let Some(exit) = step(&mut bound, &bus) {
                ending.end(exit);
            }
        }
    })?;
    Ok(Kicker::new(thread))
}

/// Runs the guest once and answers its exit. Returns how the machine ends, if this ends it.
fn step(vcpu: &mut Bound<'_>, bus: &Bus) -> Option<MachineExit> {
    match vcpu.run() {
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
