//! The guest kernel in the repository is the one its inputs make: `kernels/MANIFEST.json`, written by `kernels/build.sh`, has the hash of
//! every input and of the result, and all of them still agree.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::layers::root;

const KERNEL: &str = "vmlinux-x86_64.xz";
/// Most bytes the repository carries as a kernel.
const KERNEL_LIMIT: u64 = 4 << 20;
const MEND: &str = "run `make kernel` and commit what it writes";

fn kernels() -> PathBuf {
    root().join("kernels")
}

fn manifest() -> Value {
    let text = fs::read_to_string(kernels().join("MANIFEST.json")).expect("kernels/MANIFEST.json can be read");
    serde_json::from_str(&text).expect("kernels/MANIFEST.json is JSON")
}

/// SHA-256 of a file below `kernels/`, in hex; `None` when there is no such file.
fn hash(name: &str) -> Option<String> {
    let bytes = fs::read(kernels().join(name)).ok()?;
    Some(Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect())
}

/// The inputs as they lie in the tree, by the rule of `build.sh`.
fn inputs() -> BTreeMap<String, String> {
    let mut names = vec!["build.sh".to_owned(), "source.pin".to_owned()];
    for (folder, ending) in [("config", ".config"), ("patches", ".patch")] {
        let Ok(entries) = fs::read_dir(kernels().join(folder)) else { continue };
        let files = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.extend(files.filter(|f| f.ends_with(ending)).map(|f| format!("{folder}/{f}")));
    }
    names.into_iter().map(|n| (n.clone(), hash(&n).unwrap_or_default())).collect()
}

/// What differs between the inputs a manifest names and those of the tree, one sentence each.
fn differences(recorded: &BTreeMap<String, String>, present: &BTreeMap<String, String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, hash) in recorded {
        match present.get(name) {
            None => wrong.push(format!("kernels/{name} is gone, but the kernel was built with it")),
            Some(now) if now != hash => wrong.push(format!("kernels/{name} has changed since the kernel was built")),
            Some(_) => {}
        }
    }
    let new = present.keys().filter(|name| !recorded.contains_key(*name));
    wrong.extend(new.map(|name| format!("kernels/{name} is new since the kernel was built")));
    wrong
}

fn recorded(manifest: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(manifest["inputs"].clone()).expect("`inputs` maps names to hashes")
}

#[test]
fn inputs_are_those_of_the_kernel() {
    let wrong = differences(&recorded(&manifest()), &inputs());
    assert!(wrong.is_empty(), "{}: {MEND}", wrong.join("; "));
}

#[test]
fn kernel_is_the_one_of_the_manifest() {
    let manifest = manifest();
    let said = &manifest[KERNEL];
    assert_eq!(said["sha256"].as_str(), hash(KERNEL).as_deref(), "kernels/{KERNEL} is not the manifest's: {MEND}");
    let size = fs::metadata(kernels().join(KERNEL)).unwrap().len();
    assert_eq!(said["size"].as_u64(), Some(size), "kernels/{KERNEL} is not the manifest's: {MEND}");
    assert!(size <= KERNEL_LIMIT, "kernels/{KERNEL} has {size} bytes, at most {KERNEL_LIMIT}");
}

#[test]
fn source_is_the_pinned_one() {
    let manifest = manifest();
    let pin = fs::read_to_string(kernels().join("source.pin")).unwrap();
    for key in ["package", "version", "tarball_sha256"] {
        let line = pin.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        assert_eq!(manifest["source"][key].as_str(), line, "kernels/source.pin, {key}: {MEND}");
    }
}

#[test]
fn a_changed_a_new_and_a_lost_input_are_named() {
    let built = recorded(&manifest());
    let mut now = inputs();
    now.insert("source.pin".to_owned(), "0".repeat(64));
    now.insert("config/95-more.config".to_owned(), "1".repeat(64));
    now.remove("build.sh");
    let wrong = differences(&built, &now).join("\n");
    for part in ["source.pin has changed", "95-more.config is new", "build.sh is gone"] {
        assert!(wrong.contains(part), "{part:?} is not in: {wrong}");
    }
}

/// Every option says why it is there, and none is set twice.
#[test]
fn every_option_has_a_reason() {
    let mut seen = BTreeMap::new();
    for name in inputs().into_keys().filter(|n| n.starts_with("config/")) {
        for line in fs::read_to_string(kernels().join(&name)).unwrap().lines().filter(|l| l.starts_with("CONFIG_")) {
            let (setting, why) = line.split_once(" # ").unwrap_or((line, ""));
            assert!(!why.trim().is_empty(), "kernels/{name}: no reason beside `{line}`");
            let option = setting.split('=').next().unwrap().to_owned();
            let before = seen.insert(option.clone(), name.clone());
            assert!(before.is_none(), "{option} is in kernels/{} and kernels/{name}", before.unwrap_or_default());
        }
    }
    assert!(seen.len() > 100, "only {} options found", seen.len());
}
