//! Feature bits (virtio 1.2, 5.1.3), and what of them a tap has to know.

use crate::sys::tap;

/// VIRTIO_NET_F_CSUM: the device completes checksums.
pub(super) const CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM: the driver takes frames whose checksum is partial or need not be verified.
pub(super) const GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_MTU: the device says how long packets may be.
pub(super) const MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC: the device has a hardware address.
pub(super) const MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4: the driver takes long TCP frames over IPv4.
pub(super) const GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6: and over IPv6.
pub(super) const GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN: also with explicit congestion notification.
pub(super) const GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_HOST_TSO4: the device cuts long TCP frames over IPv4.
pub(super) const HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6: and over IPv6.
pub(super) const HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN: also with explicit congestion notification.
pub(super) const HOST_ECN: u64 = 1 << 13;
/// VIRTIO_NET_F_MRG_RXBUF: a received frame may fill several buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;

/// Whatever carries the frames.
pub(super) const ALWAYS: u64 = MAC | MTU | MRG_RXBUF | CSUM | GUEST_CSUM;
/// With a tap, whose kernel cuts and joins segments.
pub(super) const WITH_TAP: u64 = HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;

/// What the tap may leave to a driver that accepted these features. Segments have partial checksums, so without GUEST_CSUM there are none.
pub(super) fn offloads(features: u64) -> u32 {
    if features & GUEST_CSUM == 0 {
        return 0;
    }
    let pairs = [(GUEST_TSO4, tap::OFFLOAD_TSO4), (GUEST_TSO6, tap::OFFLOAD_TSO6), (GUEST_ECN, tap::OFFLOAD_TSO_ECN)];
    let chosen = pairs.iter().filter(|(feature, _)| features & feature != 0);
    let some = chosen.fold(0, |all, (_, offload)| all | offload);
    // The kernel refuses ECN without a TCP offload.
    let segments = some & !tap::OFFLOAD_TSO_ECN;
    tap::OFFLOAD_CSUM | if segments == 0 { 0 } else { some }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_leaves_only_what_the_driver_takes() {
        assert_eq!(offloads(0), 0);
        assert_eq!(offloads(GUEST_TSO4), 0, "no segments without checksums");
        assert_eq!(offloads(GUEST_CSUM | GUEST_ECN), tap::OFFLOAD_CSUM);
        assert_eq!(offloads(ALWAYS | GUEST_TSO4), tap::OFFLOAD_CSUM | tap::OFFLOAD_TSO4);
    }
}
