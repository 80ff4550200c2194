//! Machines from their first instruction to each kind of end.

use duplex::spec::{MachineEvent, MachineExit, RequestToMonitor};

use crate::machine::{Machine, NEEDS, Plan, file_of, guest_program, in_every_life};
use crate::runner::{Case, Need, Verdict};

pub(crate) const CASES: &[Case] = &[
    Case { name: "vm::guest_half_compiles", needs: &[Need::Outside, Need::Program("rustc")], run: guest_half },
    Case { name: "vm::boots_with_one_processor", needs: NEEDS, run: || in_every_life(one_processor) },
    Case { name: "vm::boots_with_several_processors", needs: NEEDS, run: || in_every_life(several_processors) },
    Case { name: "vm::agent_failure_is_told", needs: NEEDS, run: agent_failure },
    Case { name: "vm::reset_is_told", needs: NEEDS, run: || in_every_life(reset) },
    Case { name: "vm::panic_is_told_with_its_words", needs: NEEDS, run: panic },
    Case { name: "vm::triple_fault_is_told", needs: NEEDS, run: triple_fault },
    Case { name: "vm::kill_ends_a_machine_that_never_ends", needs: NEEDS, run: kill },
    Case { name: "vm::a_machine_ends_with_its_caller", needs: NEEDS, run: caller_gone },
    Case { name: "vm::stray_accesses_do_no_harm", needs: NEEDS, run: || in_every_life(strays) },
    Case { name: "vm::smallest_memory_boots", needs: NEEDS, run: smallest },
    Case { name: "vm::what_cannot_boot_is_refused_in_words", needs: NEEDS, run: refusals },
];

/// Here, where it takes a second, and not first in the lab, where it takes two minutes.
fn guest_half() -> Verdict {
    assert!(guest_program().starts_with(b"\x7fELF"));
    Ok(())
}

fn one_processor() -> Verdict {
    let report = Machine::start(Plan::new("hello"))?.finish();
    report.expect_ok();
    assert!(matches!(report.events[0], MachineEvent::Running { at_ns } if at_ns > 0));
    assert_eq!(report.value("cpus"), "1");
    assert!(matches!(report.value("clock"), "kvm-clock" | "tsc"), "{}", report.value("clock"));
    Ok(())
}

fn several_processors() -> Verdict {
    for vcpus in [2, 3, 8] {
        let report = Machine::start(Plan { vcpus, memory_mib: 256, ..Plan::new("hello") })?.finish();
        report.expect_ok();
        assert_eq!(report.value("cpus"), vcpus.to_string());
    }
    Ok(())
}

fn agent_failure() -> Verdict {
    let report = Machine::start(Plan::new("exit 17"))?.finish();
    assert_eq!(report.exit(), &MachineExit::AgentFailed(17));
    assert_eq!(report.code, Some(10));
    Ok(())
}

fn reset() -> Verdict {
    let report = Machine::start(Plan::new("reset"))?.finish();
    assert_eq!(report.exit(), &MachineExit::Reset, "{}", report.console);
    assert_eq!(report.code, Some(11));
    Ok(())
}

fn panic() -> Verdict {
    let report = Machine::start(Plan::new("panic"))?.finish();
    let MachineExit::Panic(words) = report.exit() else { panic!("{:?}\n{}", report.exit(), report.console) };
    assert!(words.contains("Attempted to kill init!"), "{words}");
    assert_eq!(report.code, Some(12));
    Ok(())
}

fn triple_fault() -> Verdict {
    let report = Machine::start(Plan { parameters: "reboot=t".to_owned(), ..Plan::new("reset") })?.finish();
    assert_eq!(report.exit(), &MachineExit::TripleFault, "{}", report.console);
    assert_eq!(report.code, Some(13));
    Ok(())
}

fn kill() -> Verdict {
    let mut machine = Machine::start(Plan { vcpus: 2, ..Plan::new("hang") })?;
    machine.wait_for("hanging");
    machine.request(&RequestToMonitor::Kill, None);
    let report = machine.finish();
    assert_eq!(report.exit(), &MachineExit::Killed);
    assert_eq!(report.code, Some(14));
    Ok(())
}

fn caller_gone() -> Verdict {
    let mut machine = Machine::start(Plan::new("hang"))?;
    machine.wait_for("hanging");
    assert_eq!(machine.abandon().code, Some(14));
    // Before the guest is up as well.
    assert_eq!(Machine::start(Plan::new("hang"))?.abandon().code, Some(14));
    Ok(())
}

fn strays() -> Verdict {
    Machine::start(Plan::new("poke"))?.finish().expect_ok();
    Ok(())
}

/// What the monitor calls enough is enough.
fn smallest() -> Verdict {
    let words = failure(Plan { memory_mib: 8, ..Plan::new("quiet") })?;
    let needed: u32 = words
        .split("at least ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no size in: {words}"));
    Machine::start(Plan { memory_mib: needed, ..Plan::new("hello") })?.finish().expect_ok();
    let words = failure(Plan { memory_mib: needed - 1, ..Plan::new("quiet") })?;
    assert!(words.contains("too small"), "{words}");
    Ok(())
}

/// The causes with which a machine fails to start.
fn failure(plan: Plan) -> Result<String, crate::runner::Skip> {
    let report = Machine::start(plan)?.finish();
    assert_eq!(report.code, Some(1));
    match report.events.last() {
        Some(MachineEvent::Failed { causes }) => Ok(causes.join(": ")),
        other => panic!("{other:?}\n{}", report.console),
    }
}

fn refusals() -> Verdict {
    let words = failure(Plan { kernel: Some(file_of(b"#!/bin/sh\n")), ..Plan::new("quiet") })?;
    assert!(words.contains("not an ELF file"), "{words}");
    let words = failure(Plan { vcpus: 9, ..Plan::new("quiet") })?;
    assert!(words.contains("1 to 8 processors"), "{words}");
    let words = failure(Plan { disks: vec![(vec![(file_of(b"x"), 0, 100)], true)], ..Plan::new("quiet") })?;
    assert!(words.contains("Disk 0"), "{words}");
    Ok(())
}
