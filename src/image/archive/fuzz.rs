//! A target of fuzzing: an archive of any bytes.

use std::fs::File;
use std::io::{Read, Write};

use super::Archive;
use super::contents::Contents;
use crate::image::ingest::Source;
use crate::image::layer::Budget;

/// All that is found in an archive, and its layers as they would be read.
pub(in crate::image) fn archive(bytes: &[u8]) {
    let mut file = File::from(rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let Ok(contents) = Contents::tar("archive", file, &Budget::default()) else { return };
    let archive = Archive { contents, stem: Some("name".to_owned()) };
    for found in archive.images().into_iter().flatten() {
        for layer in &found.plan.layers {
            if let Ok(content) = archive.open(layer) {
                let _ = content.take(1 << 16).read_to_end(&mut Vec::new());
            }
        }
    }
}
