//! Volumes that were made for one sandbox and go with it.

use crate::spec::{Definition, MountSpec};
use crate::volume::{VolumeError, Volumes};

/// Removes them. Those that are gone are no error; of what fails the first is told after all was tried.
pub(super) fn remove_anonymous(definition: &Definition) -> Result<(), VolumeError> {
    let Some(store) = &definition.store else { return Ok(()) };
    let mut done = Ok(());
    for name in definition.spec.mounts.iter().filter_map(MountSpec::anonymous) {
        match Volumes::of(store).remove(name) {
            Err(VolumeError::Unknown(_)) => {}
            other => done = done.and(other),
        }
    }
    done
}
