//! What a block request means (virtio 1.2, 5.2.6).

use super::super::area::Area;
use super::super::fault::GuestFault;
use super::super::queue::Chain;
use super::disk::Disk;

/// Bytes in the unit of all sector numbers.
pub const SECTOR: u64 = 512;

/// Most data bytes of one request.
const MOST: u64 = 32 << 20;

const HEADER: u64 = 16;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// Length of a device's identity string (5.2.6.1).
const ID: usize = 20;
const ID_TEXT: &[u8] = b"duplex";

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Bytes written to the chain, the status byte included.
    pub written: u32,
    /// The status is an error.
    pub refused: bool,
}

/// Does what the chain asks, and writes its status byte.
///
/// # Errors
/// If the chain has no header or no place for the status.
pub fn serve(disk: &Disk, mut chain: Chain<'_>) -> Result<Answer, GuestFault> {
    let mut header = [0_u8; 16];
    if chain.readable.take_front(HEADER).read(&mut header) != header.len() {
        return Err(GuestFault::Incomplete("header"));
    }
    let status = chain.writable.take_last_byte().ok_or(GuestFault::Incomplete("status byte"))?;
    let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let (code, data) = act(disk, kind, sector, chain);
    status.write(&[code]);
    Ok(Answer { written: data.saturating_add(1), refused: code != S_OK })
}

/// Returns the status and the number of data bytes written to the guest.
fn act(disk: &Disk, kind: u32, sector: u64, chain: Chain<'_>) -> (u8, u32) {
    match kind {
        T_IN => match range(disk, sector, &chain.writable) {
            Some(offset) => {
                let len = u32::try_from(chain.writable.len()).unwrap_or(0);
                outcome(&disk.read(offset, chain.writable), len)
            }
            None => (S_IOERR, 0),
        },
        T_OUT if disk.is_read_only() => (S_IOERR, 0),
        T_OUT => match range(disk, sector, &chain.readable) {
            Some(offset) => outcome(&disk.write(offset, chain.readable), 0),
            None => (S_IOERR, 0),
        },
        T_FLUSH => outcome(&disk.flush(), 0),
        T_GET_ID => {
            let mut id = [0; ID];
            for (to, from) in id.iter_mut().zip(ID_TEXT) {
                *to = *from;
            }
            (S_OK, u32::try_from(chain.writable.write(&id)).unwrap_or(0))
        }
        T_DISCARD => (discard(disk, &chain.readable), 0),
        _ => (S_UNSUPP, 0),
    }
}

/// Gives one range back (struct virtio_blk_discard_write_zeroes: le64 sector, le32 num_sectors, le32 flags). What the guest reads there
/// afterwards is zeroes or what was there.
fn discard(disk: &Disk, data: &Area<'_>) -> u8 {
    let mut range = [0_u8; 16];
    if disk.is_read_only() || data.len() != 16 || data.read(&mut range) != range.len() {
        return S_IOERR;
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
    // "unmap" and the reserved bits (5.2.6.2).
    if flags != [0; 4] {
        return S_UNSUPP;
    }
    let offset = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).checked_mul(SECTOR);
    let len = u64::from(u32::from_le_bytes([n0, n1, n2, n3])).checked_mul(SECTOR);
    match offset.zip(len).map(|(offset, len)| disk.discard(offset, len)) {
        Some(Err(e)) if e.kind() == std::io::ErrorKind::Unsupported => S_UNSUPP,
        Some(result) => outcome(&result, 0).0,
        None => S_IOERR,
    }
}

fn outcome(result: &std::io::Result<()>, written: u32) -> (u8, u32) {
    match result {
        Ok(()) => (S_OK, written),
        Err(_) => (S_IOERR, 0),
    }
}

/// The disk offset of a request whose data is a whole number of sectors on the disk and not too long.
fn range(disk: &Disk, sector: u64, data: &Area<'_>) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR)?;
    let end = offset.checked_add(data.len())?;
    let good = !data.is_empty() && data.len().is_multiple_of(SECTOR) && data.len() <= MOST && end <= disk.len();
    good.then_some(offset)
}
