//! Arms of `compare` that are no sandboxes of ours: a plain process, a virtual environment of the host, the containers of outside runtimes, and
//! QEMU's machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Program("crun"),
    Need::Program("runc"),
    Need::Program("runsc"),
    Need::Program("python3"),
    Need::Program("qemu-system-x86_64"),
];

cases_with!(
    "arms",
    Place::new(),
    [
        a_plain_process_shows_what_a_container_costs,
        a_virtual_environment_is_the_host_itself,
        outside_runtimes_are_arms,
        a_runtime_with_its_own_kernel_is_an_arm,
        a_machine_of_qemus_is_an_arm,
        a_machine_of_qemus_is_a_sandbox,
        refusals
    ]
);

const ONCE: [&str; 9] = ["compare", "--runs", "1", "--warmup", "0", "--memory-runs", "0", "--format", "json"];

fn found<'a>(arm: &'a Value, control: &str) -> &'a str {
    let controls = arm["controls"].as_array().unwrap();
    let control =
        controls.iter().find(|c| c["name"] == control).unwrap_or_else(|| panic!("no {control}: {controls:?}"));
    assert_eq!(control["passed"], true);
    control["found"].as_str().unwrap()
}

fn a_plain_process_shows_what_a_container_costs(place: &Place) {
    let said = place.output(&[&ONCE[..], &["--probes", "--arm", "container", "--arm", "process"]].concat());
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{errors}");
    assert!(errors.contains("arm 'process' isolates nothing"), "{errors}");
    let record: Value = serde_json::from_slice(&said.stdout).unwrap();
    let [container, process] = [0, 1].map(|at| &record["arms"][at]);
    assert_eq!(found(container, "host's namespaces"), "none");
    assert_eq!(found(process, "host's namespaces"), "pid, net, uts, ipc");
    assert_eq!(found(process, "host's kernel"), found(container, "host's kernel"));
    assert_ne!(found(process, "own root directory"), "/");
    for limit in ["memory limit", "processor limit"] {
        assert_eq!(found(process, limit), found(container, limit), "{limit}");
    }
    assert!(record["unequal"].to_string().contains("ISOLATES NOTHING"), "{}", record["unequal"]);
    let reached = |arm: &Value, name: &str| {
        let probes = arm["probes"].as_array().unwrap();
        probes.iter().find(|p| p["name"] == name).unwrap()["reached"].as_str().unwrap().to_owned()
    };
    // What only a wall holds back, and what the host would be harmed by if it were more than a first step.
    for name in ["module", "host-processes", "program-of-first", "host-loopback", "core-pattern", "mount-namespace"] {
        assert_eq!(reached(process, name), "reachable", "{name}");
        assert_ne!(reached(container, name), "reachable", "{name}");
    }
    assert_eq!(reached(process, "left-descriptors"), "blocked");
    place.until_clean();
}

/// One that is made by hand, without packages: programs of the embedded image are executed out of it, and find themselves on the host.
fn a_virtual_environment_is_the_host_itself(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let venv = folder.path().join("env");
    let made = Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&venv).status().unwrap();
    assert!(made.success());
    let arm = format!("host=venv:{}", venv.display());
    let arms = ["--probes", "--reach", "--density", "2", "--arm", "container", "--arm", "process", "--arm", &arm];
    let record: Value = serde_json::from_str(&place.say(&[&ONCE[..], &arms].concat())).unwrap();
    let [container, process, host] = [0, 1, 2].map(|at| &record["arms"][at]);
    assert_eq!(found(host, "host's namespaces"), "pid, net, uts, ipc, mnt");
    assert_eq!(found(host, "host's root directory"), "/");
    assert_eq!(found(host, "Python's prefix"), venv.canonicalize().unwrap().to_str().unwrap());
    for limit in ["memory limit", "processor limit"] {
        assert_eq!(found(host, limit), found(container, limit), "{limit}");
    }
    assert_eq!(host["density"]["steps"][1]["instances"], 2);
    let written = |arm: &Value| arm["reach"]["writable_host_paths"].as_array().unwrap().contains(&"/".into());
    assert!(written(host) && !written(container), "the host's own root: {}", host["reach"]);
    assert!(host["reach"]["system_calls"]["total"].as_u64().unwrap() > 10, "its cgroup's calls are counted");
    let reached = |arm: &Value| {
        let probes = arm["probes"].as_array().unwrap().iter();
        let open = probes.filter(|p| p["reached"] == "reachable").map(|p| p["name"].as_str().unwrap().to_owned());
        open.collect::<BTreeSet<_>>()
    };
    assert!(reached(host).is_superset(&reached(process)), "{:?}", reached(host));
    let words = record["unequal"].to_string();
    assert!(words.contains("'process' ISOLATES NOTHING") && words.contains("'host' ISOLATES NOTHING"), "{words}");
    place.until_clean();
}

fn outside_runtimes_are_arms(place: &Place) {
    let arms = ["--arm", "process", "--arm", "crun", "--arm", "other=runtime:/usr/sbin/runc"];
    let script = ["workloads", "--", "env"];
    let text = place.say(&[&ONCE[..], &arms, &script].concat());
    let record: Value = serde_json::from_str(&text).unwrap();
    for (at, name, program) in [(1, "crun", "/crun"), (2, "other", "/usr/sbin/runc")] {
        let arm = &record["arms"][at];
        assert_eq!((arm["name"].as_str(), arm["isolation"].as_str()), (Some(name), Some("container")));
        assert!(arm["runtime"].as_str().unwrap().ends_with(program), "{arm}");
        assert_eq!(found(arm, "host's namespaces"), "none");
    }
    place.until_clean();
}

fn a_runtime_with_its_own_kernel_is_an_arm(place: &Place) {
    let arms = ["--reach", "--arm", "container", "--arm", "runsc"];
    let once = ["compare", "--runs", "1", "--warmup", "0", "--memory-runs", "1", "--format", "json"];
    let text = place.say(&[&once[..], &arms, &["workloads", "--", "hello"]].concat());
    let record: Value = serde_json::from_str(&text).unwrap();
    let [container, runsc] = [0, 1].map(|at| &record["arms"][at]);
    assert_eq!(runsc["isolation"], "container");
    assert_ne!(found(runsc, "own kernel"), record["host"]["kernel"]);
    assert_eq!(found(runsc, "host's namespaces"), "none");
    for limit in ["memory limit", "processor limit"] {
        assert_eq!(found(runsc, limit), found(container, limit), "{limit}");
    }
    assert!(
        record["unequal"].to_string().contains("'runsc' answers the command's system calls"),
        "{}",
        record["unequal"]
    );
    let bytes = |arm: &Value| arm["memory_runs"][0]["memory_bytes"]["idle"].as_u64().unwrap();
    assert!(bytes(runsc) > bytes(container), "{record}");
    assert_eq!(runsc["reach"]["writable_host_paths"], serde_json::json!([]), "its mounts are its own kernel's");
    // The host answers its kernel, whatever the command asks.
    let calls = |arm: &Value| arm["reach"]["system_calls"]["total"].as_u64().unwrap();
    assert!(calls(runsc) > 10 * calls(container), "{record}");
    let out = place.output(&[
        "run",
        "--rm",
        "--isolation",
        "container",
        "--runtime",
        "/usr/bin/runsc",
        "workloads",
        "exit",
        "7",
    ]);
    assert!(out.status.code() == Some(7) || String::from_utf8_lossy(&out.stderr).contains("rmem_default"), "{out:?}");
    place.until_clean();
}

/// Several at a time, each with its own way to the host; and on a network, where the probes are.
fn a_machine_of_qemus_is_an_arm(place: &Place) {
    let arms = ["--probes", "--density", "2", "--arm", "cold=microvm,cold", "--arm", "qemu"];
    let text = place.say(&[&ONCE[..], &arms, &["workloads", "--", "hello"]].concat());
    let record: Value = serde_json::from_str(&text).unwrap();
    let [cold, qemu] = [0, 1].map(|at| &record["arms"][at]);
    assert_eq!((qemu["isolation"].as_str(), qemu["cold"].as_bool()), (Some("microvm"), Some(true)));
    assert!(found(qemu, "machine by").ends_with("qemu-system-x86_64"));
    assert_ne!(found(qemu, "own kernel"), found(cold, "own kernel"));
    assert_eq!(found(qemu, "memory"), found(cold, "memory"));
    let of = |arm: &Value| arm["disk_bytes"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        [of(cold), of(qemu)].map(|parts| parts[..].join(" ")),
        ["image initramfs kernel monitor", "QEMU image initramfs kernel"]
    );
    assert_eq!(qemu["density"]["steps"][1]["instances"], 2);
    // The walls to the image are the guest kernel's and the agent's; but QEMU's guests are shown the host's processor.
    let probes = |arm: &Value| arm["probes"].as_array().unwrap().clone();
    for (ours, theirs) in probes(cold).iter().zip(probes(qemu)) {
        assert_eq!(ours["name"], theirs["name"]);
        let same = ours["reached"] == theirs["reached"];
        assert_eq!(same, ours["name"] != "processor-model", "{ours} {theirs}");
    }
    assert!(record["unequal"].to_string().contains("'qemu' is the same kernel, agent and image"), "{record}");
    place.until_clean();
}

fn a_machine_of_qemus_is_a_sandbox(place: &Place) {
    let run = ["run", "--isolation", "microvm", "--runtime", "/usr/bin/qemu-system-x86_64", "--net", "none"];
    let ends = |words: &[&str]| {
        let out = place.output(&[&run[..], &["--rm"], words].concat());
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    assert_eq!(ends(&["workloads", "exit", "7"]), (Some(7), String::new()));
    assert_eq!(ends(&["workloads", "/no/such"]).0, Some(127));
    let lacks = "has no folders of the host here";
    assert!(ends(&["-v", "/usr:/usr:ro", "workloads", "true"]).1.contains(lacks));
    let id = place.say(&[&run[..], &["-d", "--name", "box", "-v", "data:/data", "workloads", "sleep", "600"]].concat());
    assert!(place.say(&["exec", "box", "/workloads", "hello"]).contains("Hello"));
    let refused = |words: &[&str], why: &str| {
        let out = place.output(words);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && errors.contains(why), "{words:?}: {errors}");
    };
    refused(&["pause", "box"], "cannot be paused");
    refused(&["snapshot", "create", "box", "kept"], "Only a microVM of Duplex's monitor can be saved");
    place.say(&["rm", "--force", "box"]);
    place.say(&["volume", "rm", "data"]);
    // Nor is QEMU there, which is in it.
    assert!(!Path::new("/sys/fs/cgroup/duplex").join(id).exists());
}

fn refusals(place: &Place) {
    let refused = |words: &[&str], code: i32, why: &str| {
        let out = place.duplex(words).env("PATH", "/nonexistent").output().unwrap();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{errors}");
        assert!(errors.contains(why), "{errors}");
    };
    let plain = "Isolation 'process' isolates nothing";
    refused(&["run", "--rm", "--isolation", "process", "--net", "host", "workloads", "true"], 125, plain);
    refused(&["create", "--isolation", "process", "--net", "host", "workloads", "true"], 125, plain);
    refused(&["run", "--rm", "--host-root", "host", "workloads", "true"], 125, "--host-root is for plain processes");
    let on_host =
        ["run", "--rm", "--isolation", "process", "--net", "host", "--host-root", "host", "workloads", "true"];
    refused(&on_host, 125, plain);
    let none = "/usr has no pyvenv.cfg";
    refused(&[&ONCE[..], &["--arm", "container", "--arm", "venv:/usr"]].concat(), 125, none);
    refused(&[&ONCE[..], &["--arm", "container", "--arm", "runsc"]].concat(), 125, "OCI runtime 'runsc', which is no");
    refused(&[&ONCE[..], &["--arm", "container", "--arm", "qemu"]].concat(), 125, "Debian: qemu-system-x86");
    let nothing = "OCI runtime /no/such, which is no program";
    refused(&[&ONCE[..], &["--arm", "container", "--arm", "runtime:/no/such"]].concat(), 125, nothing);
    place.until_clean();
}
