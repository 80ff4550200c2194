//! Targets of fuzzing: a hostile driver against the queues, the transport and each device.
//!
//! An input is a script: each step is a byte for what is done and some for what with. After the script the driver resets the device, sets it up
//! by the book, and a request must be served as if nothing had been: what a guest did is never left behind.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::balloon::Balloon;
use super::blk::{Block, Disk, Extent, SECTOR};
use super::console::Console;
use super::device::Sources;
use super::driver::{Buffer, Driver, INDIRECT, NEXT, WRITE};
use super::fs::Fs;
use super::mmio::{DeviceState, MmioDevice};
use super::net::Net;
use super::queue::QueueSetup;
use super::rng::Rng;
use super::status::{FAILED, NEEDS_RESET};
use super::vsock::{Vsock, WaitingStreams};
use crate::fuzz::Input;
use crate::vmm::events::{Poller, Readiness, Token};
use crate::vmm::memory::{GuestRam, reserve_shared};

/// Guest memory of the driver, in bytes.
const MEMORY: u64 = 4 << 20;
/// Where the script's buffers lie; behind it, memory ends.
const BUFFERS: u64 = 2 << 20;
/// Most steps of one script.
const STEPS: usize = 400;

/// What happens on the host's side of a device.
type Host<'a> = &'a mut dyn FnMut(&mut Input<'_>);

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

fn readiness(bits: u8) -> Readiness {
    Readiness { readable: bits & 1 != 0, writable: bits & 2 != 0 }
}

/// What the host's descriptors have to say, without waiting.
fn poll(driver: &Driver) {
    for (token, readiness) in driver.poller.wait(Some(Duration::ZERO)).unwrap() {
        if let Token::Device { source, .. } = token {
            driver.device.ready(source, readiness);
        }
    }
}

/// An address: mostly one of a buffer, else near the end of memory, within a ring, or anything.
fn address(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0..=199 => BUFFERS + u64::from(input.u16()) * 8,
        200..=219 => MEMORY - u64::from(input.u8()),
        220..=239 => 0x1_0000 + u64::from(input.u16()),
        _ => input.u64(),
    }
}

fn length(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        0..=199 => u32::from(input.u8()),
        200..=229 => u32::from(input.u16()),
        230..=245 => u32::from(input.u8()) * u32::try_from(SECTOR).unwrap(),
        _ => input.u32(),
    }
}

fn descriptor(driver: &Driver, queue: usize, input: &mut Input<'_>) {
    let index = u16::from(input.u8());
    let (addr, len) = (address(input), length(input));
    let bits = input.u8();
    let flags = if bits & 3 == 3 { NEXT } else { 0 }
        | if bits & 4 != 0 { WRITE } else { 0 }
        | if bits & 0xf8 == 0xf8 { INDIRECT } else { 0 };
    let next = if bits & 0x18 == 0x18 { input.u16() } else { index.wrapping_add(1) };
    if u64::from(index) * 16 < 0x1_0000 {
        driver.descriptor(queue, index, (addr, len), flags, next);
    }
}

/// A whole chain of a readable piece of the input and a writable buffer.
fn request(driver: &mut Driver, queue: usize, input: &mut Input<'_>) {
    let bytes = input.piece();
    let len = length(input);
    let (out, into) = (BUFFERS, BUFFERS + 0x1000);
    driver.ram.write_slice(bytes, GuestAddress(out)).unwrap();
    let count = u32::try_from(bytes.len()).unwrap();
    match (bytes.is_empty(), len) {
        (true, _) => driver.descriptor(queue, 0, (into, len), WRITE, 0),
        (false, 0) => driver.descriptor(queue, 0, (out, count), 0, 0),
        (false, _) => {
            driver.descriptor(queue, 0, (out, count), NEXT, 1);
            driver.descriptor(queue, 1, (into, len), WRITE, 0);
        }
    }
    driver.offer(queue, 0);
    driver.kick(queue);
}

fn step(driver: &mut Driver, features: u64, input: &mut Input<'_>, host: Host<'_>) {
    let choice = input.u8();
    let queue = usize::from(choice >> 4) % driver.rings.len();
    match choice & 15 {
        0..=2 => request(driver, queue, input),
        3 | 4 => descriptor(driver, queue, input),
        5 => driver.offer(queue, u16::from(input.u8())),
        6 => driver.kick(queue),
        7 => {
            let addr = address(input);
            let _ = driver.ram.write_slice(input.piece(), GuestAddress(addr));
        }
        8 | 9 => host(input),
        10 => poll(driver),
        11 => driver.device.resume(),
        12 => driver.device.ready(u32::from(choice >> 4), readiness(input.u8())),
        13 => registers(driver, input),
        14 => driver.initialise(match input.u8() {
            255 => input.u64(),
            _ => features & input.u64(),
        }),
        _ => {
            let mut data = [0; 8];
            let width = 1 << (choice >> 4 & 3);
            driver.device.read(input.u16().into(), &mut data[..width]);
        }
    }
}

/// One write to the window: mostly a register that there is.
fn registers(driver: &Driver, input: &mut Input<'_>) {
    const KNOWN: [u64; 16] =
        [0x70, 0x70, 0x30, 0x38, 0x44, 0x50, 0x64, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x14, 0x20, 0x24];
    let choice = input.u8();
    let register = match KNOWN.get(usize::from(choice & 31)) {
        Some(register) => *register,
        None => u64::from(input.u16()),
    };
    let value = match choice >> 5 {
        0 => u32::from(input.u8()),
        1 => u32::from(input.u16()),
        2 => u32::from(input.u16()) << 12,
        3 => 15,
        _ => input.u32(),
    };
    match choice >> 5 {
        7 => driver.device.write(register, &value.to_le_bytes()[..usize::from(choice & 3)]),
        _ => driver.device.write(register, &value.to_le_bytes()),
    }
}

fn script(driver: &mut Driver, features: u64, input: &mut Input<'_>, host: Host<'_>) {
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(driver, features, input, host);
        let status = driver.read(0x070);
        assert!(matches!(status & !NEEDS_RESET, 0 | 1 | 3 | 11 | 15 | FAILED), "status {status:#x}");
        assert!(driver.device.is_live() || status != 15, "status {status:#x}");
    }
    for _ in 0..8 {
        driver.device.resume();
        poll(driver);
    }
}

/// The device takes a driver that keeps to the book, whatever came before.
fn start_again(driver: &mut Driver, features: u64) {
    for ring in &driver.rings {
        driver.ram.write_slice(&[0; 0x2000], GuestAddress(ring.table)).unwrap();
    }
    driver.initialise(features);
    assert_eq!(driver.read(0x070), 15, "a reset mends what a driver broke");
}

/// Bytes of the file in front of the disk and behind it, which no guest may touch.
const GUARD: usize = 8192;
const DISK: usize = 64 << 10;

/// A disk in the middle of a file: what is around it stays, and of a read-only one what is in it.
pub(crate) fn block(data: &[u8]) {
    let mut input = Input::new(data);
    let read_only = input.u8() & 1 != 0;
    let before = [vec![0xaa; GUARD], vec![0x5a; DISK], vec![0xbb; GUARD]].concat();
    let file = file(&before);
    let fd: Arc<OwnedFd> = Arc::new(file.try_clone().unwrap().into());
    let half = (DISK / 2) as u64;
    let extent = |n: u64| Extent { file: fd.clone(), offset: GUARD as u64 + n * half, len: half };
    let disk = Disk::new(vec![extent(0), extent(1)], read_only).unwrap();
    let mut driver = Driver::ready(0, |_| Block::new(disk));
    script(&mut driver, 0, &mut input, &mut |_| {});
    start_again(&mut driver, 0);
    let (_, places) = driver.send(0, &[Buffer::Out(&[0; 16]), Buffer::In(512), Buffer::In(1)]);
    assert_eq!(driver.take_used(0), Some((0, 513)));
    let mut after = Vec::new();
    let mut whole = File::from(rustix::io::dup(&file).unwrap());
    std::io::Seek::rewind(&mut whole).unwrap();
    whole.read_to_end(&mut after).unwrap();
    assert_eq!(driver.bytes(places[1], 512), after[GUARD..GUARD + 512]);
    assert!(after.len() == before.len() && after[..GUARD] == before[..GUARD]);
    assert!(after[GUARD + DISK..] == before[GUARD + DISK..]);
    assert!(!read_only || after == before, "a read-only disk was written to");
}

/// Output to a file.
pub(crate) fn console(data: &[u8]) {
    let mut input = Input::new(data);
    let output = file(b"");
    let near: Arc<OwnedFd> = Arc::new(output.try_clone().unwrap().into());
    let mut driver = Driver::ready(0, move |sources| Console::new(near, sources));
    script(&mut driver, 0, &mut input, &mut |_| {});
    start_again(&mut driver, 0);
    let before = output.metadata().unwrap().len();
    driver.send(1, &[Buffer::Out(b"still "), Buffer::Out(b"here")]);
    assert!(driver.take_used(1).is_some());
    let mut text = [0; 10];
    output.read_exact_at(&mut text, before).unwrap();
    assert_eq!(&text, b"still here");
}

/// Free memory is given back, random bytes come.
pub(crate) fn balloon(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = Driver::ready(1 << 5, |_| Balloon);
    script(&mut driver, 1 << 5, &mut input, &mut |_| {});
    start_again(&mut driver, 1 << 5);
    driver.send(2, &[Buffer::In(8192)]);
    assert_eq!(driver.take_used(2), Some((0, 0)));
}

/// As [`balloon`], for the entropy device.
pub(crate) fn rng(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = Driver::ready(0, |_| Rng);
    script(&mut driver, 0, &mut input, &mut |_| {});
    start_again(&mut driver, 0);
    driver.send(0, &[Buffer::In(16)]);
    assert_eq!(driver.take_used(0), Some((0, 16)));
}

/// VIRTIO_NET_F_CSUM, _GUEST_CSUM, _MTU, _MAC and _MRG_RXBUF.
const AGREED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 15;
/// MTU of the network of the target.
const MTU: u16 = 1500;

/// Both sides are hostile: what reaches the host are whole frames of lengths that the network has, whatever comes from there.
pub(crate) fn net(data: &[u8]) {
    let mut input = Input::new(data);
    let features = AGREED & !u64::from(input.u8());
    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    let make = move |sources| Net::over_stream(near.into(), [2, 0, 0, 0, 0, 7], MTU, sources);
    let mut driver = Driver::ready(features, make);
    let mut host = |input: &mut Input<'_>| {
        let kind = input.u8();
        let bytes = input.piece();
        let length = u32::try_from(bytes.len()).unwrap();
        let _ = match kind & 3 {
            0 => far.write_all(bytes),
            1 => far.read_to_end(&mut heard).map(drop),
            _ => far.write_all(&[&length.to_be_bytes()[..], bytes].concat()),
        };
    };
    script(&mut driver, features, &mut input, &mut host);
    start_again(&mut driver, features);
    let _ = far.read_to_end(&mut heard);
    driver.send(1, &[Buffer::Out(&[0; 12]), Buffer::Out(&[0x77; 60])]);
    poll(&driver);
    assert!(driver.take_used(1).is_some(), "a frame goes out");
    let _ = far.read_to_end(&mut heard);
    let mut rest = &heard[..];
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        assert!((14..=usize::from(MTU) + 18).contains(&length) && behind.len() >= length, "a frame of {length} bytes");
        rest = &behind[length..];
    }
    assert!(rest.is_empty(), "half a frame");
}

/// Streams of the host wait on a few ports; both ends of them are hostile.
pub(crate) fn vsock(data: &[u8]) {
    let mut input = Input::new(data);
    let waiting = WaitingStreams::default();
    let table = waiting.clone();
    let mut driver = Driver::ready(0, move |sources| Vsock::new(3, table, sources));
    let mut hosts: Vec<UnixStream> = Vec::new();
    let mut host = |input: &mut Input<'_>| {
        let choice = input.u8();
        let place = usize::from(choice >> 3);
        let room = hosts.len() < 16;
        match (choice & 7, hosts.get_mut(place)) {
            (0 | 1, _) if room => {
                let (near, far) = UnixStream::pair().unwrap();
                far.set_nonblocking(true).unwrap();
                waiting.add(u32::from(input.u8() & 3) + 1024, near.into()).unwrap();
                hosts.push(far);
            }
            (2 | 3, Some(host)) => drop(host.write(input.piece())),
            (4 | 5, Some(host)) => drop(host.read(&mut [0; 4096])),
            (6, Some(host)) => drop(host.shutdown(std::net::Shutdown::Write)),
            (7, Some(_)) => drop(hosts.swap_remove(place)),
            _ => {}
        }
    };
    script(&mut driver, 0, &mut input, &mut host);
    start_again(&mut driver, 0);
    // A request (5.10.6) for a port that nobody waits on: refused.
    let (head, places) = driver.send(0, &[Buffer::In(64)]);
    let mut packet = [0; 44];
    (packet[0], packet[8], packet[16], packet[20]) = (3, 2, 9, 9);
    (packet[28], packet[30]) = (1, 1);
    driver.send(1, &[Buffer::Out(&packet)]);
    assert_eq!(driver.take_used(0), Some((head.into(), 44)));
    assert_eq!(driver.bytes(places[0] + 30, 2), [3, 0], "VIRTIO_VSOCK_OP_RST");
}

/// A back end that says what the input says, and a driver: the front end ends it or goes on, and waits for nobody.
pub(crate) fn fs(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = Arc::new(reserve_shared(4).unwrap());
    let (near, mut far) = UnixStream::pair().unwrap();
    let answer = |request: u32, number: u64| {
        let mut bytes = [request, 5, 8].map(u32::to_ne_bytes).concat();
        bytes.extend(number.to_ne_bytes());
        bytes
    };
    // What a good one says to the questions of the beginning, then anything.
    let good = [answer(1, 0xf << 28 | 1 << 32), answer(15, 8), answer(5, 0)].concat();
    let kept = usize::from(input.u8()).min(good.len());
    let _ = far.write_all(&good[..kept]);
    let said = usize::from(input.u8());
    let _ = far.write_all(input.bytes(said));
    let _ = far.shutdown(std::net::Shutdown::Write);
    let sources = Sources::new(Arc::new(Poller::new().unwrap()), 0);
    let Ok(device) = Fs::new("tag", near.into(), &ram, &sources) else { return };
    let mut driver = Driver::over(ram, |_| device);
    driver.initialise(0);
    script(&mut driver, 1 << 28, &mut input, &mut |_| {});
    let _ = driver.device.take_loss();
    driver.write(0x070, 0);
    assert_eq!(driver.read(0x070) & !NEEDS_RESET, 0);
}

/// Registers alone, in any order, of a device of each kind.
pub(crate) fn registers_of_all(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = match input.u8() % 4 {
        0 => Driver::new(|_| Rng),
        1 => Driver::new(|_| Balloon),
        2 => Driver::new(|sources| Vsock::new(3, WaitingStreams::default(), sources)),
        _ => Driver::new(|sources| Console::new(Arc::new(file(b"").into()), sources)),
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let before = driver.read(0x070);
        registers(&driver, &mut input);
        let after = driver.read(0x070);
        let up = matches!((before, after & !NEEDS_RESET), (0, 1) | (1, 3) | (3, 11) | (11, 15));
        assert!(
            after == 0 || after & !192 == before & !192 || up || after & FAILED != 0,
            "status {before:#x} became {after:#x}"
        );
        assert!(after & (NEEDS_RESET | FAILED) != 0 || driver.device.is_live() == (after & 15 == 15));
    }
    start_again(&mut driver, 0);
}

/// A device of a kind, of those that need nothing of the host.
fn another(driver: &Driver, kind: u8) -> MmioDevice {
    let sources = Sources::new(driver.poller.clone(), 0);
    match kind % 4 {
        0 => driver.another(Rng),
        1 => driver.another(Balloon),
        2 => driver.another(Console::new(Arc::new(file(b"").into()), sources)),
        _ => driver.another(Vsock::new(3, WaitingStreams::default(), sources)),
    }
}

/// Devices go on from a saved state that nobody vouches for; what they take, they save again as it was. What a device saves after any script,
/// another one takes.
pub(crate) fn restored(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let mut driver = match kind % 4 {
        0 => Driver::new(|_| Rng),
        1 => Driver::new(|_| Balloon),
        2 => Driver::new(|sources| Console::new(Arc::new(file(b"").into()), sources)),
        _ => Driver::new(|sources| Vsock::new(3, WaitingStreams::default(), sources)),
    };
    if kind & 0x80 != 0 {
        driver.initialise(0);
        script(&mut driver, 0, &mut input, &mut |_| {});
        let saved = driver.device.save();
        another(&driver, kind).restore(&saved).unwrap_or_else(|e| panic!("{e}: {saved:?}"));
        return;
    }
    let length = usize::from(input.u16());
    let Ok(saved) = postcard::from_bytes::<DeviceState>(input.bytes(length)) else { return };
    driver.device = another(&driver, kind);
    if driver.device.restore(&saved).is_ok() {
        let again = driver.device.save();
        assert!(again == saved || driver.read(0x070) & NEEDS_RESET != 0, "{again:?} was {saved:?}");
        driver.device.remind();
    }
    script(&mut driver, 0, &mut input, &mut |_| {});
}

/// A queue anywhere in memory that the input fills, against a walk along its chains as the specification tells it.
pub(crate) fn queue(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = crate::vmm::memory::reserve(1).unwrap();
    let choice = input.u8();
    let mut setup = QueueSetup::new(16);
    setup.ready = true;
    (setup.table, setup.avail, setup.used) = (0x1000, 0x1400, 0x1800);
    setup.size = 1 << (choice & 7);
    if choice & 0x80 != 0 {
        (setup.table, setup.avail, setup.used) = (input.u32().into(), input.u32().into(), input.u32().into());
        setup.size = input.u16().into();
    }
    let at = u64::from(input.u16()) * 16;
    let bytes = input.bytes(0x4000);
    let _ = ram.write_slice(bytes, GuestAddress(0x1000));
    let _ = ram.write_slice(input.rest(), GuestAddress(at));
    let Ok(Some(mut live)) = setup.freeze(0, choice & 8 != 0, &ram) else { return };
    assert!(setup.size.is_power_of_two() && setup.size <= 16 && setup.table.is_multiple_of(16));
    for number in 0..64_u16 {
        let head = element(&ram, setup.avail + 4 + u64::from(number) % u64::from(setup.size) * 2);
        let expected = model(&ram, &setup, head);
        let index = element(&ram, setup.avail + 2);
        match live.next(&ram) {
            Ok(None) => assert_eq!(index, number),
            Ok(Some(chain)) => {
                let (readable, writable) = expected.expect("a chain that breaks a rule was taken");
                assert_eq!((chain.head, chain.writable.len()), (head, writable));
                let mut got = vec![0; usize::try_from(chain.readable.len()).unwrap()];
                assert_eq!(chain.readable.read(&mut got), got.len());
                assert!(got == readable, "other bytes than the driver's");
                live.give_back(&ram, head, 0).unwrap();
                continue;
            }
            Err(_) => assert!(expected.is_none() || index.wrapping_sub(number) > setup.size.try_into().unwrap()),
        }
        break;
    }
    let _ = live.wants_interrupt(&ram);
    let _ = live.take_room(&ram, 100, 4);
}

fn element(ram: &GuestRam, addr: u64) -> u16 {
    u16::from_le(ram.read_obj(GuestAddress(addr)).unwrap())
}

/// What a chain says (virtio 1.2, 2.7.4 to 2.7.6): its readable bytes and how many it takes; `None` if it breaks a rule.
fn model(ram: &GuestRam, setup: &QueueSetup, head: u16) -> Option<(Vec<u8>, u64)> {
    let (mut readable, mut writable) = (Vec::new(), 0_u64);
    let (mut index, mut total) = (head, 0_u64);
    for _ in 0..setup.size {
        if u32::from(index) >= setup.size {
            return None;
        }
        let mut bytes = [0; 16];
        ram.read_slice(&mut bytes, GuestAddress(setup.table + u64::from(index) * 16)).ok()?;
        let addr = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let len = u64::from(u32::from_le_bytes(bytes[8..12].try_into().unwrap()));
        let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
        total += len;
        let outside = len > 0 && addr.checked_add(len).is_none_or(|end| end > 1 << 20);
        let late = flags & WRITE == 0 && writable > 0;
        if flags & INDIRECT != 0 || outside || late || total > u64::from(u32::MAX) {
            return None;
        }
        if flags & WRITE != 0 {
            writable += len;
        } else {
            let mut piece = vec![0; usize::try_from(len).unwrap()];
            ram.read_slice(&mut piece, GuestAddress(addr)).ok()?;
            readable.extend(piece);
        }
        if flags & NEXT == 0 {
            return Some((readable, writable));
        }
        index = u16::from_le_bytes([bytes[14], bytes[15]]);
    }
    None
}
