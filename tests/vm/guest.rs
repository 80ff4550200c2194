//! The guest half of the machine cases: PID 1 of a test's machine, compiled by `machine.rs` into one static program.
//!
//! Its arguments (behind `--` on the kernel command line) are the case to play. Standard output is the console; a case that went well ends
//! with the line `GUEST OK` and the machine's orderly end.

use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

const EXIT_PORT: u16 = 0x5f0;
const READY_PORT: u16 = 0x5f1;
const SHUTDOWN: u8 = 0x10;

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, addr: *const VsockAddr, len: u32) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn bind(fd: c_int, addr: *const u8, len: u32) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *const Ifreq) -> c_int;
    fn ioperm(from: c_ulong, count: c_ulong, on: c_int) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn open(path: *const c_char, flags: c_int) -> c_int;
    fn mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn munmap(addr: *mut c_void, len: usize) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
}

/// struct sockaddr_vm.
#[repr(C)]
struct VsockAddr {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

const AF_VSOCK: c_int = 40;

fn text(s: &str) -> CString {
    CString::new(s).unwrap()
}

fn out(port: u16, byte: u8) {
    unsafe {
        ioperm(port.into(), 1, 1);
        core::arch::asm!("out dx, al", in("dx") port, in("al") byte);
    }
}

fn mount_at(kind: &str, target: &str) {
    mount_from(kind, kind, target);
}

fn mount_from(source: &str, kind: &str, target: &str) {
    fs::create_dir_all(target).unwrap();
    let (source, kind, target) = (text(source), text(kind), text(target));
    let done = unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    assert_eq!(done, 0, "mount: {}", io::Error::last_os_error());
}

fn vsock(port: u32) -> io::Result<File> {
    let fd = unsafe { socket(AF_VSOCK, 1, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let file = unsafe { File::from_raw_fd(fd) };
    let addr = VsockAddr { family: AF_VSOCK as u16, reserved: 0, port, cid: 2, zero: [0; 4] };
    match unsafe { connect(fd, &addr, size_of::<VsockAddr>() as u32) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

fn end_sending(file: &File) {
    use std::os::fd::AsRawFd;
    assert_eq!(unsafe { shutdown(file.as_raw_fd(), 1) }, 0);
}

/// The byte that test data has at an offset.
fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn expect_pattern(bytes: &[u8], offset: u64) {
    for (n, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte, pattern(offset + n as u64), "at {}", offset + n as u64);
    }
}

/// Says that the machine may be kept, and then looks for its devices: from here on it may be another machine.
fn fill_slots() {
    let bind = OpenOptions::new().write(true).open("/sys/bus/platform/drivers/virtio-mmio/bind").unwrap();
    assert!(bind.write_at(b"virtio-mmio.0", 0).is_err(), "no device is there yet");
    out(READY_PORT, 0);
    let mut number = 0;
    while bind.write_at(format!("virtio-mmio.{number}").as_bytes(), 0).is_ok() {
        number += 1;
    }
}

fn hello() {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor\t").count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    println!("cpus={cpus}");
    println!("{}", memory.lines().next().unwrap());
    println!(
        "clock={}",
        fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap().trim()
    );
    // All processors do work at once.
    let threads: Vec<_> =
        (0..cpus).map(|n| std::thread::spawn(move || (0..2_000_000_u64).fold(n as u64, |a, b| a ^ b))).collect();
    let sum = threads.into_iter().map(|t| t.join().unwrap()).fold(0, |a: u64, b| a.wrapping_add(b));
    println!("sum={sum}");
}

/// vda: read-only, two extents, pattern from 0. vdb: writable, 1 MiB.
fn disks() {
    let mut ro = File::open("/dev/vda").unwrap();
    let size = ro.seek(SeekFrom::End(0)).unwrap();
    println!("vda={size}");
    println!("ro={}", fs::read_to_string("/sys/block/vda/ro").unwrap().trim());
    println!("serial={}", fs::read_to_string("/sys/block/vda/serial").unwrap().trim());
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let count = ro.read_at(&mut buffer, at).unwrap();
        expect_pattern(&buffer[..count], at);
        at += count as u64;
    }
    let denied =
        OpenOptions::new().write(true).open("/dev/vda").and_then(|f| f.write_at(b"x", 0).and_then(|_| f.sync_all()));
    println!("write={:?}", denied.map_err(|e| e.raw_os_error()));
    let rw = OpenOptions::new().read(true).write(true).open("/dev/vdb").unwrap();
    let data: Vec<u8> = (0..1 << 20).map(pattern).collect();
    rw.write_all_at(&data, 0).unwrap();
    rw.sync_all().unwrap();
}

fn echo(port: &str) {
    let mut stream = vsock(port.parse().unwrap()).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        stream.write_all(&buffer[..count]).unwrap();
        total += count;
    }
    end_sending(&stream);
    println!("echoed={total}");
}

/// Sends `count` bytes of the pattern, then receives as many.
fn bulk(port: &str, count: &str) {
    let count: u64 = count.parse().unwrap();
    let mut stream = vsock(port.parse().unwrap()).unwrap();
    let mut at = 0;
    while at < count {
        let data: Vec<u8> = (at..(at + (64 << 10)).min(count)).map(pattern).collect();
        stream.write_all(&data).unwrap();
        at += data.len() as u64;
    }
    end_sending(&stream);
    let mut at = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = stream.read(&mut buffer).unwrap();
        if got == 0 {
            break;
        }
        expect_pattern(&buffer[..got], at);
        at += got as u64;
    }
    println!("received={at}");
}

fn refused(port: &str) {
    println!("connect={:?}", vsock(port.parse().unwrap()).map(drop).map_err(|e| e.raw_os_error()));
}

fn random() {
    let mut bytes = [0; 4096];
    File::open("/dev/hwrng").unwrap().read_exact(&mut bytes).unwrap();
    let ones: u32 = bytes.iter().map(|b| b.count_ones()).sum();
    println!("name={}", fs::read_to_string("/sys/class/misc/hw_random/rng_current").unwrap().trim());
    println!("ones={ones}");
}

fn console(lines: &str) {
    for n in 0..lines.parse().unwrap() {
        println!("line {n} {}", "x".repeat(100));
    }
}

fn main() {
    mount_at("devtmpfs", "/dev");
    mount_at("proc", "/proc");
    mount_at("sysfs", "/sys");
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "slots") {
        arguments.remove(0);
        fill_slots();
    }
    let console_fd = unsafe { open(text("/dev/console").as_ptr(), 2) };
    for fd in 0..3 {
        unsafe { dup2(console_fd, fd) };
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["hello"] => hello(),
        ["disks"] => disks(),
        ["echo", port] => echo(port),
        ["bulk", port, count] => bulk(port, count),
        ["refused", port] => refused(port),
        ["random"] => random(),
        ["console", lines] => console(lines),
        ["share", tag] => share(tag),
        ["lose", tag] => lose(tag),
        ["net", address, peer] => net(address, peer),
        ["frames", count] => frames(count),
        ["panic"] => std::process::exit(3),
        // RB_AUTOBOOT; with reboot=t on the command line the kernel makes a triple fault of it.
        ["reset"] => drop(unsafe { reboot(0x0123_4567) }),
        ["exit", code] => out(EXIT_PORT, code.parse().unwrap()),
        ["hang"] => loop {
            println!("hanging");
            std::thread::sleep(std::time::Duration::from_secs(3600));
        },
        ["poke"] => poke(),
        ["quiet"] => {}
        _ => println!("no case {words:?}"),
    }
    println!("GUEST OK");
    io::stdout().flush().unwrap();
    out(EXIT_PORT, SHUTDOWN);
}

/// Memory of a file, shared with whoever else has it.
struct Mapped(*mut u8, usize);

impl Mapped {
    fn of(file: &File, len: usize) -> Self {
        use std::os::fd::AsRawFd;
        // PROT_READ | PROT_WRITE, MAP_SHARED.
        let at = unsafe { mmap(std::ptr::null_mut(), len, 3, 1, file.as_raw_fd(), 0) };
        assert!(at as isize != -1, "mmap: {}", io::Error::last_os_error());
        Self(at.cast(), len)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        unsafe { munmap(self.0.cast(), self.1) };
    }
}

/// A file system of the host's with the file `pattern` of 3 MiB. The device is unbound and bound again in between: a reset.
fn share(tag: &str) {
    let mut buffer = vec![0; 1 << 20];
    for round in 0..2 {
        mount_from(tag, "virtiofs", "/share");
        let file = File::open("/share/pattern").unwrap();
        for at in [0, 1 << 20, 2 << 20] {
            file.read_exact_at(&mut buffer, at).unwrap();
            expect_pattern(&buffer, at);
        }
        let new = OpenOptions::new().read(true).write(true).create(true).open(format!("/share/new{round}")).unwrap();
        new.write_all_at(&(0..2 << 20).map(pattern).collect::<Vec<u8>>(), 0).unwrap();
        {
            let mapped = Mapped::of(&new, 2 << 20);
            // A page of zeroes in the middle, written by a processor and by nobody's call.
            for at in (1 << 20)..(1 << 20) + 4096 {
                unsafe { mapped.0.add(at).write_volatile(0) };
            }
        }
        drop((file, new));
        fs::rename(format!("/share/new{round}"), format!("/share/done{round}")).unwrap();
        assert_eq!(unsafe { umount2(text("/share").as_ptr(), 0) }, 0, "{}", io::Error::last_os_error());
        let driver = "/sys/bus/virtio/drivers/virtiofs";
        let device = fs::read_dir(driver).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        let device = device.into_iter().find(|name| name.starts_with("virtio")).unwrap();
        for step in ["unbind", "bind"] {
            fs::write(format!("{driver}/{step}"), &device).unwrap();
        }
    }
    let missing = text("/nowhere");
    let done = unsafe { mount(missing.as_ptr(), text("/share").as_ptr(), text("virtiofs").as_ptr(), 0, std::ptr::null()) };
    println!("missing={done}");
}

/// Mounts, says so, and reads until nothing comes any more: the processor goes on.
fn lose(tag: &str) {
    mount_from(tag, "virtiofs", "/share");
    std::thread::spawn(|| loop {
        drop(fs::read("/share/pattern"));
    });
    println!("mounted");
    loop {
        std::thread::sleep(std::time::Duration::from_millis(100));
        println!("alive");
    }
}

/// Accesses to devices that are not there, through /dev/mem where the kernel has it, and ports.
fn poke() {
    for port in [0x80_u16, 0x70, 0xcf8, 0x3ff] {
        out(port, 0xff);
    }
    println!("poked");
}

/// eth0 as the host's half expects it, up, with this address; then what the host's half says goes back to it.
fn net(address: &str, peer: &str) {
    let attribute = |name: &str| fs::read_to_string(format!("/sys/class/net/eth0/{name}")).unwrap_or_default();
    for name in ["address", "mtu"] {
        println!("{name}={}", attribute(name).trim());
    }
    let features = fs::read_to_string("/sys/class/net/eth0/device/features").unwrap_or_default();
    println!("features={}", features.trim());
    configure("eth0", address.parse().unwrap());
    let mut stream = std::net::TcpStream::connect(peer).unwrap();
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        stream.write_all(&buffer[..count]).unwrap();
        total += count;
    }
    println!("echoed={total}");
    for name in ["rx_errors", "rx_dropped", "tx_errors", "rx_length_errors"] {
        println!("{name}={}", attribute(&format!("statistics/{name}")).trim());
    }
}

/// struct ifreq with an address or flags (netdevice(7)).
#[repr(C)]
struct Ifreq {
    name: [u8; 16],
    family: u16,
    port: u16,
    address: [u8; 4],
    rest: [u8; 16],
}

/// Gives an interface its address with a netmask of 24 bits, and brings it up.
fn configure(name: &str, address: std::net::Ipv4Addr) {
    const AF_INET: u16 = 2;
    let fd = unsafe { socket(AF_INET.into(), 2, 0) };
    let mut request = Ifreq { name: [0; 16], family: AF_INET, port: 0, address: address.octets(), rest: [0; 16] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS with IFF_UP.
    let mask = Ifreq { address: [255, 255, 255, 0], ..request };
    let up = Ifreq { family: 1, ..request };
    for (number, request) in [(0x8916, &request), (0x891c, &mask), (0x8914, &up)] {
        let done = unsafe { ioctl(fd, number, request) };
        assert_eq!(done, 0, "ioctl {number:#x}: {}", io::Error::last_os_error());
    }
}

/// Sends frames of its own making and hears the same back: `count` of them, of growing length.
fn frames(count: &str) {
    const AF_PACKET: c_int = 17;
    /// An experimental EtherType (IEEE 802, local experimental 1).
    const PROTOCOL: u16 = 0x88b5;
    configure("eth0", "10.0.0.2".parse().unwrap());
    let fd = unsafe { socket(AF_PACKET, 3, PROTOCOL.to_be().into()) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    let mut socket = unsafe { File::from_raw_fd(fd) };
    let mut address = [0_u8; 20];
    address[..2].copy_from_slice(&17_u16.to_ne_bytes());
    address[2..4].copy_from_slice(&PROTOCOL.to_be_bytes());
    let index: u32 = fs::read_to_string("/sys/class/net/eth0/ifindex").unwrap().trim().parse().unwrap();
    address[4..8].copy_from_slice(&index.to_ne_bytes());
    assert_eq!(unsafe { bind(fd, address.as_ptr(), 20) }, 0, "{}", io::Error::last_os_error());
    let count: usize = count.parse().unwrap();
    let mtu: usize = fs::read_to_string("/sys/class/net/eth0/mtu").unwrap().trim().parse().unwrap();
    let mut good = 0;
    for n in 0..count {
        let length = 60 + n * (mtu + 14 - 60) / count.max(1);
        let mut frame: Vec<u8> = (0..length as u64).map(|at| pattern(at + n as u64)).collect();
        frame[..6].copy_from_slice(&[0xff; 6]);
        frame[12..14].copy_from_slice(&PROTOCOL.to_be_bytes());
        socket.write_all(&frame).unwrap();
        let mut back = vec![0; 70_000];
        let got = socket.read(&mut back).unwrap();
        good += usize::from(back[..got] == frame);
    }
    println!("good={good}");
}
