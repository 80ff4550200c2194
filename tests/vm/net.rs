//! The network device as a guest's own driver sees it, over a stream and over a tap.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::machine::{MAC, Machine, NEEDS, Plan, Wire, in_every_life, pattern};
use crate::runner::{Case, Need, Verdict};

const TAP_NEEDS: &[Need] = &[Need::Host, Need::Kvm, Need::Root, Need::Program("rustc"), Need::Program("ip")];

pub(crate) const CASES: &[Case] = &[
    Case { name: "vm::net_frames_pass_whole_over_a_stream", needs: NEEDS, run: || in_every_life(frames_over_a_stream) },
    Case { name: "vm::net_goes_on_when_the_stream_ends", needs: NEEDS, run: || in_every_life(stream_ends) },
    Case {
        name: "vm::net_carries_tcp_over_a_tap_with_segments",
        needs: TAP_NEEDS,
        run: || in_every_life(tcp_over_a_tap),
    },
];

/// 60 frames of growing length, each sent back as it came.
fn frames_over_a_stream() -> Verdict {
    let (near, far) = UnixStream::pair().unwrap();
    let echo = std::thread::spawn(move || echo(far));
    let plan = Plan { net: Some((Wire::Stream(near), 32_768)), ..Plan::new("frames 60") };
    let report = Machine::start(plan)?.finish();
    report.expect_ok();
    assert_eq!(report.value("good"), "60");
    let lengths = echo.join().unwrap();
    assert_eq!(lengths.len(), 60);
    assert!(lengths.iter().any(|l| *l > 32_000), "{lengths:?}");
    Ok(())
}

/// Sends frames of our EtherType back, and says how long they were.
fn echo(mut wire: UnixStream) -> Vec<usize> {
    let mut lengths = Vec::new();
    loop {
        let mut length = [0; 4];
        if wire.read_exact(&mut length).is_err() {
            return lengths;
        }
        let count = usize::try_from(u32::from_be_bytes(length)).unwrap();
        let mut frame = vec![0; count];
        wire.read_exact(&mut frame).unwrap();
        // The guest's kernel says other things beside: router solicitations.
        if frame[12..14] == [0x88, 0xb5] {
            lengths.push(count);
            // In two pieces: the device puts them together.
            let whole = [&length[..], &frame].concat();
            wire.write_all(&whole[..count / 2]).unwrap();
            wire.write_all(&whole[count / 2..]).unwrap();
        }
    }
}

fn stream_ends() -> Verdict {
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    let plan = Plan { net: Some((Wire::Stream(near), 1500)), ..Plan::new("hello") };
    Machine::start(plan)?.finish().expect_ok();
    Ok(())
}

/// A tap of a network namespace of its own (this thread's), with the host's address.
fn tap(name: &str) -> OwnedFd {
    let tap = duplex::sys::tap::make(name).unwrap();
    for words in [&["addr", "add", "10.0.0.1/24", "dev", name][..], &["link", "set", name, "mtu", "1500", "up"]] {
        assert!(Command::new("ip").args(words).status().unwrap().success(), "ip {words:?}");
    }
    tap
}

/// 3 MiB each way through the host's own TCP: it hands the guest long segments, and takes long segments from it.
fn tcp_over_a_tap() -> Verdict {
    const COUNT: u64 = 3 << 20;
    let served = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let tap = tap("tap0");
        let listener = TcpListener::bind("10.0.0.1:7000").unwrap();
        let plan = Plan { net: Some((Wire::Tap(tap), 1500)), ..Plan::new("net 10.0.0.2 10.0.0.1:7000") };
        let machine = Machine::start(plan)?;
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let data: Vec<u8> = (0..COUNT).map(pattern).collect();
            writer.write_all(&data).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert!(back.len() as u64 == COUNT && (0..).zip(&back).all(|(at, byte)| *byte == pattern(at)));
        Ok(machine.finish())
    });
    let report = served.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    report.expect_ok();
    assert_eq!(report.value("echoed"), COUNT.to_string());
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    assert_eq!((report.value("address"), report.value("mtu")), (mac.as_str(), "1500"));
    let features = report.value("features").as_bytes().to_vec();
    for bit in [0, 1, 3, 5, 7, 8, 9, 11, 12, 13, 15, 29, 32] {
        assert_eq!(features[bit], b'1', "feature {bit} of {}", report.value("features"));
    }
    for name in ["rx_errors", "rx_dropped", "tx_errors", "rx_length_errors"] {
        assert_eq!(report.value(name), "0", "{name}");
    }
    Ok(())
}
