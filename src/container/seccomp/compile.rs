//! A profile as the kernel's program (seccomp(2), "struct seccomp_data"; linux/filter.h).
//!
//! ```text
//! architecture -- x86-64 --> number -- binary search --> allow / error / conditions of this call
//!        |   \--- i386 ----> number -- binary search --> ...
//!        \--- other --> end of the process
//! ```
//! One comparison more for twice as many calls; and for a call that is always allowed a kernel from 5.11 on keeps the answer.

use std::collections::BTreeMap;

use libc::sock_filter;
use syscalls::{x86, x86_64};

use super::file::ProfileError;
use super::{Action, Condition, Profile, Rule, Test};

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

/// Of the numbers of x32, programs of 64 bits with pointers of 32. Hardly a kernel has it, and none of them through Duplex.
const X32: u32 = 0x4000_0000;

const ENOSYS: u16 = 38;

/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
const MOST: usize = 4096;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

type Code = Vec<sock_filter>;

pub(super) fn program(profile: &Profile) -> Result<Code, ProfileError> {
    let number = |name: &str| name.parse::<x86_64::Sysno>().ok().map(|call| call.id().unsigned_abs());
    let mut whole = vec![line(LOAD, ARCHITECTURE)];
    whole.extend(if_equal(X86_64, calls(profile, Some(X32), number)));
    if profile.i386 {
        let number = |name: &str| name.parse::<x86::Sysno>().ok().map(|call| call.id().unsigned_abs());
        whole.extend(if_equal(I386, calls(profile, None, number)));
    }
    whole.push(verdict(Action::KillProcess));
    if whole.len() > MOST { Err(ProfileError::TooLong(whole.len())) } else { Ok(whole) }
}

/// All calls of one architecture, whose names have these numbers. Those from `end` on do not exist.
fn calls(profile: &Profile, end: Option<u32>, number: impl Fn(&str) -> Option<u32>) -> Code {
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &profile.rules {
        for number in rule.calls.iter().filter_map(|name| number(name)) {
            by_number.entry(number).or_default().push(rule);
        }
    }
    let newest = by_number.keys().next_back().map_or(0, |last| last.saturating_add(1));
    // From its first number on, each run of calls has its code, until the next begins.
    let mut runs: Vec<(u32, Code)> = vec![(0, vec![verdict(profile.default)])];
    let mut push = |from: u32, code: Code| match runs.last_mut() {
        Some((start, last)) if *start == from => *last = code,
        _ => runs.push((from, code)),
    };
    for (number, rules) in &by_number {
        push(*number, of_rules(rules, profile.default));
        push(number.saturating_add(1), vec![verdict(profile.default)]);
    }
    if let Action::Errno(_) = profile.default {
        push(newest, vec![verdict(Action::Errno(ENOSYS))]);
    }
    if let Some(end) = end {
        push(end, vec![verdict(Action::Errno(ENOSYS))]);
    }
    runs.dedup_by(|next, run| same(&next.1, &run.1));
    let mut code = vec![line(LOAD, NUMBER)];
    code.extend(search(&runs));
    code
}

fn same(one: &Code, other: &Code) -> bool {
    let parts = |code: &Code| code.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect::<Vec<_>>();
    parts(one) == parts(other)
}

/// Which run the number is in.
fn search(runs: &[(u32, Code)]) -> Code {
    let (low, high) = runs.split_at(runs.len() / 2);
    let Some((from, _)) = high.first().filter(|_| !low.is_empty()) else {
        return runs.first().map(|(_, code)| code.clone()).unwrap_or_default();
    };
    let low = search(low);
    // A conditional jump reaches 255 instructions, the other one any number.
    let mut code = vec![sock_filter { code: IF_AT_LEAST, jt: 0, jf: 1, k: *from }, far(low.len())];
    code.extend(low);
    code.extend(search(high));
    code
}

/// What becomes of a call with these rules.
fn of_rules(rules: &[&Rule], default: Action) -> Code {
    let (always, conditional): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| rule.conditions.is_empty());
    let otherwise = always.first().map_or(default, |rule| rule.action);
    // What the conditions decide may be what happens anyway.
    if conditional.iter().all(|rule| rule.action == otherwise) {
        return vec![verdict(otherwise)];
    }
    let mut code: Code = conditional.iter().flat_map(|rule| of_rule(rule)).collect();
    code.push(verdict(otherwise));
    code
}

/// Goes on behind itself if a condition does not hold.
fn of_rule(rule: &Rule) -> Code {
    let mut code = vec![verdict(rule.action)];
    for condition in rule.conditions.iter().rev() {
        let mut checked = assemble(&check(condition), code.len());
        checked.append(&mut code);
        code = checked;
    }
    code
}

/// Where a comparison leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    Holds,
    Fails,
}

/// One instruction of a condition.
enum Step {
    Load(u32),
    And(u32),
    /// A jump of this kind with this number, if so and if not.
    If(u16, u32, To, To),
}

/// The steps of a condition. Where all 64 bits count, the upper half decides unless it is equal.
fn check(condition: &Condition) -> Vec<Step> {
    use Step::{And, If, Load};
    use To::{Fails, Holds, Next};
    let Condition { argument, short, test, value } = *condition;
    let at = ARGUMENTS + 8 * u32::from(argument);
    let (high, low) = halves(value);
    let (upper, lower) = match test {
        Test::Equal => (vec![If(IF_EQUAL, high, Next, Fails)], vec![If(IF_EQUAL, low, Holds, Fails)]),
        Test::NotEqual => (vec![If(IF_EQUAL, high, Next, Holds)], vec![If(IF_EQUAL, low, Fails, Holds)]),
        Test::Masked(mask) => {
            let (mask_high, mask_low) = halves(mask);
            let upper = vec![And(mask_high), If(IF_EQUAL, high, Next, Fails)];
            (upper, vec![And(mask_low), If(IF_EQUAL, low, Holds, Fails)])
        }
        Test::Greater | Test::AtLeast => {
            let last = if test == Test::Greater { IF_GREATER } else { IF_AT_LEAST };
            let upper = vec![If(IF_GREATER, high, Holds, Next), If(IF_EQUAL, high, Next, Fails)];
            (upper, vec![If(last, low, Holds, Fails)])
        }
        Test::Less | Test::AtMost => {
            let last = if test == Test::Less { IF_AT_LEAST } else { IF_GREATER };
            let upper = vec![If(IF_GREATER, high, Fails, Next), If(IF_EQUAL, high, Next, Holds)];
            (upper, vec![If(last, low, Fails, Holds)])
        }
    };
    let mut steps = Vec::new();
    if !short {
        steps.push(Load(at + 4));
        steps.extend(upper);
    }
    steps.push(Load(at));
    steps.extend(lower);
    steps
}

/// Goes on behind itself if the condition holds, and past `rest` more instructions if it does not.
fn assemble(steps: &[Step], rest: usize) -> Code {
    let one = |(place, step): (usize, &Step)| match *step {
        Step::Load(at) => line(LOAD, at),
        Step::And(mask) => line(AND, mask),
        Step::If(code, number, yes, no) => {
            let left = steps.len().saturating_sub(place).saturating_sub(1);
            let to = |to| match to {
                To::Next => 0,
                To::Holds => near(left),
                To::Fails => near(left.saturating_add(rest)),
            };
            sock_filter { code, jt: to(yes), jf: to(no), k: number }
        }
    };
    steps.iter().enumerate().map(one).collect()
}

fn halves(value: u64) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    (half(value >> 32), half(value))
}

/// A rule has at most one condition for each of six arguments, of at most five steps: it is always near.
fn near(instructions: usize) -> u8 {
    u8::try_from(instructions).unwrap_or(u8::MAX)
}

/// The code, if the number is this; else behind it.
fn if_equal(number: u32, code: Code) -> Code {
    let mut whole = vec![sock_filter { code: IF_EQUAL, jt: 1, jf: 0, k: number }, far(code.len())];
    whole.extend(code);
    whole
}

fn line(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn far(instructions: usize) -> sock_filter {
    line(JUMP, u32::try_from(instructions).unwrap_or(u32::MAX))
}

fn verdict(action: Action) -> sock_filter {
    // `SECCOMP_RET_*` (linux/seccomp.h).
    let value = match action {
        Action::Allow => 0x7fff_0000,
        Action::Log => 0x7ffc_0000,
        Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
        Action::Trap => 0x0003_0000,
        Action::KillThread => 0,
        Action::KillProcess => 0x8000_0000,
    };
    line(RETURN, value)
}
