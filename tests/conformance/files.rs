//! What a command finds on its root file system, and what it cannot reach.

use std::path::PathBuf;

use duplex::spec::{Exit, MountSource, MountSpec};

use super::stage::Stage;
use crate::runner::Verdict;

pub(crate) fn read_only_root_refuses_writes(stage: &Stage) -> Verdict {
    let script =
        "touch /x; echo $?; touch /etc/hosts; echo $?; rm /bin/cat; echo $?; echo x > /dev/shm/ok && cat /dev/shm/ok";
    let mut spec = stage.spec(&["sh", "-c", script]);
    spec.read_only = true;
    spec.process.cwd = "/made/even/so".into();
    let ran = stage.run(&spec);
    assert_eq!(ran.good(), "1\n1\n1\nx\n");
    let words = String::from_utf8_lossy(&ran.stderr).matches("Read-only file system").count();
    assert_eq!(words, 3, "{}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

pub(crate) fn files_come_and_go_on_the_overlay(stage: &Stage) -> Verdict {
    let script = "set -e
        cd /work/deep; test $(ls | wc -l) = 200
        for n in $(seq 0 99); do echo changed > $n; done
        for n in $(seq 100 149); do rm $n; done
        mkdir new; for n in $(seq 150 199); do mv $n new/; done
        ln 0 hard; ln -s 0 soft; chmod 600 1; chown 1000:1001 2
        test $(ls | wc -l) = 103; test $(ls new | wc -l) = 50; test \"$(cat hard soft)\" = \"changed
changed\"
        test $(stat -c %a:%u 1 2 | tr '\\n' ' ' | cut -d' ' -f1,2 | tr ' ' ,) = 600:0,644:1000
        rm -r new hard soft; dd if=/dev/zero of=big bs=1M count=20 2>/dev/null; test $(stat -c %s big) = 20971520
        sync; rm big; echo fine";
    assert_eq!(stage.shell(script).good(), "fine\n");
    assert_eq!(stage.shell("ls /work/deep | wc -l").good(), "200\n", "the next sandbox finds the image as it was");
    Ok(())
}

pub(crate) fn etc_files_are_ours(stage: &Stage) -> Verdict {
    let text = stage
        .shell(
            "cat /etc/hostname; hostname; grep -c localhost /etc/hosts; grep -w box /etc/hosts; cat /etc/resolv.conf",
        )
        .good();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["box", "box"]);
    assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["127.0.0.1", "box"]);
    assert!(lines[4].starts_with('#'), "{text}");
    Ok(())
}

pub(crate) fn nothing_of_the_host_is_seen(stage: &Stage) -> Verdict {
    let here = stage.state.path().display().to_string();
    let script = format!(
        "set -e
        test $$ = 1; test $(ls /proc | grep -c '^[0-9]*$') -le 4
        test ! -e {here}; test -z \"$(grep {here} /proc/mounts)\"
        ls /proc/self/fd | tr '\\n' ' '; ifconfig lo | grep -c '127.0.0.1'; ifconfig -a | grep -c '^[a-z]'
        test -d /dev/pts; test -c /dev/null; test ! -e /dev/fd/9; touch /proc/sys/kernel/hostname 2>/dev/null && exit 9
        mount -t tmpfs none /mnt 2>/dev/null && exit 12
        echo fine"
    );
    let text = stage.shell(&script);
    assert_eq!(text.outcome.exit, Exit::Code(0), "{text:?}");
    assert_eq!(text.text(), "0 1 2 3 1\n1\nfine\n");
    Ok(())
}

pub(crate) fn devices_of_the_host_stay_closed(stage: &Stage) -> Verdict {
    let script = "for node in 'disk b 8 0' 'loop b 7 0' 'kvm c 10 232' 'kmsg c 1 11' 'memory c 1 1'; do
          set -- $node; mknod /dev/$1 $2 $3 $4 || exit 9
          head -c 0 /dev/$1 2>/dev/null && exit 10
          mknod /tmp/$1 $2 $3 $4 || exit 9
          head -c 0 /tmp/$1 2>/dev/null && exit 11
        done
        for name in null zero full random urandom tty; do test -c /dev/$name || exit 12; done
        head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x > /dev/null; echo x > /dev/full && exit 13
        echo fine";
    assert_eq!(stage.shell(script).good(), "4\n4\nfine\n");
    Ok(())
}

fn bind(path: PathBuf, target: &str, read_only: bool) -> MountSpec {
    MountSpec { target: target.into(), read_only, source: MountSource::Bind { path, create: false } }
}

pub(crate) fn folders_of_the_host_are_shared(stage: &Stage) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    std::fs::create_dir_all(at("whole/below")).unwrap();
    for name in ["whole/file", "single", "beside"] {
        std::fs::write(at(name), format!("{name}\n")).unwrap();
    }
    std::os::unix::fs::symlink(at("beside"), at("whole/out")).unwrap();
    let script = "set -e
        cat /in/file /one; echo written > /in/below/new; chown 1000:1001 /in/below/new; echo more >> /one
        cat /in/out 2>/dev/null && exit 9
        touch /still/x 2>/dev/null && exit 10
        cat /still/file; ls /; cd /in; mkdir made; mv file made/; ls made";
    let mut spec = stage.spec(&["sh", "-c", script]);
    spec.mounts =
        vec![bind(at("whole"), "/in", false), bind(at("single"), "/one", false), bind(at("whole"), "/still", true)];
    let text = stage.run(&spec).good();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["whole/file", "single", "whole/file"]);
    assert!(lines.contains(&"in") && !lines.contains(&"beside") && lines.last() == Some(&"file"), "{text}");
    assert_eq!(std::fs::read_to_string(at("whole/below/new")).unwrap(), "written\n");
    let new = std::fs::metadata(at("whole/below/new")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((new.uid(), new.gid()), (1000, 1001));
    assert_eq!(std::fs::read_to_string(at("single")).unwrap(), "single\nmore\n");
    assert!(at("whole/made/file").is_file() && !at("whole/file").exists());
    Ok(())
}

pub(crate) fn a_folder_that_is_not_there_is_told(stage: &Stage) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let mut spec = stage.spec(&["true"]);
    spec.mounts = vec![bind(missing.clone(), "/in", false)];
    let words = stage.must_fail(&spec);
    assert!(words.contains(&format!("bind source path does not exist: {}", missing.display())), "{words}");
    assert!(!missing.exists());
    Ok(())
}
