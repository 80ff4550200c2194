//! What a user namespace of its own makes of a container's users. (The other promises hold in one as they hold without.)

use std::os::unix::fs::MetadataExt;

use duplex::spec::{Capability, Exit, MountSource, MountSpec};

use super::image::FAR;
use super::inside::{kill, sleeping};
use super::stage::{Ran, Stage};
use crate::runner::Verdict;

/// Where blocks of users begin.
const FIRST: u32 = 0x7800_0000;

const SYS_ADMIN: Capability = Capability(21);

/// Who is root inside, by the map of a process there.
fn root_of(map: &str) -> u32 {
    let numbers: Vec<u32> = map.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let [0, first, 65_536] = numbers[..] else { panic!("{map}") };
    assert!(first >= FIRST && first % 65_536 == 0, "{map}");
    first
}

pub(crate) fn users_are_not_the_hosts(stage: &Stage) -> Verdict {
    let script = "cat /proc/self/uid_map; cat /proc/self/gid_map; echo -; cat /proc/self/status; read wait";
    let start = || {
        let mut spec = stage.spec(&["sh", "-c", script]);
        spec.process.stdin = true;
        let mut running = stage.start(&spec);
        running.stdout.until("Seccomp");
        let text = String::from_utf8(running.stdout.seen.clone()).unwrap();
        let (maps, status) = text.split_once("-\n").unwrap();
        let maps: Vec<&str> = maps.lines().collect();
        let [user, group] = maps[..] else { panic!("{maps:?}") };
        assert_eq!(root_of(user), root_of(group));
        assert!(status.contains("Uid:\t0\t0\t0\t0\n"), "{status}");
        (running, root_of(user))
    };
    let ((one, first), (other, second)) = (start(), start());
    assert_ne!(first, second, "two containers at once have the same users");
    let users: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|process| std::fs::read_to_string(process.path().join("status")).ok())
        .filter_map(|status| Some(status.lines().find_map(|line| line.strip_prefix("Uid:"))?.trim().to_owned()))
        .collect();
    for root in [first, second] {
        assert!(users.contains(&format!("{root}\t{root}\t{root}\t{root}")), "{root} in {users:?}");
    }
    for mut running in [one, other] {
        drop(running.stdin.take());
        assert_eq!(running.finish().outcome.exit, Exit::Code(1));
    }
    Ok(())
}

pub(crate) fn files_are_its_users(stage: &Stage) -> Verdict {
    let script = "set -e
        stat -c %u:%g / /etc /etc/hostname /etc/hosts /bin/sh /dev /dev/pts /tmp | sort -u
        touch /root-made; chown 1000:1001 /root-made; mkdir /tmp/d; chown 7 /tmp/d; stat -c %u:%g /root-made /tmp/d
        cp /bin/sh /tmp/d/sh; chown 0 /tmp/d/sh; chmod 4755 /tmp/d/sh; stat -c %u:%a /tmp/d/sh";
    assert_eq!(stage.shell(script).good(), "0:0\n1000:1001\n7:0\n0:4755\n");
    let mut user =
        stage.spec(&["sh", "-c", "id -u; echo x 2>/dev/null > /etc/hostname || echo closed; echo out > /dev/stdout"]);
    user.process.user = "1000".into();
    assert_eq!(stage.run(&user).good(), "1000\nclosed\nout\n");
    Ok(())
}

/// Numbers that a user namespace has not: files of theirs are nobody's and stay as they are (the kernel's EOVERFLOW), and no command is theirs.
pub(crate) fn far_users_are_nobody(stage: &Stage) -> Verdict {
    let script = "stat -c %u:%g /etc/far; cat /etc/far; chown 0 /etc/far 2>/dev/null || echo kept; rm -f /etc/far 2>/dev/null || echo stays";
    assert_eq!(stage.shell(script).good(), "65534:65534\nfar\nkept\nstays\n");
    let refused = |ran: Ran| {
        let told = ran.outcome.reason.unwrap();
        assert!(told.contains("none of the container's own") && told.contains("--userns host"), "{told}");
    };
    let running = sleeping(stage);
    for user in [FAR.to_string(), format!("0:{FAR}"), "65536".to_owned()] {
        let mut spec = stage.spec(&["true"]);
        spec.process.user = user;
        refused(stage.run(&spec));
        refused(running.exec(&spec.process).finish());
    }
    kill(running);
    let mut last = stage.spec(&["id", "-u"]);
    last.process.user = "65534".into();
    assert_eq!(stage.run(&last).good(), "65534\n");
    Ok(())
}

pub(crate) fn rights_end_at_the_namespace(stage: &Stage) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "of the host\n").unwrap();
    // With a right that is as good as root's on the host, root in here mounts for itself, and nothing else.
    let script =
        "mkdir /tmp/m; mount -t tmpfs none /tmp/m && echo mounted; mknod /tmp/null c 1 3 2>/dev/null || echo no node
        date -s 200001010000 2>&1 | grep -q permitted && echo no clock; hostname other && hostname
        stat -c %u /in/secret; echo inside > /in/made; chown 5:6 /in/made";
    let mut spec = stage.spec(&["sh", "-c", script]);
    spec.process.capabilities.extend([SYS_ADMIN, Capability(25), Capability(27)]);
    spec.security.seccomp = duplex::spec::Seccomp::Unconfined;
    let source = MountSource::Bind { path: folder.path().to_owned(), create: false };
    spec.mounts = vec![MountSpec { target: "/in".into(), read_only: false, source }];
    assert_eq!(stage.run(&spec).good(), "mounted\nno node\nno clock\nother\n0\n");
    let made = std::fs::metadata(folder.path().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (5, 6), "shared folders keep numbers");
    Ok(())
}
