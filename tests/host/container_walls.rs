//! The walls around a container's programs: what they look like from outside, and what a program inside meets.

use std::fs;

use serde_json::{Value, json};

use crate::busybox::{self, BUSYBOX};
use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Program("mke2fs"),
    Need::Program("passt"),
    Need::File(BUSYBOX),
];
/// The only program of the embedded image.
const P: &str = "/workloads";

cases_with!(
    "container_walls",
    Place::new(),
    [
        every_process_has_its_filter,
        calls_are_refused_as_docker_refuses_them,
        a_profile_of_ones_own_decides,
        no_new_privileges_are_gained_in_either_isolation,
        nobody_reads_what_is_masked,
        a_hardened_container_has_no_rights,
        a_hardened_container_works,
        what_cannot_be_is_refused_in_words,
    ]
);

/// What `/proc/self/status` says inside.
fn status(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).trim().to_owned()
}

fn of_container(place: &Place, options: &[&str], command: &[&str]) -> String {
    let run = ["run", "--rm", "--net", "none", "--isolation", "container"];
    place.say(&[&run, options, &["workloads"], command].concat())
}

fn every_process_has_its_filter(place: &Place) {
    const DEFAULT: &str = "00000000a80425fb";
    const NONE: &str = "0000000000000000";
    for (options, mode, held) in [
        (&[][..], 2, DEFAULT),
        (&["-u", "1000"], 2, NONE),
        (&["--init"], 2, DEFAULT),
        (&["--cap-add", "SYS_ADMIN"], 2, "00000000a82425fb"),
        (&["--security-opt", "no-new-privileges", "-u", "7"], 2, NONE),
        (&["--security-opt", "seccomp=unconfined"], 0, DEFAULT),
    ] {
        let run = [&["--name", "box", "--net", "none"], options, &["workloads", "pause"]].concat();
        place.run("container", &run);
        let inside = place.say(&["exec", "box", P, "cat", "/proc/self/status", "/proc/1/status"]);
        for own in inside.split("Name:").skip(1) {
            assert_eq!(status(own, "Seccomp"), mode.to_string(), "{options:?}: {own}");
            assert_eq!(status(own, "CapEff"), held, "{options:?}: {own}");
            assert_eq!(status(own, "CapPrm"), held, "{options:?}: {own}");
        }
        let told: Value = serde_json::from_str(&place.say(&["inspect", "box"])).unwrap();
        let processes = told[0]["Confinement"].as_array().unwrap();
        // The keeper is its engine, and has what it gives.
        let inside = |process: &&Value| process["Part"] == "sandbox";
        assert!(processes.iter().any(|process| inside(&process)) && processes[0]["Part"] == "keeper");
        for process in processes.iter().filter(inside) {
            let threads = process["Seccomp"].as_object().unwrap();
            assert!(!threads.is_empty() && threads.values().all(|found| *found == mode), "{options:?}: {process:#}");
            assert_eq!(process["Capabilities"]["CapEff"], held, "{options:?}: {process:#}");
        }
        let said = &told[0]["HostConfig"]["SecurityOpt"];
        assert_eq!(
            *said,
            json!(options.iter().skip_while(|o| **o != "--security-opt").nth(1).into_iter().collect::<Vec<_>>())
        );
        place.say(&["rm", "-f", "box"]);
    }
    place.must_be_clean("filters");
}

/// System calls by abi, number and arguments, and what they answer.
const CALLS: [(&str, &str); 24] = [
    ("64 39", "ok"),                 // getpid
    ("64 41 2 1 0", "ok"),           // socket(AF_INET)
    ("64 135 4294967295", "ok 0"),   // personality: which is it?
    ("64 435", "error 38"),          // clone3
    ("64 999", "error 38"),          // none
    ("64 165", "error 1"),           // mount
    ("64 166", "error 1"),           // umount2
    ("64 272 268435456", "error 1"), // unshare(CLONE_NEWUSER)
    ("64 56 268435456", "error 1"),  // clone(CLONE_NEWUSER)
    ("64 308", "error 1"),           // setns
    ("64 155", "error 1"),           // pivot_root
    ("64 250", "error 1"),           // keyctl
    ("64 321", "error 1"),           // bpf
    ("64 298", "error 1"),           // perf_event_open
    ("64 323", "error 1"),           // userfaultfd
    ("64 425", "error 1"),           // io_uring_setup
    ("64 312", "error 1"),           // kcmp
    ("64 304", "error 1"),           // open_by_handle_at
    ("64 246", "error 1"),           // kexec_load
    ("64 135 262144", "error 1"),    // personality(ADDR_NO_RANDOMIZE)
    ("64 41 38 5 0", "error 1"),     // socket(AF_ALG)
    ("64 41 40 1 0", "error 1"),     // socket(AF_VSOCK)
    ("32 20", "ok"),                 // getpid of a 32-bit program
    ("32 21", "error 1"),            // mount of one
];

fn calls_are_refused_as_docker_refuses_them(place: &Place) {
    place.run("container", &["--name", "box", "--net", "none", "workloads", "pause"]);
    let inside = |user: &str, call: &str| {
        let words: Vec<&str> = ["exec", "-u", user, "box", P, "call"].into_iter().chain(call.split(' ')).collect();
        place.say(&words)
    };
    for (call, expected) in CALLS {
        for user in ["0", "1000"] {
            let said = inside(user, call);
            let holds = if expected == "ok" { said.starts_with("ok ") } else { said == expected };
            assert!(holds, "{call} as {user}: '{said}', not '{expected}'");
        }
    }
    place.say(&["rm", "-f", "box"]);
    // The same without a filter is the kernel's own answer: what refused above was the filter.
    let call = |options: &[&str], call: &str| {
        let words: Vec<&str> = ["call"].into_iter().chain(call.split(' ')).collect();
        of_container(place, options, &words)
    };
    for (text, answer) in
        [("64 425", "error 14"), ("64 435", "error 22"), ("64 135 262144", "ok 0"), ("64 272 268435456", "ok 0")]
    {
        assert_eq!(call(&["--security-opt", "seccomp=unconfined"], text), answer, "{text}");
        assert!(call(&[], text).starts_with("error"), "{text}");
    }
    // A capability brings its calls.
    assert_eq!(call(&["--cap-add", "SYS_ADMIN"], "64 272 67108864"), "ok 0", "unshare(CLONE_NEWUTS)");
    place.must_be_clean("calls");
}

fn a_profile_of_ones_own_decides(place: &Place) {
    let file = place.folder().join("profile.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            { "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99 },
            { "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 98,
              "args": [{ "index": 0, "value": 262_144, "op": "SCMP_CMP_EQ" }] },
            { "names": ["getsid"], "action": "SCMP_ACT_KILL_PROCESS" },
        ],
    });
    fs::write(&file, profile.to_string()).unwrap();
    let option = format!("seccomp={}", file.display());
    place.run("container", &["--name", "box", "--net", "none", "--security-opt", &option, "workloads", "pause"]);
    // It was read when the sandbox was made.
    fs::remove_file(&file).unwrap();
    let inside = |call: &[&str]| place.output(&[&["exec", "box", P, "call"], call].concat());
    let said = |call: &[&str]| String::from_utf8(inside(call).stdout).unwrap().trim().to_owned();
    assert_eq!(said(&["64", "110"]), "error 99");
    assert_eq!((said(&["64", "135", "262144"]), said(&["64", "135", "0"])), ("error 98".into(), "ok 0".into()));
    assert_eq!(said(&["64", "425"]), "error 14", "what is not named is allowed");
    assert_eq!(inside(&["64", "124"]).status.code(), Some(128 + 31), "SIGSYS");
    assert_eq!(inside(&["32", "20"]).status.code(), Some(128 + 31), "it names no 32-bit programs");
    place.say(&["restart", "-t", "0", "box"]);
    assert_eq!(said(&["64", "110"]), "error 99", "it stays the sandbox's");
    place.say(&["rm", "-f", "box"]);
    place.must_be_clean("a profile");
}

fn no_new_privileges_are_gained_in_either_isolation(place: &Place) {
    for isolation in ["container", "microvm"] {
        let look = |option: &[&str]| {
            let run = ["run", "--rm", "--net", "none", "--isolation", isolation];
            status(&place.say(&[&run, option, &["workloads", "cat", "/proc/self/status"]].concat()), "NoNewPrivs")
        };
        assert_eq!(look(&["--security-opt", "no-new-privileges"]), "1", "{isolation}");
        assert_eq!(look(&["--security-opt", "no-new-privileges=false"]), "0", "{isolation}");
    }
}

/// Files are empty, and folders have nothing in them.
fn nobody_reads_what_is_masked(place: &Place) {
    let there = |path: &str| fs::exists(path).unwrap();
    let mut files = 0;
    for path in ["interrupts", "kcore", "keys", "latency_stats", "sched_debug", "timer_list", "timer_stats"] {
        let path = format!("/proc/{path}");
        if there(&path) {
            assert_eq!(of_container(place, &["--cap-add", "ALL"], &["cat", &path]), "", "{path}");
            files += 1;
        }
    }
    assert!(files >= 3, "this host has {files} of the files");
    place.run("container", &["--name", "box", "--net", "none", "--cap-add", "ALL", "workloads", "pause"]);
    let mounts = place.say(&["exec", "box", P, "cat", "/proc/self/mounts"]);
    let mounted = |path: &str, option: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(path));
        line.is_some_and(|line| line.split(' ').nth(3).unwrap().split(',').any(|found| found == option))
    };
    let masked = ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"];
    let closed = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    for path in masked.iter().chain(&closed).filter(|path| there(path)) {
        assert!(mounted(path, "ro"), "{path}: {mounts}");
    }
    assert!(mounted("/sys", "ro") && mounted("/sys/fs/cgroup", "ro"), "{mounts}");
    place.say(&["rm", "-f", "box"]);
}

/// An image with a shell, by this name.
fn with_shell(place: &mut Place, name: &str) {
    let archive = place.folder().join("image.tar");
    fs::write(&archive, busybox::archive(name, &json!({ "Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"] }))).unwrap();
    place.say(&["load", "-q", "-i", archive.to_str().unwrap()]);
    // The volumes' folder is made, and stays.
    place.say(&["volume", "create", "--size", "16m", "data"]);
    place.say(&["volume", "rm", "data"]);
    place.count();
}

/// What is closed, also to root. An ordinary container may do the first ones.
const CLOSED: [&str; 9] = [
    "echo x > /x",
    "mkdir /new",
    "echo x > /proc/self/comm",
    "chown 7 /tmp",
    "echo x > /proc/sys/kernel/domainname",
    "mknod /tmp/null c 1 3",
    "mount -t tmpfs none /mnt",
    "chroot / true",
    "cp /bin/busybox /dev/shm/sh && chmod 755 /dev/shm/sh && /dev/shm/sh true",
];

const OPEN_TO_OTHERS: usize = 4;

fn a_hardened_container_has_no_rights(_: &Place) {
    let mut place = Place::new();
    with_shell(&mut place, "box:1");
    let run = ["run", "--rm", "--isolation", "container", "--net", "none", "box:1", "sh", "-c"];
    for script in CLOSED.iter().take(OPEN_TO_OTHERS) {
        place.say(&[&run[..], &[script]].concat());
    }
    for options in [&[][..], &["-u", "1000"], &["--init"]] {
        let run = [&["--name", "box", "--net", "none", "--hardened"], options, &["box:1", "sleep", "1000"]].concat();
        place.run("container", &run);
        let inside = place.say(&["exec", "box", "cat", "/proc/self/status", "/proc/1/status"]);
        for own in inside.split("Name:").skip(1) {
            assert_eq!((status(own, "Seccomp"), status(own, "NoNewPrivs")), ("2".into(), "1".into()), "{own}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(own, set), "0000000000000000", "{set}: {own}");
            }
        }
        for script in CLOSED {
            let output = place.output(&["exec", "box", "sh", "-c", script]);
            assert_ne!(output.status.code(), Some(0), "{options:?}: {script}: {}", words(&output));
        }
        place.say(&["rm", "-f", "box"]);
    }
    place.must_be_clean("hardened containers");
}

fn a_hardened_container_works(_: &Place) {
    let mut place = Place::new();
    with_shell(&mut place, "box:1");
    let shared = place.folder().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(place.folder().join("file"), "from outside").unwrap();
    let bind = format!("{}:/mnt/shared", shared.display());
    let mounts = ["-v", "data:/data", "-v", &bind, "--tmpfs", "/scratch"];
    let run = [&["--name", "box", "--hardened", "-p", "8097:80"], &mounts[..], &["box:1", "sleep", "1000"]].concat();
    place.run("container", &run);
    let sh = |script: &str| place.say(&["exec", "box", "sh", "-c", script]);
    for folder in ["/tmp", "/data", "/mnt/shared", "/scratch", "/dev/shm", "/etc"] {
        let script = format!(
            "cd {folder} && mkdir d && echo x > d/f && mv d/f g && cat g && mkfifo p && ln -s g s && rm -r d p s"
        );
        assert_eq!(sh(&script), "x", "{folder}");
    }
    assert_eq!(fs::read_to_string(shared.join("g")).unwrap(), "x\n");
    assert_eq!(sh("cp /bin/busybox /tmp/echo && /tmp/echo ran; echo err >&2; echo out > /dev/stdout"), "ran\nout");
    assert_eq!(sh("(sleep 1000 & kill $!; wait $!; echo $?) 2>/dev/null"), "143");
    assert!(sh("ps | wc -l; ip addr show lo").contains("127.0.0.1"));
    let from = place.folder().join("file");
    place.say(&["cp", from.to_str().unwrap(), "box:/tmp/file"]);
    assert_eq!(sh("cat /tmp/file"), "from outside");
    place.say(&["rm", "-f", "box"]);
    place.say(&["volume", "rm", "data"]);
    fs::remove_file(from).unwrap();
    fs::remove_dir_all(shared).unwrap();
    place.must_be_clean("a hardened container");
}

fn what_cannot_be_is_refused_in_words(place: &Place) {
    let bad = place.folder().join("bad.json");
    fs::write(&bad, r#"{ "defaultAction": "SCMP_ACT_NOTIFY" }"#).unwrap();
    let bad = format!("seccomp={}", bad.display());
    for (isolation, options, expected) in [
        ("container", &["--security-opt", "apparmor=x"][..], &["apparmor=x", "seccomp=FILE"][..]),
        ("container", &["--security-opt", "seccomp=/no/such.json"], &["/no/such.json"]),
        ("container", &["--security-opt", &bad], &["bad.json", "SCMP_ACT_NOTIFY"]),
        ("microvm", &["--security-opt", &bad], &["--security-opt seccomp=", "--isolation container"]),
        ("microvm", &["--hardened"], &["--hardened", "--isolation container"]),
    ] {
        let run = ["run", "--rm", "--isolation", isolation];
        let output = place.output(&[&run, options, &["workloads", "true"]].concat());
        assert_eq!(output.status.code(), Some(125), "{options:?}: {}", words(&output));
        assert!(expected.iter().all(|word| words(&output).contains(word)), "{options:?}: {}", words(&output));
    }
    fs::remove_file(place.folder().join("bad.json")).unwrap();
    place.must_be_clean("refusals");
}
