//! `duplex run` and `duplex create`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cli::args::{PullPolicy, RunArgs};
use crate::cli::attached::{self, Left, Wish};
use crate::cli::fail::{Failure, run_failed};
use crate::cli::keeping::{self, Word, mention, tell};
use crate::cli::meaning::{self, ImageDefaults, MeaningError, Surroundings, sandbox};
use crate::cli::output::{note, print};
use crate::cli::place::{self, Needs, Place};
use crate::cli::signals::Proxy;
use crate::cli::{Context, engine, environment, streams, swap, terminal};
use crate::compare::Trace;
use crate::image::{Image, ImageConfig, Lease, Reference};
use crate::keeper::{Ended, Keeper, confine};
use crate::sandbox::roster::Entry;
use crate::spec::{Definition, Isolation, Moment, Moments, MountSource, SandboxId};
use crate::sys::clock::{monotonic_ns, realtime_ns};
use crate::volume::{VolumeError, Volumes, Wanted};

/// What can be wrong with the options of `run` and `create` beside their meaning.
#[derive(Debug, thiserror::Error)]
enum RunError {
    /// A file that the user named cannot be read.
    #[error("Cannot read '{}'", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file for the id.
    #[error("Cannot write the sandbox's id to '{}', which must be a new file", path.display())]
    CidFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Nobody would see the output.
    #[error("Option --detach is for 'duplex run': what 'duplex create' defines does not run")]
    DetachedCreate,
    /// Nothing would be between the command and the host.
    #[error(
        "Isolation 'process' isolates nothing: the command would be a process of this host as any other. Only 'duplex compare' runs it, as an arm beside the others (--arm process)"
    )]
    Plain,
}

/// A plain process is an arm of a comparison, whose user asked for it by name and was warned, and nothing else.
fn refuse_plain(args: &RunArgs) -> Result<(), Failure> {
    if args.isolation == Isolation::Process && !environment::called_by("compare") {
        return Err(run_failed(RunError::Plain));
    }
    Ok(())
}

/// Runs an image and exits as its command does.
pub(crate) fn run(context: &Context, args: &RunArgs) -> Result<u8, Failure> {
    refuse_plain(args)?;
    let connected = args.process.interactive && args.process.tty && !args.detach;
    if connected && !terminal::stdin_is_terminal() {
        return Err(run_failed(MeaningError::NotATerminal));
    }
    let keys = attached::keys(&args.process.detach_keys).map_err(run_failed)?;
    let needs = Needs::of_run(args);
    let place = place::decide(context, &needs)?;
    let (image, lease) = image(context, args)?;
    let ready = monotonic_ns();
    let definition = definition(context, args, &image)?;
    if let Place::Lab(reason) = place {
        if !definition.spec.network.publish.is_empty() {
            note("published ports are the lab's own: 'duplex lab run -- COMMAND' reaches them, this host does not");
        }
        return place::go(context, &needs, reason);
    }
    let entry = defined(context, args, definition, true)?;
    if args.detach {
        return detached(context, entry);
    }
    // A terminal can be left while the command goes on, so the command's keeper is another process.
    if connected && args.trace.is_none() {
        return connected_run(context, entry, keys);
    }
    let spec = entry.definition.spec.clone();
    let ended = live(context, entry, &image)?;
    drop(lease);
    let mut all = Moments::default();
    all.note(Moment::Main, context.began);
    all.note(Moment::ImageReady, ready);
    ended.moments.0.into_iter().for_each(|(moment, at)| all.note(moment, at));
    all.note(Moment::Cleaned, monotonic_ns());
    if let Some(path) = &args.trace {
        let outcome = Some(ended.outcome.clone());
        write_trace(path, &Trace { image: image.manifest, moments: all, outcome, usage: ended.usage })?;
    }
    mention(ended.troubles);
    tell(&ended.outcome, &spec);
    Ok(ended.outcome.exit.code())
}

/// Defines a sandbox and prints its id.
pub(crate) fn create(context: &Context, args: &RunArgs) -> Result<u8, Failure> {
    refuse_plain(args)?;
    if args.detach {
        return Err(run_failed(RunError::DetachedCreate));
    }
    let needs = Needs::of_run(args);
    let place = place::decide(context, &needs)?;
    let (image, _lease) = image(context, args)?;
    let definition = definition(context, args, &image)?;
    if let Place::Lab(reason) = place {
        return place::go(context, &needs, reason);
    }
    let entry = defined(context, args, definition, false)?;
    print(&format!("{}\n", entry.definition.spec.id))?;
    Ok(0)
}

/// Puts the sandbox on the roster, and its id where the user wants it.
fn defined(context: &Context, args: &RunArgs, definition: Definition, at_work: bool) -> Result<Entry, Failure> {
    let cidfile = args.cidfile.as_ref().map(|path| {
        let made = File::options().create_new(true).write(true).open(path);
        made.map_err(|source| run_failed(RunError::CidFile { path: path.clone(), source }))
    });
    let cidfile = cidfile.transpose()?;
    let added = keeping::roster(context).and_then(|roster| roster.add(definition, args.name.as_deref(), at_work));
    // In this order: what is on the roster is cleared by the next command, whatever happens to this one.
    let filled = added.map_err(run_failed).and_then(|entry| match volumes(&entry.definition) {
        Ok(()) => Ok(entry),
        Err(error) => {
            let _ = entry.remove_with_volumes();
            Err(run_failed(error))
        }
    });
    let told = filled.inspect(|entry| {
        // A comparison's arms say the same.
        if args.trace.is_none() {
            swap::remark(&entry.limits(), entry.definition.spec.isolation);
        }
    });
    let written = told.and_then(|entry| {
        let (Some(mut file), Some(path)) = (cidfile, &args.cidfile) else { return Ok(entry) };
        match write!(file, "{}", entry.definition.spec.id) {
            Ok(()) => Ok(entry),
            Err(source) => {
                let _ = entry.remove_with_volumes();
                Err(run_failed(RunError::CidFile { path: path.clone(), source }))
            }
        }
    });
    if let (Err(_), Some(path)) = (&written, &args.cidfile) {
        let _ = fs::remove_file(path);
    }
    written
}

/// Leaves the sandbox to a keeper of its own.
fn detached(context: &Context, entry: Entry) -> Result<u8, Failure> {
    let spec = entry.definition.spec.clone();
    let words = keeping::spawn(context, entry, false).map_err(run_failed)?;
    match words.until_started().map_err(run_failed)? {
        Ok(()) => {
            print(&format!("{}\n", spec.id))?;
            Ok(0)
        }
        Err(outcome) => {
            tell(&outcome, &spec);
            Ok(outcome.exit.code())
        }
    }
}

/// The same, with this terminal connected.
fn connected_run(context: &Context, entry: Entry, keys: Vec<u8>) -> Result<u8, Failure> {
    let spec = entry.definition.spec.clone();
    let folder = entry.path().to_owned();
    let mut words = keeping::spawn(context, entry, true).map_err(run_failed)?;
    while words.next().map_err(run_failed)? != Word::Listening {}
    let (id, isolation) = (spec.id.clone(), spec.isolation);
    let wish = Wish { id, isolation, folder, stdin: true, terminal: true, keys, proxy: true };
    match attached::attach(&wish).map_err(run_failed)? {
        Left::Ended(outcome) => {
            tell(&outcome, &spec);
            Ok(outcome.exit.code())
        }
        Left::Detached => Ok(0),
    }
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

fn definition(context: &Context, args: &RunArgs, image: &Image) -> Result<Definition, Failure> {
    let mut id = [0; 6];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(run_failed)?;
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path);
        let text = text.map_err(|source| run_failed(RunError::Read { path: path.clone(), source }))?;
        Ok((path.display().to_string(), text))
    };
    let env_files = args.process.env_file.iter().map(read).collect::<Result<Vec<_>, Failure>>()?;
    let label_files = args.label_file.iter().map(read).collect::<Result<Vec<_>, Failure>>()?;
    let profile = meaning::profile_file(args).map(|file| read(&PathBuf::from(file))).transpose()?;
    let around = Surroundings {
        id: SandboxId::from_bytes(id),
        variable: &environment::variable,
        env_files: &env_files,
        profile: profile.as_ref().map(|(_, text)| text.as_str()),
        terminal: terminal::size(),
    };
    let defaults = defaults(&image.config);
    let mut spec = sandbox(args, &defaults, &image.manifest, &around).map_err(run_failed)?;
    // A keeper stands elsewhere.
    for path in [&mut spec.kernel, &mut spec.kernel_log].into_iter().flatten() {
        *path = std::path::absolute(&*path).map_err(run_failed)?;
    }
    for mount in &mut spec.mounts {
        if let MountSource::Bind { path, .. } = &mut mount.source {
            *path = std::path::absolute(&*path).map_err(run_failed)?;
        }
    }
    let definition = meaning::definition(args, &defaults, &label_files, spec, realtime_ns()).map_err(run_failed)?;
    let store = std::path::absolute(&context.installation.store).map_err(run_failed)?;
    Ok(Definition { store: Some(store), ..definition })
}

/// Makes the volumes of a sandbox that are not there: all of a new one's, and those that a `create` that was killed did not come to make.
pub(super) fn volumes(definition: &Definition) -> Result<(), VolumeError> {
    let Some(store) = &definition.store else { return Ok(()) };
    for mount in &definition.spec.mounts {
        if let MountSource::Volume { name, anonymous, .. } = &mount.source {
            let wanted = Wanted { anonymous: *anonymous, ..Wanted::default() };
            Volumes::of(store).create(name, &wanted)?;
        }
    }
    Ok(())
}

fn defaults(config: &ImageConfig) -> ImageDefaults {
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        working_dir: config.workdir.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.clone(),
        health: config.health.clone(),
        shell: config.shell.clone(),
        labels: config.labels.clone(),
        volumes: config.volumes.clone(),
    }
}

/// The sandbox from its creation until nothing of it but its entry is left.
fn live(context: &Context, entry: Entry, image: &Image) -> Result<Ended, Failure> {
    let spec = entry.definition.spec.clone();
    confine(spec.isolation).map_err(run_failed)?;
    let backend = engine::backend(&context.installation, &spec, image);
    let terminal = spec.process.terminal.is_some();
    let connected = spec.process.stdin && terminal::stdin_is_terminal();
    // With a terminal, and for a microVM, the engine copies and the sandbox never holds a stream of ours.
    let shielded = spec.isolation != Isolation::MicroVm && !terminal;
    let signals = Proxy::new(terminal).map_err(run_failed)?;
    let local = streams::local(spec.process.stdin, shielded).map_err(run_failed)?;
    let keeper = Keeper::new(entry).map_err(run_failed)?.with_local(local);
    let proxy = signals.pass_to(Box::new(keeper.handle()));
    let raw = if connected && terminal { Some(terminal::Raw::enter().map_err(run_failed)?) } else { None };
    let ended = keeper.run(&*backend, &mut |_| {});
    drop(raw);
    proxy.close();
    ended.map_err(run_failed)
}
