//! Limits hold, and nothing is left.

use std::path::Path;

use duplex::sandbox::Refusal;
use duplex::spec::{Cpus, Exit, Isolation, LimitChange, MemorySize, MemorySwap, ProcessLimit, Sysctl, Tmpfs};

use super::stage::{Stage, chain};
use crate::runner::Verdict;

pub(crate) fn memory_ends_with_137(stage: &Stage) -> Verdict {
    let mut spec = stage.spec(&["sh", "-c", "exec tail /dev/zero"]);
    spec.limits.memory = Some(MemorySize(96 << 20));
    let ran = stage.run(&spec);
    assert_eq!(ran.outcome.exit.code(), 137, "{:?}", ran.outcome);
    assert!(ran.outcome.oom, "{:?}", ran.outcome);
    Ok(())
}

pub(crate) fn processes_are_counted(stage: &Stage) -> Verdict {
    let script = "n=0; while [ $n -lt 40 ]; do sleep 30 & n=$((n+1)); done 2>/dev/null; ls /proc | grep -c '^[0-9]*$'; kill $(jobs -p)";
    let mut spec = stage.spec(&["sh", "-c", script]);
    spec.limits.pids = Some(20);
    spec.limits.cpus = Some(Cpus(1500));
    let ran = stage.run(&spec);
    let seen: u32 = ran.text().trim().parse().unwrap_or(0);
    assert!(seen <= 20, "{seen} processes with a limit of 20: {ran:?}");
    Ok(())
}

/// Less and more of each, while it runs; what a machine does not have is refused.
pub(crate) fn limits_change_while_it_runs(stage: &Stage) -> Verdict {
    let change = LimitChange {
        memory: Some(MemorySize(100 << 20)),
        swap: Some(MemorySwap::Total(MemorySize(130 << 20))),
        cpus: Some(Cpus(500)),
        pids: Some(12),
        cpu_shares: Some(512),
    };
    let mut spec = stage.spec(&["sleep", "600"]);
    let created = stage.create(&spec);
    assert_eq!(created.sandbox.inside().change(&change).unwrap_err().refusal(), Some(Refusal::NotRunning));
    created.sandbox.remove().unwrap();
    spec.limits.cpus = Some(Cpus(1000));
    let running = stage.start(&spec);
    let inside = running.sandbox.inside();
    inside.change(&change).unwrap();
    if stage.is_fake() {
        return Ok(());
    }
    let of_host = |file: &str| {
        std::fs::read_to_string(format!("/sys/fs/cgroup/duplex/{}/{file}", spec.id)).unwrap().trim().to_owned()
    };
    assert_eq!((of_host("cpu.max"), of_host("cpu.weight")), ("50000 100000".into(), "20".into()));
    // What the sum leaves beside memory; a microVM swaps nowhere.
    let swap = if spec.isolation == Isolation::MicroVm { 0 } else { 30 << 20 };
    assert_eq!(of_host("memory.swap.max"), swap.to_string());
    let fork = "n=0; while [ $n -lt 30 ]; do sleep 3 & n=$((n+1)); done 2>/dev/null; set -- /proc/[0-9]*; echo $#";
    let count = |text: String| text.trim().parse::<u32>().unwrap_or(0);
    let eat = "head -c 160000000 /dev/zero | tail -c 160000000 | wc -c";
    let seen = count(running.exec_shell(fork).text());
    assert!(seen <= 12, "{seen} processes with a limit of 12");
    assert_ne!(running.exec_shell(eat).text().trim(), "160000000", "more than 100 MiB of memory");
    let less = LimitChange { memory: Some(MemorySize(1 << 16)), ..LimitChange::default() };
    let words = chain(&inside.change(&less).unwrap_err());
    assert!(words.contains("let it use less first"), "{words}");
    let more = LimitChange { memory: Some(MemorySize(250 << 20)), pids: Some(0), ..LimitChange::default() };
    inside.change(&more).unwrap();
    assert_eq!(running.exec_shell(eat).good().trim(), "160000000", "less than 250 MiB of memory");
    assert_eq!(of_host("cpu.weight"), "20", "what is not named stays");
    for larger in [
        LimitChange { memory: Some(MemorySize(512 << 20)), ..LimitChange::default() },
        LimitChange { cpus: Some(Cpus(1500)), ..LimitChange::default() },
    ] {
        let changed = inside.change(&larger);
        if stage.backend.isolation() == Isolation::MicroVm {
            let words = chain(&changed.unwrap_err());
            assert!(words.contains("Its machine has") && words.contains("start it again"), "{words}");
        } else {
            changed.unwrap();
        }
    }
    running.sandbox.remote().signal(9).unwrap();
    running.finish();
    Ok(())
}

pub(crate) fn limits_of_processes_are_the_specs(stage: &Stage) -> Verdict {
    assert_eq!(stage.shell("ulimit -Sn; ulimit -Hn").good(), "1024\n524288\n", "what nobody has set");
    let mut spec = stage.spec(&["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Hf; ulimit -Sl; ulimit -Hl"]);
    let limit = |resource, soft, hard| ProcessLimit { resource, soft, hard };
    // Files of 512 KiB: crun writes its filter of system calls to one, under the limits of the command.
    spec.process.limits =
        vec![limit(7, Some(100), Some(200)), limit(1, Some(512 << 10), Some(512 << 10)), limit(8, None, None)];
    assert_eq!(stage.run(&spec).good(), "100\n200\n1024\nunlimited\nunlimited\n");
    // A user that could not raise its limits has those of the spec too.
    spec.process.user = "ann".into();
    assert_eq!(stage.run(&spec).good(), "100\n200\n1024\nunlimited\nunlimited\n");
    Ok(())
}

pub(crate) fn file_systems_in_memory_are_the_specs(stage: &Stage) -> Verdict {
    let script = "cd /made/here; stat -c %a .; ls -A | wc -l
        dd if=/dev/zero of=big bs=64k count=100 2>/dev/null; stat -c %s big; rm big
        printf '#!/bin/sh\\necho ran' > run; chmod 755 run; ./run 2>/dev/null || echo not executed
        cp run /work/; cd /work; ./run
        touch /closed/x 2>/dev/null || echo closed
        df -k /dev/shm | tail -1 | awk '{print $2}'";
    let mut spec = stage.spec(&["sh", "-c", script]);
    let at = |path: &str, options: &str| Tmpfs { path: path.into(), options: options.into(), ..Tmpfs::default() };
    spec.tmpfs = vec![
        at("/made/here", "size=1m,mode=1777"),
        Tmpfs { exec: true, ..at("/work", "size=50%") },
        Tmpfs { read_only: true, ..at("/closed", "") },
        at("/dev/shm", "mode=1777,size=8388608"),
    ];
    for read_only in [false, true] {
        // What is not there yet can be made on a root that is written to only.
        spec.read_only = read_only;
        assert_eq!(stage.run(&spec).good(), "1777\n0\n1048576\nnot executed\nran\nclosed\n8192\n", "{read_only}");
    }
    Ok(())
}

pub(crate) fn kernel_parameters_are_the_specs(stage: &Stage) -> Verdict {
    let script = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max";
    let mut spec = stage.spec(&["sh", "-c", script]);
    let set = |name: &str, value: &str| Sysctl { name: name.into(), value: value.into() };
    spec.sysctls = vec![set("net.core.somaxconn", "777"), set("kernel.shmmni", "99"), set("fs.mqueue.msg_max", "11")];
    assert_eq!(stage.run(&spec).good(), "777\n99\n11\n");
    Ok(())
}

/// No process, mount, cgroup or file, whether the sandbox ends by itself, is dropped at work, or is never started.
pub(crate) fn nothing_is_left(stage: &Stage) -> Verdict {
    let mut ids = Vec::new();
    for round in 0..6 {
        let spec = stage.spec(&["sh", "-c", "echo ready; (sleep 600 &) ; sleep 600"]);
        ids.push(spec.id.to_string());
        match round % 3 {
            0 => {
                let mut running = stage.start(&spec);
                running.stdout.until("ready");
                drop(running);
            }
            1 => {
                let mut running = stage.start(&spec);
                running.stdout.until("ready");
                assert!(running.sandbox.usage().memory_bytes.is_some_and(|b| b > 0));
                assert!(running.sandbox.usage().pids.is_some_and(|p| p > 0));
                running.sandbox.remote().signal(9).unwrap();
                assert_eq!(running.finish().outcome.exit, Exit::Signal(9));
            }
            _ => assert_eq!(stage.shell("exit 0").outcome.exit, Exit::Code(0)),
        }
    }
    let left = inventory(stage.state.path(), &ids);
    assert!(left.is_empty(), "{left:#?}");
    Ok(())
}

/// What on this host still has to do with these sandboxes.
pub(crate) fn inventory(state: &Path, ids: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(state).unwrap().map(|e| e.unwrap()) {
        if !["names", "templates", "users"].iter().any(|kept| entry.file_name() == *kept) {
            found.push(format!("file {}", entry.path().display()));
        }
    }
    found.extend(
        ids.iter()
            .flat_map(|id| [format!("/sys/fs/cgroup/duplex/{id}"), format!("/sys/fs/cgroup/duplex/{id}.net")])
            .filter(|p| Path::new(p).exists())
            .map(|p| format!("cgroup {p}")),
    );
    let state = state.display().to_string();
    for process in std::fs::read_dir("/proc").unwrap().map(|e| e.unwrap().path()) {
        let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default();
        if read("mountinfo").contains(&state) {
            found.push(format!("mount in {} ({})", process.display(), read("cgroup").trim()));
        }
        if ids.iter().any(|id| read("cgroup").contains(id.as_str())) {
            found.push(format!("process {}", process.display()));
        }
    }
    found
}
