//! What is done inside a sandbox that runs, from the command line, in both isolations.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Instant;

use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};
use crate::volumes::{kill, monitor_of};

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone];
/// The only program of the embedded image.
const P: &str = "/workloads";
const BOTH: [&str; 2] = ["container", "microvm"];

cases_with!(
    "inside",
    Place::new(),
    [
        limits_are_updated,
        restart_policies_are_updated,
        commands_say_that_their_monitor_died,
        swap_is_what_memory_leaves,
        exec_runs_a_further_command,
        a_pause_is_seen_and_ends_with_a_signal,
        top_and_stats_tell,
        keepers_killed_among_further_commands_leave_nothing,
        memory_that_a_guest_frees_goes_back_to_the_host,
    ]
);

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn exec_runs_a_further_command(place: &Place) {
    for isolation in BOTH {
        place.run(isolation, &["--name", "box", "-e", "A=1", "workloads", "pause"]);
        assert_eq!(place.say(&["exec", "box", P, "echo", "a", "-b"]), "a -b");
        let env = place.say(&["exec", "-e", "B=2", "box", P, "env"]);
        assert!(env.contains("A=1\n") && env.contains("B=2"), "{env}");
        let id = place.say(&["exec", "-u", "1000:50", "-w", "/", "box", P, "id"]);
        assert!(id.contains("1000") && id.contains("50"), "{id}");

        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut cat = place.duplex(&["exec", "-i", "box", P, "cat"]);
        let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = cat.stdin.take().unwrap();
        let sent = bytes.clone();
        let feeder = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
        assert!(cat.wait_with_output().unwrap().stdout == bytes, "3 MB through a further command in a {isolation}");
        feeder.join().unwrap();

        for (command, expected) in [(vec![P, "exit", "42"], 42), (vec!["no-such"], 127), (vec!["/etc"], 126)] {
            let output = place.output(&[&["exec", "box"], command.as_slice()].concat());
            assert_eq!(code(&output), expected, "{command:?}: {}", words(&output));
            assert!(expected == 42 || words(&output).contains(command[0]), "{}", words(&output));
        }
        assert_eq!(code(&place.output(&["exec", "-w", "/no/such", "box", P, "true"])), 127);
        assert_eq!(code(&place.output(&["exec", "-d", "box", "no-such"])), 127);
        assert_eq!(place.say(&["exec", "-d", "box", P, "sleep", "4324"]), "");
        place.until("the detached command", || place.say(&["top", "box"]).contains("sleep 4324"));
        let terminal = place.output(&["exec", "-it", "box", P, "true"]);
        assert!(code(&terminal) == 1 && words(&terminal).contains("not a terminal"), "{}", words(&terminal));
        let last = std::thread::scope(|scope| {
            let last = scope.spawn(|| place.output(&["exec", "box", P, "sleep", "600"]));
            place.until("the last command", || place.say(&["top", "box"]).contains("sleep 600"));
            place.say(&["kill", "box"]);
            last.join().unwrap()
        });
        assert_eq!(code(&last), 137, "it ends with its sandbox: {}", words(&last));
        assert!(words(&last).contains("the sandbox ended, and this command with it"), "{}", words(&last));
        place.say(&["wait", "box"]);
        let ended = place.output(&["exec", "box", P, "true"]);
        assert!(
            code(&ended) == 1 && words(&ended).contains("is not running")
                || words(&ended).contains("It is not running"),
            "{}",
            words(&ended)
        );
        place.say(&["rm", "box"]);
    }
    place.must_be_clean("after further commands");
}

fn a_pause_is_seen_and_ends_with_a_signal(place: &Place) {
    for isolation in BOTH {
        place.run(isolation, &["--name", "box", "workloads", "pause"]);
        assert_eq!(place.say(&["pause", "box"]), "box");
        assert!(place.say(&["ps"]).contains("(Paused)"), "{}", place.say(&["ps"]));
        assert_eq!(place.look("box", "{{.State.Status}}"), "paused");
        for (verb, why) in
            [(&["pause", "box"][..], "already paused"), (&["exec", "box", P, "true"], "paused: unpause it first")]
        {
            let output = place.output(verb);
            assert!(code(&output) == 1 && words(&output).contains(why), "{verb:?}: {}", words(&output));
        }
        assert_eq!(place.say(&["unpause", "box"]), "box");
        assert_eq!(place.say(&["exec", "box", P, "echo", "on"]), "on");
        assert!(words(&place.output(&["unpause", "box"])).contains("not paused"));
        place.say(&["pause", "box"]);
        assert_eq!(place.say(&["stop", "box"]), "box");
        assert!(place.look("box", "{{.State.ExitCode}}") != "137", "a paused sandbox hears the signal that stops it");
        place.say(&["rm", "box"]);
        place.run(isolation, &["--name", "box", "workloads", "pause"]);
        place.say(&["pause", "box"]);
        place.say(&["rm", "-f", "box"]);
    }
    place.must_be_clean("after pauses");
}

fn top_and_stats_tell(place: &Place) {
    for isolation in BOTH {
        place.run(isolation, &["--name", "box", "-m", "128m", "workloads", "spin"]);
        let top = place.say(&["top", "box"]);
        let lines: Vec<Vec<&str>> = top.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], "{top}");
        assert_eq!((lines.len(), &lines[1][..3]), (2, &["root", "1", "0"][..]), "{top}");
        let line = place.say(&[
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}} {{.PIDs}} {{.CPUPerc}} {{.HostCPUPerc}} {{.HostMem}}",
            "box",
        ]);
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields[..2], ["box", "1"], "{line}");
        for percent in &fields[2..4] {
            let percent: f64 = percent.trim_end_matches('%').parse().unwrap();
            assert!(percent > 20.0, "a spinning program uses a processor: {line}");
        }
        let all = place.say(&["stats", "--no-stream"]);
        assert!(all.starts_with("SANDBOX ID") && all.contains("box") && all.contains(isolation), "{all}");
        place.say(&["rm", "-f", "box"]);
        let gone = place.output(&["stats", "--no-stream", "box"]);
        assert_eq!(code(&gone), 1, "{}", words(&gone));
    }
    place.must_be_clean("after looks");
}

/// At any moment of a further command's start, and while the sandbox is paused.
fn keepers_killed_among_further_commands_leave_nothing(place: &Place) {
    for isolation in BOTH {
        for round in 0..4_u32 {
            place.run(isolation, &["--name", "doomed", "workloads", "pause"]);
            let began = Instant::now();
            place.say(&["exec", "-d", "doomed", P, "sleep", "4325"]);
            let whole = began.elapsed();
            let client = place
                .duplex(&["exec", "doomed", P, "sleep", "4326"])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            if round == 3 {
                place.say(&["pause", "doomed"]);
            } else {
                std::thread::sleep(whole * round / 2);
            }
            place.kill_keepers();
            let output = client.wait_with_output().unwrap();
            assert!(!output.status.success() && !words(&output).is_empty(), "{isolation} {round}: {output:?}");
            assert_eq!(place.say(&["ps", "-a", "--format", "{{.State}}"]), "exited", "{isolation} {round}");
            place.say(&["rm", "doomed"]);
            place.until_clean();
        }
    }
}

/// What a sandbox costs the host, in MiB.
fn host_mib(place: &Place) -> f64 {
    let said = place.say(&["stats", "--no-stream", "--format", "{{.HostMem}}", "box"]);
    let word = said.split_whitespace().next().unwrap_or_default();
    let digits = word.find(|c: char| c.is_alphabetic()).unwrap_or(word.len());
    let unit = match &word[digits..] {
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => panic!("{other:?} in {said:?}"),
    };
    word[..digits].parse::<f64>().unwrap() * unit / 1_048_576.0
}

/// 512 MiB are taken and freed in a guest that goes on; at least 80 % of it is the host's again after 10 seconds.
fn memory_that_a_guest_frees_goes_back_to_the_host(place: &Place) {
    place.run("microvm", &["--name", "box", "-m", "1g", "workloads", "pause"]);
    let before = host_mib(place);
    place.say(&["exec", "box", P, "touch-pages", "512"]);
    let taken = host_mib(place);
    let freed = Instant::now();
    let mut after = taken;
    while freed.elapsed().as_secs() < 10 && after - before > 0.2 * 512.0 {
        std::thread::sleep(std::time::Duration::from_millis(250));
        after = host_mib(place);
    }
    println!(
        "host memory: {before} MiB, {taken} MiB when 512 MiB were freed, {after} MiB {:.1} s later",
        freed.elapsed().as_secs_f64()
    );
    assert!(after - before <= 0.2 * 512.0, "{before} MiB, {taken} MiB, and still {after} MiB after 10 s");
    assert!(
        taken - before > 0.5 * 512.0,
        "{before} MiB before, {taken} MiB after: the guest took too little to show anything"
    );
    place.say(&["rm", "-f", "box"]);
    place.must_be_clean("after memory went back");
}

/// Of one that runs at once, of one that does not at its next start, and `inspect` tells.
fn limits_are_updated(place: &Place) {
    for isolation in BOTH {
        place.run(isolation, &["--name", "box", "-m", "300m", "-c", "2048", "workloads", "sleep", "1000"]);
        let look = |field: &str| place.look("box", &format!("{{{{.HostConfig.{field}}}}}"));
        assert_eq!(look("CpuShares"), "2048", "{isolation}");
        assert_eq!(place.say(&["update", "-m", "200m", "--pids-limit", "50", "box"]), "box");
        assert_eq!((look("Memory"), look("PidsLimit")), ("209715200".into(), "50".into()), "{isolation}");
        let limit = || place.say(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "box"]);
        assert!(limit().contains("/ 209.7MB"), "{isolation}: {}", limit());
        let nothing = place.output(&["update", "box"]);
        assert!(String::from_utf8_lossy(&nothing.stderr).contains("name a limit"), "{nothing:?}");
        let larger = place.output(&["update", "-m", "1g", "box"]);
        if isolation == "microvm" {
            assert_eq!(larger.status.code(), Some(1), "{larger:?}");
            assert!(String::from_utf8_lossy(&larger.stderr).contains("Its machine has 300 MiB"), "{larger:?}");
        } else {
            assert!(larger.status.success(), "{larger:?}");
        }
        place.say(&["kill", "box"]);
        place.say(&["wait", "box"]);
        place.say(&["update", "-m", "400m", "--cpus", "2", "box"]);
        place.say(&["start", "box"]);
        assert_eq!((look("Memory"), look("NanoCpus")), ("419430400".into(), "2000000000".into()), "{isolation}");
        let refused = place.output(&["update", "--cpus", "3", "box"]);
        assert_eq!(refused.status.success(), isolation == "container", "{refused:?}");
        place.say(&["rm", "-f", "box"]);
    }
}

/// Of several at once, of those that run at their next end; and it is kept.
fn restart_policies_are_updated(place: &Place) {
    let look = |name: &str| place.look(name, "{{.State.Status}} {{.RestartCount}}");
    let policy = |name: &str| {
        place.look(name, "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}")
    };
    for isolation in BOTH {
        for name in ["one", "two"] {
            place.run(isolation, &["--name", name, "--stop-signal", "INT", "workloads", "spin"]);
        }
        place.say(&["kill", "two"]);
        place.say(&["wait", "two"]);
        assert_eq!(place.say(&["update", "--restart", "on-failure:1", "-c", "512", "one", "two"]), "one\ntwo");
        assert_eq!((policy("one"), policy("two")), ("on-failure:1".into(), "on-failure:1".into()), "{isolation}");
        assert_eq!(place.look("two", "{{.HostConfig.CpuShares}}"), "512");
        place.say(&["start", "two"]);
        for name in ["one", "two"] {
            place.say(&["kill", "-s", "TERM", name]);
            place.until("a second start", || look(name) == "running 1");
        }
        place.say(&["kill", "-s", "TERM", "one"]);
        place.until("the last end", || look("one") == "exited 1");
        assert_eq!(place.say(&["update", "--restart", "no", "two"]), "two");
        place.say(&["kill", "-s", "TERM", "two"]);
        place.until("the only end", || look("two").starts_with("exited"));
        place.say(&["update", "--restart", "always", "one"]);
        place.say(&["start", "one"]);
        place.kill_keepers();
        assert_eq!((policy("one"), policy("two")), ("always:0".into(), "no:0".into()), "{isolation}");
        place.say(&["rm", "one", "two"]);

        place.run(isolation, &["--rm", "--name", "gone", "workloads", "pause"]);
        let refused = place.output(&["update", "--restart", "always", "gone", "no-such"]);
        let told = words(&refused);
        assert!(code(&refused) == 1 && told.contains("--rm") && told.contains("no-such"), "{told}");
        assert_eq!(place.say(&["update", "--restart", "no", "gone"]), "gone");
        place.say(&["stop", "gone"]);
        place.until_clean();
    }
}

/// And those that were killed alone say nothing.
fn commands_say_that_their_monitor_died(place: &Place) {
    place.run("microvm", &["--name", "box", "workloads", "pause"]);
    let exec = |seconds: &str| {
        let mut command = place.duplex(&["exec", "box", P, "sleep", seconds]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        place.until("the command", || place.say(&["top", "box"]).contains(&format!("sleep {seconds}")));
        child
    };
    let (long, short) = (exec("4327"), place.output(&["exec", "box", P, "exit", "9"]));
    assert_eq!((code(&short), words(&short).as_str()), (9, ""));
    kill(monitor_of(&place.look("box", "{{.State.Pid}}")));
    let long = long.wait_with_output().unwrap();
    assert!(code(&long) == 137 && words(&long).contains("the sandbox ended"), "{long:?}");
    place.until("its end", || place.look("box", "{{.State.Status}}") == "exited");
    assert!(place.look("box", "{{.State.Error}}").contains("monitor"), "{}", place.look("box", "{{.State.Error}}"));
    place.say(&["rm", "box"]);
    place.must_be_clean("after a monitor");
}

fn swap_is_what_memory_leaves(place: &Place) {
    const MIB: u64 = 1 << 20;
    let limit = |name: &str| {
        let id = place.look(name, "{{.Id}}");
        std::fs::read_to_string(format!("/sys/fs/cgroup/duplex/{id}/memory.swap.max")).unwrap().trim().to_owned()
    };
    let told = |name: &str| place.look(name, "{{.HostConfig.MemorySwap}}");
    for (options, swap, total) in [
        (&["-m", "64m"][..], (64 * MIB).to_string(), (128 * MIB).to_string()),
        (&["-m", "64m", "--memory-swap", "64m"], "0".into(), (64 * MIB).to_string()),
        (&["-m", "64m", "--memory-swap", "-1"], "max".into(), "-1".into()),
        (&[], "max".into(), "0".into()),
        (&["-m", "64m", "--memory-swap", "96m"], (32 * MIB).to_string(), (96 * MIB).to_string()),
    ] {
        place.output(&["rm", "-f", "box"]);
        place.run("container", &[options, &["--name", "box", "workloads", "pause"]].concat());
        assert_eq!((limit("box"), told("box")), (swap, total), "{options:?}");
    }
    place.say(&["update", "-m", "80m", "box"]);
    assert_eq!(limit("box"), (16 * MIB).to_string());
    place.say(&["update", "--memory-swap", "200m", "box"]);
    assert_eq!((limit("box"), told("box")), ((120 * MIB).to_string(), (200 * MIB).to_string()));
    let less = place.output(&["update", "-m", "300m", "box"]);
    assert!(code(&less) == 1 && words(&less).contains("--memory-swap is the sum of both"), "{}", words(&less));
    place.say(&["kill", "box"]);
    place.say(&["wait", "box"]);
    place.say(&["update", "--memory-swap", "-1", "box"]);
    place.say(&["start", "box"]);
    assert_eq!(limit("box"), "max");
    place.say(&["rm", "-f", "box"]);

    let run = |swap: &str| {
        let name = ["--name", "box", "workloads", "pause"];
        let output = place.output(&[&["run", "-d", "-m", "128m", "--memory-swap", swap], &name[..]].concat());
        assert!(output.status.success(), "{}", words(&output));
        let seen = (limit("box"), told("box"), place.say(&["exec", "box", P, "cat", "/proc/swaps"]).lines().count());
        assert_eq!(seen, ("0".into(), (128 * MIB).to_string(), 1), "a header and no swap");
        place.say(&["rm", "-f", "box"]);
        words(&output)
    };
    assert!(run("1g").contains("a microVM has no swap"));
    assert_eq!(run("128m"), "");
    place.must_be_clean("after swap");
}
