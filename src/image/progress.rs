//! What a pull or a load tells while it works.

use crate::spec::Digest;

/// Hears what happens; called from several threads. `()` hears nothing.
pub trait Progress: Sync {
    /// Something happened.
    fn note(&self, event: Event<'_>);
}

/// What happened. Layers are numbered from 0, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The image is known and has so many layers.
    Found {
        /// Digest of its manifest.
        manifest: &'a Digest,
        /// Number of layers.
        layers: usize,
    },
    /// The layer is in the store already.
    Present {
        /// Which.
        layer: usize,
        /// Digest of the uncompressed layer.
        diff_id: &'a Digest,
    },
    /// Another process makes this layer; we wait for it.
    Waiting {
        /// Which.
        layer: usize,
        /// Digest of the uncompressed layer.
        diff_id: &'a Digest,
    },
    /// The layer is being read.
    Begun {
        /// Which.
        layer: usize,
        /// Digest of the uncompressed layer.
        diff_id: &'a Digest,
        /// Bytes to read.
        size: u64,
    },
    /// So many bytes of the layer have been read.
    Read {
        /// Which.
        layer: usize,
        /// Bytes so far.
        bytes: u64,
    },
    /// The layer is in the store.
    Stored {
        /// Which.
        layer: usize,
        /// Digest of the uncompressed layer.
        diff_id: &'a Digest,
    },
}

impl Progress for () {
    fn note(&self, _: Event<'_>) {}
}
