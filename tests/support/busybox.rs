//! A busybox as an image: this machine's static one, with a shell and what scripts of tests use.

use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::tarball::{Header, Tarball};

/// What it is made of.
pub(crate) const BUSYBOX: &str = "/usr/bin/busybox";

const APPLETS: &[&str] =
    &["sh", "cat", "dd", "echo", "grep", "head", "id", "ls", "rm", "sleep", "stat", "sync", "touch", "true", "false"];

/// A docker-archive of an image of this name, with this in its config.
pub(crate) fn archive(name: &str, process: &Value) -> Vec<u8> {
    let mut layer = Tarball::default();
    for folder in ["bin/", "etc/", "srv/", "tmp/"] {
        layer.dir(folder);
    }
    let program = fs::read(BUSYBOX).unwrap();
    let mut header = Header::new(b'0', b"bin/busybox", program.len() as u64);
    layer.entry(header.octal(100, 8, 0o755), &program);
    for applet in APPLETS {
        layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    packed(name, process, &layer.end())
}

/// A docker-archive of an image of this name, with this in its config and this only layer.
pub(crate) fn packed(name: &str, process: &Value, layer: &[u8]) -> Vec<u8> {
    let digest: String = Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": process,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = Tarball::default();
    archive.file("layer.tar", layer);
    archive.file("config.json", &serde_json::to_vec(&config).unwrap());
    archive.file("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    archive.end()
}
