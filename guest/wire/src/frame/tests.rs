use proptest::prelude::*;

use super::*;
use crate::{
    Answer, Capability, Counters, Ending, FailureKind, GoOn, Mount, MountSource, Names, Network, ProcessEntry,
    ProcessLimit, ProcessSpec, Question, Root, Start, Sysctl, Task, TerminalSize, Tmpfs, ToGuest, ToHost, Transfer,
    Wanted,
};

fn decode<M: Message>(bytes: &[u8]) -> Result<Option<M>, WireError> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    decoder.next_message()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn mount(target: &str, read_only: bool, source: MountSource) -> Mount {
    Mount { target: target.into(), read_only, source }
}

fn start() -> ToGuest {
    ToGuest::Start(Box::new(Start {
        process: ProcessSpec {
            args: vec!["/bin/a".into(), "b".into()],
            env: vec!["K=v".into()],
            cwd: "/".into(),
            user: "1:2".into(),
            terminal: Some(TerminalSize { rows: 24, columns: 80 }),
            stdin: true,
            capabilities: vec![Capability(0), Capability(31)],
            no_new_privileges: false,
            limits: vec![ProcessLimit { resource: 7, soft: Some(1), hard: None }],
        },
        init: true,
        hostname: "h".into(),
        root: Root { disk: "vda".into(), read_only: true },
        hosts: "x".into(),
        resolv_conf: String::new(),
        pids: Some(300),
        seed: vec![7; 3],
        realtime_ns: 1 << 40,
        tmpfs: vec![Tmpfs { path: "/t".into(), options: "o".into(), exec: true, ..Tmpfs::default() }],
        sysctls: vec![Sysctl { name: "n".into(), value: "v".into() }],
        networks: vec![Network {
            interface: "e".into(),
            addresses: vec![([10, 0, 2, 15].into(), 24)],
            gateways: vec!["fe80::2".parse().unwrap()],
        }],
        mounts: vec![
            mount("/v", true, MountSource::Volume { disk: "vdb".into(), copy: false }),
            mount("/s", false, MountSource::Share { tag: "t".into(), file: Some("f".into()) }),
        ],
    }))
}

const CURRENT: u8 = VERSION.to_le_bytes()[0];

/// Bytes of version 6, frozen. A change here needs a new `VERSION`.
#[test]
fn version_6_is_frozen() {
    let to_guest = [
        (
            start(),
            concat!(
                "7b00000006000000",
                "00",
                "02062f62696e2f610162",
                "01034b3d76",
                "012f",
                "03313a32",
                "011850",
                "01",
                "02001f",
                "00",
                "0107010100",
                "01",
                "0168",
                "0376646101",
                "0178",
                "00",
                "01ac02",
                "03070707",
                "808080808020",
                "01022f74016f01000000",
                "01016e0176",
                "010165",
                "01000a00020f18",
                "0101fe800000000000000000000000000002",
                "02022f7601000376646200",
                "022f7300010174010166"
            ),
        ),
        (ToGuest::Signal(15), "0200000006000000010f"),
        (ToGuest::Resize(TerminalSize { rows: 24, columns: 300 }), "04000000060000000218ac02"),
        (
            ToGuest::Open {
                session: 300,
                task: Box::new(Task::Run { process: ProcessSpec::default(), hostname: "h".into() }),
            },
            "0f0000000600000003ac02000000000000000000000168",
        ),
        (
            ToGuest::Open { session: 1, task: Box::new(Task::Copy(Transfer::Out { path: "/x".into(), follow: true })) },
            "080000000600000003010100022f7801",
        ),
        (
            ToGuest::Open {
                session: 1,
                task: Box::new(Task::Copy(Transfer::In {
                    path: "/".into(),
                    wanted: Wanted::Named(vec![7]),
                    keep_owner: true,
                })),
            },
            "0a0000000600000003010101012f00010701",
        ),
        (ToGuest::SessionSignal { session: 1, signal: 9 }, "0300000006000000040109"),
        (ToGuest::SessionResize { session: 1, size: TerminalSize { rows: 2, columns: 3 } }, "040000000600000005010203"),
    ];
    for (message, golden) in to_guest {
        assert_eq!(hex(&encode(&message).unwrap()), golden, "{message:?}");
    }
}

/// The same of questions, and of what a saved machine is told.
#[test]
fn version_6_of_questions_is_frozen() {
    let to_guest = [
        (ToGuest::Ask { number: 7, question: Question::Processes }, "0300000006000000060700"),
        (ToGuest::Ask { number: 7, question: Question::Counters }, "0300000006000000060701"),
        (
            ToGuest::Ask { number: 7, question: Question::Limit { memory_bytes: Some(1), pids: None } },
            "0600000006000000060702010100",
        ),
        (ToGuest::Ask { number: 7, question: Question::Hold }, "0300000006000000060703"),
        (ToGuest::Ask { number: 7, question: Question::Release }, "0300000006000000060704"),
        (
            ToGuest::GoOn(Box::new(GoOn {
                names: Names { hostname: "h".into(), hosts: "x".into(), resolv_conf: "y".into() },
                seed: vec![7; 3],
                realtime_ns: 300,
            })),
            "0d000000060000000701680178017903070707ac02",
        ),
    ];
    for (message, golden) in to_guest {
        assert_eq!(hex(&encode(&message).unwrap()), golden, "{message:?}");
    }
}

#[test]
fn version_3_of_the_agents_words_is_frozen() {
    let to_host = [
        (ToHost::Hello { agent: "0.1.0".into() }, "07000000060000000005302e312e30"),
        (ToHost::Started, "010000000600000001"),
        (ToHost::StartFailed { kind: FailureKind::NotFound, text: "x".into() }, "040000000600000002000178"),
        (ToHost::StartFailed { kind: FailureKind::CannotExecute, text: "x".into() }, "040000000600000002010178"),
        (ToHost::StartFailed { kind: FailureKind::Other, text: "x".into() }, "040000000600000002020178"),
        (ToHost::Exited { ending: Ending::Code(42), oom: false }, "040000000600000003002a00"),
        (ToHost::Exited { ending: Ending::Signal(9), oom: true }, "040000000600000003010901"),
        (ToHost::Log { text: "ab".into() }, "040000000600000004026162"),
        (ToHost::Opened { session: 5 }, "02000000060000000505"),
        (ToHost::Refused { session: 5, kind: FailureKind::NotFound, text: "x".into() }, "05000000060000000605000178"),
        (ToHost::Closed { session: 5, ending: Ending::Code(3) }, "040000000600000007050003"),
        (ToHost::Answer { number: 7, answer: Ok(Answer::Done) }, "040000000600000008070002"),
        (ToHost::Answer { number: 7, answer: Err("x".into()) }, "05000000060000000807010178"),
        (
            ToHost::Answer {
                number: 7,
                answer: Ok(Answer::Processes(vec![ProcessEntry { pid: 1, ..ProcessEntry::default() }])),
            },
            "0c00000006000000080700000101000000000000",
        ),
        (
            ToHost::Answer {
                number: 7,
                answer: Ok(Answer::Counters(Counters { pids: Some(2), ..Counters::default() })),
            },
            "0d0000000600000008070001000000010200000000",
        ),
    ];
    for (message, golden) in to_host {
        assert_eq!(hex(&encode(&message).unwrap()), golden, "{message:?}");
    }
}

#[test]
fn the_version_is_known_before_the_message() {
    assert_eq!(decode::<ToHost>(&[0xff, 0xff, 0xff, 0xff, 9, 0, 9, 9]), Err(WireError::Version { theirs: 9 }));
    assert_eq!(decode::<ToHost>(&[0xff; 7]), Ok(None), "a header is not there before its last byte");
}

#[test]
fn what_is_too_long_is_refused_at_the_header() {
    let header = |length: u32| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[CURRENT, 0, 0, 0]);
        bytes
    };
    assert_eq!(decode::<ToHost>(&header(262_144)), Ok(None));
    assert_eq!(decode::<ToHost>(&header(262_145)), Err(WireError::TooLong { length: 262_145, limit: 262_144 }));
    assert_eq!(decode::<ToGuest>(&header(1 << 20)), Ok(None));
    assert!(matches!(decode::<ToGuest>(&header(u32::MAX)), Err(WireError::TooLong { .. })));
    let long = ToHost::Log { text: "a".repeat(270_000) };
    assert!(matches!(encode(&long), Err(WireError::TooLong { limit: 262_144, .. })));
}

#[test]
fn a_frame_holds_exactly_one_message() {
    assert_eq!(decode::<ToHost>(&[2, 0, 0, 0, CURRENT, 0, 0, 0, 1, 1]), Err(WireError::Trailing { extra: 1 }));
    assert!(matches!(decode::<ToHost>(&[0, 0, 0, 0, CURRENT, 0, 0, 0]), Err(WireError::Content { length: 0, .. })));
    assert!(matches!(decode::<ToHost>(&[1, 0, 0, 0, CURRENT, 0, 0, 0, 99]), Err(WireError::Content { length: 1, .. })));
    assert_eq!(decode::<ToHost>(&[1, 0, 0, 0, CURRENT, 0, 0, 1, 1]), Err(WireError::Reserved));
    let claims_a_huge_text = [6, 0, 0, 0, CURRENT, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff, 0x0f];
    assert!(matches!(decode::<ToHost>(&claims_a_huge_text), Err(WireError::Content { .. })));
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same_messages(cuts in proptest::collection::vec(1usize..40, 1..60)) {
        let messages = vec![start(), ToGuest::Signal(2), ToGuest::Resize(TerminalSize { rows: 1, columns: 2 }), start()];
        let bytes: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        let mut decoder = Decoder::<ToGuest>::default();
        let (mut at, mut cut, mut got) = (0, cuts.iter().cycle(), Vec::new());
        while at < bytes.len() {
            let end = (at + cut.next().unwrap()).min(bytes.len());
            decoder.push(&bytes[at..end]);
            while let Some(message) = decoder.next_message().unwrap() {
                got.push(message);
            }
            at = end;
        }
        prop_assert_eq!(got, messages);
        prop_assert!(decoder.is_empty());
    }

    #[test]
    fn hostile_bytes_give_messages_or_errors(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), tidy in any::<bool>()) {
        if tidy && bytes.len() > HEADER {
            let length = u32::try_from(bytes.len() - HEADER).unwrap().to_le_bytes();
            bytes[..4].copy_from_slice(&length);
            bytes[4..8].copy_from_slice(&[CURRENT, 0, 0, 0]);
        }
        if let Ok(Some(message)) = decode::<ToHost>(&bytes) {
            prop_assert!(encode(&message).is_ok());
        }
        let _ = decode::<ToGuest>(&bytes);
    }
}
