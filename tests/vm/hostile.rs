//! A hostile guest: the bare-metal program of `guest/hostile` plays its cases, and this half watches the monitor. Each case is told, each device
//! works afterwards, and the monitor ends by its own decision; it neither grows nor spins.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use duplex::spec::{MachineExit, RequestToMonitor};
use duplex_hostile::{GROUPS, Group};

use crate::machine::{Disk, Machine, Plan, Report, Wire, file_of};
use crate::runner::{Case, Need, Skip, Verdict};
use crate::share;

const PROGRAM: &str = "target/hostile/duplex-hostile";
const NEEDS: &[Need] = &[Need::Host, Need::Kvm, Need::File(PROGRAM)];
const NEEDS_SERVER: &[Need] =
    &[Need::Host, Need::Kvm, Need::Root, Need::File(PROGRAM), Need::File("/usr/lib/qemu/virtiofsd")];

pub(crate) const CASES: &[Case] = &[
    Case { name: "hostile::two_hundred_cases_have_names_of_their_own", needs: &[], run: names },
    Case { name: "hostile::queue", needs: NEEDS, run: || group("queue") },
    Case { name: "hostile::layout", needs: NEEDS, run: || group("layout") },
    Case { name: "hostile::transport", needs: NEEDS, run: || group("transport") },
    Case { name: "hostile::request", needs: NEEDS, run: || group("request") },
    Case { name: "hostile::space", needs: NEEDS, run: || group("space") },
    Case { name: "hostile::packet", needs: NEEDS, run: || group("packet") },
    Case { name: "hostile::frame", needs: NEEDS, run: || group("frame") },
    Case { name: "hostile::output", needs: NEEDS, run: || group("output") },
    Case { name: "hostile::random", needs: NEEDS, run: || group("random") },
    Case { name: "hostile::pages", needs: NEEDS, run: || group("pages") },
    Case { name: "hostile::spaces", needs: NEEDS, run: || group("spaces") },
    Case { name: "hostile::processor", needs: NEEDS, run: || group("processor") },
    Case { name: "hostile::chips", needs: NEEDS, run: || group("chips") },
    Case { name: "hostile::second", needs: NEEDS, run: || group("second") },
    Case { name: "hostile::server", needs: NEEDS_SERVER, run: server },
    Case { name: "hostile::end", needs: NEEDS, run: ends },
];

/// The first word of both disks, by which the program knows that a read is right.
const MARK: u64 = 0x6475_706c_6578_2121;
const MEMORY_MIB: u32 = 64;
const KIB: u64 = 1 << 10;
/// What the monitor may have beside the guest's memory, at any time: its program (an unoptimised one in these tests), threads and buffers.
const OWN_KIB: u64 = 48 << 10;
/// Threads beside those of processors: the event loop, and a worker of KVM (Linux 6.12 shows it as one of the process).
const THREADS: usize = 2;
/// Descriptors beside the machine's disks and streams: standard ones, KVM's, the event loop's, the console's.
const DESCRIPTORS: usize = 32;
const STREAMS: usize = 40;
/// Longest life of a group's machine. The lab is slow.
const PATIENCE: Duration = Duration::from_secs(600);

fn group_of(name: &str) -> &'static Group {
    GROUPS.iter().find(|group| group.name == name).expect("a group")
}

/// The names of a group's cases.
fn names_of(group: &Group) -> Vec<String> {
    let of = |target: &duplex_hostile::Target| target.name();
    let each = |target| group.cases.iter().map(move |case| format!("{}.{target}.{}", group.name, case.name));
    group.targets.iter().map(of).flat_map(each).collect()
}

fn names() -> Verdict {
    let all: Vec<String> = GROUPS.iter().flat_map(names_of).collect();
    let different: BTreeSet<&String> = all.iter().collect();
    assert_eq!(different.len(), all.len());
    assert!(all.len() >= 200, "{}", all.len());
    let attacks: BTreeSet<&str> = GROUPS.iter().flat_map(|group| group.cases.iter().map(|case| case.name)).collect();
    assert!(attacks.len() >= 200, "{}", attacks.len());
    for group in GROUPS {
        let played = CASES.iter().any(|case| case.name == format!("hostile::{}", group.name));
        assert!(played, "nobody plays {}", group.name);
    }
    Ok(())
}

/// A machine with every device, and what the host has of it.
struct Stage {
    machine: Machine,
    /// Ends of streams that nobody reads.
    _streams: Vec<UnixStream>,
    vcpus: usize,
}

fn disk(read_only: bool) -> Disk {
    let mut bytes = vec![0; 1 << 20];
    bytes[..8].copy_from_slice(&MARK.to_le_bytes());
    (vec![(file_of(&bytes), 0, 1 << 20)], read_only)
}

/// Sends back frames of the program's own type, as long as there is room.
fn echo(mut socket: UnixStream) {
    let mut out = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut length = [0; 4];
        while socket.read_exact(&mut length).is_ok() {
            let mut frame = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
            if socket.read_exact(&mut frame).is_err() {
                break;
            }
            if frame.get(12..14) == Some(&[0x88, 0xb5]) && out.write_all(&[&length, &frame[..]].concat()).is_err() {
                break;
            }
        }
    });
}

fn plan(words: &str, vcpus: u8) -> Plan {
    Plan {
        bare: Some(File::open(PROGRAM).unwrap()),
        vcpus,
        memory_mib: MEMORY_MIB,
        disks: vec![disk(true), disk(false)],
        ..Plan::new(words)
    }
}

impl Stage {
    fn start(words: &str, vcpus: u8, console: Option<OwnedFd>) -> Result<Self, Skip> {
        let (net, far) = UnixStream::pair().unwrap();
        echo(far);
        let mut kept = Vec::new();
        let mut stream = |port: u32| {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(b"some bytes that wait for the guest").unwrap();
            kept.push(near);
            (port, far)
        };
        let streams = (0..STREAMS).map(|_| stream(1024)).collect::<Vec<_>>();
        let few = (0..10).map(|_| stream(1025));
        let streams = streams.into_iter().chain(few.collect::<Vec<_>>()).collect();
        let plan = Plan { net: Some((Wire::Stream(net), 1500)), streams, console, ..plan(words, vcpus) };
        Ok(Self { machine: Machine::start(plan)?, _streams: kept, vcpus: vcpus.into() })
    }

    /// Waits for this line of the program, or for the monitor's end.
    fn wait_for(&mut self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.machine.console().contains(words) && !self.machine.has_ended() {
            assert!(Instant::now() < deadline, "'{words}' does not come:\n{}", last_lines(&self.machine.console()));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Bounds on what the monitor has, and on what it does when its guest does nothing.
    fn must_be_small_and_quiet(&mut self) {
        let pid = self.machine.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()).unwrap();
        let most: u64 = field("VmHWM:").parse().unwrap();
        assert!(most <= u64::from(MEMORY_MIB) * KIB + OWN_KIB, "the monitor had {most} KiB");
        let threads: usize = field("Threads:").parse().unwrap();
        assert!(threads <= self.vcpus + THREADS, "{threads} threads");
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!(descriptors <= DESCRIPTORS + STREAMS + 10, "{descriptors} descriptors");
        let (from, before) = (Instant::now(), processor_time(pid));
        std::thread::sleep(Duration::from_secs(2));
        let (used, time) = (processor_time(pid) - before, from.elapsed());
        assert!(
            used * 4 < time,
            "an idle guest's monitor used {used:?} in {time:?}:\n{}",
            last_lines(&self.machine.console())
        );
    }

    /// Ends it from outside, which it must heed.
    fn kill(self) -> Report {
        self.machine.request(&RequestToMonitor::Kill, None);
        let report = self.machine.finish();
        assert_eq!((report.exit(), report.code), (&MachineExit::Killed, Some(14)), "{}", last_lines(&report.console));
        report
    }
}

/// What a process has used of processors.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().filter(|l| l.len() < 200).collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// What became of each of these cases.
fn must_be_well(console: &str, names: &[String]) {
    let bad: Vec<&str> =
        console.lines().filter(|l| l.contains("FAILED") || l.contains("FAULT") || l.contains("GAVE UP")).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    let told: BTreeSet<&str> =
        console.lines().filter_map(|l| l.trim().strip_prefix("CASE ")?.strip_suffix(" ok")).collect();
    let missing: Vec<&String> = names.iter().filter(|name| !told.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "not told: {missing:?}; last:\n{}", last_lines(console));
}

/// Plays a whole group in one machine.
fn group(name: &str) -> Verdict {
    let group = group_of(name);
    let mut stage = Stage::start(&format!("run={name}"), if name == "second" { 2 } else { 1 }, None)?;
    stage.wait_for("DONE 0x");
    must_be_well(&stage.machine.console(), &names_of(group));
    stage.must_be_small_and_quiet();
    stage.kill();
    Ok(())
}

/// With a file server behind the device.
fn server() -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("shared")).unwrap();
    let (_server, socket) = share::serve(&folder.path().join("shared"));
    let plan = Plan { shares: vec![("share".to_owned(), socket)], ..plan("run=server then=shutdown", 1) };
    let report = Machine::start(plan)?.finish();
    must_be_well(&report.console, &names_of(group_of("server")));
    assert_eq!((report.exit(), report.code), (&MachineExit::Shutdown, Some(0)));
    Ok(())
}

/// How a machine must end by itself, or that it goes on until it is told to end.
#[derive(Clone, Copy)]
enum End {
    Shutdown,
    Failed(u8),
    Reset,
    Panic,
    TripleFault,
    KvmFault,
    /// KVM or the guest, by the host's processor.
    Fault,
    /// By nothing: its guest does nothing, and so does the monitor.
    Quiet,
    /// By nothing: its guest is busy.
    Busy,
    /// By a fault of the processor, or by nothing if KVM tries the same again and again.
    Lost,
    /// It survives the case, or KVM gives up.
    Survives,
}

/// The end of each case of the group `end`.
fn end_of(name: &str) -> End {
    match name {
        "triple_fault" | "pages_of_tables_given_away" => End::TripleFault,
        "jump_to_no_memory" | "jump_into_a_device" | "jump_into_the_apic" => End::KvmFault,
        "tables_lost" => End::Lost,
        "stack_in_the_hole" | "init_to_itself" | "init_by_a_device" => End::Fault,
        "compare_with_a_device" | "smi_to_itself" => End::Survives,
        "shutdown_port" => End::Shutdown,
        "shutdown_port_by_words" => End::Shutdown,
        "failure_port_of_zero" => End::Failed(0),
        "failure_port_of_all_ones" => End::Failed(0xff),
        "reset_line" | "reset_line_by_words" => End::Reset,
        "reset_behind_words_of_a_panic" | "reset_behind_words_without_end" => End::Panic,
        "halted_for_ever" | "broken_devices_left_behind" | "requests_left_behind" => End::Quiet,
        // KVM looks at a timer's processor each time, which costs what it costs.
        "timer_left_behind" => End::Busy,
        name if name.ends_with("_for_ever") => End::Busy,
        _ => panic!("no end is known of {name}"),
    }
}

fn ends() -> Verdict {
    // All of them, and then what was wrong with any.
    let mut bad = Vec::new();
    for case in group_of("end").cases {
        match std::panic::catch_unwind(|| end(case.name)) {
            Ok(verdict) => verdict?,
            Err(words) => bad.push(format!("{}: {}", case.name, words.downcast::<String>().unwrap_or_default())),
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

fn end(name: &str) -> Verdict {
    // A console that takes everything and keeps nothing where there is no end of what is printed.
    let console = (name == "printing_for_ever").then(|| File::options().write(true).open("/dev/null").unwrap().into());
    let mut stage = Stage::start(&format!("run=end.machine.{name}"), 1, console)?;
    let end = end_of(name);
    match end {
        End::Quiet => {
            stage.wait_for(&format!("RUN end.machine.{name}\n"));
            std::thread::sleep(Duration::from_secs(1));
            stage.must_be_small_and_quiet();
            stage.kill();
        }
        End::Busy => {
            std::thread::sleep(Duration::from_secs(5));
            assert!(!stage.machine.has_ended(), "{name}: {}", last_lines(&stage.machine.console()));
            let report = stage.kill();
            assert!(!report.console.contains("FAILED"), "{name}: {}", last_lines(&report.console));
        }
        End::Lost => {
            std::thread::sleep(Duration::from_secs(5));
            if stage.machine.has_ended() {
                expect_end(name, &stage.machine.finish(), End::Fault);
            } else {
                stage.kill();
            }
        }
        End::Survives => {
            stage.wait_for("DONE 0x");
            if stage.machine.has_ended() {
                expect_end(name, &stage.machine.finish(), End::KvmFault);
            } else {
                must_be_well(&stage.machine.console(), &[format!("end.machine.{name}")]);
                stage.kill();
            }
        }
        _ => expect_end(name, &stage.machine.finish(), end),
    }
    Ok(())
}

fn expect_end(name: &str, report: &Report, end: End) {
    let good = match (end, report.exit(), report.code) {
        (End::Shutdown, MachineExit::Shutdown, Some(0)) | (End::Reset, MachineExit::Reset, Some(11)) => true,
        (End::Failed(byte), MachineExit::AgentFailed(told), Some(10)) => byte == *told,
        (End::Panic, MachineExit::Panic(words), Some(12)) => {
            !words.is_empty() && words.len() <= 4096 && !words.chars().any(char::is_control)
        }
        (End::TripleFault | End::Fault, MachineExit::TripleFault, Some(13)) => true,
        (End::KvmFault | End::Fault, MachineExit::KvmFault(words), Some(15)) => !words.is_empty(),
        _ => false,
    };
    assert!(good, "{name}: {:?} and {:?}\n{}", report.exit(), report.code, last_lines(&report.console));
}
