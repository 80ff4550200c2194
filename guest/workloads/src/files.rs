//! File input and output on the sandbox's own root.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::{Answer, measured, number};

const BLOCK: usize = 1 << 20;

/// Writes, syncs, reads back and checks a file, then removes it.
pub(crate) fn file_io(args: &[String]) -> Answer {
    let mib: u64 = number(args, 0, "MIB")?;
    let path = args.get(1).map_or("/tmp/duplex-file-io", String::as_str);
    let result = write_and_read(path, mib);
    let _ = std::fs::remove_file(path);
    let sum = result.map_err(|e| format!("{path}: {e}"))?;
    println!("Wrote and read {mib} MiB, checksum {sum:016x}");
    Ok(ExitCode::SUCCESS)
}

fn write_and_read(path: &str, mib: u64) -> std::io::Result<u64> {
    let mut block: Vec<u8> = (0..BLOCK).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let began = Instant::now();
    let mut file = File::create(path)?;
    for number in 0..mib {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    file.sync_all()?;
    drop(file);
    measured("MiB written", mib, began);
    let began = Instant::now();
    let mut file = File::open(path)?;
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for _ in 0..mib {
        file.read_exact(&mut block)?;
        for chunk in block.chunks_exact(8) {
            let word = chunk.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            sum = (sum ^ word).wrapping_mul(0x0100_0000_01b3);
        }
    }
    measured("MiB read", mib, began);
    Ok(sum)
}
