//! The kernel image: an ELF64 executable for x86-64, `vmlinux`.
//!
//! ELF: System V ABI, chapters 4 and 5. Sizes and places come from a file that the user named: all arithmetic is checked all the same.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PF_W, PT_LOAD,
};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::LoadError;
use super::sections::{Code, Sections};
use crate::spec::MIB;
use crate::vmm::memory::{FilePlacer, GuestRam, HUGE, PAGE, make_own, share_pages};

const MOST_SEGMENTS: usize = 64;
/// `header` of a bzImage, at 0x202 (Linux `Documentation/arch/x86/boot.rst`).
const BZIMAGE_MAGIC: &[u8] = b"HdrS";

/// Why a file is not a kernel.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("The kernel file cannot be read")]
    Read(#[source] io::Error),
    /// It is compressed and wrapped for a boot loader.
    #[error(
        "The kernel file is a bzImage; an uncompressed vmlinux is needed (Linux's scripts/extract-vmlinux makes one)"
    )]
    BzImage,
    /// It is something else.
    #[error("The kernel file is not an ELF file; an uncompressed x86-64 vmlinux is needed")]
    NotElf,
    /// An ELF file for something else.
    #[error("The kernel file is an ELF file but no x86-64 executable (class {class}, machine {machine}, type {kind})")]
    NotX86_64 {
        /// 2 is 64-bit.
        class: u8,
        /// 62 is x86-64.
        machine: u16,
        /// 2 is an executable.
        kind: u16,
    },
    /// Its tables are broken.
    #[error("The kernel file is damaged: {0}")]
    Damaged(&'static str),
}

/// What the file says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    entry: u64,
    segments: Vec<Elf64_Phdr>,
    sections: Sections,
}

pub(super) fn read_at(file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> Result<usize, ImageError> {
    let mut done = 0;
    while done < buffer.len() {
        let got = rustix::io::pread(file, &mut buffer[done..], offset.saturating_add(done as u64))
            .map_err(|e| ImageError::Read(e.into()))?;
        if got == 0 {
            break;
        }
        done += got;
    }
    Ok(done)
}

/// Reads one of ELF's structures.
fn read_struct<T: ByteValued + Default>(file: &OwnedFd, offset: u64, ends: &'static str) -> Result<T, ImageError> {
    let mut value = T::default();
    let bytes = value.as_mut_slice();
    if read_at(file, offset, bytes)? == bytes.len() { Ok(value) } else { Err(ImageError::Damaged(ends)) }
}

/// First address behind a segment in memory; none if that overflows.
fn end_of(segment: &Elf64_Phdr) -> Option<u64> {
    segment.p_paddr.checked_add(segment.p_memsz.max(segment.p_filesz))
}

impl Image {
    /// Reads the file's headers.
    ///
    /// # Errors
    /// [`ImageError`], telling what the file is instead of a kernel.
    pub fn read(file: &OwnedFd) -> Result<Self, ImageError> {
        let mut start = [0_u8; 0x206];
        let got = read_at(file, 0, &mut start)?;
        if !start.starts_with(b"\x7fELF") {
            let wrapped = got == start.len() && start.ends_with(BZIMAGE_MAGIC);
            return Err(if wrapped { ImageError::BzImage } else { ImageError::NotElf });
        }
        let header: Elf64_Ehdr = read_struct(file, 0, "it ends within its header")?;
        let (class, kind, machine) = (header.e_ident[EI_CLASS], header.e_type, header.e_machine);
        let little = header.e_ident[EI_DATA] == ELFDATA2LSB;
        if (class, kind, machine, little) != (ELFCLASS64, ET_EXEC, EM_X86_64, true) {
            return Err(ImageError::NotX86_64 { class, machine, kind });
        }
        let (size, count) = (usize::from(header.e_phentsize), usize::from(header.e_phnum));
        if size != size_of::<Elf64_Phdr>() || count == 0 || count > MOST_SEGMENTS {
            return Err(ImageError::Damaged("its program headers have an odd size or number"));
        }
        let mut table = Vec::with_capacity(count);
        for index in 0..count {
            let offset = header.e_phoff.saturating_add((index * size) as u64);
            table.push(read_struct(file, offset, "it ends within its program headers")?);
        }
        let mut image = Self::check(header.e_entry, &table, super::size(file).map_err(ImageError::Read)?)?;
        image.sections = Sections::read(file, &header, &image.segments);
        Ok(image)
    }

    fn check(entry: u64, table: &[Elf64_Phdr], length: u64) -> Result<Self, ImageError> {
        let segments: Vec<_> = table.iter().copied().filter(|header| header.p_type == PT_LOAD).collect();
        for segment in &segments {
            if segment.p_offset.checked_add(segment.p_filesz).is_none_or(|end| end > length) {
                return Err(ImageError::Damaged("a segment lies beyond its end"));
            }
            if segment.p_paddr < MIB || end_of(segment).is_none_or(|end| end > 1 << 40) {
                return Err(ImageError::Damaged("a segment belongs where no kernel can be"));
            }
        }
        let enters = |s: &Elf64_Phdr| (s.p_paddr..s.p_paddr + s.p_filesz).contains(&entry);
        if !segments.iter().any(enters) {
            return Err(ImageError::Damaged("its entry is in none of its segments"));
        }
        Ok(Self { entry, segments, sections: Sections::default() })
    }

    /// Guest address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// First guest address behind the kernel.
    pub fn end(&self) -> u64 {
        self.segments.iter().filter_map(end_of).max().unwrap_or(0)
    }

    /// Parts that lie in small pages, as (guest address, length), in whole pages: what the kernel does not write to by intent, and the huge
    /// pages that hold its start-up code.
    pub fn mapped(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let read_only = self.segments.iter().filter(|s| s.p_flags & PF_W == 0).map(|s| {
            let begin = s.p_paddr / PAGE * PAGE;
            (begin, (s.p_paddr - begin + s.p_filesz).next_multiple_of(PAGE))
        });
        read_only.chain(self.mixed().into_iter().map(|begin| (begin, HUGE)))
    }

    /// Whole pages of code in segments that are copied otherwise: what runs once, at start. Mapped they are shared by all machines.
    fn start_up(&self) -> impl Iterator<Item = Code> + '_ {
        let written = |addr: u64| {
            self.segments.iter().any(|s| s.p_flags & PF_W != 0 && (s.p_paddr..s.p_paddr + s.p_memsz).contains(&addr))
        };
        self.sections.code.iter().filter(move |code| written(code.addr)).filter_map(|code| {
            let head = code.addr.next_multiple_of(PAGE) - code.addr;
            let len = code.len.checked_sub(head)? / PAGE * PAGE;
            let aligned = code.addr % PAGE == code.offset % PAGE;
            (aligned && len > 0).then_some(Code { addr: code.addr + head, offset: code.offset + head, len })
        })
    }

    /// Addresses of the huge pages with such code.
    fn mixed(&self) -> BTreeSet<u64> {
        self.start_up()
            .flat_map(|code| code.addr / HUGE..=(code.addr + code.len - 1) / HUGE)
            .map(|n| n * HUGE)
            .collect()
    }

    /// Puts the kernel into memory: code is mapped as far as it goes, and what the kernel will write to is copied, since each page of it would
    /// be copied at the first write anyway, at the price of an exit. Memory is zero everywhere else already.
    ///
    /// # Errors
    /// If memory does not reach as far, or the file cannot be mapped.
    pub fn place(&self, ram: &GuestRam, file: &OwnedFd) -> Result<(), LoadError> {
        let read_only = self.segments.iter().filter(|s| s.p_flags & PF_W == 0);
        let mappable = read_only.map(|s| s.p_offset..s.p_offset + s.p_filesz).collect();
        let mut placer = FilePlacer::new(ram, file, mappable);
        if let Err(source) = Elf::load(ram, None, &mut placer, Some(GuestAddress(MIB))) {
            // The loader's own words do not tell more than that reading failed.
            return Err(placer.take_error().map_or(LoadError::Loader(source), LoadError::Place));
        }
        self.mixed().into_iter().for_each(|begin| make_own(ram, begin, HUGE));
        for code in self.start_up() {
            share_pages(ram, code.addr, file, code.offset, code.len)?;
        }
        for run in runs(&self.sections.patched) {
            make_own(ram, run.start, run.end - run.start);
        }
        Ok(())
    }
}

/// Pages in a row as ranges.
fn runs(pages: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if last.end == *page => last.end += PAGE,
            _ => runs.push(*page..page + PAGE),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress};

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    /// An ELF file with these segments: (offset, address, bytes in file, bytes in memory). The first is read-only.
    fn elf(entry: u64, segments: &[(u64, u64, u64, u64)], length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.max(64)];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
        bytes[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        bytes[24..32].copy_from_slice(&entry.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        for (n, (offset, addr, in_file, in_memory)) in segments.iter().enumerate() {
            let header = &mut bytes[64 + n * 56..64 + (n + 1) * 56];
            header[..4].copy_from_slice(&PT_LOAD.to_le_bytes());
            header[4] = if n == 0 { 5 } else { 6 };
            header[8..16].copy_from_slice(&offset.to_le_bytes());
            header[24..32].copy_from_slice(&addr.to_le_bytes());
            header[32..40].copy_from_slice(&in_file.to_le_bytes());
            header[40..48].copy_from_slice(&in_memory.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn segments_are_placed_mapped_or_not() {
        // Code of more than one huge page, and data that begins within a page.
        let code = (4_u64 << 20) + 0x800;
        let data_at = 2 * MIB + code + 0x10;
        let segments = [(0x1000, 2 * MIB, code, code), (0x1000 + code, data_at, 0x900, 0x3000)];
        let mut bytes = elf(2 * MIB, &segments, 5 << 20);
        for (n, byte) in bytes[0x1000..].iter_mut().enumerate() {
            *byte = u8::try_from(n % 253).unwrap();
        }
        let kernel = file(&bytes);
        let image = Image::read(&kernel).unwrap();
        assert_eq!((image.entry(), image.end()), (2 * MIB, data_at + 0x3000));
        let ram = crate::vmm::memory::reserve(8).unwrap();
        image.place(&ram, &kernel).unwrap();
        let at = |addr: u64, len: u64| {
            let mut memory = vec![0; usize::try_from(len).unwrap()];
            ram.read_slice(&mut memory, GuestAddress(addr)).unwrap();
            memory
        };
        let code = usize::try_from(code).unwrap();
        assert!(at(2 * MIB, 4 * MIB + 0x800) == bytes[0x1000..0x1000 + code]);
        assert!(at(data_at - 0x10, 0x10).iter().all(|b| *b == 0), "what is not in the file is zero");
        assert!(at(data_at, 0x900) == bytes[0x1000 + code..0x1900 + code]);
        assert!(at(data_at + 0x900, 0x2700).iter().all(|b| *b == 0));
    }

    #[test]
    fn other_files_are_named_for_what_they_are() {
        let text = |bytes: &[u8]| Image::read(&file(bytes)).unwrap_err().to_string();
        assert!(text(b"").contains("not an ELF"));
        assert!(text(b"#!/bin/sh\n").contains("not an ELF"));
        let mut wrapped = vec![0; 0x400];
        wrapped[0x202..0x206].copy_from_slice(BZIMAGE_MAGIC);
        assert!(text(&wrapped).contains("bzImage"));
        let mut foreign = elf(MIB, &[(0, MIB, 1, 1)], 0x100);
        foreign[18] = 183;
        assert!(text(&foreign).contains("machine 183"));
        assert!(text(&elf(MIB, &[(0, MIB, 1, 1)], 0x100)[..70]).contains("ends within its program headers"));
    }

    #[test]
    fn damaged_tables_are_refused() {
        let refused = |bytes: &[u8]| matches!(Image::read(&file(bytes)), Err(ImageError::Damaged(_)));
        assert!(refused(&elf(MIB, &[(0, MIB, 0x1000, 1)], 0x100)), "beyond the file");
        assert!(refused(&elf(MIB, &[(u64::MAX, MIB, 2, 2)], 0x100)), "offset overflows");
        assert!(refused(&elf(MIB, &[(0, u64::MAX - 1, 2, u64::MAX)], 0x100)), "address overflows");
        assert!(refused(&elf(0, &[(0, 0, 2, 2)], 0x100)), "over the tables below 1 MiB");
        assert!(refused(&elf(MIB + 9, &[(0, MIB, 2, 2)], 0x100)), "entry outside");
        assert!(refused(&elf(MIB, &[], 0x100)), "nothing to load");
    }
}
