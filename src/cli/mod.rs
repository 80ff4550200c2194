//! The command line: the only module that prints, exits and reads the environment.
//!
//! ```text
//! args (typed) -> meaning (specs) -> verbs (live) -> output, fail
//!                                      |-> engine: which backend, and whether here or in the lab
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod attached;
mod copying;
mod engine;
mod environment;
mod fail;
mod filter;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod keeping;
mod meaning;
mod output;
mod place;
mod ports;
mod signals;
mod streams;
mod swap;
mod template;
mod terminal;
mod time;
mod verbs;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use self::args::{DuplexArgs, EverywhereArgs, Verb};
use self::environment::Environment;
use self::fail::{Code, Failure};
use crate::lab;
use crate::spec::Installation;
use crate::sys::clock::monotonic_ns;

/// What every verb works with.
#[derive(Clone, Debug)]
struct Context {
    /// When `main` began.
    began: u64,
    /// The user.
    uid: u32,
    environment: Environment,
    everywhere: EverywhereArgs,
    installation: Installation,
}

impl Context {
    /// The user forbids the lab.
    fn no_lab(&self) -> bool {
        self.everywhere.no_lab || self.environment.no_lab
    }
}

/// Parses the command line, runs the verb and returns its exit code.
pub fn main() -> ExitCode {
    let began = monotonic_ns();
    let words: Vec<OsString> = std::env::args_os().collect();
    // The lab's keeper and what it boots are this program too.
    if let Some(code) = words.get(1..).and_then(lab::hidden_verb) {
        return ExitCode::from(code);
    }
    // Hidden: the process of one container, with nothing of the command line's own in it.
    if words.get(1).is_some_and(|word| word == "container-init") {
        return crate::container::child::main(words.into_iter().skip(2));
    }
    // Hidden: the owner of one sandbox that goes on in the background.
    if words.get(1).is_some_and(|word| word == keeping::VERB) {
        return ExitCode::from(keeping::main());
    }
    // Hidden: what puts a further process into a container.
    if words.get(1).is_some_and(|word| word == "container-enter") {
        return crate::container::enter::main(words.into_iter().skip(2));
    }
    match run(&words, began) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::say(failure.render().trim_end());
            ExitCode::from(failure.code as u8)
        }
    }
}

fn run(words: &[OsString], began: u64) -> Result<u8, Failure> {
    let args = match DuplexArgs::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let environment = Environment::read();
    start_log(&environment);
    let program = environment::program().map_err(fail::failed)?;
    let uid = rustix::process::geteuid().as_raw();
    let installation = environment.installation(&program, args.everywhere.root.as_deref(), uid);
    let context = Context { began, uid, environment, everywhere: args.everywhere, installation };
    match &args.verb {
        Verb::Run(args) => verbs::run::run(&context, args),
        Verb::Create(args) => verbs::run::create(&context, args),
        Verb::Start(args) => verbs::start::start(&context, args),
        Verb::Port(args) => verbs::port::port(&context, args),
        Verb::Ps(args) => verbs::ps::ps(&context, args),
        Verb::Inspect(args) => verbs::inspect::inspect(&context, args),
        Verb::Logs(args) => verbs::logs::logs(&context, args),
        Verb::Attach(args) => verbs::attach::attach(&context, args),
        Verb::Exec(args) => verbs::exec::exec(&context, args),
        Verb::Cp(args) => verbs::cp::cp(&context, args),
        Verb::Top(args) => verbs::top::top(&context, args),
        Verb::Stats(args) => verbs::stats::stats(&context, args),
        Verb::Pause(args) => verbs::stop::pause(&context, args),
        Verb::Unpause(args) => verbs::stop::unpause(&context, args),
        Verb::Stop(args) => verbs::stop::stop(&context, args),
        Verb::Restart(args) => verbs::stop::restart(&context, args),
        Verb::Kill(args) => verbs::stop::kill(&context, args),
        Verb::Wait(args) => verbs::stop::wait(&context, args),
        Verb::Rm(args) => verbs::rm::rm(&context, args),
        Verb::Update(args) => verbs::update::update(&context, args),
        Verb::Rename(args) => verbs::rm::rename(&context, args),
        Verb::Prune(args) => verbs::rm::prune(&context, args),
        Verb::Volume(args) => verbs::volume::volume(&context, args),
        Verb::Snapshot(args) => verbs::snapshot::snapshot(&context, args),
        Verb::Fork(args) => verbs::fork::fork(&context, args),
        Verb::Compare(args) => verbs::compare::compare(&context, args),
        Verb::Pull(args) => verbs::pull::pull(&context, args),
        Verb::Load(args) => verbs::load::load(&context, args),
        Verb::Doctor(args) => verbs::doctor::doctor(&context, args),
        Verb::Images(args) => verbs::images::images(&context, args),
        Verb::Rmi(args) => verbs::rmi::rmi(&context, args),
        Verb::Lab(args) => verbs::lab::lab(&context, args),
    }
}

/// Help and version are results; the rest is told in clap's words, which name the nearest right ones.
fn usage(error: &clap::Error) -> Result<u8, Failure> {
    let result = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let _ = error.print();
    Ok(if result { Code::Done } else { Code::Duplex } as u8)
}

/// Logging costs time at every start, so there is none unless `DUPLEX_LOG` asks for it.
fn start_log(environment: &Environment) {
    let Some(filter) = &environment.log else { return };
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let colour = !environment.no_color;
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).try_init();
}
