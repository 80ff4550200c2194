//! A Debian root file system that nobody here wrote, as an OCI image, in Debian's own registry, pulled by Duplex.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `duplex` as `make build` leaves it, with a store of the tests' own.
pub(crate) fn duplex() -> Command {
    let mut command = Command::new(root().join("target/duplex/duplex"));
    command.env("DUPLEX_ROOT", root().join("target/test-store"));
    command
}

/// Runs it to its end; panics with all it said if it fails.
pub(crate) fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// `mmdebstrap --variant=essential`, made once and kept under `target/`.
pub(crate) fn tarball() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = root().join("target/test-images");
        let file = folder.join("debian.tar");
        if !file.exists() {
            fs::create_dir_all(&folder).unwrap();
            let part = folder.join(format!("debian.{}.tar", std::process::id()));
            must(
                Command::new("mmdebstrap")
                    .arg("--quiet")
                    .arg("--variant=essential")
                    .arg("bookworm")
                    .arg(&part)
                    .args(apt_sources()),
            );
            fs::rename(&part, &file).unwrap();
        }
        file
    })
    .clone()
}

/// Where this machine gets its packages from.
fn apt_sources() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("debian")))
        .filter(|p| p.extension().is_some_and(|e| e == "sources" || e == "list"))
        .collect();
    let list = PathBuf::from("/etc/apt/sources.list");
    if list.exists() {
        found.push(list);
    }
    found
}

/// An OCI layout of the tarball, made by umoci: folder and tag.
pub(crate) fn layout() -> (PathBuf, &'static str) {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = root().join("target/test-images/debian-oci");
        if !folder.join("index.json").exists() {
            let part = root().join(format!("target/test-images/debian-oci.{}", std::process::id()));
            let image = format!("{}:12", part.display());
            must(Command::new("umoci").args(["init", "--layout"]).arg(&part));
            must(Command::new("umoci").args(["new", "--image", &image]));
            must(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(tarball()));
            must(Command::new("umoci").args([
                "config",
                "--image",
                &image,
                "--config.cmd",
                "bash",
                "--config.env",
                "LANG=C.UTF-8",
            ]));
            fs::rename(&part, &folder).unwrap();
        }
        folder
    });
    (folder.clone(), "12")
}

/// Debian's `docker-registry` on a free port of the loopback.
pub(crate) struct Registry {
    process: Child,
    /// Where it listens.
    pub(crate) port: u16,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// Starts it and waits until it listens.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            folder.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry starts");
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "docker-registry does not listen on port {port}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { process, port, _folder: folder }
    }

    /// Puts the layout's image there under this name.
    pub(crate) fn push(&self, name: &str) {
        let (folder, tag) = layout();
        must(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--dest-tls-verify=false"])
                .arg(format!("oci:{}:{tag}", folder.display()))
                .arg(format!("docker://127.0.0.1:{}/{name}", self.port)),
        );
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reference of the Debian image in the tests' store, pulled there from a registry.
pub(crate) fn pulled() -> &'static str {
    static PULLED: OnceLock<String> = OnceLock::new();
    PULLED.get_or_init(|| {
        let registry = Registry::start();
        registry.push("debian:12");
        let reference = format!("127.0.0.1:{}/debian:12", registry.port);
        must(duplex().args(["pull", &reference]));
        reference
    })
}
