//! Block device (virtio 1.2, 5.2): one queue, synchronous file I/O straight between the file and guest memory.

mod disk;
mod request;

pub use disk::{Disk, DiskError, Extent};
pub use request::{SECTOR, serve};

use super::device::{BUDGET, DeviceIo, Next, VirtioDevice, config_bytes};
use super::fault::GuestFault;
use super::queue::{Progress, Served};

/// VIRTIO_BLK_F_SEG_MAX: `seg_max` is valid.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO: the device is read-only.
const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE: `blk_size` is valid.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH: cache flush command.
const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_DISCARD: discard command.
const F_DISCARD: u64 = 1 << 13;

/// Most sectors of one discard: 2 GiB.
const DISCARD_SECTORS: u32 = 4 << 20;
/// Unit in which files give space back, in sectors.
const DISCARD_ALIGNMENT: u32 = 8;

/// The block that a file with O_DIRECT takes on every disk.
const BLOCK: u32 = 4096;

const QUEUE_SIZE: u16 = 128;

/// The block device of one disk.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    in_blocks: bool,
    config: [u8; 48],
}

impl Block {
    /// For this disk.
    pub fn new(disk: Disk) -> Self {
        let mut config = [0; 48];
        let capacity = (disk.len() / SECTOR).to_le_bytes();
        // All descriptors but those of header and status.
        let seg_max = u32::from(QUEUE_SIZE).saturating_sub(2).to_le_bytes();
        // One range in each discard.
        let discard = [DISCARD_SECTORS, 1, DISCARD_ALIGNMENT].map(u32::to_le_bytes);
        // struct virtio_blk_config: le64 capacity, le32 size_max, le32 seg_max, 20 bytes of what is not offered, le32
        // max_discard_sectors, le32 max_discard_seg, le32 discard_sector_alignment (5.2.4).
        let discard = [0; 20].iter().chain(discard.as_flattened());
        for (to, from) in config.iter_mut().zip(capacity.iter().chain(&[0; 4]).chain(&seg_max).chain(discard)) {
            *to = *from;
        }
        Self { disk, in_blocks: false, config }
    }

    /// The same, with the guest told to read and write whole blocks of 4096 bytes: what is smaller may fail.
    #[must_use]
    pub fn in_blocks(mut self) -> Self {
        // le32 blk_size, behind le32 seg_max and four bytes of geometry (5.2.4).
        for (to, from) in self.config.iter_mut().skip(20).zip(BLOCK.to_le_bytes()) {
            *to = from;
        }
        Self { in_blocks: true, ..self }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        let blocks = if self.in_blocks { F_BLK_SIZE } else { 0 };
        F_SEG_MAX | blocks | if self.disk.is_read_only() { F_RO } else { F_FLUSH | F_DISCARD }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        config_bytes(&self.config, offset, data);
    }

    fn kick(&mut self, queue: u16, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        let counters = io.counters;
        let Some(Some(live)) = io.queues.get_mut(usize::from(queue)) else { return Ok(Next::Wait) };
        let progress = live.serve(io.ram, BUDGET, |chain| {
            counters.served.add();
            let answer = serve(&self.disk, chain)?;
            if answer.refused {
                counters.refused.add();
            }
            Ok(Served::Done(answer.written))
        });
        io.notify(queue)?;
        Ok(if progress? == Progress::Budget { Next::Again(queue) } else { Next::Wait })
    }
}

#[cfg(test)]
mod tests;
