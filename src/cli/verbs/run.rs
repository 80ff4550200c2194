//! `duplex run`.

use std::fs;
use std::path::Path;

use crate::cli::args::{PullPolicy, RunArgs};
use crate::cli::fail::{Failure, run_failed};
use crate::cli::meaning::{ImageDefaults, MeaningError, Surroundings, sandbox};
use crate::cli::output::note;
use crate::cli::place::{self, Needs, Place};
use crate::cli::signals::Proxy;
use crate::cli::{Context, engine, environment, streams, terminal};
use crate::compare::Trace;
use crate::image::{Image, ImageConfig, Lease, Reference};
use crate::spec::{Exit, Isolation, Moment, Moments, Outcome, SandboxId, SandboxSpec};
use crate::sys::clock::monotonic_ns;

/// Runs an image and exits as its command does.
pub(crate) fn run(context: &Context, args: &RunArgs) -> Result<u8, Failure> {
    if args.interactive && args.tty && !terminal::stdin_is_terminal() {
        return Err(run_failed(MeaningError::NotATerminal));
    }
    let needs = Needs::of_run(args);
    let place = place::decide(context, &needs)?;
    let (image, lease) = image(context, args)?;
    let ready = monotonic_ns();
    let spec = spec(args, &image)?;
    if let Place::Lab(reason) = place {
        return place::go(context, &needs, reason);
    }
    let (outcome, moments, usage) = live(context, &spec, &image)?;
    drop(lease);
    let mut all = Moments::default();
    all.note(Moment::Main, context.began);
    all.note(Moment::ImageReady, ready);
    moments.0.into_iter().for_each(|(moment, at)| all.note(moment, at));
    all.note(Moment::Cleaned, monotonic_ns());
    if let Some(path) = &args.trace {
        let trace = Trace { image: image.manifest, moments: all, outcome: Some(outcome.clone()), usage };
        write_trace(path, &trace)?;
    }
    tell(&outcome, &spec);
    Ok(outcome.exit.code())
}

fn write_trace(path: &Path, trace: &Trace) -> Result<(), Failure> {
    let text = serde_json::to_vec(trace).map_err(run_failed)?;
    fs::write(path, text).map_err(run_failed)
}

/// The image, fetched if need be, and kept from being removed.
fn image(context: &Context, args: &RunArgs) -> Result<(Image, Lease), Failure> {
    let name = args.image_and_command.first().map_or("", String::as_str);
    let reference: Reference = name.parse().map_err(run_failed)?;
    let store = engine::store(&context.installation).map_err(run_failed)?;
    // The lab has no network; who sent us there has seen to the image.
    let policy = if context.environment.in_lab { PullPolicy::Never } else { args.pull };
    let image = match policy {
        PullPolicy::Always => super::pull::fetch(&store, &reference).map_err(run_failed)?,
        PullPolicy::Missing => super::pull::resolve_or_fetch(&store, &reference).map_err(run_failed)?,
        PullPolicy::Never => store.resolve(&reference).map_err(run_failed)?,
    };
    let lease = store.hold(&image).map_err(run_failed)?;
    Ok((image, lease))
}

fn spec(args: &RunArgs, image: &Image) -> Result<SandboxSpec, Failure> {
    let mut id = [0; 6];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(run_failed)?;
    let read = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).map_err(|e| run_failed(FileError { path: path.clone(), source: e }))?;
        Ok((path.display().to_string(), text))
    };
    let env_files = args.env_file.iter().map(read).collect::<Result<Vec<_>, Failure>>()?;
    let around = Surroundings {
        id: SandboxId::from_bytes(id),
        variable: &environment::variable,
        env_files: &env_files,
        terminal: terminal::size(),
    };
    sandbox(args, &defaults(&image.config), &image.manifest, &around).map_err(run_failed)
}

/// A file that the user named cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read '{}'", path.display())]
struct FileError {
    path: std::path::PathBuf,
    #[source]
    source: std::io::Error,
}

fn defaults(config: &ImageConfig) -> ImageDefaults {
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        working_dir: config.workdir.clone(),
        user: config.user.clone(),
    }
}

/// The sandbox from its creation until nothing of it is left.
fn live(
    context: &Context,
    spec: &SandboxSpec,
    image: &Image,
) -> Result<(Outcome, Moments, crate::spec::Usage), Failure> {
    let backend = engine::backend(&context.installation, spec.isolation, image);
    let connected = spec.process.stdin && terminal::stdin_is_terminal();
    // With a terminal, and for a microVM, the engine copies and the sandbox never holds a stream of ours.
    let (stdio, copies) = if spec.isolation == Isolation::MicroVm || spec.process.terminal.is_some() {
        (streams::own(spec.process.stdin).map_err(run_failed)?, None)
    } else {
        let (stdio, copies) = streams::detached(spec.process.stdin).map_err(run_failed)?;
        (stdio, Some(copies))
    };
    let signals = Proxy::new(spec.process.terminal.is_some()).map_err(run_failed)?;
    let mut sandbox = backend.create(spec, stdio).map_err(run_failed)?;
    let proxy = signals.pass_to(sandbox.remote());
    let raw = if connected && spec.process.terminal.is_some() {
        Some(terminal::Raw::enter().map_err(run_failed)?)
    } else {
        None
    };
    let outcome = sandbox.start().and_then(|()| sandbox.wait());
    drop(raw);
    proxy.close();
    let moments = sandbox.moments();
    let usage = sandbox.usage();
    let removed = sandbox.remove();
    if let Some(copies) = copies {
        copies.finish();
    }
    let outcome = outcome.map_err(run_failed)?;
    if let Err(error) = removed {
        note(run_failed(error).render().trim_end());
    }
    Ok((outcome, moments, usage))
}

/// What the exit code alone does not tell.
fn tell(outcome: &Outcome, spec: &SandboxSpec) {
    if let Some(reason) = &outcome.reason {
        note(reason);
    }
    if outcome.oom && outcome.reason.is_none() {
        let limit = spec.limits.memory.map_or_else(String::new, |m| format!(" (limit: {m})"));
        note(&format!("a process was killed for want of memory{limit}; --memory gives more"));
    }
    if outcome.exit == Exit::SandboxFailed && outcome.reason.is_none() {
        note("the sandbox ended around its command");
    }
}
