use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::compare::drive::tests::plan;
use crate::spec::{Digest, Moment};

/// A program in place of `duplex`, which writes a trace where it is told to and then does `body`.
fn spawner(dir: &std::path::Path, body: &str) -> Spawner {
    let program = dir.join("duplex");
    let trace = serde_json::json!({
        "image": Digest::from_sha256([1; 32]), "moments": [["main", 5]], "usage": {},
        "outcome": {"exit": {"Code": 0}, "oom": false, "reason": null},
    });
    let script = format!(
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in --trace) trace=$2; shift;; --) shift; break;; esac; shift; done\n\
         write() {{ echo '{trace}' > \"$trace\"; }}\n{body}\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let plan = Plan { timeout: Duration::from_secs(2), ..plan() };
    Spawner::new(program, Vec::new(), plan).unwrap()
}

fn run(body: &str) -> Result<Observation, RunnerError> {
    let dir = tempfile::tempdir().unwrap();
    let mut spawner = spawner(dir.path(), body);
    let arm = spawner.plan.arms[0].clone();
    spawner.run(&arm, true)
}

#[test]
fn a_run_is_seen_from_outside() {
    let seen = run("write; printf out; printf err >&2; sleep 0.1; exit 7").unwrap();
    assert_eq!(
        (seen.deed.exit_code, &seen.deed.stdout.head[..], &seen.deed.stderr.head[..]),
        (7, &b"out"[..], &b"err"[..])
    );
    let at = |moment| seen.moments.at(moment).unwrap();
    assert!(at(Moment::Exec) < at(Moment::FirstByte));
    assert!(at(Moment::Gone) - at(Moment::FirstByte) >= 90_000_000, "{:?}", seen.moments);
    assert_eq!(at(Moment::Main), 5);
    assert!(seen.peak.is_none_or(|p| p.pss > 0));
}

#[test]
fn a_silent_run_has_no_first_byte() {
    assert_eq!(run("write; exit 0").unwrap().moments.at(Moment::FirstByte), None);
}

#[test]
fn long_output_is_hashed_whole_and_kept_in_part() {
    let seen = run("write; head -c 1000000 /dev/zero").unwrap();
    assert_eq!((seen.deed.stdout.len, seen.deed.stdout.head.len()), (1_000_000, 65536));
}

#[test]
fn a_run_without_a_trace_is_a_failure_of_duplex() {
    let error = run("echo 'Error: no kvm' >&2; exit 125").unwrap_err();
    assert!(matches!(&error, RunnerError::Failed { exit_code: 125, stderr } if stderr.contains("no kvm")), "{error:?}");
}

#[test]
fn an_endless_run_is_stopped() {
    let begin = Instant::now();
    let error = run("write; exec sleep 100").unwrap_err();
    assert!(matches!(error, RunnerError::Timeout { seconds: 2 }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_process_left_behind_is_told() {
    let error = run("write; sleep 4 & exit 0").unwrap_err();
    assert!(matches!(error, RunnerError::Lingering { exit_code: 0 }), "{error:?}");
}

#[test]
fn an_idle_sandbox_answers_and_ends_with_its_input() {
    let dir = tempfile::tempdir().unwrap();
    let mut spawner = spawner(dir.path(), "write; exec cat");
    let arm = spawner.plan.arms[0].clone();
    let sample = spawner.idle(&arm).unwrap();
    assert!(sample.is_none_or(|s| s.pss > 0));
}

#[test]
fn evidence_comes_from_inside_and_from_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut spawner = spawner(dir.path(), "write; shift; exec \"$@\"");
    let arm = spawner.plan.arms[0].clone();
    let evidence = spawner.evidence(&arm).unwrap();
    assert!(evidence.boot_id.is_some() && evidence.pid.is_some() && evidence.processors.is_some(), "{evidence:?}");
}

#[test]
fn a_missing_program_is_named() {
    let mut spawner = spawner(tempfile::tempdir().unwrap().path(), "");
    let arm = spawner.plan.arms[0].clone();
    assert!(spawner.run(&arm, false).unwrap_err().to_string().contains("Cannot start"));
}

#[test]
fn an_interrupt_ends_the_run_and_the_comparison() {
    let dir = tempfile::tempdir().unwrap();
    let mut spawner = spawner(dir.path(), "write; exec sleep 100");
    let arm = spawner.plan.arms[0].clone();
    let interrupt = spawner.interrupt();
    let begin = Instant::now();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        interrupt.interrupt();
    });
    assert!(matches!(spawner.run(&arm, false), Err(RunnerError::Interrupted)));
    assert!(matches!(spawner.run(&arm, false), Err(RunnerError::Interrupted)), "no new run begins");
    assert!(begin.elapsed() < Duration::from_secs(1));
}

fn crowded<T>(body: &str, act: impl FnOnce(&mut dyn Crowd) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let mut spawner = spawner(dir.path(), body);
    let arm = spawner.plan.arms[0].clone();
    act(&mut *spawner.crowd(&arm))
}

/// Whether a process of this number is there and no corpse.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn idle_sandboxes_live_together_answer_and_end() {
    crowded("exec cat", |crowd| {
        let alone = crowd.settle().unwrap();
        assert!(alone.memory.is_none() && alone.available_bytes.is_some(), "{alone:?}");
        (0..3).for_each(|_| crowd.add().unwrap());
        assert_eq!(crowd.ping().unwrap().len(), 9);
        assert!(crowd.settle().unwrap().memory.is_none_or(|m| m.pss > 0));
        assert_eq!((crowd.end(), crowd.ping().unwrap().len()), (0, 0));
        crowd.add().unwrap();
        assert_eq!(crowd.ping().unwrap().len(), 3, "there is room again");
    });
}

#[test]
fn one_that_fails_or_is_silent_is_told_and_all_are_ended() {
    let pids = tempfile::NamedTempFile::new().unwrap();
    let noted = format!("echo $$ >> {}; ", pids.path().display());
    crowded(&(noted.clone() + "read up; echo up; read ping"), |crowd| {
        crowd.add().unwrap();
        assert!(matches!(crowd.ping(), Err(RunnerError::Silent { number: 1, seconds: 2 })));
    });
    crowded(&(noted.clone() + "read up; echo up; trap '' TERM; sleep 1; cat; exit 3"), |crowd| {
        (0..2).for_each(|_| crowd.add().unwrap());
        assert_eq!(crowd.end(), 2, "their exit codes");
    });
    crowded(&(noted + "echo 'Error: no room' >&2; exit 125"), |crowd| {
        let error = crowd.add().unwrap_err().to_string();
        assert!(error.contains("no room"), "{error}");
    });
    let noted = fs::read_to_string(pids.path()).unwrap();
    assert_eq!(noted.lines().count(), 4);
    assert!(noted.lines().all(|pid| !lives(pid.parse().unwrap())), "{noted}");
}

#[test]
fn an_interrupt_ends_a_crowd_that_waits_for_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut spawner = spawner(dir.path(), "read up; echo up; exec sleep 100");
    let (arm, interrupt) = (spawner.plan.arms[0].clone(), spawner.interrupt());
    let mut crowd = spawner.crowd(&arm);
    crowd.add().unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        interrupt.interrupt();
    });
    assert!(matches!(crowd.ping(), Err(RunnerError::Interrupted)));
    assert!(matches!(crowd.add(), Err(RunnerError::Interrupted)) && crowd.settle().is_err());
    assert_eq!(crowd.end(), 1);
}
