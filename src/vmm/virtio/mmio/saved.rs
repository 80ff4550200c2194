//! What is kept of a device when its machine is saved: the transport's registers and how far each queue has come. What lies behind the device (a file,
//! a stream, a network) is not part of it: a machine that goes on gets its own.

use serde::{Deserialize, Serialize};

use super::{MmioDevice, Phase};
use crate::vmm::virtio::device::F_EVENT_IDX;
use crate::vmm::virtio::interrupt::USED_BUFFER;
use crate::vmm::virtio::queue::{QueueSetup, Standing};
use crate::vmm::virtio::status::Status;

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Device type (virtio 1.2, 5).
    kind: u32,
    status: Status,
    phase: SavedPhase,
    setups: Vec<QueueSetup>,
    /// QueueSel, DeviceFeaturesSel and DriverFeaturesSel.
    selected: [u32; 3],
    driver_features: u64,
    /// InterruptStatus.
    interrupt: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SavedPhase {
    Setup,
    /// With how far each queue has come; `None` for one that the driver did not set up.
    Live(Vec<Option<Standing>>),
    Broken,
}

/// Why a device does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceRefused {
    /// The machine has another one in its place.
    #[error("it is of another type or has other queues")]
    Kind,
    /// The device behind it cannot what the driver was promised.
    #[error("it does not have all features that the guest's driver uses")]
    Features,
    /// A queue lies outside memory or is none.
    #[error("its queues do not lie in the machine's memory")]
    Queues,
}

impl MmioDevice {
    /// Its state. No processor may run meanwhile.
    pub fn save(&self) -> DeviceState {
        let state = self.lock();
        let phase = match &state.phase {
            Phase::Setup => SavedPhase::Setup,
            Phase::Live(queues) => {
                SavedPhase::Live(queues.iter().map(|queue| queue.as_ref().map(|q| q.standing())).collect())
            }
            Phase::Broken => SavedPhase::Broken,
        };
        DeviceState {
            kind: state.device.kind(),
            status: state.status,
            phase,
            setups: state.setups.clone(),
            selected: [state.queue, state.device_features_page, state.driver_features_page],
            driver_features: state.driver_features,
            interrupt: self.interrupt.status(),
        }
    }

    /// Goes on from a saved state, whose bytes are as good as the guest that made them: checked as the driver's own words are. The event loop then
    /// calls every queue once, and the guest is interrupted: what was on its way when the machine was saved may have been lost.
    ///
    /// # Errors
    /// [`DeviceRefused`]; the device is as it was.
    pub fn restore(&self, saved: &DeviceState) -> Result<(), DeviceRefused> {
        let mut state = self.lock();
        if saved.kind != state.device.kind() || !saved.fits(&state.setups) {
            return Err(DeviceRefused::Kind);
        }
        if saved.has_agreed() && saved.driver_features & !state.offered() != 0 {
            return Err(DeviceRefused::Features);
        }
        let phase = match &saved.phase {
            SavedPhase::Setup => Phase::Setup,
            SavedPhase::Broken => Phase::Broken,
            SavedPhase::Live(standings) => {
                let event_idx = saved.driver_features & F_EVENT_IDX != 0;
                let mut queues = Vec::with_capacity(saved.setups.len());
                for ((index, setup), standing) in (0_u16..).zip(&saved.setups).zip(standings) {
                    let mut queue = setup.freeze(index, event_idx, &self.ram).map_err(|_| DeviceRefused::Queues)?;
                    match (&mut queue, standing) {
                        (Some(queue), Some(standing)) => queue.go_on(*standing),
                        (None, None) => {}
                        _ => return Err(DeviceRefused::Queues),
                    }
                    queues.push(queue);
                }
                Phase::Live(queues)
            }
        };
        state.setups.clone_from(&saved.setups);
        [state.queue, state.device_features_page, state.driver_features_page] = saved.selected;
        (state.driver_features, state.status, state.phase) = (saved.driver_features, saved.status, phase);
        self.interrupt.set(saved.interrupt);
        if matches!(state.phase, Phase::Live(_)) {
            state.device.go_on();
            self.begin(&mut state);
            state.pending = state.setups.iter().fold(0, |bits, _| (bits << 1) | 1);
        }
        self.again.ring();
        Ok(())
    }

    /// The guest hears of what it may have missed. Only when its processors are in their places.
    pub fn remind(&self) {
        if matches!(self.lock().phase, Phase::Live(_)) {
            self.interrupt.raise(USED_BUFFER);
        }
    }
}

impl DeviceState {
    /// The features were looked at: before FEATURES_OK a driver writes what it likes, and it is looked at then.
    fn has_agreed(&self) -> bool {
        self.status == Status::FeaturesOk || matches!(self.phase, SavedPhase::Live(_))
    }

    /// The same number of queues, none larger than the device has, and as many that stand somewhere.
    fn fits(&self, own: &[QueueSetup]) -> bool {
        let same = self.setups.len() == own.len() && self.setups.iter().zip(own).all(|(a, b)| a.max == b.max);
        same && match &self.phase {
            // A driver may give up on a device at any time (FAILED), which does not stop it.
            SavedPhase::Live(standings) => {
                standings.len() == own.len() && matches!(self.status, Status::Live | Status::Failed)
            }
            SavedPhase::Setup => self.status != Status::Live,
            SavedPhase::Broken => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::virtio::driver::{Buffer, Driver};
    use crate::vmm::virtio::rng::Rng;

    #[test]
    fn a_device_goes_on_where_it_stood() {
        let mut driver = Driver::ready(0, |_| Rng);
        driver.send(0, &[Buffer::In(16)]);
        assert_eq!(driver.take_used(0), Some((0, 16)));
        let saved = driver.device.save();
        assert_eq!(postcard::from_bytes::<DeviceState>(&postcard::to_stdvec(&saved).unwrap()).unwrap(), saved);
        driver.device = driver.another(Rng);
        driver.device.restore(&saved).unwrap();
        assert_eq!(driver.device.save(), saved);
        let (head, places) = driver.send(0, &[Buffer::In(16)]);
        assert_eq!(driver.take_used(0), Some((u32::from(head), 16)), "the second, not the first again");
        assert_ne!(driver.bytes(places[0], 16), [0; 16]);
    }

    #[test]
    fn what_came_before_the_save_is_served_after_it() {
        let mut driver = Driver::ready(0, |_| Rng);
        let saved = driver.device.save();
        driver.device = driver.another(Rng);
        let (head, _) = driver.add(0, &[Buffer::In(8)]);
        driver.device.restore(&saved).unwrap();
        assert_eq!(driver.take_used(0), None);
        driver.device.resume();
        assert_eq!(driver.take_used(0), Some((u32::from(head), 8)));
        driver.device.remind();
    }

    #[test]
    fn a_device_that_its_driver_gave_up_goes_on_too() {
        let mut driver = Driver::ready(0, |_| Rng);
        driver.write(0x070, 128);
        let saved = driver.device.save();
        driver.device = driver.another(Rng);
        driver.device.restore(&saved).unwrap();
        assert_eq!((driver.read(0x070), driver.device.save()), (128, saved));
    }

    #[test]
    fn features_count_when_the_driver_is_done_with_them() {
        let driver = Driver::new(|_| Rng);
        driver.write(0x070, 1);
        driver.write(0x070, 3);
        driver.accept(u64::MAX);
        let (saved, other) = (driver.device.save(), driver.another(Rng));
        other.restore(&saved).unwrap();
        other.write(0x070, &11_u32.to_le_bytes());
        assert_eq!(other.save(), saved, "they are refused as they would have been");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let driver = Driver::ready(0, |_| Rng);
        let good = driver.device.save();
        let refused = |change: &dyn Fn(&mut DeviceState)| {
            let mut saved = good.clone();
            change(&mut saved);
            let device = driver.another(Rng);
            let refused = device.restore(&saved).unwrap_err();
            assert!(!device.is_live());
            refused
        };
        assert_eq!(refused(&|s| s.kind = 2), DeviceRefused::Kind);
        assert_eq!(refused(&|s| s.setups.clear()), DeviceRefused::Kind);
        assert_eq!(refused(&|s| s.setups[0].max = 128), DeviceRefused::Kind);
        assert_eq!(refused(&|s| s.phase = SavedPhase::Setup), DeviceRefused::Kind);
        assert_eq!(refused(&|s| s.phase = SavedPhase::Live(vec![])), DeviceRefused::Kind);
        assert_eq!(refused(&|s| s.status = Status::Driver), DeviceRefused::Kind);
        assert_eq!(refused(&|s| s.driver_features |= 1 << 40), DeviceRefused::Features);
        assert_eq!(refused(&|s| s.setups[0].table = u64::MAX), DeviceRefused::Queues);
        assert_eq!(refused(&|s| s.setups[0].size = 3), DeviceRefused::Queues);
        assert_eq!(refused(&|s| s.setups[0].ready = false), DeviceRefused::Queues);
        assert_eq!(refused(&|s| s.phase = SavedPhase::Live(vec![None])), DeviceRefused::Queues);
    }
}
