//! CRC-32C (Castagnoli polynomial, reflected), as the super block's checksum uses it: start value all ones, no final inversion
//! (`erofs_superblock_csum_verify` in fs/erofs/super.c).

/// The checksum of these bytes.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        // "123456789" gives e3069283 with the final inversion (RFC 3720, appendix B.4 has the polynomial).
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
