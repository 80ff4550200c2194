use duplex_wire::{Ending, FailureKind, ProcessSpec, Root};
use proptest::prelude::*;

use super::*;

fn start() -> Start {
    Start {
        process: ProcessSpec::default(),
        init: false,
        hostname: "h".into(),
        root: Root { disk: "vda".into(), read_only: false },
        hosts: String::new(),
        resolv_conf: String::new(),
        pids: None,
        seed: vec![1; 32],
        realtime_ns: 1,
        tmpfs: Vec::new(),
        sysctls: Vec::new(),
        networks: Vec::new(),
        mounts: Vec::new(),
    }
}

fn pair() -> (Client, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Client::new(ours).unwrap(), theirs)
}

fn tell(stream: &mut UnixStream, message: &ToHost) {
    stream.write_all(&encode(message).unwrap()).unwrap();
}

fn hello() -> ToHost {
    ToHost::Hello { agent: "t".into() }
}

fn told(stream: &mut UnixStream) -> ToGuest {
    let mut decoder = Decoder::default();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        decoder.push(&byte);
        if let Some(message) = decoder.next_message().unwrap() {
            return message;
        }
    }
}

#[test]
fn a_whole_conversation() {
    let (mut client, mut guest) = pair();
    assert_eq!(client.hear().unwrap(), Heard::Nothing);
    client.voice().say(ToGuest::Signal(15)).unwrap();
    tell(&mut guest, &hello());
    assert_eq!(client.hear().unwrap(), Heard::Message(hello()));
    client.start(start()).unwrap();
    client.voice().say(ToGuest::Signal(2)).unwrap();
    assert_eq!(told(&mut guest), ToGuest::Start(Box::new(start())));
    assert_eq!(told(&mut guest), ToGuest::Signal(15), "what was said before the start comes right after it");
    assert_eq!(told(&mut guest), ToGuest::Signal(2));
    let exited = ToHost::Exited { ending: Ending::Code(3), oom: false };
    tell(&mut guest, &ToHost::Started);
    tell(&mut guest, &exited);
    assert_eq!(client.hear_until(Instant::now() + SEND_PATIENCE).unwrap(), Heard::Message(ToHost::Started));
    assert_eq!(client.hear().unwrap(), Heard::Message(exited));
    client.finish();
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    drop(guest);
    assert_eq!(client.hear().unwrap(), Heard::End);
}

#[test]
fn one_that_left_is_told_by_the_end_of_its_words() {
    let (mut client, mut guest) = pair();
    tell(&mut guest, &hello());
    drop(guest);
    assert_eq!(client.hear().unwrap(), Heard::Message(hello()));
    client.start(start()).unwrap();
    assert_eq!(client.hear().unwrap(), Heard::End);
}

#[test]
fn messages_out_of_turn_are_errors() {
    let exited = ToHost::Exited { ending: Ending::Code(0), oom: false };
    let failed = ToHost::StartFailed { kind: FailureKind::Other, text: String::new() };
    let log = ToHost::Log { text: String::new() };
    let wrong = [
        vec![ToHost::Started],
        vec![exited.clone()],
        vec![failed.clone()],
        vec![log],
        vec![hello(), hello()],
        vec![hello(), ToHost::Started],
        vec![hello(), exited],
        vec![hello(), failed.clone(), failed],
    ];
    for messages in wrong {
        let (mut client, mut guest) = pair();
        messages.iter().for_each(|m| tell(&mut guest, m));
        let heard: Vec<_> = messages.iter().map(|_| client.hear()).collect();
        assert!(matches!(heard.last(), Some(Err(AgentError::OutOfTurn { .. }))), "{messages:?}: {heard:?}");
    }
}

#[test]
fn a_silent_guest_costs_no_more_than_the_deadline() {
    let (mut client, _guest) = pair();
    let began = Instant::now();
    assert_eq!(client.hear_until(began + Duration::from_millis(30)).unwrap(), Heard::Nothing);
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert!(client.start(start()).is_err(), "nothing starts before hello");
}

#[test]
fn logs_have_an_end() {
    let (mut client, mut guest) = pair();
    tell(&mut guest, &hello());
    assert!(client.hear().is_ok());
    let mut last = Ok(Heard::Nothing);
    for _ in 0..=MOST_LOGS {
        tell(&mut guest, &ToHost::Log { text: "x".into() });
        last = client.hear();
    }
    assert!(matches!(last, Err(AgentError::TooManyLogs)));
}

proptest! {
    #[test]
    fn any_bytes_give_messages_errors_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..600), greeted in any::<bool>()) {
        let (mut client, mut guest) = pair();
        if greeted {
            tell(&mut guest, &hello());
        }
        guest.write_all(&bytes).unwrap();
        drop(guest);
        for _ in 0..bytes.len() + 3 {
            match client.hear() {
                Ok(Heard::Message(_)) => {}
                Ok(Heard::Nothing) => prop_assert!(false, "the end is there to be heard"),
                Ok(Heard::End) | Err(_) => break,
            }
        }
    }
}
