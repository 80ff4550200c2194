//! Output by the specification's driver.

use std::fs::File;
use std::io::{Read, Seek};

use super::super::driver::{Buffer, Driver};
use super::*;

fn driver(output: impl Into<OwnedFd>) -> Driver {
    let output = Arc::new(output.into());
    Driver::ready(0, move |sources| Console::new(output, sources))
}

#[test]
fn output_goes_to_the_file_however_it_is_cut() {
    let mut file = tempfile::tempfile().unwrap();
    let mut driver = driver(file.try_clone().unwrap());
    driver.send(1, &[Buffer::Out(b"one "), Buffer::Out(b"two")]);
    driver.send(1, &[Buffer::Out(&[b'x'; 10_000])]);
    assert_eq!(std::iter::from_fn(|| driver.take_used(1)).count(), 2);
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("one two{}", "x".repeat(10_000)));
}

#[test]
fn a_full_pipe_makes_the_guest_wait_and_loses_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut driver = driver(writer);
    for n in 0..60_u8 {
        driver.send(1, &[Buffer::Out(&[n; 5000])]);
    }
    let done = std::iter::from_fn(|| driver.take_used(1)).count();
    assert!((5..60).contains(&done), "{done} of 60 fit a pipe");
    let mut reader = File::from(OwnedFd::from(reader));
    let mut got = Vec::new();
    while got.len() < 300_000 {
        let mut piece = vec![0; 3000];
        let count = reader.read(&mut piece).unwrap();
        got.extend_from_slice(&piece[..count]);
        driver.poll();
    }
    assert!(got.chunks(5000).zip(0..).all(|(chunk, n)| chunk.iter().all(|b| *b == n)));
    assert_eq!(done + std::iter::from_fn(|| driver.take_used(1)).count(), 60);
}

#[test]
fn output_that_is_gone_takes_everything() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut driver = driver(writer);
    driver.send(1, &[Buffer::Out(b"nobody")]);
    assert!(driver.take_used(1).is_some());
    driver.send(0, &[Buffer::In(10)]);
    assert!(driver.take_used(0).is_none(), "there is no input");
    assert!(!driver.needs_reset());
}

/// A guest that prints without end must not keep the thread that serves it from anything else.
#[test]
fn a_long_chain_is_written_in_turns() {
    let mut file = tempfile::tempfile().unwrap();
    let mut driver = driver(file.try_clone().unwrap());
    let text: Vec<u8> = (0..5 << 18).map(|n: u32| n.to_le_bytes()[1]).collect();
    driver.send(1, &[Buffer::Out(&text), Buffer::Out(&text)]);
    assert_eq!(file.metadata().unwrap().len(), MOST_AT_ONCE);
    assert!(driver.take_used(1).is_none(), "not done yet");
    driver.device.resume();
    assert_eq!(file.metadata().unwrap().len(), 2 * MOST_AT_ONCE);
    driver.device.resume();
    assert!(driver.take_used(1).is_some());
    file.rewind().unwrap();
    let mut got = Vec::new();
    file.read_to_end(&mut got).unwrap();
    assert!(got == [&text[..], &text].concat());
}
