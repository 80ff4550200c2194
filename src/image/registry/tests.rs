use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::decompress::Compression;
use super::super::fixture::{TestImage, image, layer, sha256, small};
use super::fake::{Fake, Reply, Request};
use super::*;
use crate::image::{Added, Event, Progress, PullError, Store};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a well-behaved registry has under `/v2/x/`.
#[derive(Clone, Default)]
struct Shelf {
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Shelf {
    fn of(image: &TestImage) -> Self {
        let mut shelf = Self::default();
        shelf.add("t", MANIFEST, &image.manifest);
        shelf.blobs = image.blobs().into_iter().map(|(digest, bytes)| (digest.to_string(), bytes)).collect();
        shelf
    }

    fn add(&mut self, tag: &str, kind: &str, bytes: &[u8]) {
        let entry = (kind.to_owned(), bytes.to_vec());
        self.manifests.insert(sha256(bytes).to_string(), entry.clone());
        self.manifests.insert(tag.to_owned(), entry);
    }

    fn answer(&self, request: &Request) -> Reply {
        if let Some(name) = request.path.strip_prefix("/v2/x/manifests/")
            && let Some((kind, bytes)) = self.manifests.get(name)
        {
            let reply = Reply::new(200, bytes).header("Content-Type", kind);
            return reply.header("Docker-Content-Digest", &sha256(bytes));
        }
        match request.path.strip_prefix("/v2/x/blobs/").and_then(|digest| self.blobs.get(digest)) {
            Some(bytes) => Reply::new(200, bytes).ranged(request),
            None => Reply::new(404, br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
        }
    }

    fn serve(self) -> Fake {
        Fake::start(move |request| self.answer(request))
    }

    /// Requests whose path contains `part` are answered by `change`, which gets the good answer.
    fn serve_but(self, part: &str, change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Fake {
        let part = part.to_owned();
        Fake::start(move |request| {
            let good = self.answer(request);
            if request.path.contains(&part) { change(request, good) } else { good }
        })
    }
}

struct Bench {
    _folder: tempfile::TempDir,
    store: Store,
    options: RegistryOptions,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    Bench { _folder: folder, store, options: RegistryOptions { stall: Duration::from_secs(10) } }
}

/// One that loses its patience soon.
fn hasty(milliseconds: u64) -> Bench {
    Bench { options: RegistryOptions { stall: Duration::from_millis(milliseconds) }, ..bench() }
}

impl Bench {
    fn pull(&self, fake: &Fake) -> Result<Added, PullError> {
        self.pull_as(&format!("127.0.0.1:{}/x:t", fake.port))
    }

    fn pull_as(&self, text: &str) -> Result<Added, PullError> {
        self.store.pull(&text.parse().unwrap(), &self.options, &())
    }

    /// The pull fails soon, with these words and the registry's name, and leaves nothing.
    fn fails(&self, fake: &Fake, expected: &str) {
        let begin = Instant::now();
        let words = words(&self.pull(fake).unwrap_err());
        assert!(words.contains(expected), "wanted '{expected}' in: {words}");
        assert!(words.contains(&format!("127.0.0.1:{}", fake.port)), "the registry is not named: {words}");
        assert!(begin.elapsed() < Duration::from_secs(6), "took {:?}: {words}", begin.elapsed());
        for folder in ["tmp", "layers", "images", "references"] {
            let left: Vec<_> = fs::read_dir(self.store.root().join(folder)).unwrap().collect();
            assert!(left.is_empty(), "{folder}: {left:?} after {words}");
        }
    }
}

fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Incompressible, so that the packed layer is as long.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8 + 1).flat_map(|_| next()).take(length).collect()
}

fn large() -> (TestImage, String) {
    let big = layer(&[("noise", &noise(600_000))], Compression::Gzip);
    let digest = sha256(&big.packed).to_string();
    (image("large", &[big]), digest)
}

fn entry(kind: &str, bytes: &[u8], platform: &Value) -> Value {
    json!({ "mediaType": kind, "digest": sha256(bytes), "size": bytes.len(), "platform": platform })
}

#[test]
fn an_image_for_this_platform_is_pulled_once() {
    let (ours, other) = (small("ours"), small("other"));
    let mut shelf = Shelf::of(&ours);
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        entry(MANIFEST, &other.manifest, &json!({ "os": "linux", "architecture": "arm64" })),
        entry(MANIFEST, &ours.manifest, &json!({ "os": "linux", "architecture": "amd64" })),
    ]});
    shelf.add("t", INDEX, list.to_string().as_bytes());
    let fake = shelf.serve();
    let bench = bench();
    let added = bench.pull(&fake).unwrap();
    assert_eq!((&added.manifest, added.new), (&ours.digest(), true));
    let found = bench.store.resolve(&added.names[0]).unwrap();
    assert_eq!((found.manifest, found.disk.pieces.len()), (ours.digest(), 3));
    assert!(!bench.pull(&fake).unwrap().new);
    let pinned = format!("127.0.0.1:{}/x@{}", fake.port, sha256(list.to_string().as_bytes()));
    assert_eq!(bench.pull_as(&pinned).unwrap().manifest, ours.digest());
    assert_eq!(bench.store.resolve(&pinned.parse().unwrap()).unwrap().manifest, ours.digest());
    for packed in ours.layers.iter().map(|l| sha256(&l.packed).to_string()) {
        assert_eq!(fake.count(&packed), 1);
    }
    let accept = fake.requests()[0].headers["accept"].clone();
    assert!(accept.contains(INDEX) && accept.contains("docker.distribution.manifest.v2"), "{accept}");
}

#[test]
fn dockers_own_media_types_and_plain_layers_are_taken() {
    let base = layer(&[("etc/base", b"x")], Compression::None);
    let mut image = image("docker", &[base]);
    let text = String::from_utf8(image.manifest).unwrap();
    let text = text
        .replace(MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
        .replace("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
        .replace("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar");
    image.manifest = text.into_bytes();
    let mut shelf = Shelf::of(&image);
    shelf.add("t", "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8", &image.manifest);
    let added = bench().pull(&shelf.serve()).unwrap();
    assert_eq!(added.manifest, image.digest());
}

#[test]
fn progress_is_told_layer_by_layer() {
    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);
    impl Progress for Log {
        fn note(&self, event: Event<'_>) {
            let text = format!("{event:?}");
            self.0.lock().unwrap().push(text.split([' ', '{']).next().unwrap().to_owned());
        }
    }
    let fake = Shelf::of(&small("p")).serve();
    let (bench, log) = (bench(), Log::default());
    let reference = format!("127.0.0.1:{}/x:t", fake.port).parse().unwrap();
    bench.store.pull(&reference, &bench.options, &log).unwrap();
    let count = |name: &str| log.0.lock().unwrap().iter().filter(|e| *e == name).count();
    assert_eq!((count("Found"), count("Begun"), count("Stored"), count("Present")), (1, 2, 2, 0));
    assert!(count("Read") >= 2);
}

#[test]
fn two_pulls_at_once_fetch_each_layer_once() {
    let image = small("twice");
    let shelf = Shelf::of(&image);
    let fake = shelf.serve_but("/blobs/", |_, good| {
        std::thread::sleep(Duration::from_millis(50));
        good
    });
    let bench = bench();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| bench.pull(&fake).unwrap());
        }
    });
    for packed in image.layers.iter().map(|l| sha256(&l.packed).to_string()) {
        assert_eq!(fake.count(&packed), 1);
    }
}

#[test]
fn a_token_is_fetched_and_stays_with_its_registry() {
    let (image, big) = large();
    let shelf = Shelf::of(&image);
    let elsewhere = shelf.clone().serve();
    let target = format!("http://localhost:{}/v2/x/blobs/{big}", elsewhere.port);
    let challenge = |port: u16| {
        let value = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"me\"");
        Reply::new(401, b"").header("WWW-Authenticate", &value)
    };
    let fake = Fake::start(move |request| {
        let port: u16 = request.headers["host"].rsplit(':').next().unwrap().parse().unwrap();
        if request.path.starts_with("/token?service=me&scope=repository%3Ax%3Apull") {
            return Reply::new(200, br#"{"token":"abc"}"#);
        }
        if request.headers.get("authorization").is_none_or(|a| a != "Bearer abc") {
            return challenge(port);
        }
        if request.path.ends_with(&big) { Reply::redirect(&target) } else { shelf.answer(request) }
    });
    bench().pull(&fake).unwrap();
    assert_eq!(fake.count("/token"), 1);
    assert_eq!(elsewhere.requests().len(), 1);
    assert!(!elsewhere.requests()[0].headers.contains_key("authorization"), "the token went to another host");
}

#[test]
fn a_blob_that_breaks_off_is_taken_up_again() {
    let (image, big) = large();
    for ranges in [true, false] {
        for stalls in [true, false] {
            let shelf = Shelf::of(&image);
            let whole = shelf.blobs[&big].clone();
            let fake = shelf.serve_but(&big, move |request, good| {
                let good = if ranges { good } else { Reply::new(200, &whole) };
                match request.before {
                    0 | 1 if stalls => good.stall(100_000),
                    0 | 1 => good.cut(if ranges { 200_000 } else { 100_000 * (1 + request.before) }),
                    _ => good,
                }
            });
            let bench = if stalls { hasty(700) } else { bench() };
            let result = bench.pull(&fake);
            if stalls && !ranges {
                // Without ranges the second answer stalls at the same byte as the first.
                assert!(words(&result.unwrap_err()).contains("stalled"));
                continue;
            }
            result.unwrap_or_else(|e| panic!("ranges {ranges}, stalls {stalls}: {}", words(&e)));
            assert_eq!(fake.count(&big), 3);
        }
    }
}

#[test]
fn a_server_that_fails_once_is_asked_again() {
    let image = small("once");
    for part in ["/manifests/", "/blobs/"] {
        for status in [500, 503] {
            let fake = Shelf::of(&image).serve_but(part, move |request, good| {
                if request.before == 0 { Reply::new(status, b"hiccup") } else { good }
            });
            bench().pull(&fake).unwrap_or_else(|e| panic!("{part} {status}: {}", words(&e)));
        }
    }
}

type Change = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

/// Every way in which an answer can be bad, for every kind of request: which one, the answer, and words of the error.
fn scripts(image: &TestImage, big: &str) -> Vec<(String, Change, &'static str)> {
    let config = sha256(&image.config).to_string();
    let length = Shelf::of(image).blobs[big].len();
    let flip = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    let flipped = flip(&Shelf::of(image).blobs[big]);
    let flipped_config = flip(&image.config);
    let fixed = |reply: Reply| -> Change { Box::new(move |_, _| reply.clone()) };
    let basic = Reply::new(401, b"").header("WWW-Authenticate", "Basic realm=\"x\"");
    let far = Reply::new(401, b"").header("WWW-Authenticate", "Bearer realm=\"http://example.org/token\"");
    let no_url = Reply::new(401, b"").header("WWW-Authenticate", "Bearer realm=\"nothing\"");
    let scripts: Vec<(&str, Change, &'static str)> = vec![
        ("/manifests/", fixed(Reply::new(404, b"{}")), "no manifest x:t (404)"),
        ("/manifests/", fixed(Reply::new(401, b"")), "anonymous users (401)"),
        ("/manifests/", fixed(basic), "anonymous users (401)"),
        ("/manifests/", fixed(far), "its realm is not https"),
        ("/manifests/", fixed(no_url), "its realm is not a URL"),
        ("/manifests/", fixed(Reply::new(403, b"")), "anonymous users (403)"),
        ("/manifests/", fixed(Reply::new(429, b"").header("Retry-After", &60)), "try again after 60 s"),
        ("/manifests/", fixed(Reply::new(500, b"on\nfire")), "answers 500 to the request for manifest x:t: on fire"),
        ("/manifests/", fixed(Reply::new(200, &vec![b' '; 5 << 20])), "longer than 4194304 bytes"),
        ("/manifests/", fixed(Reply::new(200, &vec![b' '; 5 << 20]).chunked()), "longer than 4194304 bytes"),
        ("/manifests/", fixed(Reply::new(200, b"").stall(0).length(100)), "stalled"),
        ("/manifests/", fixed(Reply::new(200, &[b' '; 900]).drip(Duration::from_millis(20))), "stalled"),
        ("/manifests/", Box::new(|_, good| good.cut(40)), "Cannot reach registry"),
        ("/manifests/", Box::new(|r, _| Reply::redirect(&r.path)), "Cannot reach registry"),
        ("/manifests/", Box::new(|r, _| Reply::redirect(&format!("{}x", r.path))), "too many redirects"),
        ("/manifests/", fixed(Reply::redirect("file:///etc/passwd")), "127.0.0.1"),
        ("/manifests/", fixed(Reply::new(200, b"<html>log in</html>")), "specification"),
        (&config, fixed(Reply::new(404, b"")), "(404)"),
        (&config, fixed(Reply::new(200, &flipped_config)), "Wrong digest of config"),
        (&config, fixed(Reply::new(200, b"{}")), "announces 2 bytes"),
        (&config, Box::new(|_, good| good.stall(10)), "stalled"),
        (big, fixed(Reply::new(404, b"")), "(404)"),
        (big, fixed(Reply::new(416, b"no such range")), "answers 416"),
        (big, fixed(Reply::new(200, &flipped)), "Wrong digest of layer"),
        (big, fixed(Reply::new(200, &flipped).chunked()), "Wrong digest of layer"),
        (big, fixed(Reply::new(200, &vec![7; length])), "Wrong digest of layer"),
        (big, fixed(Reply::new(200, &vec![7; length - 1])), "announces"),
        (big, fixed(Reply::new(200, &vec![7; length + 1]).chunked()), "longer than"),
        (big, fixed(Reply::new(200, &flipped[..1000]).chunked()), "short"),
        (big, Box::new(|_, good| good.cut(1000)), "short"),
        (big, Box::new(|_, good| good.stall(0)), "stalled"),
        (big, Box::new(|_, good| good.stall(1000)), "stalled"),
        (big, Box::new(|_, good| good.drip(Duration::from_millis(20))), "stalled"),
        (big, Box::new(|r, _| Reply::redirect(&format!("{}x", r.path))), "too many redirects"),
        (big, fixed(Reply::redirect("http://127.0.0.1:1/")), "Cannot reach registry"),
        (big, fixed(Reply::new(206, b"abc").header("Content-Range", "bytes 9-11/12")), "short"),
        (big, fixed(Reply::new(206, b"abc").header("Content-Range", "nonsense")), "short"),
        (big, fixed(Reply::new(204, b"")), "announces 0 bytes"),
    ];
    scripts.into_iter().map(|(part, change, expected)| (part.to_owned(), change, expected)).collect()
}

#[test]
fn whatever_a_registry_does_wrong_is_told_and_leaves_nothing() {
    let (image, big) = large();
    for (part, change, expected) in scripts(&image, &big) {
        eprintln!("{part}: {expected}");
        let fake = Shelf::of(&image).serve_but(&part, move |request, good| change(request, good));
        let bench = if expected == "stalled" { hasty(300) } else { bench() };
        let begin = Instant::now();
        let error = words(&bench.pull(&fake).unwrap_err());
        if error.contains("Wrong digest") || error.contains("longer than the") || error.contains("specification") {
            assert!(error.contains(expected), "wanted '{expected}' in: {error}");
            assert!(error.contains(&fake.port.to_string()) && begin.elapsed() < Duration::from_secs(6));
            assert_eq!(fs::read_dir(bench.store.root().join("tmp")).unwrap().count(), 0);
            continue;
        }
        bench.fails(&fake, expected);
    }
}

#[test]
fn manifests_that_lie_are_refused() {
    let image = small("lie");
    let other = small("other");
    let shelf = Shelf::of(&image);
    let wrong = sha256(b"something else");
    let lying_header = shelf
        .clone()
        .serve_but("/manifests/", move |_, _| Reply::new(200, b"{}").header("Docker-Content-Digest", &wrong));
    bench().fails(&lying_header, "Wrong digest of manifest t");
    let manifest = other.manifest.clone();
    let swapped = shelf.clone().serve_but("/manifests/", move |_, _| Reply::new(200, &manifest));
    let bench = bench();
    let pinned = format!("127.0.0.1:{}/x@{}", swapped.port, image.digest());
    let words = words(&bench.pull_as(&pinned).unwrap_err());
    assert!(words.contains("Wrong digest") && words.contains(image.digest().hex()), "{words}");
    assert!(words.contains(other.digest().hex()), "{words}");
}

#[test]
fn indexes_without_end_or_without_us_are_refused() {
    let image = small("deep");
    let amd = json!({ "os": "linux", "architecture": "amd64" });
    let mut shelf = Shelf::of(&image);
    let mut inner = image.manifest.clone();
    let mut kind = MANIFEST;
    for depth in 1..6 {
        inner = json!({ "schemaVersion": 2, "manifests": [entry(kind, &inner, &amd)] }).to_string().into_bytes();
        kind = INDEX;
        shelf.add(&format!("t{depth}"), INDEX, &inner);
    }
    let arm = json!({ "os": "linux", "architecture": "arm64" });
    let list = json!({ "schemaVersion": 2, "manifests": [entry(MANIFEST, &image.manifest, &arm)] }).to_string();
    shelf.add("arm", INDEX, list.as_bytes());
    let fake = shelf.serve();
    let (bench, name) = (bench(), |tag: &str| format!("127.0.0.1:{}/x:{tag}", fake.port));
    assert!(bench.pull_as(&name("t1")).is_ok() && bench.pull_as(&name("t3")).is_ok());
    assert!(words(&bench.pull_as(&name("t5")).unwrap_err()).contains("behind"));
    assert!(words(&bench.pull_as(&name("arm")).unwrap_err()).contains("it has: linux/arm64"));
}

#[test]
fn layers_come_from_the_registry_only() {
    let image = small("urls");
    let elsewhere = Fake::start(|_| Reply::new(200, b"payload"));
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["layers"][0]["urls"] = json!([format!("http://127.0.0.1:{}/layer", elsewhere.port)]);
    let mut shelf = Shelf::of(&image);
    shelf.add("t", MANIFEST, manifest.to_string().as_bytes());
    shelf.blobs.remove(&sha256(&image.layers[0].packed).to_string());
    bench().fails(&shelf.clone().serve(), "(404)");
    manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    shelf.add("t", MANIFEST, manifest.to_string().as_bytes());
    let words = words(&bench().pull(&shelf.serve()).unwrap_err());
    assert!(words.contains("foreign layer"), "{words}");
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn a_bomb_in_a_layer_is_stopped_by_its_limit() {
    let zeros = vec![0u8; 1 << 20];
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(4 << 30);
    header.set_path("zeros").unwrap();
    header.set_cksum();
    std::io::Write::write_all(&mut encoder, header.as_bytes()).unwrap();
    for _ in 0..300 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let bomb = super::super::fixture::Layer {
        tar: b"never unpacked".to_vec(),
        packed: encoder.finish().unwrap(),
        compression: Compression::Zstd,
    };
    assert!(bomb.packed.len() < 50_000);
    let fake = Shelf::of(&image("bomb", &[bomb])).serve();
    let bench = bench();
    let words = words(&bench.pull(&fake).unwrap_err());
    assert!(words.contains("limit ratio"), "{words}");
    assert_eq!(fs::read_dir(bench.store.root().join("layers")).unwrap().count(), 0);
}

#[test]
fn what_is_no_registry_is_told_so() {
    let bench = bench();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = words(&bench.pull_as(&format!("127.0.0.1:{closed}/x")).unwrap_err());
    assert!(error.contains("Cannot reach registry 127.0.0.1") && error.contains("refused"), "{error}");
    assert!(words(&bench.pull_as(&"0".repeat(64)).unwrap_err()).contains("image id"));
    assert!(words(&bench.pull_as("workloads").unwrap_err()).contains("part of Duplex"));
}

#[test]
fn plain_http_is_for_loopback_only() {
    for (name, loopback) in [
        ("localhost", true),
        ("localhost:5000", true),
        ("127.0.0.1:5000", true),
        ("127.9.9.9", true),
        ("[::1]:5000", true),
        ("128.0.0.1", false),
        ("localhost.example.org", false),
        ("127.0.0.1.example.org:80", false),
        ("[::2]:5000", false),
        ("docker.io", false),
    ] {
        assert_eq!(client::is_loopback(name), loopback, "{name}");
    }
}
