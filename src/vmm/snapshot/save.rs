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
    /// An empty file.
    pub file: OwnedFd,
    /// The machine's memory.
    pub ram: Arc<GuestRam>,
    /// Its size in MiB.
    pub memory_mib: u32,
    /// The machine itself.
    pub vm: Arc<Vm>,
}

impl Saver {
    /// Writes the machine, whose processors stand still in these states.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save(&self, vcpus: Vec<Result<VcpuState, KvmError>>, bus: &Bus) -> Result<(), SaveError> {
        let state = MachineState {
            memory_mib: self.memory_mib,
            vcpus: vcpus.into_iter().collect::<Result<_, _>>()?,
            vm: self.vm.save()?,
            ioapic: bus.ioapic().save(),
            serial: bus.ports.save(),
            extents: Vec::new(),
        };
        Ok(write_machine(&self.file, &self.ram, state)?)
    }
}

/// Runs of pages that are so close to each other, in bytes, are one: each costs a mapping.
const GAP: u64 = 16 * PAGE;

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// Writes memory and state to an empty file. The state's extents are filled in here.
fn write_machine(file: &OwnedFd, ram: &GuestRam, mut state: MachineState) -> io::Result<()> {
    state.extents = extents(ram)?;
    let mut offset = HEADER;
    for extent in &state.extents {
        offset = write_extent(file, ram, *extent, offset)?;
    }
    let bytes = postcard::to_stdvec(&state).map_err(io::Error::other)?;
    write(file, &bytes, offset)?;
    let header = Header { offset, len: bytes.len() as u64, checksum: crc32fast::hash(&bytes) };
    write(file, &header.encode(), 0)
}

/// Runs of pages that are not zero.
fn extents(ram: &GuestRam) -> io::Result<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut page = [0; PAGE_BYTES];
    for (begin, len) in resident(ram)? {
        for addr in (begin..begin + len).step_by(PAGE_BYTES) {
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
