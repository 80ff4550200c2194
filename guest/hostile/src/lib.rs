//! A hostile guest: a bare-metal program that drives every device of the machine against the specification.
//!
//! The monitor loads it as it loads a kernel. The words `run=GROUP[.TARGET[.CASE]]` on its command line say which cases it plays, in order;
//! each is told on the serial port when it begins (`RUN name`) and when it is over (`CASE name ok`, or `CASE name FAILED: why`), and after each
//! one the attacked device must answer a good request. Then it halts for good, or ends as `then=` says.
//!
//! In the place of the guest's agent it plays a script instead ([`agent`]).
//!
//! ```text
//! main -> play -> cases::GROUPS: attack(device) -> health::check(device) -> next
//!                   \-> virtio (registers, rings) -> sys (memory, ports, registers of the processor)
//! ```
//!
//! It is a library as well, so that the tests on the host have the names of all cases from the one list that there is.
#![no_std]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a program that lies on purpose cuts numbers on purpose"
)]

pub mod agent;
mod cases;
mod entry;
mod health;
mod report;
mod sys;
mod virtio;
mod words;

pub use cases::{Case, GROUPS, Group};
pub use virtio::Target;

use report::{say, say_name};
use words::Words;

/// What a case found out: `Err` if the machine did not do what it must.
pub type Verdict = Result<(), Trouble>;

/// What was wrong, and a number that says more.
#[derive(Clone, Copy, Debug)]
pub struct Trouble(pub &'static str, pub u64);

/// Fails with these words unless it is so.
fn ensure(good: bool, words: &'static str, number: u64) -> Verdict {
    if good { Ok(()) } else { Err(Trouble(words, number)) }
}

/// Plays the cases that the command line names.
pub fn play(zero_page: u64) -> ! {
    sys::prepare();
    let words = Words::at(zero_page);
    let bus = virtio::Bus::find(&words, zero_page);
    if agent::is_asked_for() {
        if let Err(Trouble(words, number)) = agent::play(&bus) {
            say(words);
            say(" ");
            report::say_number(number);
            say("\n");
        }
        sys::halt();
    }
    let mut count = 0;
    words.each("run=", |wanted| {
        for group in GROUPS {
            for target in group.targets {
                for case in group.cases {
                    if words::is_wanted(wanted, &[group.name, target.name(), case.name]) {
                        play_case(&bus, group, *target, case);
                        count += 1;
                    }
                }
            }
        }
    });
    cases::end_second();
    say("DONE ");
    report::say_number(count);
    say("\n");
    words.each("then=", |end| match end {
        b"shutdown" => sys::out8(virtio::EXIT_PORT, virtio::SHUTDOWN),
        b"reset" => sys::out8(0x64, 0xfe),
        _ => {}
    });
    sys::halt()
}

fn play_case(bus: &virtio::Bus, group: &Group, target: Target, case: &Case) {
    let name = [group.name, target.name(), case.name];
    say("RUN ");
    say_name(&name);
    say("\n");
    let verdict = bus.device(target).and_then(|device| {
        (case.run)(&device)?;
        health::check(&device)
    });
    // What the case printed may not have ended its line.
    say("\nCASE ");
    say_name(&name);
    match verdict {
        Ok(()) => say(" ok\n"),
        Err(Trouble(words, number)) => {
            say(" FAILED: ");
            say(words);
            say(" ");
            report::say_number(number);
            say("\n");
        }
    }
}

/// The program itself is wrong: says where, and halts.
pub fn give_up(place: &str, number: u32) -> ! {
    say("GAVE UP ");
    say(place);
    say(" ");
    report::say_number(number.into());
    say("\n");
    sys::halt()
}
