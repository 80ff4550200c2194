//! Images as other tools write them: umoci's layouts, skopeo's archives, Debian's `docker-registry`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duplex::image::{Image, Reference, RegistryOptions, Store};

use crate::debian::{Registry, duplex, layout, must};
use crate::runner::{Case, Need, Skip, Verdict};

const NEEDS: &[Need] = &[
    Need::Outside,
    Need::Root,
    Need::Program("mmdebstrap"),
    Need::Program("umoci"),
    Need::Program("skopeo"),
    Need::Program("docker-registry"),
];

const HTTPS: &[Need] =
    &[Need::Outside, Need::Program("openssl"), Need::Program("docker-registry"), Need::Program("hostname")];

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[Case] = &[
            $(Case { name: concat!("registry::", stringify!($name)), needs: NEEDS, run: || { $name(); Verdict::Ok(()) } },)*
            Case { name: "registry::https_asks_for_a_certificate_that_this_host_trusts", needs: HTTPS, run: https },
        ];
    };
}

cases![
    every_form_that_skopeo_pushes_is_one_layer_here,
    archives_of_skopeo_are_the_same_image,
    two_images_of_one_layer_share_its_bytes_on_disk,
    a_full_disk_is_told_and_leaves_room,
];

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir_in(crate::debian::root().join("target")).unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn source() -> String {
    let (folder, tag) = layout();
    format!("oci:{}:{tag}", folder.display())
}

fn skopeo_copy(from: &str, to: &str, options: &[&str]) {
    must(Command::new("skopeo").args(["copy", "--quiet", "--dest-tls-verify=false"]).args(options).args([from, to]));
}

fn pull(store: &Store, name: &str) -> Image {
    let reference: Reference = name.parse().unwrap();
    store.pull(&reference, &RegistryOptions::default(), &()).unwrap_or_else(|e| panic!("{name}: {}", words(&e)));
    store.resolve(&reference).unwrap()
}

fn words(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn count(store: &Store, part: &str) -> usize {
    fs::read_dir(store.root().join(part)).unwrap().count()
}

fn du(folder: &Path) -> u64 {
    let text = must(Command::new("du").args(["-s", "-B1"]).arg(folder));
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn every_form_that_skopeo_pushes_is_one_layer_here() {
    let registry = Registry::start();
    let (folder, store) = store();
    let zstd = format!("dir:{}", folder.path().join("zstd").display());
    let plain = format!("dir:{}", folder.path().join("plain").display());
    skopeo_copy(&source(), &plain, &["--dest-decompress"]);
    skopeo_copy(&plain, &zstd, &["--dest-compress", "--dest-compress-format", "zstd"]);
    let forms: [(&str, &str, &[&str]); 4] = [
        ("oci", &source(), &[]),
        ("docker", &source(), &["--format", "v2s2"]),
        ("zstd", &zstd, &[]),
        ("gzip", &plain, &[]),
    ];
    for (form, from, options) in forms {
        let name = format!("127.0.0.1:{}/debian:{form}", registry.port);
        skopeo_copy(from, &format!("docker://{name}"), options);
        let image = pull(&store, &name);
        let digest = must(
            Command::new("skopeo")
                .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
                .arg(format!("docker://{name}")),
        );
        assert_eq!(image.manifest.to_string(), digest.trim(), "{form}");
        assert_eq!(image.config.cmd, ["bash"], "{form}");
        assert!(image.config.env.contains(&"LANG=C.UTF-8".to_owned()), "{form}: {:?}", image.config.env);
    }
    assert_eq!(count(&store, "layers"), 1, "one layer, however it is packed");
    for line in store.images().unwrap() {
        store.remove(line.reference.as_ref().unwrap(), &BTreeSet::new()).unwrap();
    }
    for part in ["tmp", "layers", "images", "references"] {
        assert_eq!(count(&store, part), 0, "{part}");
    }
}

fn archives_of_skopeo_are_the_same_image() {
    let (folder, store) = store();
    let (layout, _) = layout();
    let from_layout = store.load(&layout, &()).unwrap();
    let mut manifests = vec![from_layout[0].manifest.clone()];
    for kind in ["oci-archive", "docker-archive"] {
        let file = folder.path().join(format!("{kind}.tar"));
        skopeo_copy(&source(), &format!("{kind}:{}:example.org/debian:{kind}", file.display()), &[]);
        let added = store.load(&file, &()).unwrap_or_else(|e| panic!("{}", words(&e)));
        assert_eq!(added[0].names[0].to_string(), format!("example.org/debian:{kind}"));
        let mut packed = Command::new("zstd").arg("-1cq").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
        let again = store.load_stream("standard input", packed.stdout.as_mut().unwrap(), &()).unwrap();
        assert!(packed.wait().unwrap().success());
        assert_eq!((again[0].new, &again[0].manifest), (false, &added[0].manifest));
        manifests.push(added[0].manifest.clone());
        fs::remove_file(file).unwrap();
    }
    assert_eq!(manifests[0], manifests[1], "an OCI archive has the layout's manifest");
    assert_eq!(count(&store, "layers"), 1);
    assert_eq!(count(&store, "tmp"), 0);
}

/// A second image: the first with another config.
fn relabelled(folder: &Path) -> PathBuf {
    let (layout, tag) = layout();
    let copy = folder.join("relabelled");
    must(Command::new("cp").arg("-a").arg(layout).arg(&copy));
    let image = format!("{}:{tag}", copy.display());
    must(Command::new("umoci").args(["config", "--image", &image, "--config.label", "other=yes"]));
    copy
}

fn two_images_of_one_layer_share_its_bytes_on_disk() {
    let (folder, store) = store();
    let other = tempfile::tempdir_in(folder.path()).unwrap();
    let one = store.load(&layout().0, &()).unwrap();
    let before = du(&store.root().join("layers"));
    let two = store.load(&relabelled(other.path()), &()).unwrap();
    assert_ne!(one[0].manifest, two[0].manifest);
    assert_eq!(du(&store.root().join("layers")), before, "the second image added no layer");
    let [a, b] = [&one[0], &two[0]].map(|added| store.resolve(&added.manifest.to_string().parse().unwrap()).unwrap());
    let whole = du(&store.root().join("layers")) + du(&store.root().join("images"));
    let separate = store.bytes_on_disk(&a) + store.bytes_on_disk(&b);
    assert!(whole < separate * 6 / 10, "{whole} bytes for both, {separate} counted one by one");
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(folder: &Path, mebibytes: u32) -> Self {
        let options = format!("size={mebibytes}m");
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder));
        Self(folder.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn a_full_disk_is_told_and_leaves_room() {
    let folder = tempfile::tempdir().unwrap();
    let _tmpfs = Tmpfs::mount(folder.path(), 24);
    let store = Store::open(folder.path()).unwrap();
    let error = words(&store.load(&layout().0, &()).unwrap_err());
    for part in [folder.path().to_str().unwrap(), "is full", "MiB", "duplex rmi"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    for part in ["tmp", "layers", "images", "references"] {
        assert_eq!(count(&store, part), 0, "{part}");
    }
    // Filled by others to the last byte: the error is the same, and again nothing is left.
    let _ =
        Command::new("dd").args(["if=/dev/zero", "bs=1M"]).arg(format!("of={}/fill", folder.path().display())).output();
    let error = words(&store.load(&layout().0, &()).unwrap_err());
    assert!(error.contains("is full"), "{error}");
    assert_eq!(count(&store, "tmp"), 0);
}

/// An address of this machine other than loopback's: only there https is spoken.
fn own_address() -> Option<String> {
    let output = Command::new("hostname").arg("-I").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().find(|a| a.contains('.')).map(str::to_owned)
}

fn openssl(folder: &Path, arguments: &str) {
    must(Command::new("openssl").current_dir(folder).args(arguments.split(' ')));
}

/// An authority, and a certificate from it for this address.
fn certificates(folder: &Path, address: &str) {
    openssl(folder, "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=authority");
    openssl(folder, "req -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.csr -subj /CN=registry");
    let extensions = format!("subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n");
    fs::write(folder.join("leaf.ext"), extensions).unwrap();
    openssl(
        folder,
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
    );
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn https() -> Verdict {
    let Some(address) = own_address() else { return Err(Skip("this machine has no address but loopback".to_owned())) };
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), &address);
    let port = TcpListener::bind((address.as_str(), 0)).unwrap().local_addr().unwrap().port();
    let [data, certificate, key] =
        ["data", "leaf.pem", "leaf.key"].map(|f| folder.path().join(f).display().to_string());
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\nhttp: {{addr: \"{address}:{port}\", tls: {{certificate: {certificate}, key: {key}}}}}\n"
    );
    fs::write(folder.path().join("config.yml"), config).unwrap();
    let mut serve = Command::new("docker-registry");
    serve.arg("serve").arg(folder.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Server(serve.spawn().unwrap());
    let until = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect((address.as_str(), port)).is_err() {
        assert!(Instant::now() < until, "docker-registry does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    // The registry is empty: to be told so is to have spoken with it.
    for (roots, expected) in
        [("ca.pem", "(404)"), ("leaf.csr", "ca-certificates"), ("/etc/ssl/certs/none", "ca-certificates")]
    {
        let mut pull = duplex();
        pull.arg("pull").arg(format!("{address}:{port}/x"));
        pull.env("SSL_CERT_FILE", folder.path().join(roots)).env("SSL_CERT_DIR", folder.path().join("data"));
        let output = pull.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains(expected), "{roots}: {words}");
    }
    let other = tempfile::tempdir().unwrap();
    certificates(other.path(), &address);
    let mut pull = duplex();
    pull.arg("pull").arg(format!("{address}:{port}/x")).env("SSL_CERT_FILE", other.path().join("ca.pem"));
    let words = String::from_utf8_lossy(&pull.output().unwrap().stderr).into_owned();
    assert!(words.contains("certificate"), "{words}");
    Ok(())
}
