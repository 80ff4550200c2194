//! A target of fuzzing: profiles of a person's file, and the program that the kernel gets, against the rules one by one.

use libc::sock_filter;

use super::{Action, Condition, Profile, Rule, Test, file};
use crate::fuzz::Input;
use crate::spec::Capability;

/// `AUDIT_ARCH_X86_64` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
/// Calls with their numbers (`arch/x86/entry/syscalls/syscall_64.tbl` of Linux).
const CALLS: [(&str, u32); 8] = [
    ("read", 0),
    ("write", 1),
    ("close", 3),
    ("lseek", 8),
    ("socket", 41),
    ("clone", 56),
    ("kill", 62),
    ("none", 9999),
];

/// A text of any bytes, or any rules.
pub(crate) fn profile(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() & 1 {
        0 => {
            let capabilities = [Capability(input.u8() % 41)];
            let text = String::from_utf8_lossy(input.rest());
            if let Ok(profile) = file::read(&text, &capabilities) {
                check(&profile, &mut Input::new(data));
                let _ = profile.oci();
            }
        }
        _ => {
            let default = action(&mut input);
            let rules = (0..input.u8() % 12).map(|_| rule(&mut input)).collect();
            check(&Profile { default, i386: input.u8() & 1 != 0, rules }, &mut input);
        }
    }
}

fn action(input: &mut Input<'_>) -> Action {
    match input.u8() % 6 {
        0 => Action::Allow,
        1 => Action::Log,
        2 => Action::Trap,
        3 => Action::KillThread,
        4 => Action::KillProcess,
        _ => Action::Errno(input.u16() % 4096),
    }
}

/// Numbers that are near each other in one half or both.
fn number(input: &mut Input<'_>) -> u64 {
    let mut half = || match input.u8() {
        255 => u32::MAX,
        254 => input.u32(),
        near => u32::from(near % 4),
    };
    u64::from(half()) << 32 | u64::from(half())
}

fn rule(input: &mut Input<'_>) -> Rule {
    let calls = (0..input.u8() % 3 + 1).map(|_| CALLS[usize::from(input.u8() % 8)].0.to_owned()).collect();
    let action = action(input);
    let mut conditions = Vec::new();
    let given = input.u8();
    for argument in (0..6).filter(|argument| given >> argument & 1 != 0) {
        let test = match input.u8() % 7 {
            0 => Test::Equal,
            1 => Test::NotEqual,
            2 => Test::Less,
            3 => Test::AtMost,
            4 => Test::Greater,
            5 => Test::AtLeast,
            _ => Test::Masked(number(input)),
        };
        conditions.push(Condition { argument, short: input.u8() & 1 != 0, test, value: number(input) });
    }
    Rule { calls, action, conditions }
}

fn check(profile: &Profile, input: &mut Input<'_>) {
    let Ok(program) = profile.compile() else { return };
    assert!(program.len() <= 4096);
    for _ in 0..8 {
        let (name, call) = CALLS[usize::from(input.u8() % 8)];
        let arguments: [u64; 6] = std::array::from_fn(|_| number(input));
        let told = answer(&program, X86_64, call, arguments);
        match expected(profile, name, arguments) {
            Some(action) => assert_eq!(told, value(action), "{name} {arguments:x?} of {profile:?}"),
            // A call that is newer than all that are named.
            None => assert!(told == value(profile.default) || told == 0x0005_0026, "{name} of {profile:?}"),
        }
        assert_eq!(answer(&program, 0xc000_00b7, call, arguments), 0x8000_0000);
        assert!(profile.i386 || answer(&program, 0x4000_0003, call, arguments) == 0x8000_0000);
    }
}

/// Of a call's rules those with conditions come first, in their order; then the first without. `None`: it has none, or does not exist.
fn expected(profile: &Profile, name: &str, arguments: [u64; 6]) -> Option<Action> {
    let mine: Vec<&Rule> = profile.rules.iter().filter(|rule| rule.calls.iter().any(|call| call == name)).collect();
    if mine.is_empty() || name == "none" {
        return None;
    }
    let fits = |rule: &&&Rule| {
        !rule.conditions.is_empty() && rule.conditions.iter().all(|c| holds(c, arguments[usize::from(c.argument)]))
    };
    let always = || mine.iter().find(|rule| rule.conditions.is_empty()).map_or(profile.default, |rule| rule.action);
    Some(mine.iter().find(fits).map_or_else(always, |rule| rule.action))
}

/// Whether an argument is what a rule asks for.
pub(super) fn holds(condition: &Condition, argument: u64) -> bool {
    let cut = |value: u64| if condition.short { value & 0xffff_ffff } else { value };
    let (argument, value) = (cut(argument), cut(condition.value));
    match condition.test {
        Test::Equal => argument == value,
        Test::NotEqual => argument != value,
        Test::Less => argument < value,
        Test::AtMost => argument <= value,
        Test::Greater => argument > value,
        Test::AtLeast => argument >= value,
        Test::Masked(mask) => argument & cut(mask) == value,
    }
}

/// `SECCOMP_RET_*` (linux/seccomp.h).
fn value(action: Action) -> u32 {
    match action {
        Action::Allow => 0x7fff_0000,
        Action::Log => 0x7ffc_0000,
        Action::Errno(errno) => 0x0005_0000 + u32::from(errno),
        Action::Trap => 0x0003_0000,
        Action::KillThread => 0,
        Action::KillProcess => 0x8000_0000,
    }
}

/// What the kernel makes of a call (seccomp(2); networking/filter.rst). A program that it would not take is a panic.
pub(super) fn answer(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number.to_ne_bytes(), architecture.to_ne_bytes()].concat();
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    let (mut at, mut a) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        at += 1 + match code {
            0x20 => {
                a = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap());
                0
            }
            0x54 => {
                a &= k;
                0
            }
            0x05 => k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        };
    }
}
