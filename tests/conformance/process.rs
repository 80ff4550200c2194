//! What a command finds, and how its end is told.

use duplex::spec::{Capability, Exit, SandboxSpec, State, TerminalSize};

use super::stage::{Ran, Stage, feed};
use crate::runner::Verdict;

pub(crate) fn exit_code(stage: &Stage) -> Verdict {
    for code in [0, 1, 42, 255] {
        let ran = stage.shell(&format!("exit {code}"));
        assert_eq!(ran.outcome.exit, Exit::Code(code));
        assert!(!ran.outcome.oom);
    }
    Ok(())
}

pub(crate) fn signal_ends_the_command(stage: &Stage) -> Verdict {
    let mut running =
        stage.start(&stage.spec(&["sh", "-c", "trap 'exit 7' USR1; echo ready; while :; do sleep 1; done"]));
    running.stdout.until("ready");
    assert_eq!(running.sandbox.state(), State::Running);
    running.sandbox.remote().signal(10).unwrap();
    assert_eq!(running.finish().outcome.exit, Exit::Code(7));
    Ok(())
}

pub(crate) fn streams_stay_apart(stage: &Stage) -> Verdict {
    let ran = stage.shell("echo out; echo err >&2; cat; echo end");
    assert_eq!((ran.good().as_str(), ran.stderr.as_slice()), ("out\nend\n", b"err\n".as_slice()));
    Ok(())
}

pub(crate) fn stdin_arrives_whole(stage: &Stage) -> Verdict {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u8::try_from(state >> 24).unwrap()
    };
    let bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(10 << 20).collect();
    let mut spec = stage.spec(&["cat"]);
    spec.process.stdin = true;
    let mut running = stage.start(&spec);
    let feeder = feed(running.stdin.take().unwrap(), bytes.clone());
    let ran = running.finish();
    feeder.join().unwrap();
    assert_eq!(ran.outcome.exit, Exit::Code(0));
    assert_eq!(ran.stdout.len(), bytes.len());
    assert!(ran.stdout == bytes, "10 MiB came back different");
    Ok(())
}

pub(crate) fn environment_is_the_specs(stage: &Stage) -> Verdict {
    let mut spec = stage.spec(&["env"]);
    spec.process.env = vec!["A=1".into(), "EMPTY=".into(), "WITH=a=b c".into()];
    let text = stage.run(&spec).good();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=1", "EMPTY=", "HOME=/root", "HOSTNAME=box", path, "WITH=a=b c"]);
    Ok(())
}

pub(crate) fn working_folder_is_made(stage: &Stage) -> Verdict {
    for (cwd, expected) in [("/home/ann", "/home/ann"), ("/made/for/it", "/made/for/it"), ("/bin/../tmp", "/tmp")] {
        let mut spec = stage.spec(&["pwd"]);
        spec.process.cwd = cwd.into();
        assert_eq!(stage.run(&spec).good().trim(), expected);
    }
    Ok(())
}

pub(crate) fn users_come_from_the_image(stage: &Stage) -> Verdict {
    let script = "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '; echo; echo $HOME
        for name in null zero full random urandom tty; do test -r /dev/$name -a -w /dev/$name || echo $name is closed; done";
    let cases = [
        ("", "0\n0\n0 \n/root\n"),
        ("ann", "1000\n1001\n44 50 1001 \n/home/ann\n"),
        ("1000:50", "1000\n50\n50 \n/home/ann\n"),
        ("4242", "4242\n0\n0 \n/\n"),
    ];
    for (user, expected) in cases {
        let mut spec = stage.spec(&["sh", "-c", script]);
        spec.process.user = user.into();
        assert_eq!(stage.run(&spec).good(), expected, "user '{user}'");
    }
    let mut spec = stage.spec(&["grep", "Cap", "/proc/self/status"]);
    let granted: u64 = spec.process.capabilities.iter().map(|Capability(n)| 1_u64 << n).sum();
    let set = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    let text = stage.run(&spec).good();
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(set(&text, name), granted, "{name} of root");
    }
    spec = stage.spec(&["grep", "Cap", "/proc/self/status"]);
    spec.process.user = "ann".into();
    let text = stage.run(&spec).good();
    assert_eq!(["CapPrm", "CapEff", "CapAmb"].map(|n| set(&text, n)), [0, 0, 0], "another user holds nothing");
    assert_eq!(set(&text, "CapBnd"), granted);
    Ok(())
}

pub(crate) fn not_found_is_127(stage: &Stage) -> Verdict {
    for program in ["no-such-program", "/no/such/program"] {
        not_found(stage, program);
    }
    Ok(())
}

pub(crate) fn missing_interpreter_is_127(stage: &Stage) -> Verdict {
    not_found(stage, "no-interpreter");
    Ok(())
}

fn not_found(stage: &Stage, program: &str) {
    let ran = stage.run(&stage.spec(&[program]));
    assert_eq!(ran.outcome.exit, Exit::NotFound, "{program}: {:?}", ran.outcome);
    assert!(ran.outcome.reason.is_some_and(|r| r.contains(program)));
}

pub(crate) fn not_executable_is_126(stage: &Stage) -> Verdict {
    for program in ["/bin/not-executable", "/etc", "/bin/garbage"] {
        let ran = stage.run(&stage.spec(&[program]));
        assert_eq!(ran.outcome.exit, Exit::CannotExecute, "{program}: {:?}", ran.outcome);
        assert!(ran.outcome.reason.is_some_and(|r| r.contains(program)));
    }
    Ok(())
}

pub(crate) fn unknown_user_is_told(stage: &Stage) -> Verdict {
    let mut spec = stage.spec(&["true"]);
    spec.process.user = "eve".into();
    let ran = stage.run(&spec);
    assert_eq!(ran.outcome.exit, Exit::SandboxFailed);
    let reason = ran.outcome.reason.unwrap();
    assert!(reason.contains("eve") && reason.contains("/etc/passwd"), "{reason}");
    Ok(())
}

pub(crate) fn terminal_has_its_size(stage: &Stage) -> Verdict {
    let script =
        "tty; stty size; echo term=$TERM; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 1; done";
    let mut spec = stage.spec(&["sh", "-c", script]);
    spec.process.stdin = true;
    spec.process.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let mut running = stage.start(&spec);
    running.stdout.until("ready");
    running.sandbox.remote().resize(TerminalSize { rows: 50, columns: 132 }).unwrap();
    running.stdout.until("50 132");
    let ran = running.finish();
    assert_eq!(ran.outcome.exit, Exit::Code(3));
    let text = ran.text();
    assert!(text.starts_with("/dev/pts/0\r\n24 80\r\nterm=xterm\r\n"), "{text:?}");
    let ran = hello_typed(stage, stage.spec(&["sh", "-c", "read line; echo \"got $line\"; read more || echo end"]));
    assert_eq!(ran.outcome.exit, Exit::Code(0));
    assert!(ran.text().ends_with("end\r\n"), "the end of input is seen: {:?}", ran.text());
    Ok(())
}

/// Types "hello" at a command's terminal, waits for "got hello" and for the end of input's effect.
fn hello_typed(stage: &Stage, mut spec: SandboxSpec) -> Ran {
    spec.process.stdin = true;
    spec.process.terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let mut running = stage.start(&spec);
    let typed = feed(running.stdin.take().unwrap(), b"hello\n".to_vec());
    running.stdout.until("got hello");
    typed.join().unwrap();
    running.finish()
}

/// The kernel drops such a signal to the first process of a namespace (pid_namespaces(7)); a person who presses Ctrl-C wants it to end.
pub(crate) fn term_ends_a_first_process_without_a_handler(stage: &Stage) -> Verdict {
    // `cat` answers once it runs: a shell that is about to exec it may still have handlers of its own.
    let ends_by = |command: &[&str], signals: &[u8]| {
        let mut spec = stage.spec(command);
        spec.process.stdin = true;
        let mut running = stage.start(&spec);
        let mut stdin = running.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, b"ready\n").unwrap();
        running.stdout.until("ready");
        for signal in signals {
            running.sandbox.remote().signal(*signal).unwrap();
        }
        let exit = running.finish().outcome.exit;
        drop(stdin);
        exit
    };
    assert_eq!(ends_by(&["cat"], &[28, 15]), Exit::Signal(15));
    let ignoring = ["sh", "-c", "trap '' TERM; exec cat"];
    assert_eq!(ends_by(&ignoring, &[15, 2]), Exit::Signal(2), "an ignored signal stays ignored");
    Ok(())
}

/// Process 1 is not the command, hands signals on, reaps what it gets, and ends as the command does.
pub(crate) fn an_init_hands_on_and_reaps(stage: &Stage) -> Verdict {
    let with_init = |words: &[&str]| {
        let mut spec = stage.spec(words);
        spec.init = true;
        spec.process.user = "ann".into();
        spec
    };
    let script = "echo $$ $PPID; cat /proc/1/comm; tr -d '\\0' < /proc/1/cmdline; echo; (sleep 0.2 &) ; sleep 1; for p in /proc/[0-9]*; do grep -h '^State.*Z' $p/status; done 2>/dev/null
        trap 'echo term' TERM; trap 'echo usr1; exit 7' USR1; echo ready; while :; do sleep 0.1; done";
    let mut running = stage.start(&with_init(&["sh", "-c", script]));
    running.stdout.until("ready");
    running.sandbox.remote().signal(15).unwrap();
    running.stdout.until("term");
    // From inside too. The one that sends it may end with the sandbox.
    running.exec_shell("kill -USR1 1");
    let ran = running.finish();
    assert_eq!(ran.outcome.exit, Exit::Code(7));
    let text = ran.text();
    let mut lines = text.lines();
    let own: u32 = lines.next().and_then(|l| l.strip_suffix(" 1")).unwrap().parse().unwrap();
    assert!(own > 1, "{text}");
    assert_eq!(lines.collect::<Vec<_>>(), ["init", "init", "ready", "term", "usr1"], "no zombie is among them");

    // What has no handler ends it, as it would outside; codes, failures and terminals are the command's.
    let running = stage.start(&with_init(&["sleep", "600"]));
    running.sandbox.remote().signal(15).unwrap();
    assert_eq!(running.finish().outcome.exit.code(), 143);
    assert_eq!(stage.run(&with_init(&["sh", "-c", "exit 42"])).outcome.exit, Exit::Code(42));
    let missing = stage.run(&with_init(&["no-such-program"])).outcome;
    assert_eq!(missing.exit, Exit::NotFound);
    let ran = hello_typed(stage, with_init(&["sh", "-c", "tty; stty size; read line; echo \"got $line\""]));
    assert!(ran.text().contains("/dev/pts/0\r\n24 80\r\n"), "in the foreground of its terminal");
    let running = stage.start(&with_init(&["sh", "-c", "trap '' TERM; sleep 600"]));
    running.sandbox.remote().signal(9).unwrap();
    assert_eq!(running.finish().outcome.exit, Exit::Signal(9));
    Ok(())
}

pub(crate) fn kill_always_ends(stage: &Stage) -> Verdict {
    let script = "trap '' TERM INT HUP QUIT; (trap '' TERM; sleep 600) & echo ready; while :; do :; done";
    let mut running = stage.start(&stage.spec(&["sh", "-c", script]));
    running.stdout.until("ready");
    running.sandbox.remote().signal(9).unwrap();
    let ran = running.finish();
    assert_eq!(ran.outcome.exit, Exit::Signal(9));
    assert_eq!(ran.outcome.exit.code(), 137);
    assert!(!ran.outcome.oom);
    Ok(())
}
