//! What of Duplex is on this host: equal before and after, or something was left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Processes, network namespaces, interfaces, sockets that can be reached, mounts, cgroups, loop devices and files in these folders, a line each.
pub(crate) fn inventory(folders: &[&Path]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let program = words.split(' ').next().unwrap_or("").rsplit('/').next().unwrap_or("").to_owned();
        let ours = program.starts_with("duplex")
            || program == "workloads"
            || program == "virtiofsd"
            || program == "passt"
            || program == "pasta";
        if ours && !words.contains("lab-") {
            found.insert(format!("process {pid} {words}"));
        }
    }
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let namespaces = processes.filter_map(|p| fs::read_link(p.path().join("ns/net")).ok());
    found.extend(namespaces.map(|namespace| format!("network namespace {}", namespace.display())));
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        found.insert(format!("mount {}", line.split(' ').skip(3).collect::<Vec<_>>().join(" ")));
    }
    tree(Path::new("/sys/fs/cgroup/duplex"), "cgroup", true, &mut found);
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) {
            found.insert(format!("loop device of {}", file.trim()));
        }
    }
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    found.extend(interfaces.map(|i| format!("network interface {}", i.file_name().to_string_lossy())));
    // States of proc_net(5): 0A listens, 07 is UDP's only one without a peer.
    for (kind, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        for line in fs::read_to_string(format!("/proc/net/{kind}")).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(3) == Some(&state) {
                found.insert(format!("{kind} socket {}", fields[1]));
            }
        }
    }
    for folder in folders {
        tree(folder, "file", false, &mut found);
    }
    found
}

fn tree(folder: &Path, kind: &str, only_folders: bool, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // A cache: what is in it belongs to no sandbox, and what is not whole has no name.
        if path.ends_with("templates") {
            continue;
        }
        // Only its locks say anything, and they go with who holds them.
        if path.ends_with("users") && entry.metadata().is_ok_and(|found| found.is_file() && found.len() == 0) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_folder {
            tree(&path, kind, only_folders, found);
        }
        if is_folder || !only_folders {
            found.insert(format!("{kind} {}", path.display()));
        }
    }
}

/// Panics with the difference if the inventory does not come back to `before` within 10 s.
pub(crate) fn must_equal(before: &BTreeSet<String>, folders: &[&Path], what: &str) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let after = inventory(folders);
        if after == *before {
            return;
        }
        if Instant::now() > until {
            let left: Vec<_> = after.difference(before).collect();
            let lost: Vec<_> = before.difference(&after).collect();
            panic!("{what}: left behind {left:#?}, gone {lost:#?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
