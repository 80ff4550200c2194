//! Messages of the vhost-user protocol as a front end sends them, and what it believes of an answer (QEMU, `docs/interop/vhost-user.rst`,
//! "Message Specification"): a header of request, flags and size, then a payload; all numbers in the machine's own byte order.

use std::os::fd::{AsFd, BorrowedFd};

use crate::vmm::memory::Piece;
use crate::vmm::virtio::queue::Rings;

/// Bytes of a header.
pub(super) const HEADER: usize = 12;
/// Longest payload of an answer that is asked for.
pub(super) const LONGEST_ANSWER: usize = 8;

/// Version 1 of the protocol, in the lower two bits of the flags.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What is asked for, by number ("Front-end message types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    SetVringEnable = 18,
}

/// One message.
#[derive(Clone, Debug)]
pub(super) struct Message<'a> {
    pub(super) request: Request,
    payload: Vec<u8>,
    pub(super) fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Message<'a> {
    /// Without a payload.
    pub(super) fn plain(request: Request) -> Self {
        Self { request, payload: Vec::new(), fds: Vec::new() }
    }

    /// With one number.
    pub(super) fn number(request: Request, number: u64) -> Self {
        Self { payload: number.to_ne_bytes().to_vec(), ..Self::plain(request) }
    }

    /// About a ring ("A vring state description").
    pub(super) fn ring(request: Request, index: u16, number: u32) -> Self {
        let payload = [u32::from(index).to_ne_bytes(), number.to_ne_bytes()].concat();
        Self { payload, ..Self::plain(request) }
    }

    /// Where a ring is ("A vring address description"). Addresses are those of the memory table, where the front end's own are the guest's.
    pub(super) fn rings(index: u16, rings: &Rings) -> Self {
        let mut payload = [u32::from(index).to_ne_bytes(), [0; 4]].concat();
        for addr in [rings.table, rings.used, rings.avail, 0] {
            payload.extend(addr.to_ne_bytes());
        }
        Self { payload, ..Self::plain(Request::SetVringAddr) }
    }

    /// An eventfd of a ring.
    pub(super) fn event(request: Request, index: u16, event: &'a impl AsFd) -> Self {
        Self { fds: vec![event.as_fd()], ..Self::number(request, index.into()) }
    }

    /// The guest's memory ("Multiple memory regions description"). Where it is in the front end is nobody's business: the back end is told the
    /// guest's addresses for that.
    pub(super) fn memory(pieces: &[Piece<'a>]) -> Self {
        let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let mut payload = [count.to_ne_bytes(), [0; 4]].concat();
        for piece in pieces {
            for number in [piece.addr, piece.len, piece.addr, piece.offset] {
                payload.extend(number.to_ne_bytes());
            }
        }
        let fds = pieces.iter().map(|piece| piece.file.as_fd()).collect();
        Self { payload, fds, ..Self::plain(Request::SetMemTable) }
    }

    /// Its bytes. `acknowledged`: the back end says whether it did it (VHOST_USER_PROTOCOL_F_REPLY_ACK).
    pub(super) fn encode(&self, acknowledged: bool) -> Vec<u8> {
        let flags = VERSION | if acknowledged { NEED_REPLY } else { 0 };
        let size = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = [self.request as u32, flags, size].map(u32::to_ne_bytes).concat();
        bytes.extend(&self.payload);
        bytes
    }
}

/// Why an answer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Breach {
    #[error("it is the answer to another request")]
    Request,
    #[error("it is not marked as an answer of version 1")]
    Flags,
    #[error("its size is not what it must be")]
    Size,
}

/// Checks the header of the answer to this request, whose payload must have so many bytes.
pub(super) fn check(header: [u8; HEADER], request: Request, size: usize) -> Result<(), Breach> {
    let (words, _) = header.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_ne_bytes(*word));
    let mut next = || words.next().unwrap_or(u32::MAX);
    let (kind, flags, len) = (next(), next(), next());
    if kind != request as u32 {
        return Err(Breach::Request);
    }
    if flags & (VERSION | 2 | REPLY) != VERSION | REPLY {
        return Err(Breach::Flags);
    }
    if usize::try_from(len) != Ok(size) { Err(Breach::Size) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vmm::memory::{pieces, reserve_shared};

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect()
    }

    #[test]
    fn messages_are_as_the_book_has_them() {
        assert_eq!(words(&Message::plain(Request::SetOwner).encode(false)), [3, 1, 0]);
        assert_eq!(words(&Message::number(Request::SetFeatures, 1 << 32).encode(true)), [2, 9, 8, 0, 1]);
        assert_eq!(words(&Message::ring(Request::SetVringNum, 1, 256).encode(false)), [8, 1, 8, 1, 256]);
        let rings = Rings { size: 256, table: 0x1000, avail: 0x2000, used: 1 << 32 };
        let expected = [9, 1, 40, 1, 0, 0x1000, 0, 0, 1, 0x2000, 0, 0, 0];
        assert_eq!(words(&Message::rings(1, &rings).encode(false)), expected);
        let ram = reserve_shared(3073).unwrap();
        let table = Message::memory(&pieces(&ram));
        assert_eq!(table.fds.len(), 2);
        let (low, high, hole) = (0, 1, 3 << 30);
        let regions = [[0, 0, hole, 0, 0, 0, 0, 0], [low, high, 1 << 20, 0, low, high, hole, 0]].concat();
        assert_eq!(words(&table.encode(true)), [vec![5, 9, 72, 2, 0], regions].concat());
    }

    fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER] {
        [request, flags, size].map(u32::to_ne_bytes).concat().try_into().unwrap()
    }

    #[test]
    fn only_the_answer_is_an_answer() {
        let told = |request, flags, size| check(header(request, flags, size), Request::GetFeatures, 8);
        assert_eq!(told(1, 5, 8), Ok(()));
        assert_eq!(told(2, 5, 8), Err(Breach::Request));
        for flags in [0, 1, 4, 6, 7] {
            assert_eq!(told(1, flags, 8), Err(Breach::Flags), "{flags}");
        }
        for size in [0, 7, 9, u32::MAX] {
            assert_eq!(told(1, 5, size), Err(Breach::Size));
        }
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(bytes: [u8; HEADER]) {
            let good = check(bytes, Request::GetVringBase, 8).is_ok();
            prop_assert_eq!(good, words(&bytes)[0] == 11 && words(&bytes)[1] & 7 == 5 && words(&bytes)[2] == 8);
        }
    }
}
