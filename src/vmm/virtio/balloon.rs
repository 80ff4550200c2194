//! Memory balloon (virtio 1.2, 5.5), for the one thing that costs a guest nothing: it reports memory that is free, and the host has it until the
//! guest needs it again (VIRTIO_BALLOON_F_PAGE_REPORTING). The device never asks for memory; a driver that gives some all the same is taken
//! at its word.

use super::area::Area;
use super::device::{BUDGET, DeviceIo, Next, VirtioDevice};
use super::fault::GuestFault;
use super::queue::{Progress, Served};
use crate::vmm::memory::{GuestRam, PAGE, PAGE_BYTES, give_back};
use vm_memory::{GuestAddress, GuestMemoryBackend};

const F_PAGE_REPORTING: u64 = 1 << 5;

/// Queues. Reports come on queue 4 (5.5.2); drivers that number only the queues that exist, as Linux does, send them on queue 2.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// Most page numbers in one buffer that are read; Linux sends 256.
const MOST_PAGES: usize = 1024;

/// The balloon.
#[derive(Debug, Default)]
pub struct Balloon;

impl VirtioDevice for Balloon {
    fn kind(&self) -> u32 {
        5
    }

    fn features(&self) -> u64 {
        F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64, 64, 64, 64, 64]
    }

    /// `num_pages`: the host wants none.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let len = 4_u64.saturating_sub(offset);
        let wanted = usize::try_from(len).unwrap_or(0).min(data.len());
        data.get_mut(..wanted).unwrap_or(&mut []).fill(0);
    }

    fn kick(&mut self, queue: u16, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        let (ram, counters) = (io.ram, io.counters);
        let Some(Some(live)) = io.queues.get_mut(usize::from(queue)) else { return Ok(Next::Wait) };
        let progress = live.serve(ram, BUDGET, |chain| {
            counters.served.add();
            match queue {
                INFLATE => inflate(ram, &chain.readable),
                DEFLATE => {}
                _ => {
                    for piece in chain.writable.pieces() {
                        give_back(ram, piece);
                    }
                }
            }
            // The contents of reported memory are nobody's: nothing was written to it (5.5.6.7.2).
            Ok(Served::Done(0))
        })?;
        io.notify(queue)?;
        Ok(if progress == Progress::Budget { Next::Again(queue) } else { Next::Wait })
    }
}

/// Pages by number, 32 bits each and little-endian (5.5.6). Numbers outside memory mean nothing.
fn inflate(ram: &GuestRam, numbers: &Area<'_>) {
    let mut bytes = [0; MOST_PAGES * 4];
    let got = numbers.read(&mut bytes);
    for number in bytes.get(..got).unwrap_or(&[]).as_chunks().0 {
        let addr = GuestAddress(u64::from(u32::from_le_bytes(*number)) * PAGE);
        if let Ok(page) = ram.get_slice(addr, PAGE_BYTES) {
            give_back(ram, &page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Buffer, Driver};
    use super::*;
    use vm_memory::Bytes;

    /// Marked memory, one report of `len` bytes on a queue, and what the memory is then: from where the report began, and the page after it.
    fn report(queue: usize, len: u32) -> Vec<u8> {
        let mut driver = Driver::ready(F_PAGE_REPORTING, |_| Balloon);
        driver.ram.write_slice(&[7; 2 << 20], GuestAddress(2 << 20)).unwrap();
        driver.ram.write_slice(&[7; 1 << 19], GuestAddress(1 << 20)).unwrap();
        let (_, places) = driver.send(queue, &[Buffer::In(len)]);
        assert_eq!(driver.take_used(queue), Some((0, 0)));
        assert!(places[0].is_multiple_of(16));
        driver.bytes(places[0] / PAGE * PAGE, len as usize + 2 * 4096)
    }

    #[test]
    fn what_is_reported_is_given_back_and_nothing_beside_it() {
        for queue in [2, 4] {
            assert!(report(queue, 100).contains(&7), "less than a page stays");
            let memory = report(queue, 8 * 4096);
            let given = memory.iter().filter(|byte| **byte == 0).count() / 4096;
            assert!((7..=8).contains(&given), "{given} pages");
            assert_eq!(memory.last(), Some(&7));
        }
    }

    #[test]
    fn pages_by_number_are_given_back() {
        let mut driver = Driver::ready(0, |_| Balloon);
        let numbers: Vec<u8> = [0_u32, u32::MAX, 1 << 30].iter().flat_map(|n| n.to_le_bytes()).collect();
        driver.send(INFLATE.into(), &[Buffer::Out(&numbers)]);
        assert_eq!(driver.take_used(INFLATE.into()), Some((0, 0)));
        driver.send(DEFLATE.into(), &[Buffer::Out(&numbers[..7])]);
        assert_eq!(driver.take_used(DEFLATE.into()), Some((0, 0)));
    }

    #[test]
    fn no_page_is_wanted() {
        let mut data = [0xff; 8];
        Balloon.read_config(0, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        Balloon.read_config(3, &mut data[5..]);
        assert_eq!(data[5..], [0, 0xff, 0xff]);
    }
}
