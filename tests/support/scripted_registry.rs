//! A registry that serves an image as it should, except where a script says otherwise: bytes on a socket, nothing of an HTTP library.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tarball::Tarball;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Manifest,
    Config,
    Layer,
    Other,
}

/// One request, and what a good registry would say to it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) part: Part,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// Requests for this path that came before.
    pub(crate) before: usize,
    /// This registry, and another server that serves the same on 127.0.0.2.
    pub(crate) port: u16,
    pub(crate) elsewhere: u16,
    pub(crate) kind: String,
    pub(crate) body: Vec<u8>,
}

/// What is done on the connection, one after the other. It is closed at the end.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// The same bytes, so many times.
    Repeat(Vec<u8>, u64),
    /// One byte at a time, with a pause behind each.
    Drip(Vec<u8>, Duration),
    /// Silence until the client goes.
    Hold,
}

/// What is served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf {
    /// Media type and bytes, by tag and by digest.
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) config: String,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer: 40 kB that do not pack, so that it can be cut in the middle.
pub(crate) fn layer_tar() -> Vec<u8> {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(make_layer).clone()
}

fn make_layer() -> Vec<u8> {
    let noise: Vec<u8> = (0..10_000_u32).flat_map(|n| Sha256::digest(n.to_le_bytes())[..4].to_vec()).collect();
    Tarball::default().dir("etc").file("etc/mark", b"good").file("noise", &noise).end()
}

pub(crate) fn config(diff_ids: &[String]) -> Value {
    json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/hello"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

pub(crate) fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": sha256(bytes), "size": bytes.len() })
}

impl Shelf {
    /// An image of these layers: the tar and how it is packed.
    pub(crate) fn of(layers: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| sha256(tar)).collect();
        Self::made(&config(&diff_ids), &layers.iter().map(|(_, packed)| packed.clone()).collect::<Vec<_>>(), |_| {})
    }

    /// The good image.
    pub(crate) fn good() -> Self {
        let tar = layer_tar();
        let packed = gzip(&tar);
        Self::of(&[(tar, packed)])
    }

    /// The good image with another config, or another manifest.
    pub(crate) fn bad(change_config: impl FnOnce(&mut Value), change: impl FnOnce(&mut Value)) -> Self {
        let tar = layer_tar();
        let mut config = config(&[sha256(&tar)]);
        change_config(&mut config);
        Self::made(&config, &[gzip(&tar)], change)
    }

    pub(crate) fn made(config: &Value, layers: &[Vec<u8>], change: impl FnOnce(&mut Value)) -> Self {
        Self::raw(config.to_string().into_bytes(), layers, change)
    }

    /// The same with a config of any bytes.
    pub(crate) fn raw(config: Vec<u8>, layers: &[Vec<u8>], change: impl FnOnce(&mut Value)) -> Self {
        let described: Vec<Value> = layers.iter().map(|bytes| descriptor(LAYER, bytes)).collect();
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": described,
        });
        change(&mut manifest);
        let mut shelf = Self { config: sha256(&config), ..Self::default() };
        shelf.put(MANIFEST, manifest.to_string().as_bytes());
        shelf.blobs.extend(layers.iter().map(|bytes| (sha256(bytes), bytes.clone())));
        shelf.blobs.insert(sha256(&config), config);
        shelf
    }

    /// Makes this document the one that is pulled.
    pub(crate) fn put(&mut self, kind: &str, bytes: &[u8]) -> &mut Self {
        let entry = (kind.to_owned(), bytes.to_vec());
        self.manifests.insert(sha256(bytes), entry.clone());
        self.manifests.insert("t".to_owned(), entry);
        self
    }

    /// The document that is pulled.
    pub(crate) fn document(&self) -> &[u8] {
        &self.manifests["t"].1
    }

    fn find(&self, path: &str) -> (Part, Option<(String, Vec<u8>)>) {
        let path = path.split('?').next().unwrap_or_default();
        if let Some(name) = path.strip_prefix("/v2/x/manifests/") {
            return (Part::Manifest, self.manifests.get(name).cloned());
        }
        let digest = path.strip_prefix("/v2/x/blobs/").unwrap_or_default();
        let part = match digest {
            "" => Part::Other,
            _ if digest == self.config => Part::Config,
            _ => Part::Layer,
        };
        (part, self.blobs.get(digest).map(|bytes| ("application/octet-stream".to_owned(), bytes.clone())))
    }
}

/// A whole answer.
pub(crate) fn reply(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// The answer of a good registry.
pub(crate) fn good(ask: &Ask) -> Vec<u8> {
    if ask.body.is_empty() && ask.kind.is_empty() {
        return reply("404 Not Found", &[], br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
    }
    let range = ask.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match range {
        Some(from) if from < ask.body.len() => {
            let all = ask.body.len();
            let part = format!("bytes {from}-{}/{all}", all - 1);
            reply("206 Partial Content", &[("Content-Range", &part)], &ask.body[from..])
        }
        _ => reply("200 OK", &[("Content-Type", &ask.kind)], &ask.body),
    }
}

pub(crate) type Act = Arc<dyn Fn(&Ask) -> Option<Vec<Step>> + Send + Sync>;

/// A server that runs; dropping it ends it.
pub(crate) struct Server {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Ask>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(address: &str, elsewhere: u16, shelf: Shelf, act: Act) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let serving = Arc::new(Serving { shelf, act, port, elsewhere, asked: asked.clone(), stop: stop.clone() });
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::Relaxed) {
                    break;
                }
                let serving = serving.clone();
                // A client that goes away in the middle is what most scripts lead to.
                threads.push(std::thread::spawn(move || drop(serving.one(stream.unwrap()))));
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Self { port, asked, stop, thread: Some(thread) }
    }

    pub(crate) fn asked(&self) -> Vec<Ask> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for address in ["127.0.0.1", "127.0.0.2"] {
            let _ = TcpStream::connect((address, self.port));
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Serving {
    shelf: Shelf,
    act: Act,
    port: u16,
    elsewhere: u16,
    asked: Arc<Mutex<Vec<Ask>>>,
    stop: Arc<AtomicBool>,
}

impl Serving {
    fn one(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let Some(path) = first.split(' ').nth(1).map(str::to_owned) else { return Ok(()) };
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let (part, found) = self.shelf.find(&path);
        let (kind, body) = found.unwrap_or_default();
        let (port, elsewhere) = (self.port, self.elsewhere);
        let ask = {
            let mut asked = self.asked.lock().unwrap();
            let before = asked.iter().filter(|a| a.path == path).count();
            asked.push(Ask { part, path, headers, before, port, elsewhere, kind, body });
            asked.last().unwrap().clone()
        };
        let steps = (self.act)(&ask).unwrap_or_else(|| vec![Step::Send(good(&ask))]);
        steps.iter().try_for_each(|step| self.step(&mut stream, step))?;
        // A connection that is closed with bytes unread is reset, and takes what was sent along.
        stream.shutdown(std::net::Shutdown::Write)
    }

    fn step(&self, stream: &mut TcpStream, step: &Step) -> std::io::Result<()> {
        match step {
            Step::Send(bytes) => stream.write_all(bytes),
            Step::Repeat(bytes, times) => (0..*times).try_for_each(|_| self.unless_stopped(stream, bytes)),
            Step::Drip(bytes, pause) => bytes.chunks(1).try_for_each(|byte| {
                sleep(*pause);
                self.unless_stopped(stream, byte)
            }),
            Step::Hold => {
                stream.set_read_timeout(Some(Duration::from_millis(20)))?;
                let waits = |e: &std::io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                while !self.stop.load(Ordering::Relaxed)
                    && stream.read(&mut [0]).map_or_else(|e| waits(&e), |count| count > 0)
                {}
                Ok(())
            }
        }
    }

    fn unless_stopped(&self, stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        stream.write_all(bytes)
    }
}
