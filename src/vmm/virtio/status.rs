//! The driver's steps through device initialisation (virtio 1.2, 2.1 and 3.1.1).
//!
//! ```text
//!          write 0: Reset, from everywhere; write with FAILED: Failed, from everywhere
//!
//! Reset --1--> Acknowledged --3--> Driver --11--> FeaturesOk --15--> Live
//!                                     \_ features refused: stays
//! ```

/// ACKNOWLEDGE: the guest has noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// DRIVER: it knows how to drive it.
pub const DRIVER: u32 = 2;
/// DRIVER_OK: it is set up and ready.
pub const DRIVER_OK: u32 = 4;
/// FEATURES_OK: feature negotiation is complete.
pub const FEATURES_OK: u32 = 8;
/// DEVICE_NEEDS_RESET: the device has met an error from which it cannot go on.
pub const NEEDS_RESET: u32 = 64;
/// FAILED: the guest gave up on the device.
pub const FAILED: u32 = 128;

use serde::{Deserialize, Serialize};

/// How far initialisation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Nothing yet.
    Reset,
    /// The guest has noticed the device.
    Acknowledged,
    /// A driver reads the offered features.
    Driver,
    /// Features are agreed; queues are being laid out.
    FeaturesOk,
    /// Queues are frozen, the device works.
    Live,
    /// The guest gave up.
    Failed,
}

/// What a write to the Status register means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing changes.
    Stay,
    /// To this status, if the device agrees (features at [`Status::FeaturesOk`], queues at [`Status::Live`]).
    To(Status),
    /// The device is reset.
    Reset,
    /// Not a step that the specification has: ignored and counted.
    Refused,
}

impl Status {
    /// The register's value, without DEVICE_NEEDS_RESET.
    pub fn bits(self) -> u32 {
        match self {
            Self::Reset => 0,
            Self::Acknowledged => ACKNOWLEDGE,
            Self::Driver => ACKNOWLEDGE | DRIVER,
            Self::FeaturesOk => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Self::Live => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
            Self::Failed => FAILED,
        }
    }

    /// What a written value asks for in this status.
    pub fn step(self, written: u32) -> Step {
        let wanted = written & !NEEDS_RESET;
        if written == 0 {
            return Step::Reset;
        }
        if wanted & FAILED != 0 {
            return Step::To(Self::Failed);
        }
        if wanted == self.bits() {
            return Step::Stay;
        }
        let next = match self {
            Self::Reset => Self::Acknowledged,
            Self::Acknowledged => Self::Driver,
            Self::Driver => Self::FeaturesOk,
            Self::FeaturesOk => Self::Live,
            Self::Live | Self::Failed => return Step::Refused,
        };
        if wanted == next.bits() { Step::To(next) } else { Step::Refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Status; 6] =
        [Status::Reset, Status::Acknowledged, Status::Driver, Status::FeaturesOk, Status::Live, Status::Failed];

    #[test]
    fn the_picture_is_the_table() {
        let mut status = Status::Reset;
        for written in [1, 3, 11, 15] {
            let Step::To(next) = status.step(written) else { panic!("{status:?} refuses {written}") };
            status = next;
        }
        assert_eq!(status, Status::Live);
    }

    #[test]
    fn every_other_write_is_refused_or_resets() {
        for status in ALL {
            assert_eq!(status.step(0), Step::Reset);
            assert_eq!(status.step(status.bits() | FAILED), Step::To(Status::Failed));
            let steps = (1..=255).filter(|w| matches!(status.step(*w), Step::To(s) if s != Status::Failed)).count();
            let forward = !matches!(status, Status::Live | Status::Failed);
            assert_eq!(steps, if forward { 2 } else { 0 }, "{status:?}: the next value, with and without NEEDS_RESET");
        }
    }
}
