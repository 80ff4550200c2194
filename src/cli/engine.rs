//! Which engine makes the sandboxes of an isolation, and from which store.

use std::sync::Arc;

use crate::image::{Image, Store, StoreError};
use crate::sandbox::Backend;
use crate::sandbox::container::ContainerBackend;
use crate::sandbox::microvm::MicroVmBackend;
use crate::spec::{Installation, Isolation, SandboxSpec};

/// The image store, with the embedded image.
pub(crate) fn store(installation: &Installation) -> Result<Store, StoreError> {
    Ok(Store::open(&installation.store)?.with_embedded(&installation.workloads))
}

/// The engine for this sandbox of this image.
pub(crate) fn backend(installation: &Installation, spec: &SandboxSpec, image: &Image) -> Box<dyn Backend> {
    let images = Arc::new(image.clone());
    match spec.isolation {
        Isolation::MicroVm => Box::new(MicroVmBackend::new(installation.clone(), images)),
        Isolation::Container => {
            let containers = ContainerBackend::new(installation, images);
            Box::new(match &spec.runtime {
                Some(program) => containers.with_runtime(program),
                None => containers,
            })
        }
        Isolation::Process => Box::new(ContainerBackend::new(installation, images).of_plain_processes()),
    }
}
