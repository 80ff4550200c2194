//! The file system device with a real file server behind it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use duplex::spec::{MachineEvent, MachineExit, RequestToMonitor};
use duplex::sys::spawn::ChildSetup;

use crate::machine::{Machine, Plan, pattern};
use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] =
    &[Need::Host, Need::Kvm, Need::Root, Need::Program("rustc"), Need::File("/usr/lib/qemu/virtiofsd")];

pub(crate) const CASES: &[Case] = &[
    Case { name: "vm::shares_read_write_map_and_survive_a_reset", needs: NEEDS, run: share },
    Case { name: "vm::a_lost_file_server_is_told", needs: NEEDS, run: lost },
    Case { name: "vm::shares_that_cannot_be_are_refused_in_words", needs: NEEDS, run: refused },
];

const MIB: u64 = 1 << 20;

/// A file server that ends with the case.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Serves this folder to who holds the socket.
pub(crate) fn serve(folder: &Path) -> (Server, UnixStream) {
    let address = folder.with_extension("socket");
    let listener = UnixListener::bind(&address).unwrap();
    let socket = UnixStream::connect(&address).unwrap();
    fs::remove_file(&address).unwrap();
    let mut command = Command::new("/usr/lib/qemu/virtiofsd");
    command.arg(format!("--fd={}", listener.as_raw_fd())).args(["-f", "-o"]);
    command.arg(format!("sandbox=namespace,cache=auto,log_level=err,source={}", folder.display()));
    let setup = ChildSetup { keep: vec![listener.into()], ..ChildSetup::default() };
    (Server(setup.apply(command.stdin(Stdio::null())).spawn().unwrap()), socket)
}

/// A folder with a file of 3 MiB.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("shared")).unwrap();
    let bytes: Vec<u8> = (0..3 * MIB).map(pattern).collect();
    fs::write(folder.path().join("shared/pattern"), bytes).unwrap();
    folder
}

fn plan(words: &str, shares: Vec<(String, UnixStream)>) -> Plan {
    Plan { shares, memory_mib: 192, ..Plan::new(words) }
}

fn share() -> Verdict {
    let folder = folder();
    let shared = folder.path().join("shared");
    let (_server, socket) = serve(&shared);
    let report = Machine::start(plan("share afs", vec![("afs".to_owned(), socket)]))?.finish();
    report.expect_ok();
    assert_eq!(report.value("missing"), "-1");
    for round in 0..2 {
        let written = fs::read(shared.join(format!("done{round}"))).unwrap();
        let zeroes = MIB..MIB + 4096;
        let expected = |at: u64| if zeroes.contains(&at) { 0 } else { pattern(at) };
        assert_eq!(written.len() as u64, 2 * MIB);
        assert!((0..).zip(&written).all(|(at, byte)| *byte == expected(at)), "round {round}");
    }
    Ok(())
}

fn lost() -> Verdict {
    let folder = folder();
    let (server, socket) = serve(&folder.path().join("shared"));
    let mut machine = Machine::start(plan("lose afs", vec![("afs".to_owned(), socket)]))?;
    machine.wait_for("mounted");
    drop(server);
    // The guest goes on, but for who waits for the share.
    let told = machine.event(|event| matches!(event, MachineEvent::ShareLost { .. }));
    let MachineEvent::ShareLost { why } = told else { panic!("{told:?}") };
    assert!(why.contains("'afs'"), "{why}");
    let seen = machine.lines("alive");
    machine.wait_until("the guest goes on", |machine| machine.lines("alive") > seen + 3);
    machine.request(&RequestToMonitor::Kill, None);
    let report = machine.finish();
    assert_eq!(report.exit(), &MachineExit::Killed);
    Ok(())
}

/// The causes with which a machine with these shares fails to start.
fn failure(shares: Vec<(String, UnixStream)>) -> Result<String, crate::runner::Skip> {
    let report = Machine::start(plan("quiet", shares))?.finish();
    match report.events.last() {
        Some(MachineEvent::Failed { causes }) => Ok(causes.join(": ")),
        other => panic!("{other:?}\n{}", report.console),
    }
}

fn refused() -> Verdict {
    let ends = || UnixStream::pair().unwrap();
    let (near, far) = ends();
    drop(far);
    assert!(failure(vec![("a".to_owned(), near)])?.contains("'a' cannot be worked with: It has closed"));
    for tag in [String::new(), "x".repeat(37), "a\0b".to_owned()] {
        assert!(failure(vec![(tag, ends().0)])?.contains("1 to 36 bytes"));
    }
    let twice = ["a", "a"].map(|tag| (tag.to_owned(), ends().0));
    assert!(failure(twice.into())?.contains("not 'a'"));
    let eight: Vec<_> = (0..8).map(|n| (n.to_string(), ends().0)).collect();
    assert!(failure(eight)?.contains("at most 7 shares"));
    let (near, far) = ends();
    std::io::Write::write_all(&mut File::from(std::os::fd::OwnedFd::from(far.try_clone().unwrap())), &[7; 64]).unwrap();
    assert!(failure(vec![("a".to_owned(), near)])?.contains("cannot be one"));
    Ok(())
}
