//! The zero page, `struct boot_params`: what the kernel is told by whoever loads it.
//!
//! Linux `Documentation/arch/x86/zero-page.rst` and `boot.rst`.

use linux_loader::bootparam::{boot_e820_entry, boot_params};

const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
const HEADER: u32 = u32::from_le_bytes(*b"HdrS");
/// Protocol 2.15.
const VERSION: u16 = 0x020f;
/// "Undefined boot loader".
const LOADER_OTHER: u8 = 0xff;
/// The protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
const KERNEL_ALIGNMENT: u32 = 2 << 20;
const USABLE: u32 = 1;
const RESERVED: u32 = 2;

/// End of usable base memory is where the MP table begins; usable memory goes on here.
const HIGH_MEMORY: u64 = 0x10_0000;

/// What there is to tell.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// Address and greatest length of the command line.
    pub(super) cmdline: (u64, u64),
    /// Address and length of the initramfs.
    pub(super) initramfs: Option<(u64, u64)>,
    /// RAM as (begin, length).
    pub(super) ram: &'a [(u64, u64)],
    /// The MP table as (begin, end), in base memory.
    pub(super) reserved: (u64, u64),
}

/// The zero page.
pub(super) fn build(facts: &Facts<'_>) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.version = VERSION;
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = low(facts.cmdline.0);
    params.hdr.cmdline_size = low(facts.cmdline.1);
    if let Some((addr, len)) = facts.initramfs {
        params.hdr.ramdisk_image = low(addr);
        params.hdr.ramdisk_size = low(len);
    }
    for (place, entry) in params.e820_table.iter_mut().zip(memory_map(facts)) {
        *place = entry;
        params.e820_entries += 1;
    }
    params
}

/// Between base memory and 1 MiB nothing is promised, as on a PC.
fn memory_map(facts: &Facts<'_>) -> Vec<boot_e820_entry> {
    let entry = |addr: u64, end: u64, kind: u32| boot_e820_entry { addr, size: end.saturating_sub(addr), r#type: kind };
    let (reserved, reserved_end) = facts.reserved;
    let mut map = vec![entry(0, reserved, USABLE), entry(reserved, reserved_end, RESERVED)];
    map.extend(facts.ram.iter().map(|(begin, len)| entry((*begin).max(HIGH_MEMORY), begin + len, USABLE)));
    map
}

/// An address or a length below 4 GiB; everything that is placed lies below the hole.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_it_was_told() {
        let ram = [(0, 3 << 30), (4 << 30, 1 << 30)];
        let params = build(&Facts {
            cmdline: (0x2_0000, 99),
            initramfs: Some((0x3000_0000, 0x1234)),
            ram: &ram,
            reserved: (0x9_fc00, 0xa_0000),
        });
        let (image, size, line) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size, params.hdr.cmd_line_ptr);
        assert_eq!((image, size, line, params.e820_entries), (0x3000_0000, 0x1234, 0x2_0000, 4));
        let entry = |n: usize| {
            let boot_e820_entry { addr, size, r#type: kind } = params.e820_table[n];
            (addr, size, kind)
        };
        assert_eq!(entry(0), (0, 0x9_fc00, USABLE));
        assert_eq!(entry(1), (0x9_fc00, 0x400, RESERVED));
        assert_eq!(entry(2), (HIGH_MEMORY, (3 << 30) - HIGH_MEMORY, USABLE));
        assert_eq!(entry(3), (4 << 30, 1 << 30, USABLE));
    }
}
