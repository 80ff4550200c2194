//! What of a sandbox its copies have in common, and what each has of its own.

use std::io;
use std::path::PathBuf;

use super::{Origin, SnapshotError, hex};
use crate::spec::{Cpus, Definition, Isolation, MachineSize, MountSource, MountSpec, Restart, SandboxId, SandboxSpec};
use crate::sys::clock::realtime_ns;

/// The volumes that a sandbox writes to, in the order of its mounts.
pub fn written(spec: &SandboxSpec) -> impl Iterator<Item = &str> {
    spec.mounts.iter().filter(|mount| !mount.read_only).filter_map(MountSpec::volume)
}

/// It can go on from its saved machine only once: that knows its volumes as they were.
pub fn goes_on_once(spec: &SandboxSpec) -> bool {
    spec.from.is_some() && written(spec).next().is_some()
}

/// Why a sandbox cannot be saved, so that two could go on from it.
///
/// # Errors
/// [`SnapshotError::Unsavable`].
pub fn check_savable(spec: &SandboxSpec) -> Result<(), SnapshotError> {
    let bound = |mount: &MountSpec| matches!(mount.source, MountSource::Bind { .. });
    let why = if spec.isolation != Isolation::MicroVm {
        "it is a container, whose processes are part of the host's kernel; run the image as a microVM"
    } else if spec.mounts.iter().any(bound) {
        "it has a folder or file of the host (-v /path), which its copies would share; use a volume"
    } else if spec.network.bridge.is_some() {
        "it is on a shared network, where its copies would have its address; run it with --net user or --net none"
    } else if spec.kernel_log.is_some() {
        "it has --kernel-log, with which its devices are there from the start"
    } else {
        return Ok(());
    };
    Err(SnapshotError::Unsavable(why))
}

/// What a sandbox that goes on from another's saved machine is. It publishes no ports, starts again only by hand, and has names of its own; so have
/// the volumes that it writes to, which are copies of the original's: as (name, file of the disk).
///
/// # Errors
/// If there is no randomness for the names.
pub fn forked(
    (of, size): (&Definition, MachineSize),
    origin: &Origin,
    id: SandboxId,
) -> io::Result<(Definition, Vec<(String, PathBuf)>)> {
    let mut definition = of.clone();
    let mut volumes = Vec::new();
    let mounts = definition.spec.mounts.iter_mut().filter(|mount| !mount.read_only && mount.volume().is_some());
    for (mount, disk) in mounts.zip(&origin.disks) {
        let mut bytes = [0_u8; 32];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        let name = hex(&bytes);
        volumes.push((name.clone(), disk.clone()));
        mount.source = MountSource::Volume { name, anonymous: true, copy: false };
    }
    let spec = &mut definition.spec;
    spec.hostname = id.as_str().to_owned();
    (spec.id, spec.name, spec.from) = (id, None, Some(origin.machine.clone()));
    spec.network.publish.clear();
    let memory = spec.limits.memory.filter(|memory| memory.mib_ceil() == size.memory.mib_ceil());
    spec.limits.memory = Some(memory.unwrap_or(size.memory));
    let cpus = spec.limits.cpus.filter(|cpus| cpus.ceil() == u32::from(size.vcpus));
    spec.limits.cpus = cpus.or((size.vcpus > 1).then(|| Cpus(u32::from(size.vcpus).saturating_mul(1000))));
    (definition.remove, definition.restart, definition.input_once) = (false, Restart::No, false);
    definition.created_at_ns = realtime_ns();
    Ok((definition, volumes))
}
