//! Memory: taken until it ends, and touched page by page.

use std::process::ExitCode;
use std::time::Instant;

use crate::{Answer, measured, number};

const MIB: usize = 1 << 20;

/// Takes memory in MiB steps and keeps it; in a sandbox with less, the kernel kills this process.
pub(crate) fn eat(args: &[String]) -> Answer {
    let mib: usize = number(args, 0, "MIB")?;
    println!("Eating {mib} MiB");
    let mut eaten = Vec::new();
    for step in 0..mib {
        let mut piece = vec![0_u8; MIB];
        touch(&mut piece, step);
        eaten.push(piece);
    }
    std::hint::black_box(&eaten);
    println!("Ate {mib} MiB");
    Ok(ExitCode::SUCCESS)
}

/// Writes to each page of a fresh mapping.
pub(crate) fn touch_pages(args: &[String]) -> Answer {
    let mib: usize = number(args, 0, "MIB")?;
    let length = mib.checked_mul(MIB).ok_or("MIB is out of range")?;
    let mut memory = vec![0_u8; length];
    let began = Instant::now();
    let pages = touch(&mut memory, 1);
    println!("Touched {pages} pages");
    measured("pages", pages, began);
    std::hint::black_box(&memory);
    Ok(ExitCode::SUCCESS)
}

fn touch(memory: &mut [u8], value: usize) -> u64 {
    let mut pages = 0;
    for page in memory.chunks_mut(4096) {
        if let Some(first) = page.first_mut() {
            *first = std::hint::black_box(value.to_le_bytes()[0] | 1);
        }
        pages += 1;
    }
    pages
}
