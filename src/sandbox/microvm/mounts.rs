//! What is mounted into a microVM beside its image: volumes are further disks.

use duplex_wire::Mount;

use super::MicroVmError;
use crate::spec::{Installation, MountSource, MountSpec, SandboxSpec};
use crate::volume::{Attached, Volumes};

/// Most volumes: the machine's disks but the first, which is the image.
pub(super) const MOST_VOLUMES: usize = 7;

/// Opens and locks the volumes of a sandbox, in the order of its mounts.
pub(super) fn attach<'a>(
    installation: &Installation,
    spec: &'a SandboxSpec,
) -> Result<Vec<(&'a MountSpec, Attached)>, MicroVmError> {
    let count = spec.mounts.iter().filter(|m| m.volume().is_some()).count();
    if count > MOST_VOLUMES {
        return Err(MicroVmError::Volumes(count));
    }
    let mut attached = Vec::with_capacity(count);
    for mount in &spec.mounts {
        match &mount.source {
            MountSource::Volume { name, .. } => {
                let volume = Volumes::of(&installation.store).attach(name, mount.read_only, &spec.id)?;
                attached.push((mount, volume));
            }
            MountSource::Bind { path } => return Err(MicroVmError::Bind(path.clone(), mount.target.clone())),
        }
    }
    Ok(attached)
}

/// The same for the agent: disks are named in the order in which they are attached, behind the image's.
pub(super) fn for_guest(spec: &SandboxSpec) -> Vec<Mount> {
    let mut letters = 'b'..='z';
    let mounts = spec.mounts.iter().filter_map(|mount| {
        let MountSource::Volume { copy, .. } = mount.source else { return None };
        let disk = format!("vd{}", letters.next()?);
        Some(Mount { target: mount.target.clone(), disk, read_only: mount.read_only, copy })
    });
    mounts.collect()
}
