//! Many idle sandboxes at once, as `compare --density` counts them: that they live together, answer, cost what they say, and are gone afterwards.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone];

cases_with!(
    "density",
    Place::new(),
    [
        idle_sandboxes_are_counted_and_leave_nothing,
        a_reserve_stops_before_the_first,
        given_up_or_killed_it_leaves_nothing
    ]
);

const ROUNDS: [&str; 8] = ["--runs", "1", "--warmup", "0", "--memory-runs", "1", "--format", "json"];
/// Of a lab that other tests keep busy.
const PATIENT: [&str; 2] = ["--density-ping", "60000"];

fn compared(place: &Place, words: &[&str]) -> Value {
    serde_json::from_str(&place.say(&[&["compare"][..], &ROUNDS, words].concat())).unwrap()
}

fn idle_sandboxes_are_counted_and_leave_nothing(place: &Place) {
    let arms = ["--arm", "container", "--arm", "microvm", "--arm", "cold=microvm,cold"];
    let record = compared(place, &[&["--density", "3"][..], &PATIENT, &arms].concat());
    for arm in record["arms"].as_array().unwrap() {
        let (name, sweep) = (&arm["name"], &arm["density"]);
        assert_eq!(sweep["stopped"], "most", "{name}: {sweep:#}");
        assert_eq!((&sweep["ended_badly"], &sweep["words"]), (&Value::Null, &Value::Null), "{name}");
        let steps = sweep["steps"].as_array().unwrap();
        let counts: Vec<_> = steps.iter().map(|step| step["instances"].as_u64().unwrap()).collect();
        assert_eq!(counts, [1, 2, 3]);
        for (step, count) in steps.iter().zip(counts) {
            assert_eq!(step["pings_ms"].as_array().unwrap().len() as u64, 3 * count, "{name}: three of each");
            assert!(step["ping_worst_ms"].as_f64().unwrap() >= step["ping_median_ms"].as_f64().unwrap());
            assert!(step["available_bytes"].as_u64().unwrap() > 0);
        }
        let memory: Vec<_> = steps.iter().map(|step| step["memory_bytes"].as_u64().unwrap()).collect();
        assert!(memory.is_sorted() && memory[0] < memory[2], "{name}: each takes some more: {memory:?}");
        // The first is what an idle one was before, and a further one takes no more than the first.
        let idle = arm["memory_runs"][0]["memory_bytes"]["idle"].as_u64().unwrap();
        let (first, further) = (&sweep["figures"]["first_bytes"], &sweep["figures"]["further_bytes"]);
        assert!(first.as_u64().unwrap().abs_diff(idle) < idle / 4, "{name}: {first}, idle {idle}");
        assert!(
            (1..=first.as_i64().unwrap() * 5 / 4).contains(&further.as_i64().unwrap()),
            "{name}: {first} {further}"
        );
    }
    place.must_be_clean("after all arms");
}

fn a_reserve_stops_before_the_first(place: &Place) {
    let arms = ["--arm", "container", "--arm", "again=container"];
    let record = compared(place, &[&["--density", "3", "--density-reserve", "4096g"][..], &arms].concat());
    for arm in record["arms"].as_array().unwrap() {
        assert_eq!((&arm["density"]["stopped"], &arm["density"]["steps"]), (&"reserve".into(), &serde_json::json!([])));
    }
    place.must_be_clean("without any");
}

fn given_up_or_killed_it_leaves_nothing(place: &Place) {
    let words = ["compare", "--runs", "1", "--warmup", "0", "--memory-runs", "0", "--density", "64"];
    let arms = ["--arm", "microvm", "--arm", "container"];
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = place.duplex(&[&words[..], &PATIENT, &arms].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said: Vec<_> =
            lines.by_ref().map(Result::unwrap).take_while(|line| line != "idle of 'microvm': 4").collect();
        assert!(place.before().len() < crate::inventory::inventory(&[place.folder()]).len(), "{said:?}");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        if signal == Signal::KILL {
            assert_eq!(status.signal(), Some(9));
            // They end with their input, and each of them clears what is its own.
            place.until_clean();
        } else {
            let said: Vec<_> = lines.map(Result::unwrap).collect();
            assert_eq!(status.code(), Some(130), "{status:?} {said:?}");
            place.must_be_clean("given up");
        }
    }
}
