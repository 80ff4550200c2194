//! `duplex compare`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use indicatif::ProgressBar;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::args::{CompareArgs, Format};
use crate::cli::environment::search_path;
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::output::{bar, note, print, print_json, say};
use crate::cli::place::{self, Needs, Place};
use crate::cli::{Context, engine};
use crate::compare::{
    Against, Application, Arm, ArmError, Build, CompareError, Density, Given, MONITOR, Plan, Record, RunnerError,
    Spawner, Step, Until, against, application, arms, bytes_on_disk, check_entrypoint, compare as run_plan,
    find_runtimes, find_venvs, fits, host_facts, read, report, summary, table,
};
use crate::image::{Image, Reference, ResolveError};
use crate::spec::{Installation, Isolation};

/// Measures the arms against each other.
pub(crate) fn compare(context: &Context, args: &CompareArgs) -> Result<u8, Failure> {
    let arms = found_arms(&args.arms)?;
    let earlier = args.baseline.as_deref().map(read_baseline).transpose()?;
    let needs = Needs::of_compare(args, &arms);
    let application = application(&args.workloads).map_err(|e| Failure::new(Code::Duplex, e))?;
    let place = place::decide(context, &needs)?;
    let store = engine::store(&context.installation).map_err(failed)?;
    let named = application.map_or(args.image.as_str(), |app| app.image);
    let reference: Reference = named.parse().map_err(failed)?;
    let image = match application {
        Some(app) => store.resolve(&reference).map_err(|source| not_built(app, source))?,
        None if context.environment.in_lab => store.resolve(&reference).map_err(failed)?,
        None => super::pull::resolve_or_fetch(&store, &reference).map_err(failed)?,
    };
    check_entrypoint(&arms, named, &image.config.entrypoint).map_err(|e| Failure::new(Code::Duplex, e))?;
    let _lease = store.hold(&image).map_err(failed)?;
    if let Place::Lab(reason) = place {
        return place::go(context, &needs, reason);
    }
    let amount = args.amount(application.is_some());
    let plan = Plan {
        arms,
        reference: named.to_owned(),
        image: image.manifest.clone(),
        command: command(args, application, &image),
        workloads: args.workloads.clone(),
        until: amount.until.map(|(precision, budget)| Until { precision, budget: Duration::from_secs(budget) }),
        memory: args.memory,
        cpus: args.cpus,
        runs: amount.runs,
        warmup: amount.warmup,
        memory_runs: amount.memory_runs,
        probes: args.probes,
        density: density(args),
        reach: args.reach || args.reach_functions,
        functions: args.reach_functions,
        seed: args.seed.map_or_else(random_seed, Ok)?,
        allow_difference: args.allow_difference,
        timeout: Duration::from_secs(amount.timeout),
    };
    if let (Some(earlier), Some(path)) = (&earlier, &args.baseline) {
        fits(earlier, &plan, context.environment.in_lab).map_err(|source| not_a_baseline(path, source))?;
    }
    let mut given = given(context, store.bytes_on_disk(&image))?;
    let venvs = plan.arms.iter().filter_map(|arm| arm.venv.clone()).map(|path| (bytes_on_disk(&path), path));
    let programs = plan.arms.iter().filter_map(|arm| arm.runtime.clone());
    let programs = programs.filter_map(|path| Some((fs::metadata(&path).ok()?.len(), path)));
    given.brought = venvs.chain(programs).map(|(bytes, path)| (path, bytes)).collect();
    let _warm = stay_warm(&context.installation, &image);
    let record = measured(context, &plan, &given)?;
    let against = earlier.map(|earlier| against(&record, &earlier, args.regression));
    show(args, &record, against.as_ref())?;
    match against.filter(|a| a.regressed().next().is_some()) {
        Some(against) => Err(Failure::new(Code::Regressed, RegressedError(summary(&against)))),
        None => Ok(Code::Done as u8),
    }
}

/// The arms, with the programs that they need.
fn found_arms(texts: &[String]) -> Result<Vec<Arm>, Failure> {
    let refused = |e: ArmError| Failure::new(Code::Duplex, e);
    let mut arms = arms(texts).map_err(refused)?;
    find_runtimes(&mut arms, &search_path()).map_err(refused)?;
    find_venvs(&mut arms).map_err(|e| Failure::new(Code::Duplex, e))?;
    Ok(arms)
}

/// The image of an application is not there.
#[derive(Debug, thiserror::Error)]
#[error("Workload '{}' needs the image '{}', which is not in the store", .0.name, .0.image)]
struct NotBuilt(Application);

fn not_built(app: Application, source: ResolveError) -> Failure {
    if matches!(source, ResolveError::Unknown { .. }) {
        failed(NotBuilt(app)).mended_by("'make images' in Duplex's source builds it and loads it")
    } else {
        failed(source)
    }
}

/// What every arm runs.
fn command(args: &CompareArgs, application: Option<Application>, image: &Image) -> Vec<String> {
    if application.is_none() && !args.workloads.is_empty() {
        return std::iter::once("measure".to_owned()).chain(args.workloads.iter().cloned()).collect();
    }
    if args.command.is_empty() { image.config.cmd.clone() } else { args.command.clone() }
}

/// How many idle sandboxes are tried, if any.
fn density(args: &CompareArgs) -> Option<Density> {
    Some(Density {
        most: args.density?,
        reserve_bytes: args.density_reserve.map(|size| size.0),
        ping: Duration::from_millis(args.density_ping),
    })
}

/// Writes the files and prints the result.
fn show(args: &CompareArgs, record: &Record, against: Option<&Against>) -> Result<(), Failure> {
    if let Some(path) = &args.json {
        let mut text = serde_json::to_vec_pretty(record).map_err(failed)?;
        text.push(b'\n');
        write_result(path, &text)?;
    }
    if let Some(path) = &args.report {
        write_result(path, report(record, against).map_err(failed)?.as_bytes())?;
    }
    match args.format {
        Format::Table => print(&table(record, against))?,
        Format::Json => print_json(record)?,
    }
    if let Some(path) = &args.report {
        say(&format!("Report: {}", path.display()));
    }
    Ok(())
}

/// An arm got worse.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RegressedError(String);

/// A file cannot be the baseline.
#[derive(Debug, thiserror::Error)]
#[error("Cannot use '{}' as the baseline", path.display())]
struct NotABaseline {
    path: PathBuf,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn not_a_baseline(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Code::Failed, NotABaseline { path: path.to_owned(), source: source.into() })
}

fn read_baseline(path: &Path) -> Result<Record, Failure> {
    let text = fs::read(path).map_err(|source| not_a_baseline(path, source))?;
    read(&text).map_err(|source| not_a_baseline(path, source))
}

/// Holds open what the arms read: some file systems (the lab's among them) forget the content of a file that nobody has open, and each run
/// would read it anew, which none of a usual host's does. A file that cannot be opened shows in the arm that needs it.
fn stay_warm(parts: &Installation, image: &Image) -> Vec<fs::File> {
    let parts = [&parts.duplex, &parts.monitor, &parts.kernel, &parts.initramfs].into_iter();
    parts
        .chain(image.disk.pieces.iter().map(|piece| &piece.path))
        .filter_map(|path| fs::File::open(path).ok())
        .collect()
}

/// Runs the plan with children of this very program. SIGINT, SIGTERM and SIGHUP end the run under way and the comparison.
fn measured(context: &Context, plan: &Plan, given: &Given) -> Result<Record, Failure> {
    let everywhere = ["--root".to_owned(), context.installation.store.display().to_string()];
    let mut spawner =
        Spawner::new(context.installation.duplex.clone(), everywhere.into(), plan.clone()).map_err(failed)?;
    let interrupt = spawner.interrupt();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let handle = signals.handle();
    std::thread::spawn(move || signals.forever().for_each(|_| interrupt.interrupt()));
    for arm in plan.arms.iter().filter(|arm| arm.isolation == Isolation::Process) {
        let whose = if arm.venv.is_some() { "the command" } else { "the image's command" };
        note(&format!("arm '{}' isolates nothing: {whose} runs as a process of this host", arm.name));
    }
    let mut progress = Progress::new(plan);
    let result = run_plan(plan, given, &mut spawner, &mut |step| progress.show(step));
    handle.close();
    drop(progress);
    result.map_err(|error| match error {
        CompareError::Arm { source: RunnerError::Interrupted, .. } => {
            Failure::new(Code::Interrupted, RunnerError::Interrupted)
        }
        CompareError::Arm {
            source:
                RunnerError::Failed { .. }
                | RunnerError::NoEcho { .. }
                | RunnerError::NoMeasure { .. }
                | RunnerError::NoProbes { .. },
            ..
        } => Failure::new(Code::Failed, error).mended_by("'duplex doctor' says what this host can do"),
        CompareError::Arm { .. } => Failure::new(Code::Failed, error),
        refusal => Failure::new(Code::Refused, refusal),
    })
}

/// A random seed, small enough for every JSON reader.
fn random_seed() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(u64::from_ne_bytes(bytes) >> 32)
}

fn given(context: &Context, image_bytes: u64) -> Result<Given, Failure> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(failed)?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?;
    Ok(Given {
        build: Build {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: option_env!("DUPLEX_REVISION").map(str::to_owned),
        },
        host: host_facts(Path::new("/"), &place::kvm_kind(context), context.environment.in_lab),
        boot_id,
        now_unix_s: now.as_secs(),
        disk_bytes: disk_bytes(&context.installation, image_bytes),
        brought: BTreeMap::new(),
    })
}

/// What each isolation needs on disk beside `duplex` itself.
fn disk_bytes(parts: &Installation, image: u64) -> BTreeMap<Isolation, BTreeMap<String, u64>> {
    let of = |path: &PathBuf| fs::metadata(path).ok().map(|m| m.len());
    let present = |list: [(&str, Option<u64>); 4]| {
        list.into_iter().filter_map(|(name, bytes)| Some((name.to_owned(), bytes?))).collect::<BTreeMap<_, _>>()
    };
    BTreeMap::from([
        (Isolation::Container, present([("image", Some(image)), ("", None), ("", None), ("", None)])),
        (Isolation::Process, present([("image", Some(image)), ("", None), ("", None), ("", None)])),
        (
            Isolation::MicroVm,
            present([
                ("image", Some(image)),
                ("kernel", of(&parts.kernel)),
                ("initramfs", of(&parts.initramfs)),
                (MONITOR, of(&parts.monitor)),
            ]),
        ),
    ])
}

/// A result file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write the result to '{}'", path.display())]
struct WriteError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Writes the file whole or not at all.
fn write_result(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::Builder::new().permissions(permissions()).tempfile_in(folder)?;
        std::io::Write::write_all(&mut file, text)?;
        file.persist(path).map_err(|e| e.error)
    };
    write().map(|_| ()).map_err(|source| failed(WriteError { path: path.to_owned(), source }))
}

fn permissions() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// A bar on a terminal, a line per round elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        let arms = plan.arms.len() as u64;
        let rounds = u64::from(plan.warmup) + u64::from(plan.runs) + u64::from(plan.memory_runs);
        let template = "{msg:32!} {wide_bar} {pos}/{len} {eta:>4}";
        let once = |asked: bool| if asked { arms } else { 0 };
        let (probes, reach) = (once(plan.probes), once(plan.reach));
        let idle = plan.density.map_or(0, |density| arms * u64::from(density.most));
        let bar = bar(arms + probes + rounds + idle + reach, template);
        if bar.is_none() {
            note(&format!("comparing {} in {} rounds", plan.reference, plan.warmup + plan.runs + plan.memory_runs));
        }
        Self { bar }
    }

    fn show(&mut self, step: &Step) {
        let words = match step {
            Step::Controls(arm) => format!("proof that '{arm}' is what it says"),
            Step::Probes(arm) => format!("what the walls of '{arm}' let through"),
            Step::Reach(arm) => format!("what '{arm}' reaches of the host"),
            Step::Timed(round, all, times) => {
                let times: Vec<String> = times.iter().map(|(arm, ms)| format!("{arm} {ms:.0} ms")).collect();
                format!("round {round}/{all}: {}", times.join(", "))
            }
            Step::Memory(round, all) => format!("memory {round}/{all}"),
            Step::Density(_, count) if self.bar.is_none() && !count.is_power_of_two() => return,
            Step::Density(arm, count) => format!("idle of '{arm}': {count}"),
        };
        match &self.bar {
            Some(bar) => {
                bar.set_message(words);
                bar.inc(1);
            }
            None => say(&words),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
