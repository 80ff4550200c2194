//! Targets of fuzzing: an agent that says anything at any time, and files of the kernel and of the host.

use std::io::Write;
use std::os::unix::net::UnixStream;

use duplex_wire::{Start, VERSION};

use super::agent::{Client, Heard};
use super::{microvm, shelf, snapshots};
use crate::fuzz::Input;

/// Frames of any bodies: what is heard is in turn, and no more log lines than are allowed.
pub(crate) fn agent_client(data: &[u8]) {
    let mut input = Input::new(data);
    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let mut client = Client::new(near).unwrap();
    let (mut greeted, mut ended) = (false, false);
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let kind = input.u8();
        let body = input.piece();
        let mut frame = Vec::new();
        if kind & 3 != 0 {
            frame.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            frame.extend(VERSION.to_le_bytes());
            frame.extend([0, 0]);
        }
        frame.extend(body);
        if far.write_all(&frame).is_err() {
            break;
        }
        loop {
            match client.hear() {
                Ok(Heard::Message(message)) => {
                    use duplex_wire::ToHost::{Exited, Hello, StartFailed, Started};
                    assert!(greeted != matches!(message, Hello { .. }), "{message:?} out of turn");
                    let ends = matches!(message, Exited { .. } | StartFailed { .. });
                    assert!(!(ended && (ends || matches!(message, Started))), "{message:?} after the end");
                    (greeted, ended) = (true, ended | ends);
                }
                Ok(Heard::Nothing | Heard::End) => break,
                Err(_) => return,
            }
        }
        if kind & 0xc0 == 0xc0 {
            // In turn or not: the client knows.
            let _ = client.start(nothing());
        }
    }
}

/// Orders in which all is zero or empty.
fn nothing() -> Start {
    postcard::from_bytes(&[0; 256]).unwrap()
}

/// Tables of mounts, maps and processors.
pub(crate) fn host_files(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let text = String::from_utf8_lossy(input.rest()).into_owned();
    match choice % 3 {
        0 => drop(shelf::fuzz_mount_points(&text)),
        1 => microvm::fuzz_mappings(&text),
        _ => drop(snapshots::fuzz_processor(&text)),
    }
}
