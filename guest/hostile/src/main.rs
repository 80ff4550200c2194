//! The bare-metal program: the entry's Rust half.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

/// Called by the entry (`entry.rs`) with the zero page that the loader hands over.
#[unsafe(no_mangle)]
extern "C" fn hostile_main(zero_page: u64) -> ! {
    duplex_hostile::play(zero_page)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    duplex_hostile::give_up(info.location().map_or("?", |at| at.file()), info.location().map_or(0, |at| at.line()))
}
