use libc::c_long;
use proptest::prelude::*;

use super::fuzz::{answer, holds};
use super::*;
use crate::spec::DEFAULT_CAPABILITIES;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;

const fn errno(number: i32) -> u32 {
    0x0005_0000 | number.unsigned_abs()
}

fn of(profile: &Profile) -> impl Fn(c_long, &[u64]) -> u32 + use<> {
    let program = profile.compile().unwrap();
    move |number, given| {
        let mut arguments = [0; 6];
        arguments[..given.len()].copy_from_slice(given);
        answer(&program, X86_64, u32::try_from(number).unwrap(), arguments)
    }
}

fn plain() -> Profile {
    profile(&Security::default(), &DEFAULT_CAPABILITIES).unwrap().unwrap()
}

#[test]
fn calls_are_answered_as_docker_answers_them() {
    let ask = of(&plain());
    for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_chroot, 457, 465] {
        assert_eq!(ask(number, &[]), ALLOW, "{number}");
    }
    let refused = [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_kcmp,
        libc::SYS_open_by_handle_at,
        libc::SYS_pivot_root,
        libc::SYS_reboot,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_swapon,
        libc::SYS_iopl,
        libc::SYS_clock_settime,
        libc::SYS_mbind,
        libc::SYS_move_pages,
        libc::SYS_syslog,
        libc::SYS_fsopen,
        libc::SYS_pidfd_getfd,
        libc::SYS_quotactl,
    ];
    for number in refused {
        assert_eq!(ask(number, &[]), errno(libc::EPERM), "{number}");
    }
    assert_eq!(ask(libc::SYS_clone3, &[]), errno(libc::ENOSYS));
    for number in [467, 1000, 0x4000_0000, 0x4000_0000 + libc::SYS_read, 0xffff_ffff] {
        assert_eq!(ask(number, &[]), errno(libc::ENOSYS), "there is no call {number:#x}");
    }
}

#[test]
fn arguments_decide() {
    let ask = of(&plain());
    for (family, answer) in
        [(1, ALLOW), (2, ALLOW), (37, ALLOW), (38, errno(1)), (39, ALLOW), (40, errno(1)), (45, ALLOW)]
    {
        assert_eq!(ask(libc::SYS_socket, &[family]), answer, "family {family}");
        assert_eq!(ask(libc::SYS_socket, &[family | 7 << 32]), answer, "the kernel does not look above 32 bits");
    }
    for (value, answer) in [(0, ALLOW), (8, ALLOW), (0x2_0008, ALLOW), (0xffff_ffff, ALLOW), (0x4_0000, errno(1))] {
        assert_eq!(ask(libc::SYS_personality, &[value]), answer, "{value:#x}");
    }
    let thread = 0x3d_0f00; // as pthread_create has it
    assert_eq!(ask(libc::SYS_clone, &[thread]), ALLOW);
    for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(ask(libc::SYS_clone, &[thread | flag]), errno(libc::EPERM), "{flag:#x}");
    }
}

#[test]
fn capabilities_bring_their_calls() {
    let with = |number: u8| of(&profile(&Security::default(), &[Capability(number)]).unwrap().unwrap());
    let admin = with(21);
    for number in [libc::SYS_mount, libc::SYS_unshare, libc::SYS_clone3, libc::SYS_bpf, libc::SYS_setns] {
        assert_eq!(admin(number, &[u64::MAX]), ALLOW, "{number}");
    }
    assert_eq!(admin(libc::SYS_clone, &[0x1000_0000]), ALLOW);
    assert_eq!(admin(libc::SYS_chroot, &[]), errno(libc::EPERM));
    for (capability, number) in [
        (2, libc::SYS_open_by_handle_at),
        (16, libc::SYS_finit_module),
        (17, libc::SYS_iopl),
        (18, libc::SYS_chroot),
        (19, libc::SYS_kcmp),
        (20, libc::SYS_acct),
        (22, libc::SYS_reboot),
        (23, libc::SYS_mbind),
        (25, libc::SYS_clock_settime),
        (26, libc::SYS_vhangup),
        (34, libc::SYS_syslog),
        (38, libc::SYS_perf_event_open),
        (39, libc::SYS_bpf),
    ] {
        assert_eq!(with(capability)(number, &[]), ALLOW, "{number} with {capability}");
        assert_eq!(with(0)(number, &[]), errno(libc::EPERM), "{number} without {capability}");
    }
}

#[test]
fn programs_of_32_bits_have_the_same_list() {
    let program = plain().compile().unwrap();
    let ask = |number| answer(&program, I386, number, [0; 6]);
    // write, execve, socketcall, _newselect, chown32; mount, kexec_load, keyctl; clone3; none
    for (number, expected) in [(4, ALLOW), (11, ALLOW), (102, ALLOW), (142, ALLOW), (212, ALLOW)] {
        assert_eq!(ask(number), expected, "{number}");
    }
    for (number, expected) in
        [(21, libc::EPERM), (283, libc::EPERM), (288, libc::EPERM), (435, libc::ENOSYS), (600, libc::ENOSYS)]
    {
        assert_eq!(ask(number), errno(expected), "{number}");
    }
    assert_eq!(answer(&program, I386, 359, [38, 0, 0, 0, 0, 0]), errno(libc::EPERM), "socket(AF_ALG)");
    assert_eq!(answer(&program, 0xc000_00b7, 0, [0; 6]), KILL, "of another machine");
}

#[test]
fn the_short_list_is_shorter() {
    let security = Security { hardened: true, ..Security::default() };
    let profile = profile(&security, &[]).unwrap().unwrap();
    let ask = of(&profile);
    for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_futex, libc::SYS_seccomp, libc::SYS_setuid] {
        assert_eq!(ask(number, &[]), ALLOW, "{number}");
    }
    for number in [libc::SYS_ptrace, libc::SYS_io_setup, libc::SYS_vmsplice, libc::SYS_mount, libc::SYS_memfd_secret] {
        assert_eq!(ask(number, &[]), errno(libc::EPERM), "{number}");
    }
    for (family, protocol, expected) in
        [(1, 0, ALLOW), (10, 6, ALLOW), (16, 0, ALLOW), (16, 9, errno(1)), (17, 0, errno(1)), (38, 0, errno(1))]
    {
        assert_eq!(ask(libc::SYS_socket, &[family, 1, protocol]), expected, "family {family}");
    }
    for (request, expected) in [(0x5401, ALLOW), (0x5412, errno(1)), (0x541c, errno(1)), (0x5412 | 1 << 32, errno(1))] {
        assert_eq!(ask(libc::SYS_ioctl, &[0, request]), expected, "{request:#x}");
    }
    assert_eq!(answer(&profile.compile().unwrap(), I386, 4, [0; 6]), KILL);
    let usual = of(&plain());
    let allowed = |ask: &dyn Fn(c_long, &[u64]) -> u32| (0..470).filter(|number| ask(*number, &[]) == ALLOW).count();
    assert!(allowed(&ask) + 20 < allowed(&usual), "{} of {}", allowed(&ask), allowed(&usual));
}

#[test]
fn every_name_is_one_of_a_system_call() {
    let all: Vec<Capability> = (0..41).map(Capability).collect();
    for capabilities in [&all[..], &DEFAULT_CAPABILITIES[..]] {
        let names = profile(&Security::default(), capabilities).unwrap().unwrap().rules;
        for name in names.iter().flat_map(|rule| &rule.calls) {
            let known = name.parse::<syscalls::x86_64::Sysno>().is_ok() || name.parse::<syscalls::x86::Sysno>().is_ok();
            assert!(known, "{name}");
        }
    }
}

#[test]
fn runtimes_can_read_it() {
    let read: libcontainer::oci_spec::runtime::LinuxSeccomp = serde_json::from_value(plain().oci()).unwrap();
    assert_eq!(read.default_errno_ret(), Some(1));
    let rules = read.syscalls().as_ref().unwrap();
    let clone3 = rules.iter().find(|rule| rule.names() == &["clone3"]).unwrap();
    assert_eq!(clone3.errno_ret(), Some(38));
}

/// Numbers that are near each other in one half or both.
fn number() -> impl Strategy<Value = u64> {
    let half = prop_oneof![0..3_u32, Just(u32::MAX), any::<u32>()];
    (half.clone(), half).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low))
}

fn test() -> impl Strategy<Value = Test> {
    prop_oneof![
        Just(Test::Equal),
        Just(Test::NotEqual),
        Just(Test::Less),
        Just(Test::AtMost),
        Just(Test::Greater),
        Just(Test::AtLeast),
        number().prop_map(Test::Masked),
    ]
}

fn condition(argument: u8) -> impl Strategy<Value = Condition> {
    (any::<bool>(), test(), number()).prop_map(move |(short, test, value)| Condition { argument, short, test, value })
}

proptest! {
    /// Rules decide in their order, each by all of its conditions, whatever is asked.
    #[test]
    fn conditions_are_what_they_say(
        rules in prop::collection::vec((condition(0), condition(1), condition(5)), 1..4),
        asked in prop::array::uniform3(number()),
    ) {
        let rule = |(place, conditions): (u16, (Condition, Condition, Condition))| {
            let (a, b, c) = conditions;
            Rule { calls: vec!["read".to_owned()], action: Action::Errno(place), conditions: vec![a, b, c] }
        };
        let rules: Vec<Rule> = (100..).zip(rules).map(rule).collect();
        let [a, b, c] = asked;
        let expected = rules.iter().find(|rule| rule.conditions.iter().zip(asked).all(|(condition, asked)| holds(condition, asked)));
        let expected = expected.map_or(ALLOW, |rule| match rule.action { Action::Errno(n) => errno(n.into()), _ => 0 });
        let profile = Profile { default: Action::Allow, i386: true, rules };
        let program = profile.compile().unwrap();
        prop_assert_eq!(answer(&program, X86_64, 0, [a, b, 0, 0, 0, c]), expected);
        prop_assert_eq!(answer(&program, X86_64, 1, [a, b, 0, 0, 0, c]), ALLOW);
        prop_assert_eq!(answer(&program, I386, 3, [a, b, 0, 0, 0, c]), expected);
    }
}

#[test]
fn a_profile_of_dockers_format_is_read() {
    let text = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "archMap": [{ "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] }],
        "syscalls": [
            { "names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x" },
            { "name": "rseq", "action": "SCMP_ACT_ALLOW" },
            { "name": "close", "action": "SCMP_ACT_ERRNO", "errnoRet": 9 },
            { "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_CHROOT"] }, "excludes": {} },
            { "names": ["chdir"], "action": "SCMP_ACT_ALLOW", "excludes": { "caps": ["CAP_CHOWN"] } },
            { "names": ["dup"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["arm64"] } },
            { "names": ["dup2"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["amd64"], "minKernel": "4.8" } },
            { "names": ["dup3"], "action": "SCMP_ACT_ALLOW", "includes": { "minKernel": "99.0" } },
            { "names": ["lseek"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 2, "value": 2, "op": "SCMP_CMP_EQ" }, { "index": 2, "value": 4, "op": "SCMP_CMP_EQ" }] },
            { "names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS",
              "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }, { "index": 1, "value": 9, "op": "SCMP_CMP_EQ" }] }
        ]
    }"#;
    let profile = file::read(text, &DEFAULT_CAPABILITIES).unwrap();
    let ask = of(&profile);
    let refused = errno(13);
    assert_eq!(
        (ask(libc::SYS_read, &[]), ask(libc::SYS_close, &[]), ask(libc::SYS_mount, &[])),
        (ALLOW, errno(9), refused)
    );
    assert_eq!((ask(libc::SYS_chroot, &[]), ask(libc::SYS_chdir, &[])), (ALLOW, refused));
    let dups = [libc::SYS_dup, libc::SYS_dup2, libc::SYS_dup3].map(|number| ask(number, &[]));
    assert_eq!(dups, [refused, ALLOW, refused]);
    let seek = [0, 2, 4].map(|whence| ask(libc::SYS_lseek, &[0, 0, whence]));
    assert_eq!(seek, [refused, ALLOW, ALLOW], "several conditions on one argument are alternatives");
    assert_eq!((ask(libc::SYS_kill, &[1, 9]), ask(libc::SYS_kill, &[1, 15])), (KILL, refused));
    assert_eq!(ask(libc::SYS_clone3, &[]), errno(libc::ENOSYS), "newer than all that it names");
    assert_eq!(answer(&profile.compile().unwrap(), I386, 3, [0; 6]), ALLOW);
}

#[test]
fn what_is_no_profile_is_refused() {
    let refused = |text: &str| file::read(text, &[]).unwrap_err();
    let rule = |rule: &str| refused(&format!(r#"{{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}] }}"#));
    assert!(matches!(refused("no"), ProfileError::Format(_)) && matches!(refused("{}"), ProfileError::Format(_)));
    assert_eq!(refused(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#), ProfileError::Action("SCMP_ACT_NOTIFY".into()));
    let foreign = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_AARCH64"]}"#;
    assert_eq!(refused(foreign), ProfileError::Foreign);
    assert_eq!(rule(r#"{ "action": "SCMP_ACT_ALLOW" }"#), ProfileError::Names);
    let argument = r#"{ "name": "read", "action": "SCMP_ACT_LOG", "args": [{ "index": 6, "op": "SCMP_CMP_EQ" }] }"#;
    assert_eq!(rule(argument), ProfileError::Argument(6));
    assert_eq!(
        rule(&argument.replace("index\": 6", "index\": 1").replace("EQ", "X")),
        ProfileError::Operator("SCMP_CMP_X".into())
    );
    assert_eq!(rule(r#"{ "name": "a", "action": "SCMP_ACT_ERRNO", "errnoRet": 5000 }"#), ProfileError::Errno(5000));
    let one =
        r#"{ "name": "read", "action": "SCMP_ACT_LOG", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] },"#;
    let many = format!("{}{}", one.repeat(2000), r#"{ "name": "close", "action": "SCMP_ACT_LOG" }"#);
    assert!(matches!(rule(&many), ProfileError::TooLong(_)));
    assert_eq!(refused(&" ".repeat(file::LONGEST + 1)), ProfileError::Size);
}

#[test]
fn calls_with_one_answer_share_it() {
    let program = plain().compile().unwrap();
    assert!(program.len() < 800, "{} instructions, of which the kernel makes native ones at each start", program.len());
}
