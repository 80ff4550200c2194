//! A target of fuzzing: the words of a command line, and the values in them.

use std::cell::RefCell;

use clap::{CommandFactory, FromArgMatches, Parser};

use super::args::RunArgs;
use super::filter::{Filters, OF_PRUNE, OF_PS};
use super::meaning::{self, ImageDefaults, Surroundings};
use super::time;
use crate::compare::Arm;
use crate::fuzz::Input;
use crate::spec::{
    Cpus, Digest, HostAddress, MemorySize, MemorySwap, NetRate, NetworkChoice, Publish, Restart, SandboxId,
};

#[derive(Debug, Parser)]
#[command(disable_help_flag = true)]
struct Run {
    #[command(flatten)]
    args: RunArgs,
}

thread_local! {
    static COMMAND: RefCell<clap::Command> = RefCell::new(Run::command());
}

/// One value of every kind, or a whole command line, a word to a line.
pub(crate) fn words(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let text = String::from_utf8_lossy(input.rest()).into_owned();
    if choice & 1 == 0 {
        values(&text);
        meaning::fuzz(&text);
    } else {
        line(&text);
    }
}

fn values(text: &str) {
    if let Ok(size) = text.parse::<MemorySize>() {
        assert!(size.mib_ceil() <= (size.0 >> 20) + 1);
        let number = text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<f64>();
        assert!(number.is_ok_and(|n| n <= 2_f64.powi(64)), "{text} is {size:?}");
    }
    let _ = text.parse::<MemorySwap>();
    let _ = text.parse::<Cpus>().map(Cpus::ceil);
    let _ = text.parse::<NetRate>().map(|rate| (rate.bits(), rate.bytes(), rate.burst(), rate.receive_buffer()));
    let _ = text.parse::<NetworkChoice>();
    let _ = text.parse::<Restart>();
    let _ = text.parse::<Arm>();
    if let Ok(id) = text.parse::<SandboxId>() {
        assert_eq!(id.as_str(), text);
    }
    if let Ok(ports) = Publish::parse(text) {
        assert!(!ports.is_empty() && ports.iter().all(|port| port.guest > 0));
        assert!(ports.windows(2).all(|two| two[0].guest + 1 == two[1].guest));
    }
    if let Ok((name, _)) = HostAddress::parse(text) {
        assert!(text.starts_with(&name) && !name.contains(char::is_whitespace));
    }
    if let Some(ns) = time::duration(text) {
        let _ = time::span(ns);
    }
    if let Ok(ns) = time::moment(text, 1_700_000_000_000_000_000) {
        let _ = (time::rfc3339(ns), time::plain(ns));
    }
    for kinds in [OF_PS, OF_PRUNE] {
        let _ = Filters::parse(&[text.to_owned()], kinds);
    }
}

fn line(text: &str) {
    let words = ["run"].into_iter().chain(text.lines());
    let matches = COMMAND.with_borrow_mut(|command| command.try_get_matches_from_mut(words));
    let Ok(run) = matches.and_then(|matches| Run::from_arg_matches(&matches)) else { return };
    let image = ImageDefaults { cmd: vec!["sh".to_owned()], ..ImageDefaults::default() };
    let around = Surroundings {
        id: SandboxId::from_bytes([1; 6]),
        variable: &|name| (name == "A").then(|| "a".to_owned()),
        env_files: &[("f".to_owned(), text.to_owned())],
        profile: Some(text),
        terminal: None,
    };
    if let Ok(spec) = meaning::sandbox(&run.args, &image, &Digest::from_sha256([7; 32]), &around) {
        assert!(spec.process.cwd.starts_with('/') && !spec.process.args.is_empty());
        assert!(spec.process.env.iter().all(|v| v.contains('=') && !v.starts_with('=')), "{:?}", spec.process.env);
        let again = serde_json::to_vec(&spec).unwrap();
        assert_eq!(serde_json::from_slice::<crate::spec::SandboxSpec>(&again).unwrap(), spec);
    }
}
