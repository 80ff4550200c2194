//! A target of fuzzing: what clients say to a keeper, and a keeper to its clients.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{Frame, Opening, Reply, Request, receive, send, send_bytes};

/// Frames one after the other, or a message of any text.
pub(crate) fn messages(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    match first % 6 {
        0 => frames::<Opening>(rest),
        1 => frames::<Request>(rest),
        2 => frames::<Reply>(rest),
        3 => text::<Opening>(rest),
        4 => text::<Request>(rest),
        _ => text::<Reply>(rest),
    }
}

fn frames<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(mut rest: &[u8]) {
    while let Ok(frame) = receive::<M>(&mut rest) {
        again(&frame);
    }
}

fn text<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(text: &[u8]) {
    let mut frame = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    frame.push(0);
    frame.extend(text);
    if let Ok(frame) = receive::<M>(&mut &frame[..]) {
        again(&frame);
    }
}

fn again<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(frame: &Frame<M>) {
    let mut bytes = Vec::new();
    match frame {
        Frame::Message(message) => send(&mut bytes, message).unwrap(),
        Frame::Bytes(stream, content) => send_bytes(&mut bytes, *stream, content).unwrap(),
    }
    assert_eq!(&receive::<M>(&mut &bytes[..]).unwrap(), frame);
}
