//! Which engine makes the sandboxes of an isolation, and from which store.

use std::sync::Arc;

use crate::image::{Image, Store, StoreError};
use crate::sandbox::Backend;
use crate::sandbox::container::ContainerBackend;
use crate::sandbox::microvm::MicroVmBackend;
use crate::spec::{Installation, Isolation};

/// The image store, with the embedded image.
pub(crate) fn store(installation: &Installation) -> Result<Store, StoreError> {
    Ok(Store::open(&installation.store)?.with_embedded(&installation.workloads))
}

/// The engine for this isolation, for sandboxes of this image.
pub(crate) fn backend(installation: &Installation, isolation: Isolation, image: &Image) -> Box<dyn Backend> {
    let images = Arc::new(image.clone());
    match isolation {
        Isolation::MicroVm => Box::new(MicroVmBackend::new(installation.clone(), images)),
        Isolation::Container => Box::new(ContainerBackend::new(installation, images)),
    }
}
