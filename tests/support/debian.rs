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
    MADE.get_or_init(|| bootstrapped("debian", &[])).clone()
}

/// A root file system of Debian's packages as a tar file, made once and kept under `target/`. The same packages give the same bytes.
fn bootstrapped(name: &str, options: &[String]) -> PathBuf {
    let folder = root().join("target/test-images");
    let file = folder.join(format!("{name}.tar"));
    if !file.exists() {
        fs::create_dir_all(&folder).unwrap();
        let part = folder.join(format!("{name}.{}.tar", std::process::id()));
        let mut command = Command::new("mmdebstrap");
        command.env("SOURCE_DATE_EPOCH", "1700000000").args(["--quiet", "--variant=essential"]).args(options);
        must(command.arg("bookworm").arg(&part).args(apt_sources()));
        fs::rename(&part, &file).unwrap();
    }
    file
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
        layout_of("debian", "12", &tarball(), &["--config.cmd", "bash", "--config.env", "LANG=C.UTF-8"])
    });
    (folder.clone(), "12")
}

/// An OCI layout of one layer with this configuration, made once.
fn layout_of(name: &str, tag: &str, tarball: &Path, config: &[&str]) -> PathBuf {
    let folder = root().join(format!("target/test-images/{name}-oci"));
    if !folder.join("index.json").exists() {
        let part = root().join(format!("target/test-images/{name}-oci.{}", std::process::id()));
        let image = format!("{}:{tag}", part.display());
        must(Command::new("umoci").args(["init", "--layout"]).arg(&part));
        must(Command::new("umoci").args(["new", "--image", &image]));
        must(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(tarball));
        must(Command::new("umoci").args(["config", "--image", &image]).args(config));
        fs::rename(&part, &folder).unwrap();
    }
    folder
}

/// PostgreSQL 15, nginx, Redis and Flask in one image, from Debian's packages: its reference in the tests' store. Built where there are
/// packages to be had, which the lab has not: there it has to be in the store.
pub(crate) fn programs() -> &'static str {
    static LOADED: OnceLock<()> = OnceLock::new();
    const REFERENCE: &str = "programs-oci:1";
    LOADED.get_or_init(|| {
        if !must(duplex().args(["images", "--format", "json"])).contains("\"repository\": \"programs-oci\"") {
            must(duplex().args(["load", "-q", "-i"]).arg(programs_layout()));
        }
    });
    REFERENCE
}

/// The layout of that image.
pub(crate) fn programs_layout() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = || {
        let tarball = bootstrapped("programs", &program_options());
        layout_of("programs", "1", &tarball, &["--config.env", "LANG=C.UTF-8"])
    };
    MADE.get_or_init(made).clone()
}

/// Without what these programs run well without, and without what is another at every build: PostgreSQL's first cluster, a certificate
/// and the cache of debconf.
fn program_options() -> Vec<String> {
    let left_out = [
        "/usr/share/doc/*",
        "/usr/share/man/*",
        "/usr/share/locale/*",
        "/usr/share/i18n/*",
        "/usr/lib/*/libLLVM*",
        "/usr/lib/*/libz3*",
        "/usr/lib/*/perl/*/CORE/*",
        "/usr/lib/*/perl/*/auto/Encode/*/*",
        "/usr/lib/postgresql/15/lib/bitcode/*",
    ];
    let no_cluster = "mkdir -p \"$1/etc/postgresql-common\" && \
        echo create_main_cluster = false > \"$1/etc/postgresql-common/createcluster.conf\"";
    let no_chance = "rm -f \"$1\"/etc/ssl/private/ssl-cert-snakeoil.key \"$1\"/etc/ssl/certs/ssl-cert-snakeoil.pem \
        \"$1\"/var/cache/debconf/*";
    let mut options: Vec<String> = left_out.iter().map(|path| format!("--dpkgopt=path-exclude={path}")).collect();
    options.push("--include=postgresql-15,nginx-light,redis-server,python3-flask".to_owned());
    options.push(format!("--essential-hook={no_cluster}"));
    options.push(format!("--customize-hook={no_chance}"));
    options
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
