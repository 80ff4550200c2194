//! The Internet checksum (RFC 1071) over the rest of a frame, as a driver with VIRTIO_NET_F_CSUM leaves it to the device.

/// Completes the checksum at `at` over the bytes from `start` on. The field holds the sum of the pseudo header, as the driver left it. A
/// place outside the frame changes nothing.
pub(super) fn complete(frame: &mut [u8], start: usize, at: usize) {
    let Some(covered) = frame.get(start..) else { return };
    let sum = match !fold(add(covered)) {
        // 0 means "no checksum" in UDP (RFC 768); its complement is as good (RFC 1071).
        0 => u16::MAX,
        sum => sum,
    };
    let field = at.checked_add(2).and_then(|end| frame.get_mut(at..end));
    if let Some(field) = field {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// The sum of the 16-bit words, the last one padded with zero.
fn add(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    // 32-bit words fold to the same sum as their halves, and 2^32 of them fit 64 bits.
    let sum = words.fold(0_u64, |sum, word| match *word {
        [a, b, c, d] => sum.wrapping_add(u64::from(u32::from_be_bytes([a, b, c, d]))),
        _ => sum,
    });
    let last = match *rest {
        [a] => [a, 0, 0, 0],
        [a, b] => [a, b, 0, 0],
        [a, b, c] => [a, b, c, 0],
        _ => [0; 4],
    };
    sum.wrapping_add(u64::from(u32::from_be_bytes(last)))
}

/// Adds the carries back in until 16 bits are left.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word, as RFC 1071 says it.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn a_completed_sum_verifies(mut frame in proptest::collection::vec(any::<u8>(), 40..3000), start in 0..20_usize, at in 0..16_usize) {
            let at = start + at / 2 * 2;
            let before = frame.clone();
            complete(&mut frame, start, at);
            let old = u32::from(u16::from_be_bytes([before[at], before[at + 1]]));
            // The field held the pseudo header's sum: with it, all covered words add up to all ones.
            let total = u32::from(reference(&frame[start..])) + old;
            prop_assert_eq!((total & 0xffff) + (total >> 16), 0xffff);
        }

        #[test]
        fn places_outside_change_nothing(mut frame in proptest::collection::vec(any::<u8>(), 0..60), start in 0..200_usize, at in 60..90_000_usize) {
            let before = frame.clone();
            complete(&mut frame, start, at);
            prop_assert_eq!(frame, before);
        }
    }

    #[test]
    fn a_known_datagram() {
        // UDP from 10.0.2.15:1000 to 10.0.2.2:53, payload "hi": the field holds the pseudo header's sum.
        let pseudo = reference(&[10, 0, 2, 15, 10, 0, 2, 2, 0, 17, 0, 10]).to_be_bytes();
        let mut udp = [0x03, 0xe8, 0, 53, 0, 10, pseudo[0], pseudo[1], b'h', b'i'];
        complete(&mut udp, 0, 6);
        assert_eq!(udp[6..8], [0x7b, 0x43]);
    }
}
