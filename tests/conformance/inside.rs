//! What is done inside a running sandbox: further commands, pauses, questions.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use duplex::sandbox::{Refusal, SandboxError};
use duplex::spec::{Exit, ProcessEntry, ProcessLimit, State, TerminalSize};

use super::limits::inventory;
use super::stage::{Running, Stage, feed, process};
use crate::runner::Verdict;

/// The reason why nothing can be done inside now.
fn refusal(result: Result<impl Sized, SandboxError>) -> Option<Refusal> {
    result.err().and_then(|e| e.refusal())
}

pub(super) fn sleeping(stage: &Stage) -> Running {
    stage.start(&stage.spec(&["sleep", "600"]))
}

pub(super) fn kill(running: Running) {
    running.sandbox.remote().signal(9).unwrap();
    assert_eq!(running.finish().outcome.exit, Exit::Signal(9));
}

pub(crate) fn further_commands_run_beside(stage: &Stage) -> Verdict {
    let created = stage.create(&stage.spec(&["true"]));
    assert_eq!(refusal(created.try_exec(&process(&["true"]))), Some(Refusal::NotRunning));
    created.sandbox.remove().unwrap();

    let running = sleeping(stage);
    assert_eq!(running.exec(&process(&["echo", "a", "b"])).finish().good(), "a b\n");
    assert_eq!(running.exec(&process(&["false"])).finish().outcome.exit, Exit::Code(1));
    let missing = running.exec(&process(&["no-such-program"])).finish().outcome;
    assert_eq!(missing.exit, Exit::NotFound);
    assert!(missing.reason.is_some_and(|r| r.contains("no-such-program")));
    let mut asleep = running.exec(&process(&["sleep", "600"]));
    assert_eq!(asleep.exec.ended(), None);
    asleep.exec.remote().signal(9).unwrap();
    assert_eq!(asleep.exec.wait().unwrap().exit, Exit::Signal(9));
    assert_eq!(asleep.exec.ended().unwrap().exit, Exit::Signal(9));

    // Several at once, each with its own bytes.
    let mut echo = process(&["cat"]);
    echo.stdin = true;
    let mut cats: Vec<_> = (0..4).map(|_| running.exec(&echo)).collect();
    let bytes = |n: u8| vec![n; 300_000];
    let feeders: Vec<_> = (0..).zip(&mut cats).map(|(n, cat)| feed(cat.stdin.take().unwrap(), bytes(n))).collect();
    for (n, cat) in (0..).zip(cats) {
        assert!(cat.finish().stdout == bytes(n), "bytes of command {n}");
    }
    feeders.into_iter().for_each(|feeder| feeder.join().unwrap());

    let last = running.exec(&process(&["sleep", "600"]));
    assert_eq!(running.sandbox.state(), State::Running);
    let inside = running.sandbox.inside();
    kill(running);
    assert_eq!(last.finish().outcome.exit, Exit::Signal(9), "it ends with its sandbox");
    assert_eq!(refusal(inside.processes()), Some(Refusal::NotRunning));
    assert_eq!(refusal(inside.pause()), Some(Refusal::NotRunning));
    Ok(())
}

/// Namespaces, user, privileges, limits, environment: nothing differs but what was asked for. (Ignored signals are looked at elsewhere: outside
/// runtimes leave their first process some of their C library's.)
pub(crate) fn further_commands_are_as_the_first(stage: &Stage) -> Verdict {
    let look = "id; grep -E '^(Cap|NoNew|Seccomp:|SigBlk)' /proc/self/status; ulimit -n; umask; cat /proc/self/cgroup; hostname
        for n in pid mnt ipc uts cgroup net user; do readlink /proc/self/ns/$n; done; env | sort; ls /proc/self/fd; cat /proc/self/oom_score_adj";
    let script = format!("({look}) > /tmp/first; echo ready; sleep 600");
    for (user, no_new_privileges) in [("", false), ("ann", true)] {
        let mut spec = stage.spec(&["sh", "-c", &script]);
        spec.process.user = user.into();
        spec.process.no_new_privileges = no_new_privileges;
        spec.process.env = vec!["A=1".into()];
        spec.process.limits = vec![ProcessLimit { resource: 7, soft: Some(300), hard: Some(400) }];
        let mut running = stage.start(&spec);
        running.stdout.until("ready");
        let mut further = spec.process.clone();
        further.args = vec!["sh".into(), "-c".into(), format!("({look})")];
        let seen = running.exec(&further).finish().good();
        let first = running.exec_shell("cat /tmp/first").good();
        assert_eq!(seen, first, "user '{user}'");
        assert!(["HOSTNAME=box", "A=1", "\n300\n"].iter().all(|line| seen.contains(line)), "{seen}");
        kill(running);
    }
    Ok(())
}

pub(crate) fn further_commands_have_their_own_user_and_folder(stage: &Stage) -> Verdict {
    let running = sleeping(stage);
    let mut spec = process(&[
        "sh",
        "-c",
        "id -u; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '; echo; pwd; echo $HOME $B; echo err >&2; echo again > /dev/stdout",
    ]);
    (spec.user, spec.cwd, spec.env) = ("ann".into(), "/home/ann".into(), vec!["B=2".into()]);
    let ran = running.exec(&spec).finish();
    assert_eq!(ran.good(), "1000\n44 50 1001 \n/home/ann\n/home/ann 2\nagain\n");
    assert_eq!(ran.stderr, b"err\n");
    let refused = |change: fn(&mut duplex::spec::ProcessSpec), exit: Exit, word: &str| {
        let mut spec = process(&["true"]);
        change(&mut spec);
        let outcome = running.exec(&spec).finish().outcome;
        assert_eq!(outcome.exit, exit, "{outcome:?}");
        assert!(outcome.reason.as_ref().is_some_and(|r| r.contains(word)), "{outcome:?}");
    };
    refused(|s| s.cwd = "/no/such".into(), Exit::NotFound, "'/no/such'");
    refused(|s| s.cwd = "/etc/passwd".into(), Exit::CannotExecute, "'/etc/passwd'");
    refused(|s| s.user = "nobody-here".into(), Exit::CannotExecute, "nobody-here");
    refused(|s| s.args = vec!["/etc/passwd".into()], Exit::CannotExecute, "'/etc/passwd'");
    refused(|s| s.args = vec!["/no/such".into()], Exit::NotFound, "'/no/such'");
    kill(running);
    Ok(())
}

pub(crate) fn further_commands_have_terminals(stage: &Stage) -> Verdict {
    let running = sleeping(stage);
    let script = "trap 'stty size; exit 3' WINCH; tty; stty size; echo term=$TERM; read line; echo \"got $line\"; echo ready; while :; do sleep 1; done";
    let mut spec = process(&["sh", "-c", script]);
    spec.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    spec.stdin = true;
    spec.user = "ann".into();
    let mut further = running.exec(&spec);
    std::io::Write::write_all(further.stdin.as_mut().unwrap(), b"hello\n").unwrap();
    further.stdout.until("ready");
    further.exec.remote().resize(TerminalSize { rows: 50, columns: 132 }).unwrap();
    further.stdout.until("50 132");
    let stdin = further.stdin.take();
    let ran = further.finish();
    drop(stdin);
    assert_eq!(ran.outcome.exit, Exit::Code(3));
    let text = ran.text();
    assert!(text.contains("24 80\r\nterm=xterm\r\n") && text.contains("got hello\r\n"), "{text:?}");
    assert!(text.contains("/dev/pts/"), "{text:?}");
    let mut spec = process(&["sh", "-c", "read line || echo end"]);
    (spec.terminal, spec.stdin) = (Some(TerminalSize { rows: 24, columns: 80 }), true);
    let ran = running.exec(&spec).finish();
    assert!(ran.text().ends_with("end\r\n"), "the end of input is seen: {:?}", ran.text());
    kill(running);
    Ok(())
}

pub(crate) fn signals_reach_one_command(stage: &Stage) -> Verdict {
    let running = sleeping(stage);
    let mut trapping =
        running.exec(&process(&["sh", "-c", "trap 'exit 7' USR1; echo ready; while :; do sleep 1; done"]));
    trapping.stdout.until("ready");
    let plain = running.exec(&process(&["sleep", "600"]));
    let killed = running.exec(&process(&["sleep", "600"]));
    trapping.exec.remote().signal(10).unwrap();
    plain.exec.remote().signal(15).unwrap();
    killed.exec.remote().signal(9).unwrap();
    assert_eq!(trapping.finish().outcome.exit, Exit::Code(7));
    assert_eq!(plain.finish().outcome.exit, Exit::Signal(15));
    let remote = killed.exec.remote();
    assert_eq!(killed.finish().outcome.exit, Exit::Signal(9));
    remote.signal(15).unwrap();
    assert_eq!(running.sandbox.state(), State::Running);
    // One that nobody wants any more is killed.
    drop(running.exec(&process(&["sleep", "4321"])));
    listed(&running, |list| !list.iter().any(|p| p.command.contains("4321")));
    kill(running);
    Ok(())
}

/// The processes inside, once they are as wanted. One in the middle of its `execve` has lost its old command line and shows
/// no new one yet: the kernel closes descriptors and changes the address space first, and writes the arguments' place last.
fn listed(running: &Running, mut wanted: impl FnMut(&[ProcessEntry]) -> bool) -> Vec<ProcessEntry> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let list = running.sandbox.inside().processes().unwrap();
        if wanted(&list) {
            return list;
        }
        assert!(Instant::now() < deadline, "{list:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn what_is_left_behind_is_not_waited_for(stage: &Stage) -> Verdict {
    let running = sleeping(stage);
    let ran = running.exec_shell("echo out; sleep 4322 & echo err >&2; exit 5");
    assert_eq!((ran.outcome.exit, ran.text().as_str(), ran.stderr.as_slice()), (Exit::Code(5), "out\n", &b"err\n"[..]));
    // It lives on.
    listed(&running, |list| list.iter().any(|p| p.command == "sleep 4322" && p.parent == 1));
    let ran = running.exec_shell("head -c 1000000 /dev/zero; exit 6");
    assert_eq!((ran.outcome.exit, ran.stdout.len()), (Exit::Code(6), 1_000_000));
    kill(running);
    Ok(())
}

/// No descriptor and no link of `/proc` leads out (CVE-2024-21626), and nobody inside reads or traces what comes in (CVE-2019-5736).
pub(crate) fn nothing_leads_out(stage: &Stage) -> Verdict {
    let here = stage.state.path().display().to_string();
    let running = sleeping(stage);
    for number in 0..12 {
        let mut spec =
            process(&["sh", "-c", "ls -d ../../../../../../..; cat /proc/self/cwd/../../../../../../../etc/hostname"]);
        spec.cwd = format!("/proc/self/fd/{number}");
        let outcome = running.exec(&spec).finish().outcome;
        assert!(matches!(outcome.exit, Exit::NotFound | Exit::CannotExecute), "{}: {outcome:?}", spec.cwd);
    }
    let script = format!(
        "test ! -e {here} || exit 9; test -z \"$(grep {here} /proc/self/mountinfo)\" || exit 10
        for fd in 0 1 2; do readlink /proc/self/fd/$fd; done | grep -v -e pipe: -e /dev/null && exit 11
        test $(ls /proc/self/fd | wc -l) = 4 || exit 12
        grep -q '^SigIgn:.0000000000000000' /proc/self/status || exit 13; echo fine"
    );
    assert_eq!(running.exec_shell(&script).good(), "fine\n");
    // Whoever is caught on its way in has a program that cannot be read, let alone written.
    let script = "i=0; while [ $i -lt 400 ]; do for exe in /proc/[0-9]*/exe; do
            case $(readlink $exe) in */busybox|'') ;; *) (: >> $exe) 2>/dev/null && echo written; cat $exe >/dev/null 2>&1 && echo read;; esac
        done; i=$((i+1)); done; echo over";
    let mut watching = running.exec(&process(&["sh", "-c", script]));
    for _ in 0..3 {
        assert_eq!(running.exec(&process(&["true"])).finish().outcome.exit, Exit::Code(0));
    }
    watching.exec.remote().signal(15).unwrap();
    let _ = watching.exec.wait();
    let words = String::from_utf8_lossy(&watching.finish().stdout).into_owned();
    assert!(!words.contains("written") && !words.contains("read"), "{words}");
    kill(running);
    Ok(())
}

pub(crate) fn a_pause_is_told(stage: &Stage) -> Verdict {
    let running = sleeping(stage);
    let inside = running.sandbox.inside();
    assert_eq!(refusal(inside.unpause()), Some(Refusal::NotPaused));
    inside.pause().unwrap();
    assert_eq!(running.sandbox.state(), State::Paused);
    assert_eq!(refusal(inside.pause()), Some(Refusal::AlreadyPaused));
    assert_eq!(refusal(running.try_exec(&process(&["true"]))), Some(Refusal::Paused));
    inside.stats().unwrap();
    inside.unpause().unwrap();
    assert_eq!(running.sandbox.state(), State::Running);
    assert_eq!(running.exec(&process(&["true"])).finish().outcome.exit, Exit::Code(0));
    inside.pause().unwrap();
    kill(running);
    let paused = sleeping(stage);
    paused.sandbox.inside().pause().unwrap();
    paused.sandbox.remove().unwrap();
    Ok(())
}

pub(crate) fn paused_processes_stop_and_clocks_go_on(stage: &Stage) -> Verdict {
    const PAUSE: Duration = Duration::from_secs(3);
    let mut running = stage.start(&stage.spec(&["sh", "-c", "while :; do echo tick; sleep 0.1; done"]));
    running.stdout.until("tick\ntick\ntick\n");
    let inside = running.sandbox.inside();
    let times = |running: &Running| {
        let text = running.exec_shell("cut -d' ' -f1 /proc/uptime; date +%s").good();
        let mut lines = text.lines().map(|l| l.parse::<f64>().unwrap());
        (lines.next().unwrap(), lines.next().unwrap())
    };
    let host = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let (up_before, _) = times(&running);
    inside.pause().unwrap();
    // What was on its way arrives.
    running.stdout.settle(Duration::from_millis(500));
    let seen = running.stdout.seen.len();
    let began = Instant::now();
    running.stdout.settle(PAUSE);
    assert_eq!(running.stdout.seen.len(), seen, "it went on for {:?}", began.elapsed());
    inside.unpause().unwrap();
    running.stdout.seen.clear();
    running.stdout.until("tick\ntick\n");
    let before = host();
    let (up_after, wall) = times(&running);
    let after = host();
    assert!(up_after > up_before, "the monotonic clock went back: {up_before} then {up_after}");
    assert!(
        wall >= before.floor() - 1.0 && wall <= after + 1.0,
        "the wall clock says {wall} between {before} and {after}"
    );
    kill(running);
    Ok(())
}

pub(crate) fn processes_are_listed(stage: &Stage) -> Verdict {
    let running = sleeping(stage);
    let mut spec = process(&["sleep", "4323"]);
    spec.user = "ann".into();
    let further = running.exec(&spec);
    let list = listed(&running, |list| list.iter().any(|p| p.command == "sleep 4323"));
    assert_eq!(list.len(), 2, "{list:#?}");
    assert_eq!((list[0].pid, list[0].parent, list[0].command.as_str()), (1, 0, "sleep 600"));
    assert!(list[1].pid > 1 && list[1].parent == 0 && list[1].command == "sleep 4323", "{list:#?}");
    if !stage.is_fake() {
        assert_eq!((list[0].user, list[1].user), (0, 1000));
        assert!(list[1].age_ms <= list[0].age_ms && list[0].age_ms < 600_000, "{list:#?}");
    }
    further.exec.remote().signal(9).unwrap();
    assert_eq!(further.finish().outcome.exit, Exit::Signal(9));
    kill(running);
    Ok(())
}

pub(crate) fn stats_are_the_kernels(stage: &Stage) -> Verdict {
    let running = sleeping(stage);
    let inside = running.sandbox.inside();
    let ran = running
        .exec_shell("head -c 30000000 /dev/zero > /tmp/ballast; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    assert_eq!(ran.outcome.exit, Exit::Code(0));
    let kernel = running
        .exec_shell(
            "cd /sys/fs/cgroup; cat memory.current; grep '^inactive_file ' memory.stat; grep ^usage_usec cpu.stat",
        )
        .good();
    let stats = inside.stats().unwrap();
    let counters = stats.inside.unwrap();
    let number =
        |line: usize| kernel.lines().nth(line).unwrap().split_whitespace().last().unwrap().parse::<u64>().unwrap();
    let close = |ours: u64, theirs: u64, slack: u64| ours.abs_diff(theirs) <= theirs / 20 + slack;
    let memory = number(0) - number(1);
    // The asking itself costs a process each time.
    assert!(close(counters.memory_bytes.unwrap(), memory, 1 << 20), "{counters:?} and {kernel}");
    assert!(counters.memory_bytes.unwrap() >= 30_000_000, "{counters:?}");
    assert!(close(counters.cpu_usec.unwrap(), number(2), 200_000), "{counters:?} and {kernel}");
    assert_eq!(counters.pids, Some(1), "{counters:?}");
    assert!(counters.memory_limit_bytes.is_some(), "{counters:?}");
    assert!(stats.host.memory_bytes.unwrap() >= 30_000_000 && stats.host.cpu_usec.unwrap() > 0, "{stats:?}");
    inside.pause().unwrap();
    assert!(inside.stats().unwrap().host.memory_bytes.is_some());
    kill(running);
    Ok(())
}

/// Sandboxes end with further commands at work, abandoned or paused.
pub(crate) fn nothing_is_left(stage: &Stage) -> Verdict {
    let mut ids = Vec::new();
    for round in 0..3 {
        let spec = stage.spec(&["sleep", "600"]);
        ids.push(spec.id.to_string());
        let running = stage.start(&spec);
        let further: Vec<_> = (0..2).map(|_| running.exec(&process(&["sleep", "600"]))).collect();
        match round {
            0 => drop(running),
            1 => {
                running.sandbox.inside().pause().unwrap();
                drop(running);
            }
            _ => {
                drop(further);
                kill(running);
            }
        }
    }
    let left = inventory(stage.state.path(), &ids);
    assert!(left.is_empty(), "{left:#?}");
    Ok(())
}
