//! Whether a verb can do its work on this host, or does it in the lab.

use std::env;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Context;
use super::args::{CompareArgs, RunArgs};
use super::environment;
use super::fail::{Code, Failure};
use super::meaning::host_paths;
use super::output::note;
use crate::compare::Arm;
use crate::doctor::{self, KvmFinding};
use crate::lab::{self, LabError, Places, RunError, Settings};
use crate::sandbox::roster::{Roster, RosterError};
use crate::spec::Isolation;

/// What a verb needs of the host, and of the lab in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    kvm: bool,
    cgroups: bool,
    /// Exit code of the verb's failures.
    code: Code,
    stdin: bool,
    terminal: bool,
    /// Files that the verb reads or writes by name.
    files: Vec<PathBuf>,
    /// Those of them that it writes for the user.
    results: Vec<PathBuf>,
}

impl Needs {
    /// Of `run`.
    pub(crate) fn of_run(args: &RunArgs) -> Self {
        let files = [&args.kernel, &args.kernel_log, &args.trace, &args.cidfile].into_iter().flatten();
        let files = files.chain(&args.process.env_file).chain(&args.label_file).cloned().chain(host_paths(args));
        Self {
            kvm: args.isolation == Isolation::MicroVm,
            cgroups: true,
            code: Code::Duplex,
            stdin: args.process.interactive && !args.detach,
            terminal: args.process.tty && !args.detach,
            files: files.collect(),
            results: [&args.kernel_log, &args.trace, &args.cidfile].into_iter().flatten().cloned().collect(),
        }
    }

    /// Of `lab run`, which never asks for a place.
    pub(crate) fn of_words() -> Self {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        Self {
            kvm: false,
            cgroups: false,
            code: Code::Duplex,
            stdin: true,
            terminal,
            files: Vec::new(),
            results: Vec::new(),
        }
    }

    /// Of `fork`.
    pub(crate) fn of_fork() -> Self {
        Self {
            kvm: true,
            cgroups: true,
            code: Code::Failed,
            stdin: false,
            terminal: false,
            files: Vec::new(),
            results: Vec::new(),
        }
    }

    /// Of `compare`.
    pub(crate) fn of_compare(args: &CompareArgs, arms: &[Arm]) -> Self {
        Self {
            kvm: arms.iter().any(|a| a.isolation == Isolation::MicroVm),
            cgroups: true,
            code: Code::Failed,
            stdin: false,
            terminal: [
                std::io::stdin().is_terminal(),
                std::io::stdout().is_terminal(),
                std::io::stderr().is_terminal(),
            ] == [true; 3],
            files: args
                .json
                .iter()
                .chain(&args.report)
                .chain(arms.iter().filter_map(|a| a.kernel.as_ref()))
                .cloned()
                .chain(arms.iter().filter_map(|a| Some(a.venv.as_ref()?.join("pyvenv.cfg"))))
                .collect(),
            results: args.json.iter().chain(&args.report).cloned().collect(),
        }
    }

    /// The folder of a result that would stay in the lab, whose own it is there.
    fn unshared(&self, cwd: &Path) -> Option<PathBuf> {
        let folders = self.results.iter().filter_map(|file| cwd.join(file).parent().map(Path::to_owned));
        // What is a stream of the command's comes out of the lab.
        let streams = |folder: &Path| folder.starts_with("/dev") || folder.starts_with("/proc");
        let mut lost = folders.filter(|folder| !lab::shares(folder) && folder != Path::new("/") && !streams(folder));
        lost.next()
    }
}

/// The host lacks something and the lab may not or cannot help.
#[derive(Debug, thiserror::Error)]
enum PlaceError {
    /// The user asked not to use the lab.
    #[error("{0}, and --no-lab forbids the lab")]
    NoLab(String),
    /// The lab does not come up.
    #[error("{reason}, and the lab in its place cannot be started")]
    Start {
        /// What the host lacks.
        reason: String,
        /// Why not.
        #[source]
        source: LabError,
    },
    /// A folder that is the lab's own there.
    #[error("The lab, where this sandbox may be, has a {0} of its own: name a file in a folder below it, or '-'")]
    Unshared(PathBuf),
    /// The same, of a file that a command which goes there would write.
    #[error(
        "{reason}, and the lab in its place has a {folder} of its own: name a file in another folder, or in one below it"
    )]
    Lost {
        /// What the host lacks.
        reason: String,
        /// The folder.
        folder: PathBuf,
    },
    /// The verb has no result of its own.
    #[error(transparent)]
    Run(RunError),
}

/// Where a verb does its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this host.
    Here,
    /// In the lab, for this reason.
    Lab(String),
}

/// Decides. Costs nothing in the lab itself, and little on a good host.
pub(crate) fn decide(context: &Context, needs: &Needs) -> Result<Place, Failure> {
    if context.environment.in_lab {
        return Ok(Place::Here);
    }
    match lacking(context, needs) {
        None => Ok(Place::Here),
        Some(reason) if context.no_lab() => {
            let mend = "'duplex doctor' says how to mend this host; without --no-lab the lab does the work";
            Err(Failure::new(needs.code, PlaceError::NoLab(reason)).mended_by(mend))
        }
        Some(reason) => Ok(Place::Lab(reason)),
    }
}

/// Runs this very command line in the lab: the exit code. The lab has no network, so images are in the store before.
pub(crate) fn go(context: &Context, needs: &Needs, reason: String) -> Result<u8, Failure> {
    let cwd = env::current_dir().map_err(|e| Failure::new(needs.code, e))?;
    if let Some(folder) = needs.unshared(&cwd) {
        return Err(Failure::new(needs.code, PlaceError::Lost { reason, folder }));
    }
    note(&format!("{reason}: working in the lab, on emulated hardware"));
    let settings = settings(context);
    lab::start(&settings, &mut |step| note(step))
        .map_err(|source| Failure::new(needs.code, PlaceError::Start { reason, source }))?;
    in_lab(context, &settings.places, words(context), needs)
}

/// This command line, by the program's path.
fn words(context: &Context) -> Vec<OsString> {
    let program = context.installation.duplex.clone().into();
    std::iter::once(program).chain(env::args_os().skip(1)).collect()
}

/// Runs this command line in the lab if that runs and none of these sandboxes is here: they may be there. The exit code if so.
pub(crate) fn follow(
    context: &Context,
    roster: &Roster,
    sandboxes: &[String],
    stdin: bool,
) -> Result<Option<u8>, Failure> {
    follow_with(context, roster, sandboxes, stdin, Vec::new())
}

/// The same for a verb that reads or writes these files of this host.
pub(crate) fn follow_with(
    context: &Context,
    roster: &Roster,
    sandboxes: &[String],
    stdin: bool,
    files: Vec<PathBuf>,
) -> Result<Option<u8>, Failure> {
    let elsewhere = sandboxes.iter().all(|word| matches!(roster.find(word), Err(RosterError::Unknown(_))));
    if elsewhere { in_the_running_lab(context, stdin, files) } else { Ok(None) }
}

/// The same for a verb about all sandboxes, if there is `none` here.
pub(crate) fn follow_all(context: &Context, none: bool, stdin: bool) -> Result<Option<u8>, Failure> {
    if none { in_the_running_lab(context, stdin, Vec::new()) } else { Ok(None) }
}

fn in_the_running_lab(context: &Context, stdin: bool, files: Vec<PathBuf>) -> Result<Option<u8>, Failure> {
    if context.environment.in_lab || context.no_lab() {
        return Ok(None);
    }
    let places = settings(context).places;
    if !matches!(lab::status(&places), Ok(Some(_))) {
        return Ok(None);
    }
    if let Some(folder) = files.iter().filter_map(|file| file.parent()).find(|folder| !lab::shares(folder)) {
        return Err(Failure::new(Code::Failed, PlaceError::Unshared(folder.to_owned())));
    }
    let all = [std::io::stdin().is_terminal(), std::io::stdout().is_terminal(), std::io::stderr().is_terminal()];
    let terminal = stdin && all == [true; 3];
    let needs = Needs { kvm: false, cgroups: true, code: Code::Failed, stdin, terminal, files, results: Vec::new() };
    in_lab(context, &places, words(context), &needs).map(Some)
}

/// What this host lacks, in words.
fn lacking(context: &Context, needs: &Needs) -> Option<String> {
    if needs.kvm && doctor::kvm_is_forbidden() {
        let mend = KvmFinding::NoPermission.mend().unwrap_or_default();
        return Some(format!("No permission on /dev/kvm (to mend it: {mend})"));
    }
    if let Some(lacking) = doctor::lacking_for_containers() {
        return Some(format!("This host cannot run sandboxes ({lacking})"));
    }
    let kvm = needs.kvm.then(|| kvm(context))?;
    (!kvm.is_usable()).then(|| format!("This host has no usable KVM ({})", kvm.words()))
}

/// What KVM is worth here. The answer of a probe that takes time is kept until the next boot.
fn kvm(context: &Context) -> KvmFinding {
    let path = context.installation.state.join("kvm.json");
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let kept = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
    // The file may be younger than a loss of permission, or of the device.
    let opens = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if let Some(kept) = kept.filter(|k| opens && k.boot_id == boot_id) {
        return kept.kvm;
    }
    let kvm = doctor::kvm();
    if matches!(kvm, KvmFinding::Hardware { .. } | KvmFinding::Software { .. }) {
        let kept = Kept { boot_id, kvm: kvm.clone() };
        // Without a place to keep it the next run asks again.
        let _ = std::fs::create_dir_all(&context.installation.state);
        let _ = serde_json::to_vec(&kept).map(|text| std::fs::write(&path, text));
    }
    kvm
}

/// A probe's answer on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    kvm: KvmFinding,
}

/// Kind of KVM, for the record of a comparison.
pub(crate) fn kvm_kind(context: &Context) -> String {
    if context.environment.in_lab { "emulated by the lab".to_owned() } else { kvm(context).words() }
}

/// Runs words in the lab that runs, with everything live that they name.
pub(crate) fn in_lab(context: &Context, places: &Places, argv: Vec<OsString>, needs: &Needs) -> Result<u8, Failure> {
    let failed = |error: RunError| {
        let code = if let RunError::NotStarted { code, .. } = &error { *code } else { needs.code as u8 };
        (code, Failure::new(needs.code, PlaceError::Run(error)))
    };
    let cwd = env::current_dir().map_err(|e| failed(e.into()).1)?;
    let folder = |file: &PathBuf| cwd.join(file).parent().map(Path::to_owned);
    let parts = &context.installation;
    let live = [&parts.duplex, &parts.monitor, &parts.kernel, &parts.initramfs, &parts.workloads];
    let mut live: Vec<PathBuf> = live.into_iter().chain(&needs.files).filter_map(folder).collect();
    live.push(parts.store.clone());
    live.sort();
    live.dedup();
    let command =
        lab::Command { argv, env: environment::all(), cwd, live, stdin: needs.stdin, terminal: needs.terminal };
    let stdio = lab::Stdio::inherit().map_err(|e| failed(e.into()).1)?;
    lab::run(places, &command, stdio).or_else(|error| {
        let (code, failure) = failed(error);
        // A verb that could not be executed in the lab tells so by its code, as one here does.
        if code == needs.code as u8 {
            Err(failure)
        } else {
            note(failure.render().trim_end());
            Ok(code)
        }
    })
}

/// Where the lab is, and with what it starts. One lab serves the machine, whatever `--root` says.
pub(crate) fn settings(context: &Context) -> Settings {
    Settings {
        places: Places {
            kernel: context.environment.data_folder(context.uid).join("lab"),
            state: context.installation.state.join("lab"),
        },
        program: context.installation.duplex.clone(),
        search: environment::search_path(),
        memory_mib: None,
        idle: lab::IDLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_would_stay_in_the_lab_is_found() {
        let unshared = |files: &[&str], cwd: &str| {
            let needs = Needs { results: files.iter().map(PathBuf::from).collect(), ..Needs::of_fork() };
            needs.unshared(Path::new(cwd))
        };
        assert_eq!(unshared(&["/srv/a.json", "/tmp/b.html"], "/srv"), Some("/tmp".into()));
        assert_eq!(unshared(&["a.json"], "/tmp"), Some("/tmp".into()));
        assert_eq!(unshared(&["/tmp/results/a.json", "b.html", "/c", "/dev/stdout", "/proc/self/fd/1"], "/srv"), None);
        assert_eq!(unshared(&[], "/tmp"), None);
    }
}
