//! A monitor's filters of system calls, held against what monitors do: whatever a filter lets through, some use of a machine needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use duplex::jail::filter_of;
use duplex::sys::counts::Counter;
use duplex::vmm::role::{Parts, Role};
use serde_json::Value;

use crate::busybox::BUSYBOX;
use crate::life::Place;
use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Program("mke2fs"),
    Need::Program("passt"),
    Need::File(BUSYBOX),
    Need::File("/usr/lib/qemu/virtiofsd"),
];

pub(crate) const CASES: &[Case] =
    &[Case { name: "filters::each_call_that_is_let_through_is_used", needs: NEEDS, run: each_call_is_used }];

const IMAGE: &str = "box:1";
const FAMILY: &str = "/sys/fs/cgroup/duplex";
const FULL: Parts = Parts { volumes: true, stream: true, tap: true, rate: true, shares: true, console: true };

/// What no ordinary use shows, and why it is let through all the same.
const UNSEEN: &[(libc::c_long, &str)] = &[
    (libc::SYS_exit_group, "the end of a monitor that met a fault of its own: walls::an_attack_is_told has one"),
    (libc::SYS_restart_syscall, "what waits in ppoll while the whole process is stopped makes it afterwards"),
    (libc::SYS_munmap, "a machine that ends before its processors' threads have its memory is taken apart"),
    (libc::SYS_clock_gettime, "where the host's clock is told by the vDSO, the kernel is not called"),
];

/// Monitors by the ids of their cgroups, and what counts their calls.
struct Seen<'p> {
    place: &'p Place,
    counter: Counter,
    monitors: BTreeMap<u64, u64>,
}

impl Seen<'_> {
    fn note(&mut self, name: &str) {
        let told: Value = serde_json::from_str(&self.place.say(&["inspect", name])).unwrap();
        let processes = told[0]["Confinement"].as_array().unwrap();
        let monitor = processes.iter().find(|p| p["Name"] == "duplex-vmm").expect("a monitor");
        let cgroup = fs::metadata(format!("{FAMILY}/{}", told[0]["Id"].as_str().unwrap())).unwrap().ino();
        self.monitors.insert(cgroup, monitor["Pid"].as_u64().unwrap());
    }

    /// The calls of the event loop, which is a monitor's first thread, and of processors' threads. What the first calls before its filter
    /// stands is among them.
    fn calls(&self) -> [BTreeSet<libc::c_long>; 2] {
        let mut calls = [BTreeSet::new(), BTreeSet::new()];
        for (cgroup, monitor) in &self.monitors {
            for call in self.counter.calls(*cgroup).unwrap() {
                if u64::from(call.process) == *monitor {
                    calls[usize::from(!call.first_thread)].insert(call.number.into());
                }
            }
        }
        calls
    }
}

fn each_call_is_used() -> Verdict {
    let place = Place::with_busybox(IMAGE);
    let counter = Counter::of_threads(fs::metadata(FAMILY).unwrap().ino()).unwrap();
    let mut seen = Seen { place: &place, counter, monitors: BTreeMap::new() };
    // Its beginning is kept for the others; memory goes back to the host seconds after the guest has freed it.
    place.run("microvm", &["--name", "first", IMAGE, "sleep", "1000"]);
    place.say(&["exec", "first", "sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=64 2>&1; rm /tmp/x; sleep 4"]);
    seen.note("first");
    place.run("microvm", &["--name", "second", IMAGE, "sleep", "1000"]);
    place.say(&[
        "exec",
        "second",
        "sh",
        "-c",
        "busybox nslookup example.org 127.9.9.9 || busybox nslookup example.org; true",
    ]);
    place.say(&["pause", "second"]);
    place.say(&["unpause", "second"]);
    place.say(&["snapshot", "create", "second", "kept"]);
    seen.note("second");
    place.run("microvm", &["--name", "peer", "--net", "bridge:filters", IMAGE, "sleep", "1000"]);
    seen.note("peer");
    let (log, share) = (place.folder().join("log"), place.folder().join("share"));
    fs::create_dir(&share).unwrap();
    let share = format!("{}:/share", share.display());
    let words = ["--kernel-log", log.to_str().unwrap(), "-v", "data:/data", "-v", &share, "--net", "bridge:filters"];
    let large = ["--name", "large", "--cpus", "2", "--net-rate", "1mbit", "--cap-add", "SYS_ADMIN"];
    place.run("microvm", &[&large[..], &words, &[IMAGE, "sleep", "1000"]].concat());
    // The peer may not listen yet.
    let script = "dd if=/dev/zero of=/data/x bs=1M count=8 conv=fsync 2>&1; rm /data/x; busybox fstrim /data
                  echo x > /share/x; cat /share/x; busybox nslookup peer
                  for n in 1 2 3 4 5; do
                      dd if=/dev/zero bs=64k count=8 2>&1 | busybox timeout 20 busybox nc peer 9 && exit; sleep 1
                  done; exit 1";
    place.say(&["exec", "-d", "peer", "sh", "-c", "sleep 60 | busybox nc -l -p 9 > /dev/null"]);
    place.say(&["exec", "large", "sh", "-c", script]);
    seen.note("large");
    place.run("microvm", &["--name", "short", IMAGE, "sleep", "5"]);
    seen.note("short");
    place.say(&["wait", "short"]);
    place.say(&["rm", "-f", "first", "second", "peer", "large", "short"]);
    place.say(&["snapshot", "rm", "kept"]);
    place.say(&["volume", "rm", "data"]);
    let [event_loop, processor] = seen.calls();
    let either: BTreeSet<_> = event_loop.union(&processor).copied().collect();
    let allowed = |role| filter_of(role, FULL).numbers().collect::<BTreeSet<_>>();
    let [of_loop, of_processor] = [Role::EventLoop, Role::Vcpu(0)].map(allowed);
    let unused = |allowed: &mut dyn Iterator<Item = &libc::c_long>, used: &BTreeSet<libc::c_long>| {
        let excused = |call: &libc::c_long| UNSEEN.iter().any(|(number, _)| number == call);
        allowed.filter(|call| !used.contains(call) && !excused(call)).copied().collect::<Vec<_>>()
    };
    // A device is served on either thread, by the same code: what a processor's thread may call, one of both calls.
    assert_eq!(unused(&mut of_processor.iter(), &either), [0; 0], "let through to both, and called by neither");
    assert_eq!(unused(&mut of_loop.difference(&of_processor), &event_loop), [0; 0], "let through to the event loop");
    Ok(())
}
