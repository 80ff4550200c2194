//! Requests by the specification's driver, and the composed disk against an oracle.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::VolatileSlice;

use super::super::area::Area;
use super::super::driver::{Buffer, Driver};
use super::*;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn file(bytes: &[u8]) -> Arc<OwnedFd> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file.into())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 239).unwrap()).collect()
}

fn extent(file: &Arc<OwnedFd>, offset: u64, len: u64) -> Extent {
    Extent { file: file.clone(), offset, len }
}

fn driver(file: &Arc<OwnedFd>, len: u64, read_only: bool) -> Driver {
    let disk = Disk::new(vec![extent(file, 0, len)], read_only).unwrap();
    Driver::ready(0, |_| Block::new(disk))
}

#[test]
fn a_disk_of_direct_files_tells_its_blocks() {
    let file = file(&[0; 8192]);
    let disk = || Disk::new(vec![extent(&file, 0, 8192)], false).unwrap();
    let told = |device: &Block| {
        let mut size = [0; 4];
        device.read_config(20, &mut size);
        (device.features() & F_BLK_SIZE != 0, u32::from_le_bytes(size))
    };
    assert_eq!(told(&Block::new(disk())), (false, 0));
    assert_eq!(told(&Block::new(disk()).in_blocks()), (true, 4096));
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// Sends a request whose last buffer is the status. Returns the status, the used length and the place of each buffer.
fn request(driver: &mut Driver, buffers: &[Buffer<'_>]) -> (u8, u32, Vec<u64>) {
    let (head, places) = driver.send(0, buffers);
    let (used, len) = driver.take_used(0).expect("every request is answered");
    assert_eq!(used, u32::from(head));
    (driver.bytes(*places.last().unwrap(), 1)[0], len, places)
}

#[test]
fn configuration_and_features() {
    let file = file(&[]);
    let driver = Driver::new(|_| Block::new(Disk::new(vec![extent(&file, 0, 9 * 512)], true).unwrap()));
    assert_eq!([driver.read(0x100), driver.read(0x104)], [9, 0], "capacity");
    assert_eq!(driver.read(0x10c), 126, "seg_max");
    assert_eq!(driver.read(0x1000 - 4), 0, "the rest is zero");
    assert_eq!(u64::from(driver.read(0x010)) & (F_RO | F_FLUSH | F_SEG_MAX), F_RO | F_SEG_MAX);
}

#[test]
fn reads_however_the_buffers_are_cut() {
    let bytes = pattern(8192);
    let mut driver = driver(&file(&bytes), 8192, true);
    let head = header(0, 2);
    let (status, len, places) = request(
        &mut driver,
        &[Buffer::Out(&head[..5]), Buffer::Out(&head[5..]), Buffer::In(100), Buffer::In(924), Buffer::In(1)],
    );
    assert_eq!((status, len), (OK, 1025));
    assert_eq!(driver.bytes(places[2], 100), bytes[1024..1124]);
    assert_eq!(driver.bytes(places[3], 924), bytes[1124..2048]);
    // Data and status in one buffer.
    let (_, places) = driver.send(0, &[Buffer::Out(&head), Buffer::In(513)]);
    assert_eq!(driver.take_used(0).unwrap().1, 513);
    assert_eq!(driver.bytes(places[1], 512), bytes[1024..1536]);
    assert_eq!(driver.bytes(places[1] + 512, 1), [OK]);
}

#[test]
fn what_was_written_is_read_back() {
    let file = file(&[]);
    let mut driver = driver(&file, 16384, false);
    let data = pattern(1024);
    let (status, len, _) = request(&mut driver, &[Buffer::Out(&header(1, 3)), Buffer::Out(&data), Buffer::In(1)]);
    assert_eq!((status, len), (OK, 1));
    let (status, ..) = request(&mut driver, &[Buffer::Out(&header(4, 0)), Buffer::In(1)]);
    assert_eq!(status, OK, "flush");
    let (_, _, places) = request(&mut driver, &[Buffer::Out(&header(0, 3)), Buffer::In(2048), Buffer::In(1)]);
    assert_eq!(driver.bytes(places[1], 1024), data);
    assert_eq!(driver.bytes(places[1] + 1024, 1024), [0; 1024], "past the file's end");
}

#[test]
fn a_read_only_disk_refuses_writes_whatever_the_driver_agreed() {
    let bytes = pattern(4096);
    let file = file(&bytes);
    let mut driver = driver(&file, 4096, true);
    let (status, len, _) = request(&mut driver, &[Buffer::Out(&header(1, 0)), Buffer::Out(&[7; 512]), Buffer::In(1)]);
    assert_eq!((status, len), (IOERR, 1));
    let mut still = [0; 512];
    rustix::io::pread(&file, &mut still, 0).unwrap();
    assert_eq!(still, bytes[..512]);
    let disk = Disk::new(vec![extent(&file, 0, 4096)], true).unwrap();
    assert!(disk.write(0, Area::default()).is_err(), "the disk itself refuses as well");
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut driver = driver(&file(&pattern(4096)), 4096, false);
    let mut status = |kind: u32, sector: u64, out: &[u8], space: u32| {
        let head = header(kind, sector);
        let mut buffers = vec![Buffer::Out(&head)];
        if !out.is_empty() {
            buffers.push(Buffer::Out(out));
        }
        if space > 0 {
            buffers.push(Buffer::In(space));
        }
        buffers.push(Buffer::In(1));
        request(&mut driver, &buffers).0
    };
    assert_eq!(status(0, 7, &[], 512), OK);
    assert_eq!(status(0, 7, &[], 1024), IOERR, "over the end");
    assert_eq!(status(0, 8, &[], 512), IOERR, "behind the end");
    assert_eq!(status(0, u64::MAX, &[], 512), IOERR, "sector overflows");
    assert_eq!(status(0, u64::MAX / 512, &[], 1024), IOERR, "end overflows");
    assert_eq!(status(0, 0, &[], 511), IOERR, "no whole sector");
    assert_eq!(status(0, 0, &[], 0), IOERR, "no data");
    assert_eq!(status(1, 0, &[1; 100], 0), IOERR, "no whole sector to write");
    assert_eq!(status(1, 8, &[1; 512], 0), IOERR, "write behind the end");
    assert_eq!(status(2, 0, &[], 512), UNSUPP);
    assert_eq!(status(13, 0, &[0; 16], 0), UNSUPP, "write zeroes was not offered");
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    for (range, answer) in [
        (range(7, 1, 0), OK),
        (range(7, 2, 0), IOERR),
        (range(u64::MAX, 1, 0), IOERR),
        (range(0, 0, 0), IOERR),
        (range(0, u32::MAX, 0), IOERR),
        (range(0, 1, 1), UNSUPP),
        (range(0, 1, 2), UNSUPP),
        (vec![0; 15], IOERR),
        (vec![0; 32], IOERR),
        (vec![], IOERR),
    ] {
        assert_eq!(status(11, 0, &range, 0), answer, "discard {range:?}");
    }
    assert_eq!(driver.device.counters().refused.get(), 19);
    assert!(!driver.needs_reset(), "an error status is an answer, not a broken rule");
}

#[test]
fn the_identity_is_told() {
    let mut driver = driver(&file(&[]), 512, true);
    let (status, len, places) = request(&mut driver, &[Buffer::Out(&header(8, 0)), Buffer::In(20), Buffer::In(1)]);
    assert_eq!((status, len), (OK, 21));
    assert_eq!(&driver.bytes(places[1], 7), b"duplex\0");
    let (status, len, _) = request(&mut driver, &[Buffer::Out(&header(8, 0)), Buffer::In(3), Buffer::In(1)]);
    assert_eq!((status, len), (OK, 4), "as much as there is room for");
}

#[test]
fn a_request_without_header_or_status_is_a_broken_rule() {
    let head = header(0, 0);
    for buffers in [&[Buffer::Out(&head[..15]), Buffer::In(513)][..], &[Buffer::Out(&head)], &[Buffer::In(513)]] {
        let mut driver = driver(&file(&pattern(512)), 512, true);
        driver.send(0, buffers);
        assert!(driver.needs_reset());
        assert_eq!(driver.take_used(0).unwrap().1, 0, "given back all the same");
    }
}

#[test]
fn a_host_that_cannot_read_is_an_error_status() {
    let folder: OwnedFd = std::fs::File::open("/").unwrap().into();
    let mut driver = driver(&Arc::new(folder), 512, true);
    let (status, len, _) = request(&mut driver, &[Buffer::Out(&header(0, 0)), Buffer::In(512), Buffer::In(1)]);
    assert_eq!((status, len), (IOERR, 1));
}

#[test]
fn extents_must_be_whole_blocks() {
    let file = file(&[]);
    let disk = |lens: &[u64]| Disk::new(lens.iter().map(|len| extent(&file, 0, *len)).collect(), true);
    assert_eq!(disk(&[]).unwrap_err(), DiskError::Empty);
    assert!(disk(&[512]).is_ok(), "a lone extent may be any number of sectors");
    assert_eq!(disk(&[100]).unwrap_err(), DiskError::Length { index: 0, len: 100, unit: 512 });
    assert_eq!(disk(&[0]).unwrap_err(), DiskError::Length { index: 0, len: 0, unit: 512 });
    assert_eq!(disk(&[4096, 512]).unwrap_err(), DiskError::Length { index: 1, len: 512, unit: 4096 });
    assert_eq!(disk(&[1 << 62, 1 << 62]).unwrap_err(), DiskError::Overflow { index: 1 });
    let far = Disk::new(vec![extent(&file, u64::MAX - 511, 512)], true);
    assert_eq!(far.unwrap_err(), DiskError::Overflow { index: 0 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any pieces of files, any reads and writes: the composed disk is the bytes laid end to end.
    #[test]
    fn a_composed_disk_is_its_pieces_laid_end_to_end(
        parts in prop::collection::vec((1..4_u64, 0..3_u64, 0..16384_usize), 1..6),
        operations in prop::collection::vec((0..40_u64, 1..30_u64, any::<bool>(), any::<u8>()), 1..20),
    ) {
        let mut oracle = Vec::new();
        let mut extents = Vec::new();
        for (n, (blocks, skip, stored)) in parts.iter().enumerate() {
            let content: Vec<u8> = pattern(*stored).iter().map(|b| b.wrapping_add(u8::try_from(n).unwrap())).collect();
            let (offset, len) = (skip * 4096, blocks * 4096);
            let mut visible: Vec<u8> = content.iter().skip(usize::try_from(offset).unwrap()).copied().collect();
            visible.resize(usize::try_from(len).unwrap(), 0);
            oracle.extend(visible);
            extents.push(extent(&file(&content), offset, len));
        }
        let disk = Disk::new(extents, false).unwrap();
        prop_assert_eq!(disk.len(), oracle.len() as u64);
        for (sector, count, write, value) in operations {
            let (at, len) = (usize::try_from(sector * 512).unwrap(), usize::try_from(count * 512).unwrap());
            let inside = at + len <= oracle.len();
            let mut buffer = vec![value; len];
            let mut area = Area::default();
            buffer.chunks_mut(700).for_each(|piece| area.push(VolatileSlice::from(piece)));
            if write {
                prop_assert_eq!(disk.write(sector * 512, area).is_ok(), inside);
                if inside {
                    oracle[at..at + len].fill(value);
                }
            } else {
                prop_assert_eq!(disk.read(sector * 512, area).is_ok(), inside);
                if inside {
                    prop_assert_eq!(&buffer[..], &oracle[at..at + len]);
                }
            }
        }
    }
}

#[test]
fn what_is_discarded_takes_no_space_and_the_rest_stays() {
    use std::os::unix::fs::MetadataExt;
    let bytes = pattern(1 << 20);
    let file = file(&bytes);
    let space = || std::fs::File::from(file.try_clone().unwrap()).metadata().unwrap().blocks() * 512;
    let before = space();
    let mut writable = driver(&file, 1 << 20, false);
    assert_ne!(u64::from(writable.read(0x010)) & F_DISCARD, 0);
    assert_eq!([0x124, 0x128, 0x12c].map(|at| writable.read(at)), [DISCARD_SECTORS, 1, DISCARD_ALIGNMENT]);
    let half = [&0_u64.to_le_bytes()[..], &1024_u32.to_le_bytes(), &[0; 4]].concat();
    let discard = [Buffer::Out(&header(11, 0)), Buffer::Out(&half), Buffer::In(1)];
    assert_eq!(request(&mut writable, &discard).0, OK);
    assert!(before - space() >= 500 << 10, "{before} {}", space());
    let mut all = vec![1; 1 << 20];
    rustix::io::pread(&file, &mut all[..], 0).unwrap();
    assert!(all[..512 << 10].iter().all(|b| *b == 0) && all[512 << 10..] == bytes[512 << 10..]);
    let mut read_only = driver(&file, 1 << 20, true);
    assert_eq!(u64::from(read_only.read(0x010)) & F_DISCARD, 0);
    assert_eq!(request(&mut read_only, &discard).0, IOERR);
}
