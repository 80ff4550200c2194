//! A machine whose devices appear one by one, when they are needed, and may go on from what others have been too: until then each place on its bus
//! is empty, and the kernel's driver is told to look again by its `bind` file (Documentation/driver-api/driver-model/binding.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;

use duplex_wire::{Mount, MountSource, SLOTS, Start};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::sys;
use crate::trouble::{Doing, Trouble};

/// Where devices are bound, for a moment.
const SYS: &str = "/sys";

/// The file that binds a device of the virtio-mmio driver.
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

/// The places that have not been looked at.
pub(crate) struct Slots {
    bind: File,
    next: usize,
}

impl Slots {
    /// `None` if all devices are there from the start.
    pub(crate) fn of_this_machine() -> Result<Option<Self>, Trouble> {
        if std::env::args().nth(1).as_deref() != Some(SLOTS) {
            return Ok(None);
        }
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        mount("sysfs", SYS, "sysfs", flags, None).doing(|| format!("mount {SYS}"))?;
        let bind = File::options().write(true).open(BIND).doing(|| format!("open {BIND}"))?;
        unmount(SYS, UnmountFlags::DETACH).doing(|| format!("detach {SYS}"))?;
        Ok(Some(Self { bind, next: 0 }))
    }

    /// Says that the machine may be kept as it is now. Whatever comes after may happen many times, in machines that know nothing of each other.
    pub(crate) fn ready(&self) -> Result<(), Trouble> {
        sys::say_ready().doing(|| "tell the monitor".into())
    }

    /// Looks for the next device. False if the place is empty.
    fn next(&mut self) -> Result<bool, Trouble> {
        let name = format!("virtio-mmio.{}", self.next);
        match self.bind.write_at(name.as_bytes(), 0) {
            Ok(_) => {
                self.next += 1;
                Ok(true)
            }
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NODEV) => Ok(false),
            Err(e) => Err(Trouble::new(format!("bind {name}"), e)),
        }
    }

    /// Looks for a device that must be there.
    pub(crate) fn expect(&mut self, what: &str) -> Result<(), Trouble> {
        match self.next()? {
            true => Ok(()),
            false => Err(Trouble::new(format!("find {what}"), "its place is empty")),
        }
    }

    /// Looks for the volumes, network interfaces and shares of these orders.
    pub(crate) fn expect_devices_of(&mut self, start: &Start) -> Result<(), Trouble> {
        let volume = |mount: &&Mount| matches!(mount.source, MountSource::Volume { .. });
        start.mounts.iter().filter(volume).try_for_each(|mount| self.expect(&mount.target))?;
        start.networks.iter().try_for_each(|network| self.expect(&network.interface))?;
        let share = |mount: &&Mount| matches!(mount.source, MountSource::Share { .. });
        start.mounts.iter().filter(share).try_for_each(|mount| self.expect(&mount.target))
    }

    /// Looks for all that is left.
    pub(crate) fn rest(mut self) -> Result<(), Trouble> {
        while self.next()? {}
        Ok(())
    }
}
