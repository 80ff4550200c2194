//! What goes wrong around sandboxes that are well: full disks, deaf readers, taken ports, the dead, crowds. The error names the thing, the
//! command does not suffer for it, and nothing is left behind.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::debian::must;
use crate::kills::number_from;
use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict, cases_with};
use crate::volumes::{kill, monitor_of};

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Program("passt"), Need::Alone];
const BOTH: [&str; 2] = ["container", "microvm"];

/// A program of the embedded image.
const P: &str = "/workloads";

/// Sandboxes at once if nobody says how many.
const CROWD: u64 = 10;

cases_with!(
    "bad_input",
    Place::new(),
    [
        a_full_disk_costs_output_that_is_kept_and_nothing_else,
        a_reader_that_never_reads_holds_up_nobody,
        a_port_that_is_taken_can_be_had_later,
        the_dead_execute_nothing,
        a_crowd_starts_at_once,
    ]
);

/// A file system of so few bytes, for as long as this lives.
struct Small(PathBuf);

impl Small {
    fn new(place: &Place, bytes: u32) -> Self {
        let folder = place.folder().join("small");
        fs::create_dir(&folder).unwrap();
        let options = format!("size={bytes}");
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(&folder));
        Self(folder)
    }

    fn duplex(&self, place: &Place, words: &[&str]) -> Command {
        let mut command = place.duplex(words);
        command.env("DUPLEX_STATE", &self.0);
        command
    }

    fn output(&self, place: &Place, words: &[&str]) -> Output {
        self.duplex(place, words).output().unwrap()
    }

    #[track_caller]
    fn say(&self, place: &Place, words: &[&str]) -> String {
        must(&mut self.duplex(place, words)).trim_end().to_owned()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

fn a_full_disk_costs_output_that_is_kept_and_nothing_else(place: &Place) {
    let flood = place.folder().join("flood");
    let text: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
    for isolation in BOTH {
        fs::write(&flood, &text).unwrap();
        let small = Small::new(place, 1 << 20);
        let mut command =
            small.duplex(place, &["run", "--isolation", isolation, "--net", "none", "--name", "flood", "-i"]);
        let output = command.args(["workloads", "cat"]).stdin(File::open(&flood).unwrap()).output().unwrap();
        assert!(output.status.success(), "{isolation}: {}", words(&output));
        assert!(output.stdout == text.as_bytes(), "{isolation}: {} bytes have come", output.stdout.len());
        let state = small.say(place, &["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "flood"]);
        assert_eq!(state, "exited 0", "{isolation}: how it ended is known");
        let logs = small.output(place, &["logs", "flood"]);
        // Behind a gap, which is told, shorter pieces may have found room again.
        let kept = &logs.stdout;
        assert!(kept.len() > 500_000 && kept[..400_000] == text.as_bytes()[..400_000], "{isolation}: its beginning");
        let told = words(&logs);
        assert!(told.contains("bytes of output could not be kept: No space left on device"), "{isolation}: {told}");

        // There is no room for another one, which is told, and room again as soon as the first is gone.
        fs::write(small.0.join("filler"), vec![0; 1 << 20]).unwrap_err();
        let refused = small.output(place, &["run", "--isolation", isolation, "--net", "none", "workloads", "true"]);
        let told = words(&refused);
        assert_eq!(refused.status.code(), Some(125), "{isolation}: {told}");
        assert!(told.contains(small.0.to_str().unwrap()) && told.contains("No space left"), "{isolation}: {told}");
        assert_eq!(small.say(place, &["ps", "-a", "--format", "{{.Names}}"]), "flood");
        small.say(place, &["rm", "flood"]);

        // One that runs when the disk fills up ends as it should, and that is known.
        let spin = ["run", "-d", "--isolation", isolation, "--net", "none", "--name", "last", "workloads", "spin"];
        small.say(place, &spin);
        fs::write(small.0.join("more"), vec![0; 1 << 20]).unwrap_err();
        small.say(place, &["stop", "last"]);
        let state = small.say(place, &["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "last"]);
        assert_eq!(state, "exited 143", "{isolation}");
        small.say(place, &["rm", "last"]);
        drop(small);
        fs::remove_file(&flood).unwrap();
        place.must_be_clean(isolation);
    }
}

/// Number of the newest file of a sandbox's log.
fn log_number(place: &Place, name: &str) -> u64 {
    let folder = place.folder().join("state/roster").join(place.look(name, "{{.Id}}"));
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("log.")?.parse().ok();
    fs::read_dir(folder).unwrap().filter_map(|entry| number(entry.unwrap())).max().unwrap_or(0)
}

/// `logs -f` whose output nobody takes: the sandbox writes on, and goes, and then the reader ends.
fn a_reader_that_never_reads_holds_up_nobody(place: &Place) {
    for isolation in BOTH {
        let options = ["--net", "none", "--log-opt", "max-size=64k", "--name", "flood"];
        place.run(isolation, &[&options, &["workloads", "cat", "/dev/zero"][..]].concat());
        let mut deaf = place.duplex(&["logs", "-f", "flood"]).stdout(Stdio::piped()).spawn().unwrap();
        for _ in 0..2 {
            sleep(Duration::from_millis(500));
            let now = log_number(place, "flood");
            place.until("more output", || log_number(place, "flood") > now + 1);
        }
        place.say(&["rm", "-f", "flood"]);
        let taken = std::io::copy(&mut deaf.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        assert!(taken > 64 << 10 && deaf.wait().unwrap().success(), "{isolation}: {taken} bytes");
        place.must_be_clean(isolation);
    }
}

fn a_port_that_is_taken_can_be_had_later(place: &Place) {
    for isolation in BOTH {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let published = format!("127.0.0.1:{port}:80");
        let run = ["run", "-d", "--isolation", isolation, "--name", "late", "-p", &published, "workloads", "spin"];
        let refused = place.output(&run);
        let taken = format!("Port 127.0.0.1:{port}/tcp of this host is taken");
        assert!(refused.status.code() == Some(125) && words(&refused).contains(&taken), "{}", words(&refused));
        let again = place.output(&["start", "late"]);
        assert!(again.status.code() == Some(1) && words(&again).contains(&taken), "{}", words(&again));
        drop(listener);
        place.say(&["start", "late"]);
        assert_eq!(place.look("late", "{{.State.Status}}"), "running", "{isolation}");
        place.say(&["rm", "-f", "late"]);
        place.must_be_clean(isolation);
    }
}

fn the_dead_execute_nothing(place: &Place) {
    let refused = |what: &str| {
        let output = place.output(&["exec", "box", P, "true"]);
        let told = words(&output);
        assert!(output.status.code() == Some(1) && told.contains("not running"), "{what}: {:?}: {told}", output.status);
    };
    for isolation in BOTH {
        place.say(&["create", "--net", "none", "--isolation", isolation, "--name", "box", "workloads", "spin"]);
        refused("never started");
        place.say(&["start", "box"]);
        place.kill_keepers();
        refused("its keeper is dead");
        place.until("a free start", || place.output(&["start", "box"]).status.success());
        if isolation == "microvm" {
            kill(monitor_of(&place.look("box", "{{.State.Pid}}")));
            place.say(&["wait", "box"]);
            refused("its monitor is dead");
        }
        place.say(&["rm", "-f", "box"]);
        place.must_be_clean(isolation);
    }
}

/// Both isolations at once. In CI there is room for all; with `DUPLEX_TEST_CROWD=200` some may be refused, in words.
fn a_crowd_starts_at_once(place: &Place) {
    let crowd = number_from("DUPLEX_TEST_CROWD").unwrap_or(CROWD);
    let started: Vec<_> = (0..crowd)
        .map(|n| {
            let (isolation, word) = (BOTH[usize::from(n % 2 == 1)], format!("word {n}"));
            let line = ["run", "--rm", "--isolation", isolation, "-m", "64m", "workloads", "echo", &word];
            let child = place.duplex(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            (isolation, word, child)
        })
        .collect();
    let mut refused = Vec::new();
    for (isolation, word, child) in started {
        let output = child.wait_with_output().unwrap();
        let told = words(&output);
        if output.status.success() {
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{word}\n"), "{isolation}");
        } else {
            assert!(
                output.status.code() == Some(125) && told.contains("Error: "),
                "{isolation}: {:?}: {told}",
                output.status
            );
            refused.push(told);
        }
    }
    assert!(crowd > CROWD || refused.is_empty(), "{refused:?}");
    if crowd > CROWD {
        println!("     {} of {crowd} were refused; the first: {:?}", refused.len(), refused.first());
    }
    place.until_clean();
}
