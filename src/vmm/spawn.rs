//! The caller's side of the monitor's start: how a spec travels.

use std::io;
use std::os::fd::OwnedFd;

use crate::spec::MachineSpec;

/// Longest encoded spec that the monitor reads.
pub const LONGEST_SPEC: usize = 64 << 10;

/// Why a spec does not travel.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The number is not one.
    #[error("The monitor takes one argument, the number of the descriptor with its machine spec, not '{0}'")]
    Argument(String),
    /// No descriptor has it.
    #[error("Descriptor {0} with the machine spec is not open")]
    Missing(i32, #[source] io::Error),
    /// It cannot be read.
    #[error("The machine spec cannot be read")]
    Read(#[source] io::Error),
    /// It is longer than any spec.
    #[error("The machine spec is longer than {LONGEST_SPEC} bytes")]
    TooLong,
    /// It cannot be understood.
    #[error("The machine spec cannot be decoded: caller and monitor are not of one version")]
    Decode(#[source] postcard::Error),
    /// It cannot be written.
    #[error("The machine spec cannot be encoded")]
    Encode(#[source] postcard::Error),
}

/// The bytes that the monitor reads from the descriptor named by its argument.
///
/// # Errors
/// [`SpecError::Encode`] or [`SpecError::TooLong`].
pub fn encode(spec: &MachineSpec) -> Result<Vec<u8>, SpecError> {
    let bytes = postcard::to_stdvec(spec).map_err(SpecError::Encode)?;
    if bytes.len() > LONGEST_SPEC { Err(SpecError::TooLong) } else { Ok(bytes) }
}

/// Reads a spec from its descriptor's current position to its end.
///
/// # Errors
/// [`SpecError`].
pub fn decode(fd: &OwnedFd) -> Result<MachineSpec, SpecError> {
    let mut bytes = vec![0; LONGEST_SPEC + 1];
    let mut count = 0;
    while count < bytes.len() {
        match rustix::io::read(fd, &mut bytes[count..]) {
            Ok(0) => break,
            Ok(got) => count += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(SpecError::Read(e.into())),
        }
    }
    if count > LONGEST_SPEC {
        return Err(SpecError::TooLong);
    }
    postcard::from_bytes(&bytes[..count]).map_err(SpecError::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        DiskSpec, ExtentSpec, NetBackend, NetDeviceSpec, NetRate, ShareSpec, SpecFd, VsockSpec, VsockStream,
    };
    use std::io::{Seek, Write};

    fn spec() -> MachineSpec {
        let extent = ExtentSpec { fd: SpecFd(9), offset: 4096, len: 8192 };
        MachineSpec {
            kvm: SpecFd(4),
            vcpus: 2,
            memory_mib: 512,
            kernel: SpecFd(5),
            initramfs: Some(SpecFd(6)),
            cmdline: "quiet".to_owned(),
            disks: vec![DiskSpec { extents: vec![extent], read_only: true, direct: false }],
            vsock: Some(VsockSpec { cid: 3, streams: vec![VsockStream { port: 1024, fd: SpecFd(7) }] }),
            console: None,
            nets: vec![NetDeviceSpec {
                backend: NetBackend::Stream(SpecFd(10)),
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                rate: Some(NetRate::LEAST),
            }],
            shares: vec![ShareSpec { tag: "share0".to_owned(), socket: SpecFd(11) }],
            template: None,
            control: SpecFd(8),
        }
    }

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file.into()
    }

    #[test]
    fn a_spec_arrives_as_it_left() {
        assert_eq!(decode(&file(&encode(&spec()).unwrap())).unwrap(), spec());
    }

    #[test]
    fn what_is_no_spec_is_refused() {
        assert!(matches!(decode(&file(b"")), Err(SpecError::Decode(_))));
        assert!(matches!(decode(&file(&vec![0; LONGEST_SPEC + 1])), Err(SpecError::TooLong)));
        let long = MachineSpec { cmdline: "x".repeat(LONGEST_SPEC), ..spec() };
        assert!(matches!(encode(&long), Err(SpecError::TooLong)));
    }
}
