//! A target of fuzzing: what comes through the lab's channel.

use super::frame::Frame;
use super::message::Control;
use crate::fuzz::same;

/// Frames one after the other; each is the same after another way through the channel.
pub(crate) fn frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(frame) = Frame::read(&mut rest) {
        let Ok(bytes) = frame.encode() else { continue };
        assert_eq!(Frame::read(&mut &bytes[..]).unwrap(), frame);
    }
    same::<Control>(data);
}
