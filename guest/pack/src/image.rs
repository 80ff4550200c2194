//! The embedded image: the workloads program as an OCI image in an archive (image-spec, "Image Layout").

use std::io;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::archive::Archive;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Accounts of the image: root, one ordinary user with a second group, and nobody.
const PASSWD: &str = "root:x:0:0:root:/:/workloads\nguest:x:1000:1000:guest:/home/guest:/workloads\nnobody:x:65534:65534:nobody:/:/workloads\n";
const GROUP: &str = "root:x:0:\nguest:x:1000:\nplugdev:x:46:guest\nnogroup:x:65534:\n";

/// The OCI archive with this program as `/workloads`, its entry point.
pub(crate) fn workloads(program: &[u8]) -> io::Result<Vec<u8>> {
    let layer = layer(program)?;
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/workloads"],
            "Cmd": ["hello"],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "duplex-pack workloads"}],
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "workloads:latest"});
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});

    let mut archive = Archive::new();
    archive.file("oci-layout", 0o644, 0, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.file("index.json", 0o644, 0, index.to_string().as_bytes())?;
    archive.folder("blobs", 0o755, 0)?;
    archive.folder("blobs/sha256", 0o755, 0)?;
    for blob in [&manifest, &config, &layer] {
        archive.file(&format!("blobs/sha256/{}", hex(blob)), 0o644, 0, blob)?;
    }
    archive.finish()
}

fn layer(program: &[u8]) -> io::Result<Vec<u8>> {
    let mut layer = Archive::new();
    layer.folder("etc", 0o755, 0)?;
    layer.file("etc/group", 0o644, 0, GROUP.as_bytes())?;
    layer.file("etc/passwd", 0o644, 0, PASSWD.as_bytes())?;
    layer.folder("home", 0o755, 0)?;
    layer.folder("home/guest", 0o755, 1000)?;
    layer.folder("tmp", 0o1777, 0)?;
    layer.file("workloads", 0o755, 0, program)?;
    layer.finish()
}

fn hex(blob: &[u8]) -> String {
    Sha256::digest(blob).iter().map(|b| format!("{b:02x}")).collect()
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(blob))
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn every_digest_leads_to_its_blob() {
        let archive = workloads(b"program").unwrap();
        assert_eq!(archive, workloads(b"program").unwrap());
        let files = files(&archive);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let content = &files[&format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())];
            assert_eq!(super::digest(content), digest);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&layer));
        assert_eq!(super::tests::files(&layer)["workloads"], b"program");
    }
}
