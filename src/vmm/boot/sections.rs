//! What a kernel's section headers tell about its life after loading: which code it runs once and never changes, and which code it patches at
//! boot. Both are advice that saves time: a kernel without sections, or with others than Linux 6.x has, boots all the same.
//!
//! ELF: System V ABI, chapter 4. `.altinstructions` is an array of `struct alt_instr` (Linux `arch/x86/include/asm/alternative.h`), and each
//! `runtime_*` section one of offsets (`runtime-const.h`); both name their sites relative to the entry itself.

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::fd::OwnedFd;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};

use super::elf::read_at;
use crate::vmm::memory::PAGE;

const MOST_SECTIONS: u16 = 256;
/// Longest section that is read.
const LONGEST: u64 = 1 << 20;
const SHF_ALLOC: u64 = 2;
const SHF_EXECINSTR: u64 = 4;
const PROGBITS: u64 = 1;

const ALTERNATIVES: &[u8] = b".altinstructions";
const ALTERNATIVE: usize = 14;
/// Offset of a site's length in an entry.
const SITE_LENGTH: usize = 12;
const CONSTANTS: &[u8] = b"runtime_";
const CONSTANT: usize = 4;
const LONGEST_CONSTANT: u64 = 8;

/// A piece of code as it lies in memory and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code {
    /// Guest address.
    pub addr: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Code {
    /// Whether a segment has it where it says.
    fn is_of(&self, segment: &Elf64_Phdr) -> bool {
        let place = |begin: u64, at: u64| Some((at.checked_sub(begin)?, at.checked_add(self.len)?.checked_sub(begin)?));
        let inside = place(segment.p_paddr, self.addr);
        inside.is_some_and(|(_, end)| end <= segment.p_filesz) && inside == place(segment.p_offset, self.offset)
    }
}

/// The advice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sections {
    /// Code within the segments.
    pub code: Vec<Code>,
    /// Guest addresses of the pages that hold what the kernel patches at boot.
    pub patched: BTreeSet<u64>,
}

impl Sections {
    /// Reads what the file has of it.
    pub(super) fn read(file: &OwnedFd, header: &Elf64_Ehdr, segments: &[Elf64_Phdr]) -> Self {
        let mut advice = Self::default();
        for (name, section) in named(file, header).unwrap_or_default() {
            let kept = section.kind == PROGBITS && section.flags & SHF_ALLOC != 0;
            let Some(addr) = physical(segments, section.addr).filter(|_| kept) else { continue };
            let code = Code { addr, offset: section.offset, len: section.size };
            if section.flags & SHF_EXECINSTR != 0 && segments.iter().any(|segment| code.is_of(segment)) {
                advice.code.push(code);
            }
            let sites: fn(&[u8], u64) -> Vec<Range<u64>> = match name.as_slice() {
                ALTERNATIVES => alternatives,
                name if name.starts_with(CONSTANTS) => constants,
                _ => continue,
            };
            let bytes = contents(file, &section).unwrap_or_default();
            let sites = sites(&bytes, section.addr);
            let pages = sites.iter().filter_map(|site| {
                let first = physical(segments, site.start)? / PAGE;
                Some(first..=(first * PAGE + site.start % PAGE + (site.end - site.start).saturating_sub(1)) / PAGE)
            });
            advice.patched.extend(pages.flatten().map(|page| page * PAGE));
        }
        advice
    }
}

/// A section header (ELF-64, figure 8), as far as it matters here.
struct Section {
    name: u64,
    kind: u64,
    flags: u64,
    addr: u64,
    offset: u64,
    size: u64,
}

/// Size of a section header.
const HEADER: usize = 64;

impl Section {
    fn parse(bytes: &[u8; HEADER]) -> Self {
        let number = |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        Self {
            name: number(0, 4),
            kind: number(4, 4),
            flags: number(8, 8),
            addr: number(16, 8),
            offset: number(24, 8),
            size: number(32, 8),
        }
    }
}

/// All sections with their names.
fn named(file: &OwnedFd, header: &Elf64_Ehdr) -> Option<Vec<(Vec<u8>, Section)>> {
    let count = usize::from(header.e_shnum.min(MOST_SECTIONS));
    let mut table = vec![0; count * HEADER];
    let got = read_at(file, header.e_shoff, &mut table).ok()?;
    if usize::from(header.e_shentsize) != HEADER || got != table.len() {
        return None;
    }
    let sections: Vec<_> = table.as_chunks::<HEADER>().0.iter().map(Section::parse).collect();
    let names = contents(file, sections.get(usize::from(header.e_shstrndx))?)?;
    let name = |section: &Section| {
        let at = usize::try_from(section.name).ok()?;
        Some(names.get(at..)?.split(|byte| *byte == 0).next()?.to_vec())
    };
    Some(sections.into_iter().filter_map(|section| Some((name(&section)?, section))).collect())
}

fn contents(file: &OwnedFd, section: &Section) -> Option<Vec<u8>> {
    let len = usize::try_from(section.size).ok().filter(|_| section.size <= LONGEST)?;
    let mut bytes = vec![0; len];
    let got = read_at(file, section.offset, &mut bytes).ok()?;
    (got == len).then_some(bytes)
}

/// The guest address of a kernel address.
fn physical(segments: &[Elf64_Phdr], addr: u64) -> Option<u64> {
    segments.iter().find_map(|s| {
        let inside = addr.checked_sub(s.p_vaddr).filter(|inside| *inside < s.p_memsz)?;
        s.p_paddr.checked_add(inside)
    })
}

/// Where an entry at `at` points to.
fn site(at: u64, entry: &[u8], len: u64) -> Option<Range<u64>> {
    let offset = i32::from_le_bytes(*entry.first_chunk()?);
    let begin = at.checked_add_signed(i64::from(offset))?;
    Some(begin..begin.checked_add(len)?)
}

fn entries(bytes: &[u8], addr: u64, size: usize) -> impl Iterator<Item = (u64, &[u8])> {
    let places = (0_u64..).map(move |n| addr.wrapping_add(n * size as u64));
    places.zip(bytes.chunks_exact(size))
}

fn alternatives(bytes: &[u8], addr: u64) -> Vec<Range<u64>> {
    let len = |entry: &[u8]| entry.get(SITE_LENGTH).copied().map_or(0, u64::from);
    entries(bytes, addr, ALTERNATIVE).filter_map(|(at, entry)| site(at, entry, len(entry))).collect()
}

fn constants(bytes: &[u8], addr: u64) -> Vec<Range<u64>> {
    entries(bytes, addr, CONSTANT).filter_map(|(at, entry)| site(at, entry, LONGEST_CONSTANT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const BASE: u64 = 0xffff_ffff_8100_0000;
    const HOME: u64 = 0x100_0000;

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn segment() -> Elf64_Phdr {
        Elf64_Phdr {
            p_vaddr: BASE,
            p_paddr: HOME,
            p_offset: 64,
            p_filesz: 0x10_0000,
            p_memsz: 0x10_0000,
            ..Elf64_Phdr::default()
        }
    }

    /// A file of these sections (name, flags, address, content), and its header.
    fn kernel(sections: &[(&str, u64, u64, &[u8])]) -> (Vec<u8>, Elf64_Ehdr) {
        let (mut bytes, mut table, mut names) = (vec![0; 64], Vec::new(), vec![0]);
        let mut add = |name: &str, numbers: [u64; 5], table: &mut Vec<u8>| {
            let mut header = [0; HEADER];
            header[..4].copy_from_slice(&u32::try_from(names.len()).unwrap().to_le_bytes());
            header[4..8].copy_from_slice(&u32::try_from(numbers[0]).unwrap().to_le_bytes());
            for (place, number) in [8, 16, 24, 32].into_iter().zip(&numbers[1..]) {
                header[place..place + 8].copy_from_slice(&number.to_le_bytes());
            }
            names.extend(name.bytes().chain([0]));
            table.extend(header);
        };
        for (name, flags, addr, content) in sections {
            add(name, [PROGBITS, *flags, *addr, bytes.len() as u64, content.len() as u64], &mut table);
            bytes.extend_from_slice(content);
        }
        add(".shstrtab", [3, 0, 0, bytes.len() as u64, 200], &mut table);
        bytes.extend(&names);
        bytes.resize(bytes.len() + 200, 0);
        let header = Elf64_Ehdr {
            e_shoff: bytes.len() as u64,
            e_shentsize: 64,
            e_shnum: u16::try_from(sections.len() + 1).unwrap(),
            e_shstrndx: u16::try_from(sections.len()).unwrap(),
            ..Elf64_Ehdr::default()
        };
        bytes.extend(table);
        (bytes, header)
    }

    fn relative(from: u64, to: u64) -> [u8; 4] {
        i32::try_from(to.wrapping_sub(from).cast_signed()).unwrap().to_le_bytes()
    }

    #[test]
    fn code_and_patched_pages_are_found() {
        let (table, constants) = (BASE + 0x8_0000, BASE + 0x9_0000);
        let alternative = |n: u64, to: u64, len: u8| {
            let mut entry = [0; ALTERNATIVE];
            entry[..4].copy_from_slice(&relative(table + n * ALTERNATIVE as u64, to));
            entry[SITE_LENGTH] = len;
            entry
        };
        // One within a page, one over the edge of two, one that points out of the kernel.
        let entries =
            [alternative(0, BASE + 0x1010, 3), alternative(1, BASE + 0x4ffe, 5), alternative(2, BASE - 0x1000, 5)];
        let (bytes, header) = kernel(&[
            (".text", SHF_ALLOC | SHF_EXECINSTR, BASE, &[0x90; 0x20]),
            (".data", SHF_ALLOC, BASE + 0x2000, &[1; 8]),
            (".comment", 0, BASE, &[2; 8]),
            (".altinstructions", SHF_ALLOC, table, &entries.concat()),
            ("runtime_ptr_SOME", SHF_ALLOC, constants, &relative(constants, BASE + 0x7ff9)),
        ]);
        let found = Sections::read(&file(&bytes), &header, &[segment()]);
        assert_eq!(found.code, [Code { addr: HOME, offset: 64, len: 0x20 }]);
        let pages: Vec<_> = found.patched.iter().map(|page| page - HOME).collect();
        assert_eq!(pages, [0x1000, 0x4000, 0x5000, 0x7000, 0x8000]);
        assert_eq!(
            Sections::read(&file(&bytes[..bytes.len() - 1]), &header, &[segment()]),
            Sections::default(),
            "cut off"
        );
    }

    proptest! {
        #[test]
        fn no_file_is_too_strange(damage in prop::collection::vec((0..900_usize, any::<u8>()), 0..40), shoff in 0..1200_u64) {
            let (mut bytes, mut header) = kernel(&[
                (".text", SHF_ALLOC | SHF_EXECINSTR, BASE, &[0x90; 0x20]),
                (".altinstructions", SHF_ALLOC, BASE + 0x100, &[7; 140]),
                ("runtime_shift_some", SHF_ALLOC, BASE + 0x200, &[9; 40]),
            ]);
            if shoff % 2 == 0 { header.e_shoff = shoff }
            for (at, byte) in damage {
                if let Some(place) = bytes.get_mut(at) { *place = byte }
            }
            let found = Sections::read(&file(&bytes), &header, &[segment()]);
            prop_assert!(found.code.iter().all(|code| code.addr >= HOME && code.addr + code.len <= HOME + 0x10_0000));
            prop_assert!(found.patched.iter().all(|page| (HOME..HOME + 0x10_1000).contains(page)));
        }
    }
}
