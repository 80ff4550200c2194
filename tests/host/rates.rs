//! Rates of the host's disks: in force as the kernel has them, told, and refused in words.

use std::fs;
use std::process::Command;

use crate::debian::must;
use crate::life::{Place, words};
use crate::runner::{Case, Need, Verdict, cases_with};
use crate::volumes;

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Program("losetup"),
    Need::Program("mke2fs"),
    Need::Program("findmnt"),
    Need::File("/usr/bin/busybox"),
    Need::Alone,
];
const BOTH: [&str; 2] = ["container", "microvm"];

cases_with!(
    "rates",
    Place::new(),
    [rates_of_disks_are_the_kernels, a_volume_is_written_at_its_rate, what_is_no_disk_is_refused]
);

/// A disk of this host, for a moment.
struct Disk {
    path: String,
    _file: tempfile::NamedTempFile,
}

impl Disk {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let path = must(Command::new("losetup").args(["-f", "--show"]).arg(file.path())).trim().to_owned();
        Self { path, _file: file }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.path]).status();
    }
}

fn rates_of_disks_are_the_kernels(place: &Place) {
    let disk = Disk::new();
    let number = fs::read_to_string(format!("/sys/class/block/{}/dev", disk.path.trim_start_matches("/dev/"))).unwrap();
    let number = number.trim();
    let of = |rate: &str| format!("{}:{rate}", disk.path);
    for isolation in BOTH {
        let flags =
            ["--name", "slow", "--net", "none", "--device-write-bps", &of("1mb"), "--device-read-iops", &of("100")];
        let id = place.run(isolation, &[&flags[..], &["workloads", "spin"]].concat());
        let max = fs::read_to_string(format!("/sys/fs/cgroup/duplex/{id}/io.max")).unwrap();
        assert_eq!(max.trim(), format!("{number} rbps=max wbps=1048576 riops=100 wiops=max"), "{isolation}");
        let told = place.look("slow", "{{json .HostConfig.BlkioDeviceWriteBps}}");
        assert_eq!(told, format!("[{{\"Path\":\"{}\",\"Rate\":1048576}}]", disk.path));
        assert_eq!(place.look("slow", "{{json .HostConfig.BlkioDeviceReadBps}}"), "[]");
        place.say(&["rm", "-f", "slow"]);
    }
    drop(disk);
    place.must_be_clean("rates");
}

/// A store on a disk of its own, for a moment.
struct Mounted {
    path: std::path::PathBuf,
    disk: String,
}

impl Mounted {
    fn new(place: &Place) -> Self {
        let (file, path) = (place.folder().join("disk"), place.folder().join("mounted"));
        fs::File::create(&file).unwrap().set_len(400 << 20).unwrap();
        must(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&file));
        fs::create_dir(&path).unwrap();
        must(Command::new("mount").args(["-o", "loop"]).args([&file, &path]));
        let disk = must(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&path)).trim().to_owned();
        Self { path, disk }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

/// 4 MiB at 2 MiB a second, by the sandbox's own clock; the volume was written before without a limit, by the other isolation.
fn a_volume_is_written_at_its_rate(place: &Place) {
    const SECONDS: f64 = 2.0;
    let mounted = Mounted::new(place);
    let store = mounted.path.join("store");
    let say = |words: &[&str]| must(place.duplex(words).env("DUPLEX_ROOT", &store));
    let archive = volumes::archive(place);
    say(&["load", "-q", "-i", archive.to_str().unwrap()]);
    let script = "read s r </proc/uptime; dd if=/dev/zero of=/data/x bs=64k count=64 conv=fsync 2>/dev/null; read e r </proc/uptime; echo $s $e";
    let rate = format!("{}:2mb", mounted.disk);
    let time = |isolation: &str, options: &[&str]| {
        let front = ["run", "--rm", "--net", "none", "--isolation", isolation, "-v", "data:/data"];
        let told = say(&[&front, options, &[volumes::IMAGE, "sh", "-c", script]].concat());
        let numbers: Vec<f64> = told.split_whitespace().map(|n| n.parse().unwrap()).collect();
        numbers[1] - numbers[0]
    };
    for isolation in BOTH {
        time(isolation, &[]);
        let limited = time(isolation, &["--device-write-bps", &rate]);
        assert!(limited >= SECONDS * 0.9, "{isolation}: 4 MiB in {limited} s");
    }
    drop(mounted);
    for name in ["disk", "image.tar"] {
        fs::remove_file(place.folder().join(name)).unwrap();
    }
    fs::remove_dir(place.folder().join("mounted")).unwrap();
    place.must_be_clean("a limited volume");
}

fn what_is_no_disk_is_refused(place: &Place) {
    for isolation in BOTH {
        for (flags, word) in [
            (["--device-write-bps", "/dev/null:1mb"], "/dev/null"),
            (["--device-read-bps", "/dev/no-such-disk:1mb"], "/dev/no-such-disk"),
            (["--device-read-iops", "loop0:5"], "PATH:RATE"),
        ] {
            let output = place
                .output(&[&["run", "--rm", "--isolation", isolation], &flags[..], &["workloads", "true"]].concat());
            assert!(matches!(output.status.code(), Some(125)), "{isolation} {flags:?}: {output:?}");
            assert!(words(&output).contains(word), "{isolation} {flags:?}: {}", words(&output));
        }
    }
    place.must_be_clean("refused rates");
}
