//! The walls around a monitor, always: as the kernel shows them, and as an attacker within would find them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use duplex::jail::around_monitor;
use duplex::spec::{MachineSpec, SpecFd};
use duplex::sys::birth::{Child, FIRST_FD, spawn};
use duplex::vmm::spawn::encode;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};

use crate::busybox::{self, BUSYBOX};
use crate::life::{Place, words};
use crate::machine::kernel;
use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Program("mkfs.erofs"),
    Need::Program("mke2fs"),
    Need::File(BUSYBOX),
    Need::File("/usr/lib/qemu/virtiofsd"),
];
const BESIDE: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::File("/usr/lib/qemu/virtiofsd"), Need::Program("passt")];
const DRILL: &[Need] =
    &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone, Need::File("target/drill/duplex-vmm")];
const IMAGE: &str = "box:1";

pub(crate) const CASES: &[Case] = &[
    Case { name: "walls::a_monitor_has_nothing", needs: NEEDS, run: posture },
    Case { name: "walls::the_processes_beside_a_monitor_have_little", needs: BESIDE, run: beside },
    Case { name: "walls::nothing_that_an_attacker_tries_succeeds", needs: DRILL, run: drill },
    Case { name: "walls::an_attack_is_told", needs: DRILL, run: attack_is_told },
];

fn place() -> Place {
    let mut place = Place::new();
    let process = json!({ "Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"] });
    let archive = place.folder().join("image.tar");
    fs::write(&archive, busybox::archive(IMAGE, &process)).unwrap();
    place.say(&["load", "-q", "-i", archive.to_str().unwrap()]);
    // The volumes' folder is made, and stays.
    place.say(&["volume", "create", "--size", "16m", "data"]);
    place.say(&["volume", "rm", "data"]);
    place.count();
    place
}

/// What `inspect` says of the processes of a sandbox.
fn processes(place: &Place, name: &str) -> Vec<Value> {
    let told: Value = serde_json::from_str(&place.say(&["inspect", name])).unwrap();
    told[0]["Confinement"].as_array().unwrap().clone()
}

fn monitor(place: &Place, name: &str) -> Value {
    processes(place, name).into_iter().find(|p| p["Name"] == "duplex-vmm").expect("a monitor")
}

fn posture() -> Verdict {
    let place = place();
    place.say(&["volume", "create", "--size", "16m", "data"]);
    let run = |name: &str, flags: &[&str]| {
        place.run("microvm", &[&["--name", name], flags, &[IMAGE, "sleep", "1000"]].concat());
    };
    run("usual", &[]);
    run("from-template", &[]);
    run("large", &["--cpus", "2", "-v", "data:/data", "-v", "/usr:/usr:ro", "--net-rate", "10mbit", "-p", "8099:80"]);
    let mut users = BTreeSet::new();
    for name in ["usual", "from-template", "large"] {
        // Used a little: what a device opens late would show.
        place.say(&["exec", name, "sh", "-c", "echo x > /tmp/x; sync; ls / > /dev/null"]);
        let monitor = monitor(&place, name);
        assert_nothing(&monitor);
        users.insert(monitor["User"].as_u64().unwrap());
        let limits = fs::read_to_string(format!("/proc/{}/limits", monitor["Pid"])).unwrap();
        let of = |limit: &str| limits.lines().find_map(|l| l.strip_prefix(limit)).unwrap().split_whitespace().next();
        assert_eq!((of("Max core file size"), of("Max processes")), (Some("0"), Some("64")), "{limits}");
        assert_ne!(of("Max file size"), Some("unlimited"));
        // A guest that fills its kernel log up to this limit must not end its monitor by it.
        let status = fs::read_to_string(format!("/proc/{}/status", monitor["Pid"])).unwrap();
        let ignored = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).unwrap().trim();
        assert_ne!(u64::from_str_radix(ignored, 16).unwrap() & 1 << (Signal::XFSZ.as_raw() - 1), 0, "{status}");
    }
    assert_eq!(users.len(), 3, "each has a user of its own: {users:?}");
    place.say(&["rm", "-f", "usual", "from-template", "large"]);
    place.say(&["volume", "rm", "data"]);
    place.must_be_clean("three monitors");
    Ok(())
}

/// No user, right, file system or namespace that it shares with anybody, a filter in each thread, and no descriptor but those of its machine.
fn assert_nothing(monitor: &Value) {
    let (user, group) = (monitor["User"].as_u64().unwrap(), monitor["Group"].as_u64().unwrap());
    assert!(user == group && (0x7000_0000..0x7f00_0000).contains(&user), "{monitor:#}");
    let sets = monitor["Capabilities"].as_object().unwrap();
    assert!(sets.len() == 5 && sets.values().all(|set| *set == "0000000000000000"), "{monitor:#}");
    assert_eq!(monitor["NoNewPrivs"], true);
    assert_eq!(monitor["EmptyRoot"], true);
    assert_eq!(monitor["OwnNamespaces"], json!(["cgroup", "ipc", "mnt", "net", "pid", "uts"]));
    let threads = monitor["Seccomp"].as_object().unwrap();
    assert!(threads.len() >= 2 && threads.values().all(|mode| *mode == 2), "{monitor:#}");
    let known = [
        "/dev/null",
        "/memfd:duplex-stderr",
        "anon_inode:[eventpoll]",
        "anon_inode:[eventfd]",
        "anon_inode:[timerfd]",
        "anon_inode:kvm-vm",
        "anon_inode:kvm-vcpu:",
        "/memfd:",
        "socket:[",
    ];
    for (number, path) in monitor["Descriptors"].as_object().unwrap() {
        let path = path.as_str().unwrap();
        let file =
            ["/vmlinux", "/initramfs.cpio", "/meta", "/data", "/templates/"].iter().any(|part| path.contains(part));
        assert!(file || known.iter().any(|known| path.starts_with(known)), "{number}: {path}");
    }
}

/// Capabilities by their numbers (linux/capability.h): what changes files' owners, modes and attributes, a smaller root, and giving up the rest.
const OF_FILES: &[u32] = &[0, 1, 3, 4, 6, 7, 8, 18, 24, 31];
/// Those of which a keeper has none: code in the kernel, hardware, files past all permissions, devices, the clock, the log, other kinds of policy.
const OF_THE_HOST: &[u32] = &[2, 9, 16, 17, 22, 25, 27, 30, 32, 33, 34, 38, 40];

fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().map(|number| 1_u64 << number).sum()
}

/// A keeper, a file server and passt: all of their threads, from the kernel's own words.
fn beside() -> Verdict {
    let place = Place::new();
    let text = place.folder().join("text");
    fs::write(&text, "text").unwrap();
    let share = format!("{}:/share", place.folder().display());
    let one = format!("{}:/one:ro", text.display());
    place.run("microvm", &["--name", "box", "-v", &share, "-v", &one, "-p", "8197:80", "workloads", "pause"]);
    assert_eq!(place.say(&["exec", "box", "/workloads", "cat", "/share/text", "/one"]), "texttext");
    let all = processes(&place, "box");
    let named = |name: &str| all.iter().filter(|p| p["Name"].as_str().unwrap().starts_with(name)).collect::<Vec<_>>();
    for process in &all {
        let modes = process["Seccomp"].as_object().unwrap();
        assert!(!modes.is_empty() && modes.values().all(|mode| *mode == 2), "{process:#}");
        assert_eq!(process["NoNewPrivs"], true, "{process:#}");
    }
    let set =
        |process: &Value, name: &str| u64::from_str_radix(process["Capabilities"][name].as_str().unwrap(), 16).unwrap();
    let keeper = named("duplex").into_iter().find(|p| p["Part"] == "keeper").expect("a keeper");
    for name in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(set(keeper, name) & bits(OF_THE_HOST), 0, "{keeper:#}");
    }
    let servers = named("virtiofsd");
    assert_eq!(servers.len(), 2, "one process for each share: {all:#?}");
    for server in servers {
        for name in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
            assert_eq!(set(server, name) & !bits(OF_FILES), 0, "{server:#}");
        }
        assert_eq!(server["OwnNamespaces"], json!(["cgroup", "ipc", "mnt", "net", "pid", "uts"]));
        sees_only_its_share(server);
    }
    let passt = named("passt");
    assert!(passt.len() == 1 && passt[0]["Part"] == "network", "{all:#?}");
    assert_eq!((set(passt[0], "CapPrm"), &passt[0]["User"], &passt[0]["EmptyRoot"]), (0, &json!(65534), &json!(true)));
    let own = passt[0]["OwnNamespaces"].as_array().unwrap();
    assert!(["ipc", "mnt", "user", "uts"].iter().all(|name| own.contains(&json!(name))), "{own:?}");
    place.say(&["rm", "-f", "box"]);
    Ok(())
}

/// From no folder that a file server has open is there a way to anything of the host but the share, programs' libraries and its own process.
fn sees_only_its_share(server: &Value) {
    let mut rooms = 0;
    for number in server["Descriptors"].as_object().unwrap().keys() {
        let mut path = PathBuf::from(format!("/proc/{}/fd/{number}", server["Pid"]));
        if !path.is_dir() {
            continue;
        }
        // Upwards to where it goes no further.
        (0..8).for_each(|_| path.push(".."));
        let mut names = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let room = ["usr", "lib", "lib64", "nix", "etc", "proc", "processes", "share"];
        assert!(names.all(|name| room.contains(&name.as_str())), "{number}: {path:?}");
        assert!(!path.join("proc/sys/kernel").exists() && !path.join("etc/passwd").exists());
        assert!(fs::write(path.join("file"), "").is_err(), "a room cannot be written");
        rooms += 1;
    }
    assert!(rooms > 0, "{server:#}");
}

fn drill_monitor() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/drill/duplex-vmm")
}

/// How a drill ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Signal(i32),
    Code(i32),
}

/// Starts a drill monitor, walls and all, whose thread of this role makes this attempt. The attempt's name, and how it ended.
fn attempt(role: &str, number: usize, kernel: &File) -> (String, End) {
    let memfd = |bytes: &[u8]| {
        let mut file = File::from(memfd_create("drill", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    };
    let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let spec = MachineSpec {
        kvm: SpecFd(FIRST_FD),
        vcpus: 1,
        memory_mib: 64,
        kernel: SpecFd(FIRST_FD + 1),
        initramfs: None,
        cmdline: String::new(),
        disks: Vec::new(),
        vsock: None,
        console: None,
        nets: Vec::new(),
        shares: Vec::new(),
        template: None,
        control: SpecFd(FIRST_FD + 2),
    };
    let spec = memfd(&encode(&spec).unwrap());
    let mut stderr = memfd(b"");
    let args = [(FIRST_FD + 3).to_string(), role.to_owned(), number.to_string()];
    let fds: [BorrowedFd<'_>; 4] = [kvm.as_fd(), kernel.as_fd(), theirs.as_fd(), spec.as_fd()];
    let walls = around_monitor(&"0123456789ab".parse().unwrap(), 64 << 20, 0);
    let program = drill_monitor();
    let child = Child {
        program: &program,
        args: &args,
        fds: &fds,
        stderr: stderr.as_fd(),
        cgroup: None,
        walls: Some(&walls),
        dies_with_caller: false,
    };
    let process: OwnedFd = spawn(&child).unwrap();
    drop(theirs);
    let status = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
    drop(control);
    let mut name = String::new();
    stderr.rewind().unwrap();
    stderr.read_to_string(&mut name).unwrap();
    let end = status.terminating_signal().map(End::Signal);
    (name, end.or(status.exit_status().map(End::Code)).unwrap())
}

/// Code of a drill for an attempt that does not exist.
const NO_SUCH: i32 = 71;

fn drill() -> Verdict {
    let kernel = kernel()?;
    for role in ["vcpu", "event-loop"] {
        let mut made = BTreeSet::new();
        for number in 0.. {
            let (name, end) = attempt(role, number, &kernel);
            if end == End::Code(NO_SUCH) {
                break;
            }
            assert_eq!(end, End::Signal(Signal::SYS.as_raw()), "{role}: {name}");
            made.insert(name);
        }
        assert!(made.len() >= 50, "{role}: {made:?}");
    }
    Ok(())
}

/// The user is told in words, and nothing is left.
fn attack_is_told() -> Verdict {
    let mut place = Place::new();
    let parts = place.folder().join("parts");
    fs::create_dir(&parts).unwrap();
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/duplex");
    std::os::unix::fs::symlink(installed.join("guest"), parts.join("guest")).unwrap();
    fs::copy(drill_monitor(), parts.join("duplex-vmm")).unwrap();
    place.count();
    let run = ["run", "--rm", "--net", "none", "--cold", "workloads", "hello"];
    let output = place.duplex(&run).env("DUPLEX_LIBDIR", &parts).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(words(&output).contains("stopped by its own filter of system calls"), "{}", words(&output));
    place.must_be_clean("an attack");
    Ok(())
}
