//! What a guest's driver does wrong.

/// A broken rule of the virtio specification, version 1.2. The device that meets one asks for a reset and does nothing until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// The ring's index runs further ahead than the queue is long (2.7.13.3).
    #[error("The available ring's index is more than a queue's length ahead")]
    AvailIndex,
    /// A chain begins or goes on at a descriptor that the table does not have (2.7.6).
    #[error("Descriptor {0} is not in the table")]
    Descriptor(u16),
    /// A chain has more descriptors than the queue, so it must be a loop (2.7.5.2).
    #[error("A chain is longer than its queue")]
    ChainLength,
    /// The chain holds more than 4 GiB (2.7.5.2).
    #[error("A chain holds more than 4 GiB")]
    ChainBytes,
    /// An indirect table without VIRTIO_F_INDIRECT_DESC, which is never offered (2.7.5.3.1).
    #[error("An indirect descriptor was not negotiated")]
    Indirect,
    /// A device-readable buffer behind a device-writable one (2.7.4.2).
    #[error("A readable buffer follows a writable one")]
    Order,
    /// A buffer or a ring is not in the guest's memory.
    #[error("{len} bytes at {addr:#x} are not in memory")]
    Address {
        /// Guest physical address.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A queue is ready although its size, alignment or place is impossible (2.7, 4.2.2).
    #[error("Queue {0} has an impossible layout")]
    Layout(u16),
    /// A request lacks a part that every request has, such as the byte for its status.
    #[error("A request lacks its {0}")]
    Incomplete(&'static str),
}
