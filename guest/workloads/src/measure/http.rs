//! A server and a client of HTTP/1.1 (RFC 9112) over loopback, as much of it as they need for each other: messages whose length is said
//! beforehand, on connections that are kept for some requests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Measured, Outcome, joined, next, pattern, serve};

/// Connections, one after the other, and requests on each.
const CONNECTIONS: u64 = 20;
const REQUESTS: u64 = 25;
/// Items that the server knows: their sizes are all up to `LARGEST` bytes.
const ITEMS: u64 = 64;
const LARGEST: u64 = 8192;
/// Longest start and headers of a message, and longest body, in bytes.
const MOST_HEAD: u64 = 4096;
const MOST_BODY: u64 = 1 << 20;

/// A request or an answer.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    /// The first line, without its end.
    start: String,
    /// Nothing follows on this connection.
    last: bool,
    body: Vec<u8>,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The next message; `None` when the other end has closed the connection between two.
fn receive(from: &mut impl BufRead) -> io::Result<Option<Message>> {
    let mut head = from.by_ref().take(MOST_HEAD);
    let Some(start) = line(&mut head)? else { return Ok(None) };
    let (mut length, mut last) = (None, false);
    loop {
        let header = line(&mut head)?.ok_or_else(|| wrong("a message ends among its headers"))?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').ok_or_else(|| wrong("a header without a colon"))?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<u64>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            last = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let length = length.filter(|n| *n <= MOST_BODY).ok_or_else(|| wrong("a message without a length"))?;
    let mut body = Vec::new();
    from.by_ref().take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        return Err(wrong("a message ends in its body"));
    }
    Ok(Some(Message { start, last, body }))
}

/// A line without its end; `None` where there is nothing more.
fn line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    if from.read_line(&mut text)? == 0 {
        return Ok(None);
    }
    let text = text.strip_suffix("\r\n").ok_or_else(|| wrong("a line without its end"))?;
    Ok(Some(text.to_owned()))
}

/// In one piece, as servers and clients send what is small.
fn send(to: &mut impl Write, message: &Message) -> io::Result<()> {
    let last = if message.last { "Connection: close\r\n" } else { "" };
    let head = format!("{}\r\nHost: localhost\r\n{last}Content-Length: {}\r\n\r\n", message.start, message.body.len());
    to.write_all(&[head.as_bytes(), &message.body].concat())
}

/// What the server says to a request: items are had by number, and of what is posted it says how much that was.
fn answer(request: &Message, item: &[u8]) -> Message {
    let known = |number: &u64| *number < ITEMS;
    let (status, body) = match request.start.split(' ').collect::<Vec<_>>()[..] {
        ["GET", path, "HTTP/1.1"] => {
            let number = path.strip_prefix("/items/").and_then(|text| text.parse().ok()).filter(known);
            number.map_or(("404 Not Found", b"no such item\n".to_vec()), |number| {
                let size = usize::try_from(LARGEST * (number + 1) / ITEMS).unwrap_or_default();
                ("200 OK", item.get(..size).unwrap_or_default().to_vec())
            })
        }
        ["POST", "/items", "HTTP/1.1"] => ("201 Created", format!("{} bytes\n", request.body.len()).into_bytes()),
        _ => ("400 Bad Request", Vec::new()),
    };
    Message { start: format!("HTTP/1.1 {status}"), last: request.last, body }
}

/// Serves the requests of one connection.
fn serve_connection(stream: TcpStream, item: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut to = stream.try_clone()?;
    let mut from = BufReader::new(stream);
    while let Some(request) = receive(&mut from)? {
        send(&mut to, &answer(&request, item))?;
        if request.last {
            break;
        }
    }
    Ok(())
}

/// The request that comes next, and the beginning of what it must be answered. One of eight posts, one of eight asks for what is not there.
fn request(state: &mut u64, last: bool, item: &[u8]) -> (Message, &'static str) {
    *state = next(*state);
    let number = (*state >> 40) % ITEMS;
    let (start, body, wanted) = match *state >> 61 {
        0 => ("POST /items HTTP/1.1".to_owned(), item.to_vec(), "HTTP/1.1 201 "),
        1 => (format!("GET /items/{} HTTP/1.1", number + ITEMS), Vec::new(), "HTTP/1.1 404 "),
        _ => (format!("GET /items/{number} HTTP/1.1"), Vec::new(), "HTTP/1.1 200 "),
    };
    (Message { start, last, body }, wanted)
}

/// How long each request took, that of a connection with its making, and what the answers came to.
fn exchange() -> io::Result<(Vec<Duration>, u64)> {
    let item = pattern(usize::try_from(LARGEST).unwrap_or_default());
    let (mut left, served) = (CONNECTIONS, item.clone());
    let (address, server) = serve(move |stream| {
        serve_connection(stream, &served)?;
        left -= 1;
        Ok(left > 0)
    })?;
    let (mut times, mut check, mut state) = (Vec::new(), 0_u64, 7);
    for _ in 0..CONNECTIONS {
        let mut began = Instant::now();
        let mut to = TcpStream::connect(address)?;
        to.set_nodelay(true)?;
        let mut from = BufReader::new(to.try_clone()?);
        for turn in 1..=REQUESTS {
            let (request, wanted) = request(&mut state, turn == REQUESTS, &item[..1000]);
            send(&mut to, &request)?;
            let answer = receive(&mut from)?.ok_or_else(|| wrong("no answer"))?;
            times.push(began.elapsed());
            if !answer.start.starts_with(wanted) || answer.last != request.last {
                return Err(wrong(&format!("{}: {}", request.start, answer.start)));
            }
            check = answer.body.iter().fold(check, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            began = Instant::now();
        }
    }
    joined(server)?;
    Ok((times, check))
}

/// All requests.
pub(super) fn http() -> Outcome {
    let (times, check) = exchange()?;
    Ok(Measured { count: times.len() as u64, time: times.iter().sum(), check })
}

/// The request in the middle of the same ones, by time.
pub(super) fn http_p50() -> Outcome {
    percentile(50)
}

/// One of the slow ones.
pub(super) fn http_p99() -> Outcome {
    percentile(99)
}

fn percentile(percent: usize) -> Outcome {
    let (mut times, check) = exchange()?;
    times.sort_unstable();
    let time = times.get(times.len() * percent / 100).copied().unwrap_or_default();
    Ok(Measured { count: 1, time, check })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_sent_is_received_and_others_are_behind_it() {
        let one = Message { start: "POST /items HTTP/1.1".to_owned(), last: false, body: b"a\r\n\r\nb".to_vec() };
        let two = Message { start: "HTTP/1.1 200 OK".to_owned(), last: true, body: Vec::new() };
        let mut bytes = Vec::new();
        send(&mut bytes, &one).unwrap();
        send(&mut bytes, &two).unwrap();
        let mut from = &bytes[..];
        assert_eq!(receive(&mut from).unwrap(), Some(one));
        assert_eq!(receive(&mut from).unwrap(), Some(two));
        assert_eq!(receive(&mut from).unwrap(), None);
        for cut in 1..bytes.len() {
            let mut from = &bytes[..cut];
            let whole = (0..2).map_while(|_| receive(&mut from).transpose()).collect::<Result<Vec<_>, _>>();
            let ends_between = whole.as_ref().is_ok_and(|messages| messages.len() == 1);
            assert_eq!(ends_between, whole.is_ok(), "{cut} of {}: {whole:?}", bytes.len());
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(5000));
        let large = format!("GET / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MOST_BODY + 1);
        let wrong =
            ["GET /", "GET /\n\n", "GET / HTTP/1.1\r\n\r\n", "G\r\nX\r\n\r\n", "G\r\nContent-Length: -1\r\n\r\n"];
        for text in wrong.into_iter().chain([&long[..], &large]) {
            assert!(receive(&mut text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_server_knows_its_items_and_nothing_else() {
        let item = pattern(8192);
        let said = |start: &str, body: &[u8]| {
            answer(&Message { start: start.to_owned(), last: false, body: body.to_vec() }, &item)
        };
        assert_eq!(
            (said("GET /items/0 HTTP/1.1", b"").body.len(), said("GET /items/63 HTTP/1.1", b"").body.len()),
            (128, 8192)
        );
        assert_eq!(said("POST /items HTTP/1.1", b"12345").body, b"5 bytes\n");
        for (start, status) in [
            ("GET /items/64 HTTP/1.1", "404"),
            ("GET /items/-1 HTTP/1.1", "404"),
            ("GET / HTTP/1.1", "404"),
            ("POST / HTTP/1.1", "400"),
            ("GET /items/1 HTTP/1.0", "400"),
            ("", "400"),
        ] {
            assert!(said(start, b"").start.starts_with(&format!("HTTP/1.1 {status} ")), "{start}");
        }
    }
}
