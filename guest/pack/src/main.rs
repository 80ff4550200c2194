//! Packs the guest's parts at build time: `duplex-pack initramfs AGENT OUT` and `duplex-pack workloads PROGRAM OUT.tar`.
//!
//! Both outputs depend on nothing but the program that goes in.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]
#![allow(clippy::print_stderr, reason = "a build tool says what went wrong")]

mod archive;
mod cpio;
mod image;
mod initramfs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Why a part could not be packed.
#[derive(Debug, thiserror::Error)]
enum PackError {
    #[error("Usage: duplex-pack initramfs AGENT OUT | duplex-pack workloads PROGRAM OUT.tar")]
    Usage,
    #[error("Cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0} is not a static x86-64 ELF program: build it with -C target-feature=+crt-static")]
    NotStatic(PathBuf),
    #[error("Cannot pack {path}")]
    Pack {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("Cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn main() -> ExitCode {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let Err(error) = pack(&args) else { return ExitCode::SUCCESS };
    eprintln!("Error: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        eprintln!("  caused by: {next}");
        cause = next.source();
    }
    ExitCode::FAILURE
}

fn pack(args: &[PathBuf]) -> Result<(), PackError> {
    let [what, program, out] = args else { return Err(PackError::Usage) };
    let bytes = std::fs::read(program).map_err(|source| PackError::Read { path: program.clone(), source })?;
    if !is_static_program(&bytes) {
        return Err(PackError::NotStatic(program.clone()));
    }
    let packed = match what.to_str() {
        Some("initramfs") => initramfs::initramfs(&bytes),
        Some("workloads") => image::workloads(&bytes),
        _ => return Err(PackError::Usage),
    };
    write(out, &packed.map_err(|source| PackError::Pack { path: program.clone(), source })?)
}

/// Writes beside the file and renames, so that no half-written part is ever in place.
fn write(path: &Path, bytes: &[u8]) -> Result<(), PackError> {
    let fresh = path.with_extension("new");
    let written = std::fs::write(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, path));
    written.map_err(|source| PackError::Write { path: path.to_owned(), source })
}

/// An ELF file for x86-64 without an interpreter (System V ABI, "Program Header", PT_INTERP).
fn is_static_program(bytes: &[u8]) -> bool {
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let program_types = || {
        let table = usize::try_from(u64_at(32)?).ok()?;
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        (0..count).map(|n| u16_at(table.checked_add(n.checked_mul(size)?)?)).collect::<Option<Vec<u16>>>()
    };
    bytes.starts_with(b"\x7fELF\x02\x01") && u16_at(18) == Some(62) && program_types().is_some_and(|t| !t.contains(&3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_are_packed() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static_program(&own), "tests are linked dynamically");
        assert!(!is_static_program(b"#!/bin/sh\n"));
        assert!(!is_static_program(&own[..60]));
        assert!(matches!(pack(&[]), Err(PackError::Usage)));
        let missing = ["initramfs", "/no/such", "/tmp/x"].map(PathBuf::from);
        assert!(matches!(pack(&missing), Err(PackError::Read { .. })));
        let script = ["initramfs", "/etc/passwd", "/tmp/x"].map(PathBuf::from);
        assert!(matches!(pack(&script), Err(PackError::NotStatic(_))));
    }
}
