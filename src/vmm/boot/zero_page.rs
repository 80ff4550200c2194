//! The zero page, `struct boot_params`: what the kernel is told by whoever loads it.
//!
//! Linux `Documentation/arch/x86/zero-page.rst` and `boot.rst`; offsets are theirs.

const SIZE: usize = 4096;

const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;

/// "Undefined boot loader".
const LOADER_OTHER: u8 = 0xff;
/// The protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
const USABLE: u32 = 1;
const RESERVED: u32 = 2;

/// End of usable base memory is where the MP table begins; usable memory goes on here.
const HIGH_MEMORY: u64 = 0x10_0000;

/// What there is to tell.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// Address and length of the command line.
    pub(super) cmdline: (u64, u64),
    /// Address and length of the initramfs.
    pub(super) initramfs: Option<(u64, u64)>,
    /// RAM as (begin, length).
    pub(super) ram: &'a [(u64, u64)],
    /// The MP table as (begin, end), in base memory.
    pub(super) reserved: (u64, u64),
}

/// The zero page's bytes.
pub(super) fn build(facts: &Facts<'_>) -> Vec<u8> {
    let mut page = vec![0; SIZE];
    put(&mut page, BOOT_FLAG, &0xaa55_u16.to_le_bytes());
    put(&mut page, HEADER, b"HdrS");
    put(&mut page, VERSION, &0x020f_u16.to_le_bytes());
    put(&mut page, TYPE_OF_LOADER, &[LOADER_OTHER]);
    put(&mut page, LOADFLAGS, &[LOADED_HIGH]);
    put(&mut page, KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
    put(&mut page, CMD_LINE_PTR, &low(facts.cmdline.0));
    put(&mut page, CMDLINE_SIZE, &low(facts.cmdline.1));
    if let Some((addr, len)) = facts.initramfs {
        put(&mut page, RAMDISK_IMAGE, &low(addr));
        put(&mut page, RAMDISK_SIZE, &low(len));
    }
    let map = memory_map(facts);
    put(&mut page, E820_ENTRIES, &[u8::try_from(map.len()).unwrap_or(u8::MAX)]);
    for (n, (begin, end, kind)) in map.iter().enumerate() {
        let at = E820_TABLE + n * E820_ENTRY;
        put(&mut page, at, &begin.to_le_bytes());
        put(&mut page, at + 8, &(end - begin).to_le_bytes());
        put(&mut page, at + 16, &kind.to_le_bytes());
    }
    page
}

/// Memory map as (begin, end, type). Between base memory and 1 MiB nothing is promised, as on a PC.
fn memory_map(facts: &Facts<'_>) -> Vec<(u64, u64, u32)> {
    let (reserved, reserved_end) = facts.reserved;
    let mut map = vec![(0, reserved, USABLE), (reserved, reserved_end, RESERVED)];
    map.extend(facts.ram.iter().map(|(begin, len)| ((*begin).max(HIGH_MEMORY), begin + len, USABLE)));
    map
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An address or a length below 4 GiB; everything that is placed lies below the hole.
fn low(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(0).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_it_was_told() {
        let ram = [(0, 3 << 30), (4 << 30, 1 << 30)];
        let page = build(&Facts {
            cmdline: (0x2_0000, 99),
            initramfs: Some((0x3000_0000, 0x1234)),
            ram: &ram,
            reserved: (0x9_fc00, 0xa_0000),
        });
        assert_eq!(&page[HEADER..HEADER + 4], b"HdrS");
        assert_eq!(page[RAMDISK_SIZE..RAMDISK_SIZE + 4], 0x1234_u32.to_le_bytes());
        assert_eq!(page[E820_ENTRIES], 4);
        let entry = |n: usize| {
            let at = E820_TABLE + n * E820_ENTRY;
            (
                u64::from_le_bytes(page[at..at + 8].try_into().unwrap()),
                u64::from_le_bytes(page[at + 8..at + 16].try_into().unwrap()),
            )
        };
        assert_eq!(entry(0), (0, 0x9_fc00));
        assert_eq!(entry(2), (HIGH_MEMORY, (3 << 30) - HIGH_MEMORY));
        assert_eq!(entry(3), (4 << 30, 1 << 30));
    }
}
