//! Entropy device (virtio 1.2, 5.4): one queue of writable buffers, filled from the host's `getrandom`.

use super::area::Area;
use super::device::{BUDGET, DeviceIo, Next, VirtioDevice};
use super::fault::GuestFault;
use super::queue::{Progress, Served};

/// Most bytes per buffer; the device may write fewer than asked (5.4.6.1).
const MOST: usize = 4096;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        4
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn kick(&mut self, queue: u16, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        let counters = io.counters;
        let Some(Some(live)) = io.queues.get_mut(usize::from(queue)) else { return Ok(Next::Wait) };
        let progress = live.serve(io.ram, BUDGET, |chain| {
            counters.served.add();
            Ok(Served::Done(fill(&chain.writable)))
        })?;
        io.notify(queue)?;
        Ok(if progress == Progress::Budget { Next::Again(queue) } else { Next::Wait })
    }
}

/// Fills the front of the area with random bytes. Returns their number.
fn fill(area: &Area<'_>) -> u32 {
    let mut bytes = [0_u8; MOST];
    let want = usize::try_from(area.len()).unwrap_or(MOST).min(MOST);
    let Some(wanted) = bytes.get_mut(..want) else { return 0 };
    // Requests of up to 256 bytes are never cut short; longer ones may be, and then fewer bytes are given.
    let got = rustix::rand::getrandom(&mut *wanted, rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    u32::try_from(area.write(wanted.get(..got).unwrap_or(&[]))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Buffer, Driver};
    use super::*;

    #[test]
    fn buffers_are_filled_up_to_a_limit() {
        let mut driver = Driver::ready(0, |_| Rng);
        let (_, places) = driver.send(0, &[Buffer::In(3000), Buffer::In(3000)]);
        assert_eq!(driver.take_used(0), Some((0, 4096)));
        assert_ne!(driver.bytes(places[1], 1096)[1000..], [0; 96]);
        assert_eq!(driver.bytes(places[1] + 1096, 1000), [0; 1000], "not written beyond what is told");
    }

    #[test]
    fn a_chain_without_room_gets_nothing() {
        let mut driver = Driver::ready(0, |_| Rng);
        driver.send(0, &[Buffer::Out(b"abc")]);
        assert_eq!(driver.take_used(0), Some((0, 0)));
    }

    #[test]
    fn two_buffers_differ() {
        let mut driver = Driver::ready(0, |_| Rng);
        let (_, first) = driver.send(0, &[Buffer::In(32)]);
        let (_, second) = driver.send(0, &[Buffer::In(32)]);
        assert_ne!(driver.bytes(first[0], 32), driver.bytes(second[0], 32));
    }
}
