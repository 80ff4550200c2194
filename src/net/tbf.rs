//! The kernel's token bucket filter (tc-tbf(8)) as rtnetlink(7) is asked for it: what stands in `linux/pkt_sched.h`, and nothing that the crate
//! has words for.

use std::io;

use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use crate::spec::NetRate;

/// What the kernel needs for it.
pub(super) const MODULE: &str = "sch_tbf";

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_BURST: u16 = 6;
/// TC_LINKLAYER_ETHERNET: bytes cost what they are, and no table of costs is looked for.
const ETHERNET: u8 = 1;

/// The queue of an interface with this index, which then sends at this rate; frames of so many bytes wait, and what comes beyond is dropped.
///
/// # Errors
/// If there is no such index.
pub(super) fn queue(index: u32, rate: NetRate, waiting: u32) -> io::Result<TcMessage> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters(rate, waiting))),
            // In bytes; among the parameters it would be in ticks.
            TcOption::Other(DefaultNla::new(TCA_TBF_BURST, rate.burst().to_ne_bytes().to_vec())),
        ]),
    ];
    Ok(message)
}

/// `struct tc_tbf_qopt`: two `struct tc_ratespec`, the second of no peak rate, then limit, buffer and mtu.
fn parameters(rate: NetRate, waiting: u32) -> Vec<u8> {
    let mut bytes = vec![0, ETHERNET];
    // overhead, cell_align, mpu: 16 bits each.
    bytes.extend([0; 6]);
    bytes.extend(rate.bytes().to_ne_bytes());
    bytes.extend([0; 12]);
    bytes.extend(waiting.saturating_add(rate.burst()).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    /// Each number stands where the kernel looks for it.
    #[test]
    fn the_message_is_the_kernels() {
        let rate: NetRate = "8mbit".parse().unwrap();
        let message = queue(1, rate, 1).unwrap();
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
        // struct tcmsg: family and padding, ifindex, handle, parent, info.
        assert_eq!((word(4), word(12)), (1, 0xffff_ffff));
        assert_eq!((half(20), half(22), &bytes[24..28]), (8, 1, &b"tbf\0"[..]));
        assert_eq!((half(28), half(30)), (4 + 40 + 8, 2), "TCA_OPTIONS");
        assert_eq!((half(32), half(34)), (40, 1), "TCA_TBF_PARMS");
        assert_eq!((bytes[37], word(44), word(60)), (1, 1_000_000, 65_601), "link layer, rate and limit");
        assert_eq!((half(72), half(74), word(76)), (8, 6, 65_600), "TCA_TBF_BURST");
        assert_eq!(bytes.len(), 80);
    }
}
