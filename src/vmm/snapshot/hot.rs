//! The pages of a saved machine that a start touches: made ready in a few calls before the first instruction, where each would cost an exit and a
//! page fault of its own. Only a hint: without it, or with a wrong one, a machine does the same, later.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::vmm::kvm::Vcpu;
use crate::vmm::memory::{self, GuestRam, PAGE};

/// Most bytes of an encoded list: each run has at most 16.
const LONGEST: usize = 64 << 10;

/// Most pages of a list that are written to, and most of all. A list is learned from machines whose commands nobody trusts, and it
/// is others that pay for it: 16 MiB at most, some milliseconds. A start touches a quarter of that.
const MOST_WRITTEN: u64 = 4096;
const MOST_PAGES: u64 = 16384;
/// Most runs of a list.
pub const MOST_RUNS: usize = 2048;

/// Bytes of the checksum before it.
const CHECKSUM: usize = 4;

/// Runs with so many bytes between them are mapped in one call.
const CLOSE: u64 = 4 * PAGE;

/// Pages that a start touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotRun {
    /// Guest address.
    pub addr: u64,
    /// Number of pages.
    pub pages: u32,
    /// They are written to: each machine has its own.
    pub written: bool,
}

impl HotRun {
    /// Bytes.
    fn len(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }
}

/// Whether a start may be made to touch so much.
fn is_modest(runs: &[HotRun]) -> bool {
    let pages = |runs: &mut dyn Iterator<Item = &HotRun>| runs.map(|run| u64::from(run.pages)).sum::<u64>();
    let written = pages(&mut runs.iter().filter(|run| run.written));
    runs.len() <= MOST_RUNS && written <= MOST_WRITTEN && pages(&mut runs.iter()) <= MOST_PAGES
}

/// The list as it is kept in a file.
///
/// # Errors
/// If it has more than a start may touch.
pub fn encode(runs: &[HotRun]) -> Result<Vec<u8>, postcard::Error> {
    if !is_modest(runs) {
        return Err(postcard::Error::SerializeBufferFull);
    }
    let bytes = postcard::to_stdvec(runs)?;
    Ok([&crc32fast::hash(&bytes).to_le_bytes()[..], &bytes].concat())
}

/// The list in these bytes; an empty one if they are none.
pub fn decode(bytes: &[u8]) -> Vec<HotRun> {
    let Some((sum, bytes)) = bytes.split_first_chunk::<CHECKSUM>() else { return Vec::new() };
    if crc32fast::hash(bytes) != u32::from_le_bytes(*sum) {
        return Vec::new();
    }
    postcard::from_bytes(bytes).ok().filter(|runs: &Vec<HotRun>| is_modest(runs)).unwrap_or_default()
}

/// Reads the list from a file.
pub fn read(file: &OwnedFd) -> Vec<HotRun> {
    let mut bytes = vec![0; LONGEST];
    loop {
        match rustix::io::pread(file, &mut bytes[..], 0) {
            Ok(count) => return decode(bytes.get(..count).unwrap_or(&[])),
            Err(Errno::INTR) => {}
            Err(_) => return Vec::new(),
        }
    }
}

/// Makes these pages ready, in memory and in the machine. Runs outside memory mean nothing.
pub fn make_ready(ram: &GuestRam, vcpu: &Vcpu, runs: &[HotRun]) {
    for run in runs.iter().filter(|run| run.written) {
        memory::make_own(ram, run.addr, run.len());
    }
    // The machine's own tables are filled with what is there: pages that nobody writes to are read on the way.
    for (addr, len) in joined(runs) {
        vcpu.map_ahead(addr, len);
    }
}

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
/// What [`joined`] makes of any runs: their ranges in order, none within another.
pub(crate) fn fuzz_joined(runs: &[HotRun]) {
    let pages: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
    let ranges = joined(runs);
    assert!(ranges.len() <= runs.len() && pages <= MOST_PAGES);
}

/// The runs as ranges, those that are close together as one: a call costs more than a few pages.
fn joined(runs: &[HotRun]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for run in runs {
        let end = run.addr.saturating_add(run.len());
        match ranges.last_mut() {
            Some((begin, len))
                if *begin <= run.addr && run.addr <= begin.saturating_add(*len).saturating_add(CLOSE) =>
            {
                *len = (*len).max(end - *begin);
            }
            _ => ranges.push((run.addr, run.len())),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_are_close_are_one_range() {
        let run = |addr, pages, written| HotRun { addr, pages, written };
        let runs =
            [run(0, 1, true), run(0x1000, 2, false), run(0x6000, 1, true), run(0x10_0000, 1, false), run(0, 1, true)];
        assert_eq!(joined(&runs), [(0, 0x7000), (0x10_0000, 0x1000), (0, 0x1000)]);
        assert_eq!(joined(&[run(u64::MAX, u32::MAX, true), run(u64::MAX, 1, true)]).len(), 1);
    }

    /// A command that touches all of its machine's memory teaches nothing, and a file that says so is none.
    #[test]
    fn what_a_list_costs_is_bounded() {
        let run = |pages, written| HotRun { addr: 0x10_0000, pages, written };
        let most = vec![run(4096, true), run(12288, false)];
        assert_eq!(decode(&encode(&most).unwrap()), most);
        for runs in
            [vec![run(4097, true)], vec![run(16385, false)], vec![run(u32::MAX, true); 2], vec![run(1, false); 2049]]
        {
            assert!(encode(&runs).is_err());
            let bytes = postcard::to_stdvec(&runs).unwrap();
            assert_eq!(decode(&[&crc32fast::hash(&bytes).to_le_bytes()[..], &bytes].concat()), []);
        }
        let longest = vec![HotRun { addr: u64::MAX, pages: 8, written: true }; 500];
        assert_eq!(decode(&encode(&longest).unwrap()).len(), 500);
        assert!(encode(&vec![HotRun { addr: u64::MAX, pages: 1, written: false }; MOST_RUNS]).unwrap().len() < LONGEST);
    }

    #[test]
    fn a_list_comes_back_or_is_none() {
        let runs = vec![
            HotRun { addr: 0x10_0000, pages: 3, written: true },
            HotRun { addr: 0x20_0000, pages: 1, written: false },
        ];
        let bytes = encode(&runs).unwrap();
        assert_eq!(decode(&bytes), runs);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes), [], "bit {bit}");
        }
        assert_eq!(decode(b""), []);
    }
}
