//! The header before each packet in a queue (virtio 1.2, 5.1.6).

use super::features::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6};

/// Bytes of `struct virtio_net_hdr` with its `num_buffers`, which VERSION_1 always has.
pub(super) const HEADER: usize = 12;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is to be completed.
const F_NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: the checksum has been verified, or need not be.
const F_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// A driver's header, copied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso: u8,
    gso_size: u16,
    /// Where the bytes that the checksum covers begin, from the frame's first byte.
    pub(super) csum_start: u16,
    /// Where the checksum stands, from there.
    pub(super) csum_offset: u16,
}

impl Header {
    /// Reads it.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let [flags, gso, _, _, s0, s1, c0, c1, o0, o1, _, _] = *bytes;
        Self {
            flags,
            gso,
            gso_size: u16::from_le_bytes([s0, s1]),
            csum_start: u16::from_le_bytes([c0, c1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// The checksum is to be completed.
    pub(super) fn needs_checksum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// The frame is to be cut into segments.
    pub(super) fn is_segmented(&self) -> bool {
        self.gso != GSO_NONE
    }

    /// Whether it asks for nothing but what these features allow (5.1.6.2).
    pub(super) fn keeps(&self, features: u64, frame: usize) -> bool {
        let wanted = match self.gso & !GSO_ECN {
            GSO_NONE => 0,
            GSO_TCPV4 => HOST_TSO4,
            GSO_TCPV6 => HOST_TSO6,
            _ => return false,
        };
        let ecn = if self.gso & GSO_ECN != 0 { HOST_ECN } else { 0 };
        let csum = if self.needs_checksum() { CSUM } else { 0 };
        let allowed = features & (wanted | ecn | csum) == wanted | ecn | csum;
        // A segment is cut from a frame whose checksum is partial, and has a size.
        let cuttable = !self.is_segmented() || (self.needs_checksum() && self.gso_size > 0);
        let inside = !self.needs_checksum() || self.checksum_at().is_some_and(|(_, at)| at.saturating_add(2) <= frame);
        allowed && cuttable && inside
    }

    /// Where the covered bytes begin and where the checksum stands.
    pub(super) fn checksum_at(&self) -> Option<(usize, usize)> {
        let start = usize::from(self.csum_start);
        Some((start, start.checked_add(usize::from(self.csum_offset))?))
    }

    /// The header as a tap takes it, with nothing in it that was not looked at.
    pub(super) fn for_tap(&self) -> [u8; HEADER] {
        let flags = self.flags & F_NEEDS_CSUM;
        let (start, offset) = if flags == 0 { (0, 0) } else { (self.csum_start, self.csum_offset) };
        let size = if self.is_segmented() { self.gso_size } else { 0 };
        let ([s0, s1], [c0, c1], [o0, o1]) = (size.to_le_bytes(), start.to_le_bytes(), offset.to_le_bytes());
        [flags, self.gso, 0, 0, s0, s1, c0, c1, o0, o1, 0, 0]
    }
}

/// The header of a frame that a trusted copy in memory brought: nothing to complete, and nothing to verify if the driver knows the word.
pub(super) fn of_whole_frame(verified: bool) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if verified {
        header[0] = F_DATA_VALID;
    }
    header
}

/// Sets `num_buffers`.
pub(super) fn set_buffers(header: &mut [u8], count: u16) {
    if let Some(field) = header.get_mut(10..HEADER) {
        field.copy_from_slice(&count.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(flags: u8, gso: u8, size: u16, start: u16, offset: u16) -> Header {
        Header { flags, gso, gso_size: size, csum_start: start, csum_offset: offset }
    }

    #[test]
    fn only_what_was_agreed_is_kept() {
        let plain = header(0, 0, 0, 0, 0);
        let csum = header(1, 0, 0, 34, 16);
        let tso = header(1, 1, 1460, 34, 16);
        let ecn = header(1, 0x84, 1440, 54, 16);
        assert!(plain.keeps(0, 14) && !csum.keeps(0, 100) && !tso.keeps(CSUM, 3000));
        assert!(csum.keeps(CSUM, 52) && !csum.keeps(CSUM, 51), "the checksum lies in the frame");
        assert!(tso.keeps(CSUM | HOST_TSO4, 3000));
        assert!(!ecn.keeps(CSUM | HOST_TSO6, 3000) && ecn.keeps(CSUM | HOST_TSO6 | HOST_ECN, 3000));
        let all = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
        assert!(!header(1, 3, 1460, 34, 16).keeps(all, 3000), "UDP fragmentation is never offered");
        assert!(!header(0, 1, 1460, 34, 16).keeps(all, 3000), "segments need a checksum");
        assert!(!header(1, 1, 0, 34, 16).keeps(all, 3000), "segments have a size");
        assert!(!header(1, 0, 0, u16::MAX, u16::MAX).keeps(all, 65535));
    }

    proptest! {
        #[test]
        fn a_tap_gets_nothing_unseen(bytes in any::<[u8; HEADER]>()) {
            let header = Header::parse(&bytes);
            let again = Header::parse(&header.for_tap());
            prop_assert_eq!(again.needs_checksum(), header.needs_checksum());
            prop_assert_eq!(again.gso, header.gso);
            prop_assert_eq!(again.flags & !F_NEEDS_CSUM, 0);
        }
    }
}
