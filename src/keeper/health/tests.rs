use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;

use super::*;
use crate::keeper::client;
use crate::keeper::wire::Request;
use crate::keeper::{Ended, Keeper};
use crate::sandbox::fake::FakeBackend;
use crate::sandbox::roster::{Roster, Seen};
use crate::spec::{Definition, Digest, Exit, Isolation, LogLimits, Restart, SIGTERM, SandboxId, SandboxSpec};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const MS: u64 = 1_000_000;

/// One sandbox of fakes on a roster of its own, whose command sleeps.
struct Place {
    _dir: tempfile::TempDir,
    roster: Roster,
    id: SandboxId,
}

fn check(test: &[&str]) -> Healthcheck {
    let test = test.iter().map(|w| (*w).to_owned()).collect();
    Healthcheck { test, interval_ns: MS, ..Healthcheck::default() }
}

impl Place {
    fn new(check: Healthcheck) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let roster = Roster::open(dir.path()).unwrap();
        let id = SandboxId::from_bytes([0xc0, 0, 0, 0, 0, 1]);
        let process = ProcessSpec { args: vec!["sleep".into(), "1000".into()], ..ProcessSpec::default() };
        let spec = SandboxSpec::plain(id.clone(), Isolation::Container, Digest::from_sha256([7; 32]), process);
        let definition = Definition {
            spec,
            labels: BTreeMap::new(),
            remove: false,
            restart: Restart::No,
            stop_signal: SIGTERM,
            stop_timeout_s: 10,
            input_once: false,
            log: LogLimits::default(),
            health: Some(check),
            store: None,
            created_at_ns: 1,
        };
        drop(roster.add(definition, Some("box"), false).unwrap());
        Self { _dir: dir, roster, id }
    }

    fn start(&self) -> JoinHandle<Ended> {
        let keeper = Keeper::new(self.roster.take(&self.id).unwrap()).unwrap();
        let keeper = thread::spawn(move || keeper.run(&FakeBackend::new(Isolation::Container), &mut |_| {}).unwrap());
        self.until("its start", |seen| seen.standing.status == Status::Running);
        keeper
    }

    fn stop(&self, keeper: JoinHandle<Ended>) {
        self.order(Request::Signal(9));
        let ended = keeper.join().unwrap();
        assert!(ended.outcome.exit == Exit::Signal(9) && ended.troubles.is_empty(), "{ended:?}");
    }

    fn order(&self, request: Request) {
        client::order(&self.folder(), request).unwrap();
    }

    fn folder(&self) -> PathBuf {
        self.roster.path_of(&self.id)
    }

    fn see(&self) -> (Seen, HealthLog) {
        let seen = self.roster.see(&self.id).unwrap();
        let log = seen.health_log().unwrap();
        (seen, log)
    }

    #[track_caller]
    fn until(&self, what: &str, done: impl Fn(&Seen) -> bool) -> HealthLog {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (seen, log) = self.see();
            if done(&seen) {
                return log;
            }
            assert!(Instant::now() < deadline, "{what} does not come: {seen:?}, {log:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn until_health(&self, is: HealthStatus) -> HealthLog {
        self.until(is.word(), |seen| seen.standing.health == Some(is))
    }
}

#[test]
fn a_success_makes_healthy_until_the_end() {
    let place = Place::new(check(&["CMD", "echo", "fine"]));
    assert_eq!(place.see().0.standing.health, None);
    let keeper = place.start();
    let log = place.until_health(HealthStatus::Healthy);
    let first = &log.checks[0];
    assert_eq!((first.exit_code, first.output.as_str(), log.failing_streak), (0, "fine\n", 0));
    assert!(first.start_ns <= first.end_ns);
    let next = place.until("a second check", |seen| seen.health_log().unwrap().checks.len() > 1);
    assert!(next.checks[0].end_ns + MS <= next.checks[1].start_ns, "a pause lies between: {next:?}");
    place.stop(keeper);
    let (seen, log) = place.see();
    assert_eq!(seen.standing.health, Some(HealthStatus::Unhealthy), "nothing checks what has ended");
    thread::sleep(Duration::from_millis(50));
    assert_eq!(place.see().1, log, "no check after the end");
}

#[test]
fn failures_make_unhealthy() {
    let place = Place::new(Healthcheck { retries: 2, ..check(&["CMD", "false"]) });
    let keeper = place.start();
    let log = place.until_health(HealthStatus::Unhealthy);
    assert!(log.failing_streak >= 2 && log.checks.iter().all(|c| c.exit_code == 1), "{log:?}");
    let log = place.until("the sixth", |seen| seen.health_log().unwrap().failing_streak >= 6);
    assert_eq!(log.checks.len(), 5);
    place.stop(keeper);
}

#[test]
fn one_that_cannot_be_executed_says_why() {
    let place = Place::new(check(&["CMD", "no-such"]));
    let keeper = place.start();
    let log = place.until_health(HealthStatus::Unhealthy);
    assert!(log.checks.iter().all(|c| c.exit_code == -1 && c.output.contains("no-such")), "{log:?}");
    place.stop(keeper);
}

#[test]
fn one_that_takes_too_long_is_killed() {
    let place = Place::new(Healthcheck { timeout_ns: 20 * MS, ..check(&["CMD", "sleep", "4321"]) });
    let keeper = place.start();
    let log = place.until("three of them", |seen| {
        let probes = client::processes(&seen.path).unwrap().iter().filter(|p| p.command == "sleep 4321").count();
        assert!(probes <= 1, "they pile up");
        seen.standing.health == Some(HealthStatus::Unhealthy)
    });
    for check in &log.checks {
        assert_eq!((check.exit_code, check.output.as_str()), (-1, "Health check exceeded timeout (20ms)"));
        assert!(check.end_ns - check.start_ns >= 20 * MS, "{check:?}");
    }
    place.stop(keeper);
}

#[test]
fn a_check_at_work_does_not_hold_up_the_end() {
    let place = Place::new(check(&["CMD", "sleep", "4321"]));
    let keeper = place.start();
    let runs = |seen: &Seen| client::processes(&seen.path).unwrap().iter().any(|p| p.command == "sleep 4321");
    place.until("a check", runs);
    place.stop(keeper);
    assert_eq!(place.see().1, HealthLog::default(), "it does not count");
}

#[test]
fn output_is_bounded() {
    let place = Place::new(check(&["CMD", "echo", &"é".repeat(5000)]));
    let keeper = place.start();
    let log = place.until_health(HealthStatus::Healthy);
    assert_eq!(log.checks[0].output, "é".repeat(MOST_OUTPUT / 2) + "...");
    place.stop(keeper);
}

#[test]
fn a_reason_is_bounded_too() {
    let place = Place::new(check(&["CMD", &"é".repeat(5000)]));
    let keeper = place.start();
    let log = place.until_health(HealthStatus::Unhealthy);
    assert!(log.checks.iter().all(|c| c.output.len() <= MOST_OUTPUT + 3 && c.output.ends_with("...")), "{log:?}");
    place.stop(keeper);
}

#[test]
fn nothing_is_checked_while_it_is_paused() {
    let place = Place::new(check(&["CMD", "true"]));
    let keeper = place.start();
    place.until_health(HealthStatus::Healthy);
    place.order(Request::Pause);
    assert_eq!(place.see().0.standing.health, Some(HealthStatus::Unhealthy));
    // One that had just ended is noted yet.
    thread::sleep(Duration::from_millis(50));
    let (seen, log) = place.see();
    assert_eq!(seen.standing.health, Some(HealthStatus::Unhealthy));
    thread::sleep(Duration::from_millis(100));
    assert_eq!(place.see().1, log);
    place.order(Request::Unpause);
    place.until_health(HealthStatus::Healthy);
    place.order(Request::Pause);
    place.stop(keeper);
}

#[test]
fn a_new_start_begins_anew() {
    let place = Place::new(Healthcheck { retries: 2, ..check(&["CMD", "false"]) });
    let keeper = place.start();
    place.until_health(HealthStatus::Unhealthy);
    place.stop(keeper);
    let before = place.see().1;
    let mut entry = place.roster.take(&place.id).unwrap();
    entry.definition.health = Some(Healthcheck { interval_ns: 600_000 * MS, ..check(&["CMD", "false"]) });
    let keeper = Keeper::new(entry).unwrap();
    let keeper = thread::spawn(move || keeper.run(&FakeBackend::new(Isolation::Container), &mut |_| {}).unwrap());
    place.until_health(HealthStatus::Starting);
    let log = place.until("an empty streak", |seen| seen.health_log().unwrap().failing_streak == 0);
    assert_eq!(log.checks, before.checks, "what was seen is not forgotten");
    place.stop(keeper);
}
