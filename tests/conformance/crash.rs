//! Kills of the keeper and of container-init at any moment: what is left, the next command finds and clears.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duplex::sandbox::shelf::Shelf;

use super::limits::inventory;
use super::{arms, image};
use crate::runner::{Skip, Verdict};

/// Names the state folder for a process that is this program again, as a keeper.
const KEEPER: &str = "DUPLEX_TEST_KEEPER";
const PROGRAM: &str = "DUPLEX_TEST_KEEPER_PROGRAM";
const IMAGE: &str = "DUPLEX_TEST_KEEPER_IMAGE";

const ROUNDS: u32 = 6;

/// A keeper that is killed at the latest when the case ends.
struct Keeper(Child);

impl Keeper {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a container until it is killed, if this process was started as a keeper.
pub(crate) fn keep() -> bool {
    let (Some(state), Some(program), Some(image)) =
        (std::env::var_os(KEEPER), std::env::var_os(PROGRAM), std::env::var_os(IMAGE))
    else {
        return false;
    };
    let stage = arms::container_at(Path::new(&state), Path::new(&program), Path::new(&image));
    let mut spec = stage.spec(&["sh", "-c", "sleep 600 & echo ready; sleep 600"]);
    spec.name = Some("kept".into());
    let mut running = stage.start(&spec);
    running.stdout.until("ready");
    println!("ready");
    let _ = running.sandbox.wait();
    true
}

fn keeper(state: &Path) -> Result<Keeper, Skip> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(KEEPER, state).env(PROGRAM, arms::program()).env(IMAGE, image::path()?);
    Ok(Keeper(command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()))
}

/// The ids that the shelf has seen, alive or not.
fn ids(state: &Path) -> Vec<String> {
    let names = std::fs::read_dir(state).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.len() == 12).collect()
}

pub(crate) fn a_killed_keeper_leaves_nothing_that_is_not_cleared() -> Verdict {
    let state = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(state.path()).unwrap();
    let mut seen = Vec::new();
    let whole = whole_start(state.path(), &mut seen)?;
    // On a host that has become busier since, later kills have to make up for those that came too early.
    for round in 0..4 * ROUNDS {
        if round >= ROUNDS && seen.len() > 3 {
            break;
        }
        let keeper = keeper(state.path())?;
        std::thread::sleep(whole * round / (ROUNDS - 2));
        keeper.kill();
        seen.extend(ids(state.path()));
        must_be_cleared(&shelf, state.path(), &seen);
    }
    assert!(seen.len() > 3, "kills came too early to meet anything");
    Ok(())
}

/// How long a keeper takes until its container runs; ended by a kill at that moment.
fn whole_start(state: &Path, seen: &mut Vec<String>) -> Result<Duration, Skip> {
    let began = Instant::now();
    let keeper = keeper(state)?;
    while !running(state) {
        assert!(began.elapsed() < Duration::from_secs(120), "the keeper's container does not run");
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = began.elapsed();
    keeper.kill();
    seen.extend(ids(state));
    must_be_cleared(&Shelf::open(state).unwrap(), state, seen);
    Ok(took)
}

/// The shell and what it started are in its cgroup.
fn running(state: &Path) -> bool {
    ids(state).iter().any(|id| {
        let procs = std::fs::read_to_string(format!("/sys/fs/cgroup/duplex/{id}/cgroup.procs")).unwrap_or_default();
        procs.lines().count() >= 2
    })
}

fn must_be_cleared(shelf: &Shelf, state: &Path, seen: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = shelf.reconcile().unwrap();
        // Folders that were never finished wait for a minute: nobody knows yet whether their owner lives. Nothing but they exist then.
        let left = inventory(state, seen);
        let left: Vec<&String> = left.iter().filter(|l| !l.contains("/new-")).collect();
        if left.is_empty() && found.failed.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left: {left:#?}, not cleared: {:?}", found.failed);
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn a_killed_container_init_ends_the_sandbox() -> Verdict {
    let stage = arms::container()?;
    let spec = stage.spec(&["sh", "-c", "sleep 600 & echo ready; sleep 600"]);
    let mut running = stage.start(&spec);
    running.stdout.until("ready");
    let id = spec.id.to_string();
    let init = parent_of_first(&id);
    let status = Command::new("kill").args(["-9", &init.to_string()]).status().unwrap();
    assert!(status.success());
    let outcome = running.sandbox.wait().unwrap();
    assert_eq!(outcome.exit, duplex::spec::Exit::SandboxFailed, "{outcome:?}");
    assert!(outcome.reason.is_some_and(|r| r.contains("container-init")));
    running.sandbox.remove().unwrap();
    assert!(inventory(stage.state.path(), &[id]).is_empty());
    Ok(())
}

fn parent_of_first(id: &str) -> u32 {
    let procs = std::fs::read_to_string(format!("/sys/fs/cgroup/duplex/{id}/cgroup.procs")).unwrap();
    let status = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |text: &str, name: &str| -> Vec<String> {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    let first = procs.lines().find(|pid| field(&status(pid), "NSpid:").last().is_some_and(|n| n == "1")).unwrap();
    field(&status(first), "PPid:")[0].parse().unwrap()
}
