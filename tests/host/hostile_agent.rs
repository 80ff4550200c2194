//! A guest that answers its keeper with garbage, with nothing, with too much, or too late: the program of `guest/hostile` in the agent's place.
//! `duplex run` must end with 125 and a reason, and leave nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use duplex_hostile::agent::{LONGEST, MARK};
use duplex_wire::{Answer, Ending, FailureKind, ToHost, encode, guest_exit, port};

use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict};

const PROGRAM: &str = "target/hostile/duplex-hostile";
const NEEDS: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone, Need::File("target/hostile/duplex-hostile")];

pub(crate) const CASES: &[Case] = &[
    Case { name: "hostile_agent::one_that_keeps_to_the_protocol_is_heard", needs: NEEDS, run: good },
    Case { name: "hostile_agent::garbage_is_told_and_ends_the_machine", needs: NEEDS, run: garbage },
    Case { name: "hostile_agent::words_out_of_turn_are_told_and_end_the_machine", needs: NEEDS, run: out_of_turn },
    Case { name: "hostile_agent::too_much_is_told_and_ends_the_machine", needs: NEEDS, run: too_much },
    Case { name: "hostile_agent::an_early_end_is_told", needs: NEEDS, run: early_end },
    Case { name: "hostile_agent::silence_is_told_in_time", needs: NEEDS, run: silence },
    Case { name: "hostile_agent::a_machine_that_does_not_end_is_ended", needs: NEEDS, run: stays },
];

/// What the guest does (`guest/hostile/src/agent.rs`).
#[derive(Clone, Default)]
struct Script(Vec<u8>);

impl Script {
    /// Connects as the agent does.
    fn connected() -> Self {
        Self::default().step(b'C', &port::CONTROL.to_le_bytes())
    }

    /// And says hello.
    fn greeted() -> Self {
        Self::connected().say(&ToHost::Hello { agent: "hostile".to_owned() })
    }

    /// And has been told what to run.
    fn asked() -> Self {
        Self::greeted().step(b'W', &[])
    }

    /// And says that it runs.
    fn started() -> Self {
        Self::asked().say(&ToHost::Started)
    }

    fn step(mut self, kind: u8, bytes: &[u8]) -> Self {
        self.0.push(kind);
        self.0.extend(bytes);
        self
    }

    fn send(self, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len()).unwrap().to_le_bytes();
        self.step(b'S', &[&length, bytes].concat())
    }

    /// So often; 0 is without end.
    fn flood(self, count: u32, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len()).unwrap().to_le_bytes();
        self.step(b'F', &[&count.to_le_bytes(), &length[..], bytes].concat())
    }

    fn say(self, message: &ToHost) -> Self {
        self.send(&encode(message).unwrap())
    }

    fn exit(self, byte: u8) -> Self {
        self.step(b'P', &[byte])
    }
}

/// A copy of the program with this script.
fn program(place: &Place, name: &str, script: &Script) -> PathBuf {
    let mut bytes = fs::read(PROGRAM).unwrap();
    let places: Vec<usize> =
        bytes.windows(MARK.len()).enumerate().filter(|(_, w)| *w == MARK).map(|(n, _)| n).collect();
    let [at] = places[..] else { panic!("{} places for a script", places.len()) };
    assert!(script.0.len() < LONGEST);
    bytes[at + MARK.len()..][..script.0.len()].copy_from_slice(&script.0);
    let path = place.folder().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn command(place: &Place, kernel: &Path) -> Command {
    let flags = ["run", "--rm", "--net", "none", "--cold", "--memory", "64m", "--kernel"];
    place.duplex(&[&flags[..], &[kernel.to_str().unwrap(), "workloads", "hello"]].concat())
}

fn run(place: &Place, name: &str, script: &Script) -> Output {
    let kernel = program(place, name, script);
    let output = command(place, &kernel).output().unwrap();
    fs::remove_file(kernel).unwrap();
    output
}

fn place() -> Place {
    let mut place = Place::new();
    place.count();
    place
}

/// Each of these ends with 125 and these words, says nothing as the command, and leaves nothing.
fn must_fail(cases: &[(&str, Script, &str)]) -> Verdict {
    let place = place();
    for (name, script, expected) in cases {
        let output = run(&place, name, script);
        must_have_failed(name, &output, expected);
        place.must_be_clean(name);
    }
    Ok(())
}

fn must_have_failed(name: &str, output: &Output, expected: &str) {
    assert_eq!(output.status.code(), Some(125), "{name}: {output:?}");
    assert!(words(output).contains(expected), "{name}: '{expected}' is not in: {}", words(output));
    assert!(output.stdout.is_empty(), "{name}: {output:?}");
}

const EXITED: ToHost = ToHost::Exited { ending: Ending::Code(7), oom: false };

/// The way that all the others leave is one that leads somewhere.
fn good() -> Verdict {
    let place = place();
    let script = Script::started().say(&EXITED).step(b'Z', &[]).exit(guest_exit::SHUTDOWN);
    let output = run(&place, "good", &script);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    place.must_be_clean("a good agent");
    Ok(())
}

fn log(text: &str) -> ToHost {
    ToHost::Log { text: text.to_owned() }
}

/// The hello of a good agent, with another header.
fn hello_with(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = encode(&ToHost::Hello { agent: "hostile".to_owned() }).unwrap();
    change(&mut frame);
    frame
}

fn garbage() -> Verdict {
    let not = "does not speak the agent protocol";
    let noise: Vec<u8> = (0..4000_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect();
    let cases = [
        ("noise", Script::connected().send(&noise), not),
        ("zeroes", Script::connected().send(&[0; 4000]), not),
        ("ones", Script::connected().send(&[0xff; 4000]), not),
        ("text", Script::connected().send(b"GET / HTTP/1.1\r\nHost: duplex\r\n\r\n"), not),
        ("another version", Script::connected().send(&hello_with(|f| f[4] ^= 1)), "version"),
        ("reserved bytes", Script::connected().send(&hello_with(|f| f[6] = 1)), "reserved"),
        ("no length", Script::connected().send(&hello_with(|f| f[..4].fill(0))), not),
        ("all lengths", Script::connected().send(&hello_with(|f| f[..4].fill(0xff))), "longer than"),
        ("a byte too many", Script::connected().send(&hello_with(|f| f[0] -= 1)), not),
        ("no such message", Script::connected().send(&hello_with(|f| f[8] = 0x7f)), not),
        ("noise behind hello", Script::greeted().send(&noise), not),
        ("noise behind the start", Script::started().send(&noise), not),
    ];
    must_fail(&cases)
}

fn out_of_turn() -> Verdict {
    let ending = Ending::Code(0);
    let answer = ToHost::Answer { number: 1, answer: Err::<Answer, _>("no".to_owned()) };
    let refused = ToHost::Refused { session: 9, kind: FailureKind::Other, text: "no".to_owned() };
    let cases = [
        ("started at once", Script::connected().say(&ToHost::Started), "'started'"),
        ("exited at once", Script::connected().say(&EXITED), "'exited'"),
        ("logs at once", Script::connected().say(&log("a")), "'log'"),
        ("hello twice", Script::greeted().say(&ToHost::Hello { agent: String::new() }), "'hello'"),
        ("exited without a start", Script::asked().say(&EXITED), "'exited'"),
        ("started twice", Script::started().say(&ToHost::Started), "'started'"),
        ("a session at once", Script::greeted().say(&ToHost::Opened { session: 0 }), "session"),
        ("a session nobody opened", Script::started().say(&ToHost::Opened { session: 9 }), "unasked"),
        ("a refusal nobody wants", Script::started().say(&refused), "unasked"),
        ("an end of no session", Script::started().say(&ToHost::Closed { session: 9, ending }), "unasked"),
        ("an answer to nothing", Script::started().say(&answer), "unasked"),
    ];
    must_fail(&cases)
}

fn too_much() -> Verdict {
    let line = encode(&log("the same again")).unwrap();
    // The head of the longest message that may be, and then more bytes than any may have.
    let long = hello_with(|f| f[..4].copy_from_slice(&(256_u32 << 10).to_le_bytes()));
    let cases = [
        ("logs without end", Script::greeted().flood(0, &line), "logged more than"),
        ("logs without end when started", Script::started().flood(0, &line), "logged more than"),
        ("a message without end", Script::connected().send(&long[..9]).flood(0, &[0x80; 4000]), "does not speak"),
    ];
    must_fail(&cases)
}

fn early_end() -> Verdict {
    let shutdown = guest_exit::SHUTDOWN;
    let end = "before the command had ended";
    let cases = [
        ("shut down at once", Script::default().exit(shutdown), end),
        ("shut down behind hello", Script::greeted().exit(shutdown), end),
        ("shut down when started", Script::started().exit(shutdown), end),
        ("gave up", Script::connected().exit(0x33), "gave up (code 0x33)"),
        ("half a header", Script::connected().send(&[1, 0, 0]).exit(shutdown), end),
        ("half a message", Script::connected().send(&hello_with(|_| ())[..10]).exit(shutdown), end),
        ("closed and shut down", Script::greeted().step(b'R', &[]).exit(shutdown), end),
        ("says control characters", say_failure("\u{1b}[2Jnone of your screen\r\n\u{7}"), "none of your screen"),
    ];
    must_fail(&cases)
}

fn say_failure(text: &str) -> Script {
    Script::asked().say(&ToHost::StartFailed { kind: FailureKind::Other, text: text.to_owned() })
}

/// All at once: each waits for as long as a boot may take.
fn silence() -> Verdict {
    let cases = [
        ("nothing", Script::default().step(b'C', &9_u32.to_le_bytes())),
        ("no hello", Script::connected()),
        ("half a hello", Script::connected().send(&hello_with(|_| ())[..12])),
        ("no start", Script::asked()),
        ("closed", Script::greeted().step(b'E', &[])),
    ];
    let place = place();
    let files = cases.map(|(name, script)| (name, program(&place, name, &script)));
    std::thread::scope(|scope| {
        let place = &place;
        let waiting: Vec<_> = files
            .iter()
            .map(|(name, kernel)| (name, scope.spawn(move || command(place, kernel).output().unwrap())))
            .collect();
        for (name, thread) in waiting {
            must_have_failed(name, &thread.join().unwrap(), "has not spoken");
        }
    });
    files.iter().for_each(|(_, file)| fs::remove_file(file).unwrap());
    place.must_be_clean("silence");
    Ok(())
}

/// It has said how the command ended, and then its machine goes on, whatever the host wishes.
fn stays() -> Verdict {
    let place = place();
    for (name, script) in
        [("halts", Script::started().say(&EXITED)), ("talks on", Script::started().say(&EXITED).flood(0, &[0; 4000]))]
    {
        let output = run(&place, name, &script);
        // What it said before counts, unless it broke the rules behind it.
        assert!(matches!(output.status.code(), Some(7 | 125)), "{name}: {output:?}");
        place.must_be_clean(name);
    }
    Ok(())
}
