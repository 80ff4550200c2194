//! First steps of known ways out of a sandbox, and what its programs can learn of the host. Each step goes as far as it harms nobody: what is opened
//! is closed again, what would change something is asked for in a way that the kernel refuses after it has looked at the caller's rights.
//!
//! What a step means is known outside, where the walls are known: here is only said what happened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::sys::{self, Word};
use crate::{Answer, ITSELF, number_or};

/// What came of a step: it was let through, or which error it met.
type Outcome = io::Result<()>;

/// A step by its name.
struct Step(&'static str, fn() -> Outcome);

/// Longest wait for an address that does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

const STEPS: [Step; 43] = [
    // Calls that reach much of a kernel.
    Step("bpf", bpf),
    Step("io-uring", || opened(libc::SYS_io_uring_setup, &mut [1_u64.into(), Word::Bytes(&mut [0; 120])], &[])),
    Step("userfaultfd", || opened(libc::SYS_userfaultfd, &mut [0.into()], &[])),
    Step("perf", perf),
    Step("keyring", || asked(libc::SYS_keyctl, &mut [0.into(), SESSION_KEYRING.into(), 0.into()], &[libc::ENOKEY])),
    Step("user-namespace", || child(libc::SYS_unshare, libc::CLONE_NEWUSER)),
    Step("mount-namespace", || child(libc::SYS_unshare, libc::CLONE_NEWNS)),
    Step("file-system", || opened(libc::SYS_fsopen, &mut [Word::Bytes(&mut b"tmpfs\0".to_vec()), 0.into()], &[])),
    Step("handle", by_handle),
    Step("ldt", || asked(libc::SYS_modify_ldt, &mut [0.into(), 0.into(), 0.into()], &[])),
    Step("splice", splice),
    Step("crypto-socket", || socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    Step("vsock", || socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    Step("netfilter", || socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
    Step("packet-socket", || socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    // What only the owner of a machine may do.
    Step("module", || asked(libc::SYS_init_module, &mut [0.into(), 0.into(), Word::Bytes(&mut [0])], &[libc::ENOEXEC])),
    Step("kexec", || {
        asked(libc::SYS_kexec_load, &mut [0.into(), 0.into(), 0.into(), u64::MAX.into()], &[libc::EINVAL])
    }),
    Step("reboot", || asked(libc::SYS_reboot, &mut [0.into(), 0.into(), 0.into(), 0.into()], &[libc::EINVAL])),
    Step("clock", clock),
    Step("kernel-log", || asked(libc::SYS_syslog, &mut [10.into(), 0.into(), 0.into()], &[])),
    Step("ports", || asked(libc::SYS_ioperm, &mut [0x80.into(), 1.into(), 1.into()], &[])),
    Step("swap", || asked(libc::SYS_swapon, &mut [Word::Bytes(&mut b"/none\0".to_vec()), 0.into()], &[libc::ENOENT])),
    Step("accounting", || asked(libc::SYS_acct, &mut [Word::Bytes(&mut b"/none\0".to_vec())], &[libc::ENOENT])),
    Step("real-time", real_time),
    // Files by which a kernel is told to run or do something.
    Step("core-pattern", || write("/proc/sys/kernel/core_pattern")),
    Step("modprobe", || write("/proc/sys/kernel/modprobe")),
    Step("uevent-helper", || write("/sys/kernel/uevent_helper")),
    Step("binary-formats", || write("/proc/sys/fs/binfmt_misc/register")),
    Step("sysrq", || write("/proc/sysrq-trigger")),
    Step("cgroup", || write("/sys/fs/cgroup/cgroup.procs")),
    Step("program-of-first", || write("/proc/1/exe").or_else(|e| passed_by(e, &[libc::ETXTBSY]))),
    // What shows or is the machine's memory and devices.
    Step("kernel-memory", kernel_memory),
    Step("kernel-addresses", kernel_addresses),
    Step("memory-device", || read("/dev/mem")),
    Step("log-device", || read("/dev/kmsg")),
    Step("disk", disk),
    Step("kvm", || write("/dev/kvm")),
    Step("fuse", || write("/dev/fuse")),
    // The neighbours.
    Step("trace-a-child", || child(libc::SYS_ptrace, libc::c_int::try_from(libc::PTRACE_TRACEME).unwrap_or(0))),
    Step("host-processes", host_processes),
    Step("left-descriptors", left_descriptors),
    Step("container-engine", container_engine),
    Step("metadata", || connect(SocketAddr::from(([169, 254, 169, 254], 80)))),
];

/// `KEY_SPEC_SESSION_KEYRING` of keyctl(2), as the kernel takes it.
const SESSION_KEYRING: u64 = (-3_i64).cast_unsigned();

/// What a program can read of the machine that it runs on: name, file, and the word before the value in its line.
const FACTS: [(&str, &str, &str); 10] = [
    ("boot-id", "/proc/sys/kernel/random/boot_id", ""),
    ("kernel-release", "/proc/sys/kernel/osrelease", ""),
    ("kernel-build", "/proc/sys/kernel/version", ""),
    ("kernel-command-line", "/proc/cmdline", ""),
    ("processor-model", "/proc/cpuinfo", "model name"),
    ("processor-holes", "/sys/devices/system/cpu/vulnerabilities/spectre_v2", ""),
    ("memory-size", "/proc/meminfo", "MemTotal:"),
    ("last-disk", "/proc/partitions", "\n"),
    ("machine", "/sys/class/dmi/id/product_name", ""),
    ("paths-of-host", "/proc/self/mountinfo", "lowerdir="),
];

/// One line each: `NAME passed`, `NAME refused ERRNO` or `NAME told VALUE`. The host listens on `PORT` of its loopback, if one is given.
pub(crate) fn probe(args: &[String]) -> Answer {
    let port: u16 = number_or(args, 0, "PORT", 0)?;
    for Step(name, step) in &STEPS {
        say(name, step());
    }
    if port != 0 {
        say("host-loopback", host_loopback(port));
    }
    for (name, path, key) in FACTS {
        match fact(path, key) {
            Ok(value) => println!("{name} told {value}"),
            Err(error) => say(name, Err(error)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say(name: &str, outcome: Outcome) {
    match outcome {
        Ok(()) => println!("{name} passed"),
        Err(error) => println!("{name} refused {}", error.raw_os_error().unwrap_or(0)),
    }
}

/// An error that shows that the rights were there is none.
fn passed_by(error: io::Error, rights: &[i32]) -> Outcome {
    if error.raw_os_error().is_some_and(|number| rights.contains(&number)) { Ok(()) } else { Err(error) }
}

/// A call that only asks, or that cannot do what it is asked for: `rights` are the errors that come after the rights were looked at.
fn asked(number: libc::c_long, words: &mut [Word<'_>], rights: &[i32]) -> Outcome {
    sys::call_with(number, words).map(drop).or_else(|e| passed_by(e, rights))
}

/// A call that opens something, which is closed at once.
fn opened(number: libc::c_long, words: &mut [Word<'_>], rights: &[i32]) -> Outcome {
    match sys::call_with(number, words) {
        Ok(descriptor) => sys::call_with(libc::SYS_close, &mut [descriptor.into()]).map(drop),
        Err(error) => passed_by(error, rights),
    }
}

/// A call that changes the process that makes it: a child makes it and ends.
fn child(number: libc::c_long, argument: libc::c_int) -> Outcome {
    let words = ["call", "64", &number.to_string(), &argument.to_string()].map(str::to_owned);
    let output = Command::new(ITSELF).args(words).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().split_once(' ') {
        Some(("ok", _)) => Ok(()),
        Some(("error", number)) => Err(io::Error::from_raw_os_error(number.parse().unwrap_or(0))),
        // A filter may end it.
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

fn socket(family: i32, kind: i32, protocol: i32) -> Outcome {
    let word = |number: i32| Word::from(u64::from(number.unsigned_abs()));
    opened(libc::SYS_socket, &mut [word(family), word(kind | libc::SOCK_CLOEXEC), word(protocol)], &[])
}

fn read(path: &str) -> Outcome {
    File::open(path).map(drop)
}

/// Opened for writing and closed: nothing is written.
fn write(path: &str) -> Outcome {
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).map(drop)
}

/// `BPF_MAP_CREATE` of an array of one number (bpf(2)).
fn bpf() -> Outcome {
    let mut attributes: Vec<u8> = [2_u32, 4, 8, 1].iter().flat_map(|n| n.to_ne_bytes()).collect();
    attributes.resize(72, 0);
    let size = attributes.len() as u64;
    opened(libc::SYS_bpf, &mut [0.into(), Word::Bytes(&mut attributes), size.into()], &[])
}

/// A software clock of this very process, stopped (perf_event_open(2)): type 1, size 64, configuration 0, and `disabled` in the flags.
fn perf() -> Outcome {
    let mut attributes: Vec<u8> = [1_u32, 64].iter().flat_map(|n| n.to_ne_bytes()).collect();
    attributes.resize(40, 0);
    attributes.extend(1_u64.to_ne_bytes());
    attributes.resize(64, 0);
    let nobody = u64::MAX;
    opened(
        libc::SYS_perf_event_open,
        &mut [Word::Bytes(&mut attributes), 0.into(), nobody.into(), nobody.into(), 0.into()],
        &[],
    )
}

/// A handle of nothing on the root file system (open_by_handle_at(2)): who may not is told before it is looked at.
fn by_handle() -> Outcome {
    let root = File::open("/")?;
    let descriptor = sys::number_of(&root);
    // Eight bytes of type 1.
    let mut handle: Vec<u8> = [8_u32, 1].iter().flat_map(|n| n.to_ne_bytes()).collect();
    handle.resize(16, 0);
    let rights = [libc::ESTALE, libc::EINVAL, libc::EBADF, libc::EOPNOTSUPP];
    opened(libc::SYS_open_by_handle_at, &mut [descriptor.into(), Word::Bytes(&mut handle), 0.into()], &rights)
}

/// One byte of this program's file into a pipe.
fn splice() -> Outcome {
    let from = File::open(ITSELF)?;
    let (_reader, writer) = io::pipe()?;
    let (from, to) = (sys::number_of(&from), sys::number_of(&writer));
    asked(libc::SYS_splice, &mut [from.into(), 0.into(), to.into(), 0.into(), 1.into(), 0.into()], &[])
}

/// A length of the clock's tick that no kernel takes, which is looked at after the rights (adjtimex(2), `ADJ_TICK`).
fn clock() -> Outcome {
    let mut change = vec![0_u8; 208];
    for (byte, value) in change.iter_mut().zip(0x4000_u32.to_ne_bytes()) {
        *byte = value;
    }
    asked(libc::SYS_adjtimex, &mut [Word::Bytes(&mut change)], &[libc::EINVAL])
}

/// The least priority of real time for this process, given back at once.
fn real_time() -> Outcome {
    const FIFO: u64 = 1;
    asked(libc::SYS_sched_setscheduler, &mut [0.into(), FIFO.into(), Word::Bytes(&mut 1_u32.to_ne_bytes())], &[])?;
    asked(libc::SYS_sched_setscheduler, &mut [0.into(), 0.into(), Word::Bytes(&mut [0; 4])], &[])
}

/// The first byte of its header: a file that is masked is there, and empty.
fn kernel_memory() -> Outcome {
    let read = File::open("/proc/kcore")?.read(&mut [0])?;
    if read > 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENODATA)) }
}

/// Addresses that are not hidden.
fn kernel_addresses() -> Outcome {
    let text = fs::read_to_string("/proc/kallsyms")?;
    let shown =
        text.lines().any(|line| line.split(' ').next().is_some_and(|address| address.bytes().any(|b| b != b'0')));
    if shown { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// A device node for the first disk that the kernel lists, opened for reading and removed.
fn disk() -> Outcome {
    let list = fs::read_to_string("/proc/partitions")?;
    let numbers = list.lines().skip(2).find_map(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        Some((words.next()?.ok()?, words.next()?.ok()?))
    });
    let (major, minor) = numbers.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let path = "/disk-of-a-probe";
    let mode = u64::from(libc::S_IFBLK | 0o600);
    let device = libc::makedev(major, minor);
    let mut name = format!("{path}\0").into_bytes();
    asked(libc::SYS_mknod, &mut [Word::Bytes(&mut name), mode.into(), device.into()], &[])?;
    let opened = read(path);
    fs::remove_file(path)?;
    opened
}

/// A thread of the kernel is among the processes.
fn host_processes() -> Outcome {
    let name = |entry: io::Result<fs::DirEntry>| fs::read_to_string(entry.ok()?.path().join("comm")).ok();
    let found = fs::read_dir("/proc")?.filter_map(name).any(|name| name.trim() == "kthreadd");
    if found { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Descriptors that this program was given beside the three that every program has.
fn left_descriptors() -> Outcome {
    let list = fs::read_dir("/proc/self/fd")?;
    let links =
        list.filter_map(|entry| Some((entry.as_ref().ok()?.file_name(), fs::read_link(entry.ok()?.path()).ok()?)));
    let beyond = |name: &std::ffi::OsStr| name.to_string_lossy().parse::<u32>().is_ok_and(|number| number > 2);
    // The folder that is being read has one too.
    let own = format!("/proc/{}/fd", std::process::id());
    let found = links.filter(|(name, target)| beyond(name) && target.as_os_str() != own.as_str()).count();
    if found > 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
}

/// The socket of an engine that would start anything.
fn container_engine() -> Outcome {
    let paths =
        ["/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"];
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for path in paths {
        match UnixStream::connect(path) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect(to: SocketAddr) -> Outcome {
    TcpStream::connect_timeout(&to, PATIENCE).map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => io::Error::from_raw_os_error(libc::ETIMEDOUT),
        _ => error,
    })
}

/// A port that only the host's loopback has: on the loopback here, and at the gateway.
fn host_loopback(port: u16) -> Outcome {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let gateways = routes.lines().skip(1).filter_map(|line| {
        // The address as the kernel has it in memory, in hexadecimal (proc(5)).
        let address = u32::from_str_radix(line.split_whitespace().nth(2)?, 16).ok()?;
        (address != 0).then(|| Ipv4Addr::from(address.to_ne_bytes()))
    });
    let mut last = io::Error::from_raw_os_error(libc::ENETUNREACH);
    for address in std::iter::once(Ipv4Addr::LOCALHOST).chain(gateways) {
        match connect(SocketAddr::new(IpAddr::V4(address), port)) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The value as one line. After `\n` comes the last line of the file.
fn fact(path: &str, key: &str) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    let missing = || io::Error::from_raw_os_error(libc::ENOENT);
    let line = match key {
        "" => text.lines().next().ok_or_else(missing)?,
        "\n" => text.lines().last().ok_or_else(missing)?,
        key => {
            text.lines().find(|line| line.contains(key)).and_then(|line| line.split(key).nth(1)).ok_or_else(missing)?
        }
    };
    let value = line.split_whitespace().collect::<Vec<_>>().join(" ").trim_start_matches(": ").to_owned();
    if value.is_empty() { Err(missing()) } else { Ok(value) }
}
