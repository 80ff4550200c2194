//! Devices as a guest's own drivers see them.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use duplex::spec::RequestToMonitor;

use crate::machine::{Machine, NEEDS, Plan, file_of, in_every_life, pattern, read_all};
use crate::runner::{Case, Verdict};

pub(crate) const CASES: &[Case] = &[
    Case { name: "vm::disks_read_write_and_refuse", needs: NEEDS, run: || in_every_life(disks) },
    Case { name: "vm::vsock_echoes_10_mib", needs: NEEDS, run: || in_every_life(echo) },
    Case { name: "vm::vsock_waits_for_a_slow_host", needs: NEEDS, run: || in_every_life(slow_host) },
    Case { name: "vm::vsock_refuses_ports_without_a_stream", needs: NEEDS, run: || in_every_life(refused) },
    Case { name: "vm::streams_can_come_later", needs: NEEDS, run: || in_every_life(late_stream) },
    Case { name: "vm::entropy_comes_from_the_host", needs: NEEDS, run: || in_every_life(random) },
    Case { name: "vm::console_output_arrives_whole", needs: NEEDS, run: || in_every_life(console) },
];

const MIB: u64 = 1 << 20;

fn disks() -> Verdict {
    // Two extents of one disk, the second shorter in its file than on the disk; between them in the file is something else.
    let first: Vec<u8> = (0..MIB).map(pattern).collect();
    let mut second = vec![0xee; 4096];
    second.extend((MIB..MIB + 8192).map(pattern));
    let extents = vec![(file_of(&first), 0, MIB), (file_of(&second), 4096, 8192)];
    let scratch = file_of(&vec![0; 1 << 20]);
    let back = scratch.try_clone().unwrap();
    let plan = Plan { disks: vec![(extents, true), (vec![(scratch, 0, MIB)], false)], ..Plan::new("disks") };
    let report = Machine::start(plan)?.finish();
    report.expect_ok();
    assert_eq!(report.value("vda"), (MIB + 8192).to_string());
    assert_eq!((report.value("ro"), report.value("serial")), ("1", "duplex"));
    assert!(report.value("write").starts_with("Err"), "{}", report.value("write"));
    let mut written = vec![0; 1 << 20];
    rustix::io::pread(&back, &mut written[..], 0).unwrap();
    assert!((0..).zip(&written).all(|(at, byte)| *byte == pattern(at)), "what the guest wrote is in the file");
    Ok(())
}

/// 10 MiB into the guest and back, both directions at once.
fn echo() -> Verdict {
    const COUNT: u64 = 10 * MIB;
    let (near, far) = UnixStream::pair().unwrap();
    let machine = Machine::start(Plan { streams: vec![(5000, far)], ..Plan::new("echo 5000") })?;
    let mut writer = near.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let data: Vec<u8> = (0..COUNT).map(pattern).collect();
        writer.write_all(&data).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let back = read_all(near);
    sender.join().unwrap();
    assert_eq!(back.len() as u64, COUNT);
    assert!((0..).zip(&back).all(|(at, byte)| *byte == pattern(at)));
    let report = machine.finish();
    report.expect_ok();
    assert_eq!(report.value("echoed"), COUNT.to_string());
    Ok(())
}

/// The host reads nothing for a while, then everything, then sends slowly.
fn slow_host() -> Verdict {
    const COUNT: u64 = 4 * MIB;
    let (near, far) = UnixStream::pair().unwrap();
    let machine = Machine::start(Plan { streams: vec![(5000, far)], ..Plan::new(&format!("bulk 5000 {COUNT}")) })?;
    std::thread::sleep(Duration::from_secs(4));
    let mut writer = near.try_clone().unwrap();
    let got = read_all(near);
    assert_eq!(got.len() as u64, COUNT);
    assert!((0..).zip(&got).all(|(at, byte)| *byte == pattern(at)));
    let data: Vec<u8> = (0..300_000).map(pattern).collect();
    for piece in data.chunks(50_000) {
        writer.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(writer);
    let report = machine.finish();
    report.expect_ok();
    assert_eq!(report.value("received"), "300000");
    Ok(())
}

fn refused() -> Verdict {
    let report = Machine::start(Plan::new("refused 6000"))?.finish();
    report.expect_ok();
    // ECONNRESET: refused by RST, at once.
    assert_eq!(report.value("connect"), "Err(Some(104))");
    Ok(())
}

fn late_stream() -> Verdict {
    let (near, far) = UnixStream::pair().unwrap();
    let machine = Machine::start(Plan::new("echo 7000"))?;
    machine.request(&RequestToMonitor::AddStream { port: 7000 }, Some(&far.into()));
    let mut writer = near.try_clone().unwrap();
    writer.write_all(b"hello").unwrap();
    writer.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_all(near), b"hello");
    machine.finish().expect_ok();
    Ok(())
}

fn random() -> Verdict {
    let report = Machine::start(Plan::new("random"))?.finish();
    report.expect_ok();
    assert!(report.value("name").starts_with("virtio_rng"), "{}", report.value("name"));
    let ones: u32 = report.value("ones").parse().unwrap();
    // 32768 fair bits: 16384 +- 90 (one sigma).
    assert!((15_700..17_100).contains(&ones), "{ones} of 32768 bits are set");
    Ok(())
}

/// A pipe that is read slowly: nothing is lost, and the guest waits.
fn console() -> Verdict {
    let (reader, writer) = std::io::pipe().unwrap();
    let plan = Plan { console: Some(writer.into()), ..Plan::new("console 2000") };
    let machine = Machine::start(plan)?;
    std::thread::sleep(Duration::from_secs(3));
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    let text = String::from_utf8(read_all(file)).unwrap();
    let report = machine.finish();
    assert_eq!(report.code, Some(0), "{text}");
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("line ")).collect();
    assert_eq!(lines.len(), 2000);
    assert!(lines.iter().enumerate().all(|(n, l)| l.trim_end() == format!("line {n} {}", "x".repeat(100))));
    Ok(())
}
