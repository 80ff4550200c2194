//! PID 1 of a microVM: prepares the machine, runs one command in a sandbox of its own, tells the host how it ended.
//!
//! It is the only file of the initial RAM file system. What it learns from the host it trusts; what the image brings it does not: every
//! path of the image is walked from inside the image's root.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod boot;
mod cgroup;
mod enter;
mod host;
mod inside;
mod launch;
mod line;
mod mounts;
mod network;
mod program;
mod root;
mod session;
mod slots;
mod status;
mod stdio;
mod supervise;
mod sys;
mod trouble;

use duplex_wire::{FailureKind, ToHost, guest_exit};

use crate::cgroup::Workload;
use crate::slots::Slots;
use crate::trouble::Trouble;

fn main() {
    // The kernel gives PID 1 the words of its command line that it does not know: another process is never PID 1.
    if std::process::id() != 1 && std::env::args().nth(1).as_deref() == Some(enter::ARGUMENT) {
        enter::main();
    }
    let exit = match run() {
        Ok(()) => guest_exit::SHUTDOWN,
        Err(trouble) => {
            trouble::to_console(&trouble);
            guest_exit::AGENT_FAILED
        }
    };
    sys::end_machine(exit);
}

/// The steps of a boot, in order. What needs no word from the host is done while the host's answer is on its way, or, in a machine that others go
/// on from, before it is kept.
fn run() -> Result<(), Trouble> {
    boot::mount_kernel_interfaces()?;
    let mut slots = Slots::of_this_machine()?;
    let mut early = None;
    if let Some(slots) = &mut slots {
        early = Some(prepare()?);
        slots.ready()?;
        slots.expect("the way to the host")?;
    }
    let mut host = host::Host::connect()?;
    match sandbox(&mut host, early, slots) {
        Ok(()) => {}
        Err(trouble) => host.tell(&ToHost::StartFailed { kind: FailureKind::Other, text: trouble.chain() })?,
    }
    host.wait_for_the_end()
}

/// What is the same for all sandboxes.
fn prepare() -> Result<Workload, Trouble> {
    boot::loopback_up()?;
    network::set_defaults()?;
    root::mount_memory()?;
    Workload::create()
}

/// Runs the command that the host asks for, to its end.
fn sandbox(host: &mut host::Host, early: Option<Workload>, mut slots: Option<Slots>) -> Result<(), Trouble> {
    let workload = early.map_or_else(prepare, Ok)?;
    if let Some(slots) = &mut slots {
        slots.expect("the image's disk")?;
    }
    let start = host.receive_start()?;
    boot::seed_entropy(&start.seed)?;
    boot::set_clock(start.realtime_ns)?;
    boot::set_hostname(&start.hostname)?;
    if let Some(slots) = &mut slots {
        slots.expect_devices_of(&start)?;
    }
    start.networks.iter().try_for_each(network::configure)?;
    workload.limit(start.pids)?;
    root::mount_image(&start.root)?;
    let mounts = mounts::mount(&start.mounts)?;
    match launch::launch(&start, &workload)? {
        launch::Launched::Running(command) => {
            host.tell(&ToHost::Started)?;
            let ending = supervise::to_the_end(command, host, slots)?;
            if let Err(trouble) = mounts.close() {
                host.tell(&ToHost::Log { text: trouble.chain() })?;
            }
            host.tell(&ToHost::Exited { ending, oom: workload.had_oom_kill()? })
        }
        launch::Launched::Failed { kind, text } => host.tell(&ToHost::StartFailed { kind, text }),
    }
}
