//! Health checks from the command line, in both isolations.

use std::fs;

use serde_json::{Value, json};

use crate::busybox::{self, BUSYBOX};
use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone, Need::Program("mkfs.erofs"), Need::File(BUSYBOX)];
const BOTH: [&str; 2] = ["container", "microvm"];

/// Without a check, and with one of its own.
const PLAIN: &str = "plain:1";
const CHECKED: &str = "checked:1";

cases_with!(
    "health",
    place(),
    [states_are_seen, an_images_check_is_run_or_changed, one_that_takes_too_long_is_killed,]
);

fn place() -> Place {
    let mut place = Place::new();
    let process = json!({ "Cmd": ["sleep", "1000"], "Env": ["PATH=/bin", "WORD=image"], "WorkingDir": "/srv" });
    let mut checked = process.clone();
    checked["Shell"] = json!(["/bin/sh", "-e", "-c"]);
    checked["Healthcheck"] = json!({
        "Test": ["CMD-SHELL", "echo $WORD $PWD; echo err >&2; case $- in *e*) echo own;; esac"],
        "Interval": 200_000_000, "Timeout": 60_000_000_000_i64, "StartPeriod": i64::MAX, "Retries": -1,
    });
    for (name, process) in [(PLAIN, &process), (CHECKED, &checked)] {
        let archive = place.folder().join("image.tar");
        fs::write(&archive, busybox::archive(name, process)).unwrap();
        place.say(&["load", "-q", "-i", archive.to_str().unwrap()]);
    }
    place.count();
    place
}

fn health(place: &Place) -> Value {
    serde_json::from_str(&place.look("box", "{{json .State}}")).map(|state: Value| state["Health"].clone()).unwrap()
}

fn until(place: &Place, status: &str) -> Value {
    place.until(status, || health(place)["Status"] == status);
    health(place)
}

fn states_are_seen(place: &Place) {
    for isolation in BOTH {
        let check = ["--health-cmd", "cat /fine", "--health-interval", "100ms", "--health-retries", "2"];
        let start = ["--health-start-period", "1h", "--health-start-interval", "100ms"];
        place.run(isolation, &[&["--name", "box"], &check[..], &start, &[PLAIN]].concat());
        let failed = || health(place)["Log"].as_array().is_some_and(|log| log.len() > 2);
        place.until("three checks", failed);
        assert_eq!(health(place)["Status"], "starting", "failures do not count yet: {}", health(place));
        let status = |filter: &str| place.say(&["ps", "--filter", filter, "--format", "{{.Status}}"]);
        assert!(status("health=starting").ends_with(" (health: starting)"), "{}", status("name=box"));
        assert_eq!(status("health=none"), "");

        place.say(&["exec", "box", "sh", "-c", "echo well > /fine"]);
        let seen = until(place, "healthy");
        let last = seen["Log"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&last["ExitCode"], &last["Output"], &seen["FailingStreak"]),
            (&json!(0), &json!("well\n"), &json!(0))
        );
        assert!(last["Start"].as_str().unwrap() < last["End"].as_str().unwrap(), "{last}");
        assert!(status("health=healthy").ends_with(" (healthy)"), "{}", status("name=box"));

        place.say(&["exec", "box", "rm", "/fine"]);
        let seen = until(place, "unhealthy");
        let last = seen["Log"].as_array().unwrap().last().unwrap().clone();
        assert!(last["ExitCode"] == 1 && last["Output"].as_str().unwrap().contains("/fine"), "{last}");
        assert!(status("health=unhealthy").ends_with(" (unhealthy)"), "{}", status("name=box"));
        let bad = place.output(&["ps", "--filter", "health=ill"]);
        assert!(bad.status.code() == Some(1) && words(&bad).contains("'ill'"), "{}", words(&bad));

        place.say(&["exec", "box", "touch", "/fine"]);
        until(place, "healthy");
        place.say(&["pause", "box"]);
        assert!(status("name=box").ends_with("(Paused)"), "{}", status("name=box"));
        place.say(&["unpause", "box"]);
        until(place, "healthy");

        // Nothing checks what has ended, and a new start begins anew.
        place.say(&["stop", "-t", "0", "box"]);
        assert_eq!(health(place)["Status"], "unhealthy");
        assert!(status("status=exited").starts_with("Exited"), "{}", status("status=exited"));
        place.say(&["start", "box"]);
        assert_eq!(
            (health(place)["Status"].clone(), health(place)["FailingStreak"].clone()),
            (json!("starting"), json!(0))
        );
        place.say(&["rm", "-f", "box"]);
        place.must_be_clean(isolation);
    }
}

fn an_images_check_is_run_or_changed(place: &Place) {
    let config = || serde_json::from_str::<Value>(&place.look("box", "{{json .Config.Healthcheck}}")).unwrap();
    for isolation in BOTH {
        place.run(isolation, &["--name", "box", "-e", "WORD=mine", "-e", "PATH=/bin", CHECKED]);
        let seen = until(place, "healthy");
        let output = seen["Log"][0]["Output"].as_str().unwrap();
        assert!(["mine /srv\n", "err\n", "own\n"].iter().all(|line| output.contains(line)), "{output}");
        assert_eq!((config()["Interval"].clone(), config()["Retries"].clone()), (json!(200_000_000), Value::Null));
        place.say(&["rm", "-f", "box"]);

        let change = ["--health-cmd", "exit 7", "--health-retries", "1", "--health-start-period", "1ms"];
        place.run(isolation, &[&["--name", "box"], &change[..], &[CHECKED]].concat());
        let seen = until(place, "unhealthy");
        assert_eq!(seen["Log"][0]["ExitCode"], 7);
        assert_eq!(config()["Interval"], 200_000_000);
        place.say(&["rm", "-f", "box"]);

        place.run(isolation, &["--name", "box", "--no-healthcheck", CHECKED]);
        assert_eq!((config()["Test"].clone(), health(place)), (json!(["NONE"]), Value::Null));
        assert!(!place.say(&["ps"]).contains("health"));
        place.say(&["rm", "-f", "box"]);
        place.must_be_clean(isolation);
    }
    let both = place.output(&["run", "--no-healthcheck", "--health-cmd", "true", CHECKED]);
    assert!(both.status.code() == Some(125) && words(&both).contains("--no-healthcheck"), "{}", words(&both));
}

fn one_that_takes_too_long_is_killed(place: &Place) {
    for isolation in BOTH {
        let check = ["--health-cmd", "echo begun; exec sleep 4327", "--health-interval", "1ms"];
        let times = ["--health-timeout", "300ms", "--health-retries", "2"];
        place.run(isolation, &[&["--name", "box"], &check[..], &times, &[PLAIN]].concat());
        let seen = until(place, "unhealthy");
        assert_eq!(seen["Log"][0]["ExitCode"], -1, "{seen}");
        assert_eq!(seen["Log"][0]["Output"], "Health check exceeded timeout (300ms): begun\n");
        let probes = || place.say(&["top", "box"]).matches("sleep 4327").count();
        assert!((0..5).all(|_| probes() <= 1), "they pile up: {}", place.say(&["top", "box"]));
        // One that is on its way does not hold up the end, however the sandbox ends.
        place.say(&["kill", "box"]);
        assert_eq!(place.say(&["wait", "box"]), "137");
        place.say(&["start", "box"]);
        place.until("a check", || probes() == 1);
        place.say(&["pause", "box"]);
        place.say(&["rm", "-f", "box"]);
        place.must_be_clean(isolation);

        place.run(isolation, &[&["--name", "box"], &check[..], &[PLAIN]].concat());
        place.until("a check", || probes() == 1);
        place.kill_keepers();
        assert_eq!(place.look("box", "{{.State.Status}} {{.State.Health.Status}}"), "exited unhealthy", "{isolation}");
        place.say(&["rm", "box"]);
        place.until_clean();
    }
}
