//! The header that every vsock packet begins with (virtio 1.2, 5.10.6).

/// Length of the header on the wire.
pub(super) const HEADER: usize = 44;
/// VMADDR_CID_HOST: the host's context id.
pub(super) const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Ask for a connection.
    Request,
    /// Accept it.
    Response,
    /// Refuse or end it at once.
    Reset,
    /// End it in order.
    Shutdown,
    /// Data.
    Data,
    /// Tell one's buffer space.
    CreditUpdate,
    /// Ask for the other's.
    CreditRequest,
}

impl Op {
    const NUMBERS: [(Self, u16); 7] = [
        (Self::Request, 1),
        (Self::Response, 2),
        (Self::Reset, 3),
        (Self::Shutdown, 4),
        (Self::Data, 5),
        (Self::CreditUpdate, 6),
        (Self::CreditRequest, 7),
    ];

    fn number(self) -> u16 {
        Self::NUMBERS.iter().find(|(op, _)| *op == self).map_or(0, |(_, number)| *number)
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::NUMBERS.iter().find(|(_, n)| *n == number).map(|(op, _)| *op)
    }
}

/// A header, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Sender's context id.
    pub(super) src_cid: u64,
    /// Receiver's context id.
    pub(super) dst_cid: u64,
    /// Sender's port.
    pub(super) src_port: u32,
    /// Receiver's port.
    pub(super) dst_port: u32,
    /// Bytes of payload behind the header.
    pub(super) len: u32,
    /// Stream or something else.
    pub(super) kind: u16,
    /// What it is for; `None` for a number that the specification does not have.
    pub(super) op: Option<Op>,
    /// Depends on `op`.
    pub(super) flags: u32,
    /// Sender's whole receive buffer.
    pub(super) buf_alloc: u32,
    /// Bytes that the sender's user has taken from that buffer so far.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(field(&mut rest)),
            dst_cid: u64::from_le_bytes(field(&mut rest)),
            src_port: u32::from_le_bytes(field(&mut rest)),
            dst_port: u32::from_le_bytes(field(&mut rest)),
            len: u32::from_le_bytes(field(&mut rest)),
            kind: u16::from_le_bytes(field(&mut rest)),
            op: Op::from_number(u16::from_le_bytes(field(&mut rest))),
            flags: u32::from_le_bytes(field(&mut rest)),
            buf_alloc: u32::from_le_bytes(field(&mut rest)),
            fwd_cnt: u32::from_le_bytes(field(&mut rest)),
        }
    }

    /// Writes a header.
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields = (self.src_cid.to_le_bytes().into_iter())
            .chain(self.dst_cid.to_le_bytes())
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes())
            .chain(self.len.to_le_bytes())
            .chain(self.kind.to_le_bytes())
            .chain(self.op.map_or(0, Op::number).to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }
}

/// Takes the next `N` bytes; all callers together take exactly [`HEADER`].
fn field<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((field, behind)) => {
            *rest = behind;
            *field
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_the_specifications() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 0x0102_0304,
            dst_port: 1024,
            len: 5,
            kind: STREAM,
            op: Some(Op::Data),
            flags: 0,
            buf_alloc: 0x4_0000,
            fwd_cnt: 7,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], 3_u64.to_le_bytes());
        assert_eq!(bytes[16..20], [4, 3, 2, 1]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0], "type and op are 16 bits each");
        assert_eq!(bytes[40..], 7_u32.to_le_bytes());
        assert_eq!(Header::parse(&bytes), header);
    }

    #[test]
    fn unknown_operations_are_told() {
        for number in [0_u16, 8, 500] {
            let mut bytes = [0; HEADER];
            bytes[30..32].copy_from_slice(&number.to_le_bytes());
            assert_eq!(Header::parse(&bytes).op, None);
        }
    }
}
