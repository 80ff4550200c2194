//! A registry for tests that does as it is told, good or bad.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

/// One request as it came.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    /// How many requests for this path came before.
    pub(super) before: usize,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Without a length the body is sent in chunks.
    length: Option<usize>,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes after so many bytes.
    Stall(usize),
    /// One byte comes at a time, with a pause behind each.
    Drip(Duration),
}

impl Reply {
    pub(super) fn new(status: u16, body: &[u8]) -> Self {
        Self { status, headers: Vec::new(), body: body.to_vec(), length: Some(body.len()), end: End::Whole }
    }

    pub(super) fn header(mut self, name: &str, value: &(impl ToString + ?Sized)) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::new(307, b"").header("Location", to)
    }

    /// Claims this length, whatever comes.
    pub(super) fn length(self, length: usize) -> Self {
        Self { length: Some(length), ..self }
    }

    pub(super) fn chunked(self) -> Self {
        Self { length: None, ..self }
    }

    pub(super) fn cut(self, after: usize) -> Self {
        Self { end: End::Cut(after), ..self }
    }

    pub(super) fn stall(self, after: usize) -> Self {
        Self { end: End::Stall(after), ..self }
    }

    pub(super) fn drip(self, pause: Duration) -> Self {
        Self { end: End::Drip(pause), ..self }
    }

    /// The part of the body that the request asks for.
    pub(super) fn ranged(mut self, request: &Request) -> Self {
        let Some(range) = request.headers.get("range") else { return self };
        let from: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
        let total = self.body.len();
        self.body.drain(..from);
        let length = self.body.len();
        Self { status: 206, length: Some(length), ..self }
            .header("Content-Range", &format!("bytes {from}-{}/{total}", total - 1))
    }
}

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

pub(super) struct Fake {
    pub(super) port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(super) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handler: Handler = Arc::new(handler);
        let (log, halt) = (requests.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut serving = Vec::new();
            for stream in listener.incoming() {
                if halt.load(Ordering::Relaxed) {
                    break;
                }
                let (handler, log, halt) = (handler.clone(), log.clone(), halt.clone());
                let serve = move || drop(serve(stream.unwrap(), &handler, &log, &halt));
                serving.push(std::thread::spawn(serve));
            }
            serving.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Self { port, requests, stop, thread: Some(thread) }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|r| r.path.contains(part)).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>, stop: &AtomicBool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let Some(path) = first.split(' ').nth(1).map(str::to_owned) else { return Ok(()) };
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|r| r.path == path).count();
        log.push(Request { path, headers, before });
        log.last().unwrap().clone()
    };
    send(stream, &handler(&request), stop)
}

fn send(mut stream: TcpStream, reply: &Reply, stop: &AtomicBool) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Because\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match reply.length {
        Some(length) => head.push_str(&format!("Content-Length: {length}\r\n\r\n")),
        None => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
    }
    stream.write_all(head.as_bytes())?;
    let most = match reply.end {
        End::Cut(after) | End::Stall(after) => after.min(reply.body.len()),
        End::Whole | End::Drip(_) => reply.body.len(),
    };
    let step = if matches!(reply.end, End::Drip(_)) { 1 } else { 16 << 10 };
    for part in reply.body[..most].chunks(step) {
        if reply.length.is_none() {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes())?;
        }
        stream.write_all(part)?;
        if reply.length.is_none() {
            stream.write_all(b"\r\n")?;
        }
        if let End::Drip(pause) = reply.end {
            sleep(pause);
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
    if reply.length.is_none() && matches!(reply.end, End::Whole) {
        stream.write_all(b"0\r\n\r\n")?;
    }
    while matches!(reply.end, End::Stall(_)) && !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
