use proptest::prelude::*;

use super::*;
use crate::lab::message::{CommandSpec, Ended, Size};

fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = prop_oneof![Just(Stream::Input), Just(Stream::Output), Just(Stream::Error)];
    let words = || proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..5);
    let run = (words(), words(), any::<bool>(), any::<Option<(u16, u16)>>()).prop_map(|(argv, live, stdin, size)| {
        Control::Run(CommandSpec {
            argv,
            env: vec![(b"A".to_vec(), b"b\xff".to_vec())],
            cwd: b"/x".to_vec(),
            live,
            stdin,
            terminal: size.map(|(rows, columns)| Size { rows, columns }),
            clock_ns: 1,
        })
    });
    let control = prop_oneof![
        run,
        (stream.clone(), any::<u32>()).prop_map(|(s, n)| Control::Credit(s, n)),
        any::<u8>().prop_map(Control::Signal),
        any::<u8>().prop_map(|c| Control::Exited(Ended::Code(c))),
        ".{0,30}".prop_map(|t| Control::Exited(Ended::NotStarted { code: 127, reason: t })),
        Just(Control::Gone),
    ];
    let body = prop_oneof![
        (stream, proptest::collection::vec(any::<u8>(), 0..2000)).prop_map(|(s, b)| Body::Data(s, b)),
        control.prop_map(Body::Control),
    ];
    (any::<u32>(), body).prop_map(|(command, body)| Frame { command, body })
}

/// A reader that gives at most `step` bytes at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = into.len().min(self.1).min(self.0.len());
        into[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

proptest! {
    #[test]
    fn frames_survive_any_split(frames in proptest::collection::vec(any_frame(), 0..8), step in 1_usize..40) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut reader = Dribble(&bytes, step);
        for frame in &frames {
            prop_assert_eq!(&Frame::read(&mut reader).unwrap(), frame);
        }
        prop_assert!(matches!(Frame::read(&mut reader), Err(FrameError::Closed)));
    }

    #[test]
    fn any_bytes_end_in_an_error_or_a_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut reader = bytes.as_slice();
        while Frame::read(&mut reader).is_ok() {}
    }

    #[test]
    fn a_cut_frame_is_an_error(frame in any_frame(), cut in 1_usize..50) {
        let bytes = frame.encode().unwrap();
        let keep = bytes.len().saturating_sub(cut).max(1);
        prop_assume!(keep < bytes.len());
        prop_assert!(matches!(Frame::read(&mut &bytes[..keep]), Err(FrameError::Io(_))));
    }
}

#[test]
fn lengths_over_the_limit_are_refused_before_memory_is_taken() {
    let mut header = vec![0, 0, 0, 0, 1];
    header.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Frame::read(&mut header.as_slice()), Err(FrameError::Header { kind: 1, length: u32::MAX })));
    assert!(Frame::data(1, Stream::Output, vec![0; DATA_LIMIT + 1]).encode().is_err());
}
