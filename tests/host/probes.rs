//! The probes of the walls on real sandboxes: that each sees a door that is open, and what every arm of `compare` lets through.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Program("mke2fs"), Need::Program("passt")];

cases_with!("probes", Place::new(), [steps_see_open_doors, every_arm_reaches_what_it_may]);

/// Without a filter, with every capability and as the host's users a container's programs pass what only these two hold back.
fn steps_see_open_doors(place: &Place) {
    let open = ["--userns", "host", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined"];
    let said = place.say(&[&["run", "--rm", "--isolation", "container"][..], &open, &["workloads", "probe"]].concat());
    let said: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once(' ')).collect();
    let held_back = [
        "bpf",
        "io-uring",
        "userfaultfd",
        "perf",
        "keyring",
        "user-namespace",
        "mount-namespace",
        "file-system",
        "handle",
        "module",
        "kexec",
        "clock",
        "kernel-log",
        "ports",
        "swap",
        "accounting",
        "real-time",
    ];
    let shut: Vec<_> = held_back.iter().filter(|name| said.get(*name) != Some(&"passed")).collect();
    assert!(shut.is_empty(), "{shut:?} of {said:#?}");
    assert!(!said.contains_key("host-loopback"), "without a port there is nothing to reach");
}

fn every_arm_reaches_what_it_may(place: &Place) {
    let rounds = ["--runs", "1", "--warmup", "0", "--memory-runs", "0", "--format", "json"];
    let arms = ["--arm", "container", "--arm", "container-hardened", "--arm", "microvm,cold"];
    let text = place.say(&[&["compare", "--probes"][..], &rounds, &arms].concat());
    let record: Value = serde_json::from_str(&text).unwrap();
    let reached = |arm: usize, kind: &str| {
        let probes = record["arms"][arm]["probes"].as_array().unwrap();
        assert_eq!(probes.len(), 54);
        let of_kind = probes.iter().filter(|p| p["reached"] == kind);
        of_kind.map(|p| p["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // What a kernel shows of itself and of the machine is the host's in a container, and no filter takes it away.
    let facts = ["boot-id", "kernel-release", "kernel-build", "kernel-command-line", "processor-model"];
    for (arm, steps) in [(0, &["ldt", "splice", "netfilter", "packet-socket"][..]), (1, &["splice"])] {
        let found = reached(arm, "reachable");
        let of_steps: Vec<_> = found.iter().take_while(|name| *name != "boot-id").collect();
        assert_eq!(of_steps, steps, "arm {arm}");
        assert!(facts.iter().all(|fact| found.iter().any(|name| name == fact)), "{found:?}");
    }
    let of_machine = reached(2, "reachable");
    assert!(of_machine.iter().all(|name| name == "processor-model"), "{of_machine:?}");
    let own = reached(2, "contained");
    assert!(["splice", "io-uring", "boot-id"].iter().all(|name| own.iter().any(|n| n == name)), "{own:?}");
}
