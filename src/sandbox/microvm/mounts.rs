//! What is mounted into a microVM beside its image: volumes are further disks, and what is the host's are shares (shares.rs).

use duplex_wire::Mount;

use super::MicroVmError;
use super::shares::Shares;
use crate::spec::{Installation, MountSource, MountSpec, SandboxSpec};
use crate::volume::{Attached, Volumes};

/// Most volumes: the machine's disks but the first, which is the image.
pub(super) const MOST_VOLUMES: usize = 7;

/// Opens and locks the volumes of a sandbox, in the order of its mounts.
pub(super) fn attach<'a>(
    installation: &Installation,
    spec: &'a SandboxSpec,
) -> Result<Vec<(&'a MountSpec, Attached)>, MicroVmError> {
    let named = || spec.mounts.iter().filter_map(|mount| Some((mount, mount.volume()?)));
    let count = named().count();
    if count > MOST_VOLUMES {
        return Err(MicroVmError::Volumes(count));
    }
    let attached = named().map(|(mount, name)| {
        let volume = Volumes::of(&installation.store).attach(name, mount.read_only, &spec.id)?;
        if spec.limits_writes() {
            volume.go_direct(name)?;
        }
        Ok((mount, volume))
    });
    attached.collect()
}

/// All mounts for the agent, in their order: disks are named in the order in which they are attached, behind the image's.
pub(super) fn for_guest(spec: &SandboxSpec, shares: &Shares) -> Vec<Mount> {
    let mut letters = 'b'..='z';
    let mut shares = shares.for_guest();
    let mounts = spec.mounts.iter().filter_map(|mount| {
        let source = match mount.source {
            MountSource::Volume { copy, .. } => {
                duplex_wire::MountSource::Volume { disk: format!("vd{}", letters.next()?), copy }
            }
            MountSource::Bind { .. } => shares.next()?,
        };
        Some(Mount { target: mount.target.clone(), read_only: mount.read_only, source })
    });
    mounts.collect()
}
