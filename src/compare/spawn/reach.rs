//! Runs an arm once more to see what it reaches of the host.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::super::plan::Arm;
use super::super::reach::{Counts, INSIDE, Reach, cgroup_id, exit_reason, places, read};
use super::super::runner::RunnerError;
use super::functions::functions;
use super::{EMBEDDED, Spawner, watch};
use crate::spec::Isolation;
use crate::sys::counts::{Counted, Counter};

/// Where the sandboxes' cgroups are.
pub(super) const FAMILY: &str = "/sys/fs/cgroup/duplex";
/// Why nothing is known of a cgroup.
pub(super) const GONE: &str = "the sandbox was gone before its cgroup was seen";
/// How often a sandbox's cgroup is looked for until it is there.
const LOOKING: Duration = Duration::from_micros(500);
/// Where tracefs usually is.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// What is counted, or why it is not.
struct Counters {
    calls: Result<Counter, String>,
    exits: Option<Result<Counter, String>>,
}

/// What this arm reaches. What the host cannot count is named in it.
pub(super) fn reach(spawner: &Spawner, arm: &Arm) -> Result<Reach, RunnerError> {
    let mut reach = Reach::default();
    let words: Vec<String> = ["cat"].iter().chain(&INSIDE).map(|w| (*w).to_owned()).collect();
    let (_, child) = spawner.spawn(spawner.command(arm, &[], EMBEDDED, &words).stdin(Stdio::null()))?;
    let (watched, _) = spawner.finish(child, false)?;
    spawner.trace(&watched)?;
    let host = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let inside = String::from_utf8_lossy(&watched.deed.stdout.head);
    (reach.set_user_id, reach.writable_host_paths) = read(&inside, arm.walls(), &host);
    for (what, seen) in [
        ("what a set-user-id program gains: the sandbox does not tell", reach.set_user_id.is_some()),
        ("writable paths of the host: the sandbox does not show its mounts", reach.writable_host_paths.is_some()),
    ] {
        if !seen {
            reach.not_measured.push(what.to_owned());
        }
    }
    counted(spawner, arm, &mut reach)?;
    Ok(reach)
}

/// The plan's command once more, watched for so long at most: the id of its sandbox's cgroup, if that was seen.
pub(super) fn again(spawner: &Spawner, arm: &Arm, limit: Duration) -> Result<Option<u64>, RunnerError> {
    let folder = tempfile::tempdir().map_err(RunnerError::Scratch)?;
    let file = folder.path().join("id");
    let id_file = file.display().to_string();
    let trace = spawner.trace_file();
    let options = ["--trace", trace.as_str(), "--cidfile", id_file.as_str()];
    let plan = &spawner.plan;
    let mut command = spawner.command_on(arm, "none", &options, &plan.reference, &plan.command);
    let (_, mut child) = spawner.spawn(command.stdin(Stdio::null()))?;
    let cgroup = Cell::new(None);
    let mut look = || {
        if cgroup.get().is_none() {
            cgroup.set(cgroup_of(&file));
        }
    };
    let watched = watch::watch(&mut child, limit, Some((LOOKING, &mut look)), || spawner.interrupt.note(None));
    if spawner.interrupt.asked.load(std::sync::atomic::Ordering::SeqCst) {
        return Err(RunnerError::Interrupted);
    }
    spawner.trace(&watched?)?;
    Ok(cgroup.get())
}

/// All its host's system calls and exits counted.
fn counted(spawner: &Spawner, arm: &Arm, reach: &mut Reach) -> Result<(), RunnerError> {
    let counters = counters(arm);
    let cgroup = again(spawner, arm, spawner.plan.timeout)?;
    let of = |counter: Result<Counter, String>, name: fn(u64) -> String| -> Result<Counts, String> {
        let counter = counter?;
        let cgroup = cgroup.ok_or(GONE)?;
        let found = counter.counts(cgroup).map_err(|e| format!("the kernel does not tell ({e})"))?;
        sorted(&found, name).ok_or_else(|| "the kernel saw none in its cgroup".to_owned())
    };
    let calls = noted(reach, "system calls of the host", of(counters.calls, |number| number.to_string()));
    let exits = counters.exits.and_then(|exits| noted(reach, "exits of virtual processors", of(exits, exit_reason)));
    (reach.system_calls, reach.vm_exits) = (calls, exits);
    if spawner.plan.functions {
        reach.kernel_functions = noted(reach, "functions of the host's kernel", functions(spawner, arm)?);
    }
    Ok(())
}

/// What was counted, if anything; what of it is not known is noted.
fn noted(reach: &mut Reach, what: &str, found: Result<Counts, String>) -> Option<Counts> {
    let found = found.map_err(|why| reach.not_measured.push(format!("{what}: {why}"))).ok();
    reach.not_measured.extend(found.as_ref().and_then(|counts| counts.without_kinds(what)));
    found
}

/// Events by names instead of numbers; `None` if there are none.
pub(super) fn sorted(found: &Counted, name: impl Fn(u64) -> String) -> Option<Counts> {
    let mut by_kind = BTreeMap::new();
    for (number, count) in &found.by_number {
        let sum: &mut u64 = by_kind.entry(name(*number)).or_default();
        *sum = sum.saturating_add(*count);
    }
    let counts = Counts::of(by_kind, found.unsorted);
    (counts.total > 0).then_some(counts)
}

/// The id of the cgroup of the sandbox whose own id is in this file, once both are there.
fn cgroup_of(file: &Path) -> Option<u64> {
    let id = std::fs::read_to_string(file).ok().filter(|id| !id.is_empty())?;
    cgroup_id(&Path::new(FAMILY).join(id.trim())).ok()
}

fn counters(arm: &Arm) -> Counters {
    let family = cgroup_id(Path::new(FAMILY)).map_err(|e| format!("{FAMILY} cannot be read ({e})"));
    let calls = family.clone().and_then(|family| Counter::of_system_calls(family).map_err(|e| refused(&e)));
    let exits = (arm.isolation == Isolation::MicroVm).then(|| family.and_then(exits));
    Counters { calls, exits }
}

pub(super) fn refused(error: &io::Error) -> String {
    format!("the kernel refuses to count them (it needs CONFIG_BPF_EVENTS, and we CAP_BPF and CAP_PERFMON): {error}")
}

fn exits(family: u64) -> Result<Counter, String> {
    let (events, _mount) = tracefs()?;
    let event = events.join("events/kvm/kvm_exit");
    let file = |name: &str| {
        std::fs::read_to_string(event.join(name)).map_err(|e| {
            format!("tracefs has no {} (a kernel with CONFIG_KVM and its tracepoints): {e}", event.join(name).display())
        })
    };
    let id = file("id")?.trim().parse().map_err(|_| "the tracepoint has no id".to_owned())?;
    let (reason, isa) = places(&file("format")?).ok_or("the tracepoint's format is not known")?;
    Counter::of_tracepoint(family, id, reason, isa).map_err(|e| refused(&e))
}

/// Where tracefs is: mounted for all, or for as long as the descriptor is open.
pub(super) fn tracefs() -> Result<(PathBuf, Option<OwnedFd>), String> {
    let usual = TRACEFS.iter().map(Path::new).find(|path| path.join("events").is_dir());
    if let Some(path) = usual {
        return Ok((path.to_owned(), None));
    }
    let mount = || {
        let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let mount = mount().map_err(|e: rustix::io::Errno| format!("this host has no tracefs ({e})"))?;
    use std::os::fd::AsRawFd;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())), Some(mount)))
}
