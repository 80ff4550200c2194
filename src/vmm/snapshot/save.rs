//! Writes a machine that stands still.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::{Errno, pwrite};
use vm_memory::{Bytes, GuestAddress};

use super::format::{HEADER, Header};
use super::{Extent, MachineState};
use crate::vmm::bus::Bus;
use crate::vmm::kvm::{KvmError, VcpuState, Vm};
use crate::vmm::memory::{GuestRam, PAGE, PAGE_BYTES, resident};

/// Why a machine was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// KVM does not tell its state.
    #[error("The machine's state cannot be had")]
    State(#[from] KvmError),
    /// The file cannot be written.
    #[error("The machine cannot be written to its file")]
    Write(#[from] io::Error),
}

/// What it takes to write a machine.
#[derive(Debug)]
pub struct Saver {
    /// The machine's memory.
    pub ram: Arc<GuestRam>,
    /// Its size in MiB.
    pub memory_mib: u32,
    /// The machine itself.
    pub vm: Arc<Vm>,
    /// Runs of memory, as (begin, length), that are a file's until the guest writes to them. They are part of it even where the kernel has not read
    /// them.
    pub mapped: Vec<(u64, u64)>,
}

impl Saver {
    /// Writes the machine to an empty file. Its processors stand still in these states.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save(
        &self,
        file: &OwnedFd,
        vcpus: Vec<Result<VcpuState, KvmError>>,
        (bus, parts): (&Bus, Kept),
    ) -> Result<(), SaveError> {
        let state = MachineState {
            memory_mib: self.memory_mib,
            vcpus: vcpus.into_iter().collect::<Result<_, _>>()?,
            vm: self.vm.save()?,
            ioapic: bus.ioapic().save(),
            serial: bus.ports.save(),
            devices: (parts == Kept::WithDevices).then(|| bus.save_devices()),
            extents: Vec::new(),
        };
        Ok(write_machine(file, &self.ram, &self.mapped, state)?)
    }
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A machine whose devices have not appeared.
    WithoutDevices,
    /// All of it.
    WithDevices,
}

/// Runs of pages that are so close to each other, in bytes, are one: each costs a mapping.
const GAP: u64 = 16 * PAGE;

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// Writes memory and state to an empty file. The state's extents are filled in here.
fn write_machine(file: &OwnedFd, ram: &GuestRam, mapped: &[(u64, u64)], mut state: MachineState) -> io::Result<()> {
    state.extents = extents(ram, &together(resident(ram)?, mapped))?;
    let mut offset = HEADER;
    for extent in &state.extents {
        offset = write_extent(file, ram, *extent, offset)?;
    }
    let bytes = postcard::to_stdvec(&state).map_err(io::Error::other)?;
    write(file, &bytes, offset)?;
    rustix::io::retry_on_intr(|| rustix::fs::ftruncate(file, offset + bytes.len() as u64))?;
    let header = Header { offset, len: bytes.len() as u64, checksum: crc32fast::hash(&bytes) };
    write(file, &header.encode(), 0)
}

/// Runs of pages in order, none twice.
fn together(mut runs: Vec<(u64, u64)>, mapped: &[(u64, u64)]) -> Vec<(u64, u64)> {
    runs.extend(mapped);
    runs.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (begin, len) in runs {
        match joined.last_mut() {
            Some((first, before)) if begin <= *first + *before => *before = (*before).max(begin + len - *first),
            _ => joined.push((begin, len)),
        }
    }
    joined
}

/// Those of these pages that are not zero, in runs.
fn extents(ram: &GuestRam, runs: &[(u64, u64)]) -> io::Result<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut page = [0; PAGE_BYTES];
    for (begin, len) in runs {
        for addr in (*begin..begin + len).step_by(PAGE_BYTES) {
            ram.read_slice(&mut page, GuestAddress(addr)).map_err(io::Error::other)?;
            if page == [0; PAGE_BYTES] {
                continue;
            }
            match extents.last_mut() {
                Some(last) if addr - (last.addr + last.len) <= GAP => last.len = addr + PAGE - last.addr,
                _ => extents.push(Extent { addr, len: PAGE }),
            }
        }
    }
    Ok(extents)
}

fn write_extent(file: &OwnedFd, ram: &GuestRam, extent: Extent, offset: u64) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    while done < extent.len {
        let count = usize::try_from(extent.len - done).unwrap_or(usize::MAX).min(PIECE);
        let piece = piece.get_mut(..count).unwrap_or_default();
        ram.read_slice(piece, GuestAddress(extent.addr + done)).map_err(io::Error::other)?;
        write(file, piece, offset + done)?;
        done += count as u64;
    }
    Ok(offset + extent.len)
}

fn write(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or(&[]);
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_none_counts_twice() {
        let runs = vec![(0x5000, 0x1000), (0x1000, 0x2000)];
        let joined = together(runs, &[(0x2000, 0x2000), (0x6000, 0x1000), (0x10000, 0x1000), (0x1000, 0x1000)]);
        assert_eq!(joined, [(0x1000, 0x3000), (0x5000, 0x2000), (0x10000, 0x1000)]);
    }
}
