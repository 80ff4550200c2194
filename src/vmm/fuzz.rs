//! Targets of fuzzing: what the monitor reads, and a guest's ports and interrupt chip.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};

use super::boot;
use super::boot::{Image, cmdline};
use super::bus::{Bus, FIRST_WINDOW};
use super::ioapic::{self, IoApic, Messages};
use super::memory::{MemoryError, reserve};
use super::ports::{Ports, Serial};
use super::snapshot::format::{HEADER, Header};
use super::snapshot::{Saved, hot, place};
use super::virtio::interrupt::IrqLine;
use crate::fuzz::{Input, same};
use crate::spec::{MachineEvent, MachineSpec, RequestToMonitor};

pub(crate) use super::virtio::fuzz as virtio;

/// Memory that is placed into, in MiB.
const MEMORY_MIB: u32 = 16;

fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file.into()
}

/// A kernel file: what is read of it can be placed, and its entry lies in what was placed.
pub(crate) fn kernel(data: &[u8]) {
    let file = file(data);
    let Ok(image) = Image::read(&file) else { return };
    assert!(image.entry() >= 1 << 20 && image.entry() < image.end());
    assert!(image.mapped().all(|(begin, len)| begin % 4096 == 0 && len % 4096 == 0));
    let ram = reserve(MEMORY_MIB).unwrap();
    match image.place(&ram, &file) {
        // What is not in the file is zero anyway: that it fits was looked at before.
        Ok(())
        | Err(
            boot::LoadError::Place(MemoryError::Map { .. } | MemoryError::Read { .. }) | boot::LoadError::Loader(_),
        ) => {}
        Err(other) => panic!("{other:?}"),
    }
}

/// A command line of the user's words.
pub(crate) fn command_line(data: &[u8]) {
    let mut input = Input::new(data);
    let windows: Vec<_> = (0..input.u8() % 8).map(|_| (input.u64(), input.u64(), input.u32())).collect();
    let base = String::from_utf8_lossy(input.rest());
    if let Ok(line) = cmdline(&base, &windows) {
        let line = line.as_cstring().unwrap();
        assert!(line.as_bytes_with_nul().len() <= 2048);
    }
}

/// A saved machine: header and checksum are good, the state and its place are anything.
pub(crate) fn saved_machine(data: &[u8]) {
    let mut input = Input::new(data);
    let (pages, vcpus) = (usize::from(input.u8() % 8), input.u8() % 3);
    let (shift, memory) = (u64::from(input.u8()), if input.u8() & 1 == 0 { MEMORY_MIB } else { input.u32() });
    let state = input.rest();
    let offset = HEADER + pages as u64 * 4096;
    let checksum = crc32fast::hash(state);
    let header = Header { offset: offset ^ (shift & 0xf0) >> 4, len: state.len() as u64, checksum };
    let mut bytes = header.encode();
    bytes.resize(usize::try_from(offset).unwrap(), 7);
    bytes.extend(state);
    let file = file(&bytes);
    if let Ok(saved) = Saved::read(&file, memory, vcpus) {
        assert_eq!((saved.state.memory_mib, saved.state.vcpus.len()), (memory, vcpus.into()));
        if memory <= MEMORY_MIB {
            place(&reserve(memory.max(1)).unwrap(), &file, &saved).unwrap();
        }
    }
}

/// What a start touches, as it was learned from machines of others.
pub(crate) fn hot_pages(data: &[u8]) {
    let bytes = [&crc32fast::hash(data).to_le_bytes()[..], data].concat();
    let runs = hot::decode(&bytes);
    if !runs.is_empty() {
        assert_eq!(hot::decode(&hot::encode(&runs).unwrap()), runs);
        hot::fuzz_joined(&runs);
        let ram = reserve(1).unwrap();
        runs.iter().for_each(|run| super::memory::make_own(&ram, run.addr, u64::from(run.pages) * 4096));
    }
}

/// What a monitor that a guest has taken over says to its keeper, what its keeper says to it, and the spec that it is made from.
pub(crate) fn monitor_messages(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    match first % 3 {
        0 => same::<MachineEvent>(rest),
        1 => same::<RequestToMonitor>(rest),
        _ => same::<MachineSpec>(rest),
    }
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<(u32, u32)>>, AtomicU32);

impl Messages for Told {
    fn send(&self, address: u32, data: u32) {
        self.0.lock().unwrap().push((address, data));
    }
}

impl IrqLine for Told {
    fn pulse(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ports and addresses by a processor that knows no rules: messages go to local APICs only, and the serial log has an end.
pub(crate) fn ports(data: &[u8]) {
    let mut input = Input::new(data);
    let told = Arc::new(Told::default());
    let chip = Arc::new(IoApic::new(usize::from(input.u8() % 25), told.clone()));
    let bus = Bus::new(Ports::new(Serial::new(told.clone(), None)), chip.clone(), Vec::new(), None);
    for _ in 0..1000 {
        if input.is_empty() {
            break;
        }
        let choice = input.u8();
        let width = 1 << (choice >> 6);
        let near = u64::from(input.u8());
        let (port, mut data) = (0x3f0 + u16::try_from(near % 32).unwrap(), [0; 8]);
        match choice & 7 {
            0 => bus.port_in(port, &mut data[..width]),
            1 => drop(bus.port_out(port, &vec![input.u8(); usize::from(input.u8())])),
            2 => drop(bus.port_out(input.u16(), input.bytes(width))),
            3 => bus.port_in(input.u16(), &mut data[..width]),
            4 => bus.write(ioapic::ADDR + near % 0x20, &input.u32().to_le_bytes()[..width.min(4)]),
            5 => bus.read(ioapic::ADDR + near % 0x20, &mut data[..width]),
            6 => bus.write(FIRST_WINDOW + input.u64() % 0x1_0000, input.bytes(width)),
            _ => bus.read(input.u64(), &mut data[..width]),
        }
        if choice & 0x38 == 0x38 {
            let saved = chip.save();
            chip.restore(&saved);
        }
    }
    assert!(told.0.lock().unwrap().iter().all(|(address, data)| address & 0xfff0_0ff3 == 0xfee0_0000 && *data < 0x800));
    assert!(bus.ports.panic().is_none_or(|words| words.len() <= 1024 && !words.contains('\n')));
}
