//! Somebody on the host for a sandbox to talk to: addresses on the loopback interface that are taken back at the end, and small servers.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

/// An address of the host, for as long as this lives.
pub(crate) struct Address(pub(crate) Ipv4Addr);

impl Address {
    /// One of these two bytes of network; the rest is random, as cases run beside each other.
    pub(crate) fn of([a, b]: [u8; 2]) -> Self {
        let mut bytes = [0; 2];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        let address = Ipv4Addr::new(a, b, bytes[0], bytes[1].clamp(1, 254));
        assert!(ip("add", address), "ip addr add {address}");
        Self(address)
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        ip("del", self.0);
    }
}

fn ip(verb: &str, address: Ipv4Addr) -> bool {
    let words = ["addr", verb, &format!("{address}/32"), "dev", "lo"].map(str::to_owned);
    Command::new("ip").args(words).status().unwrap().success()
}

/// An HTTP server that says `word` to everybody. It lives as long as the process.
pub(crate) fn says(address: impl Into<IpAddr>, word: &'static str) -> u16 {
    serve(address.into(), move |stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{word}").as_bytes());
    })
}

/// A server that reads everybody to the end and says nothing.
pub(crate) fn swallows(address: impl Into<IpAddr>) -> u16 {
    serve(address.into(), |stream| drop(std::io::copy(stream, &mut std::io::sink())))
}

fn serve(address: IpAddr, answer: impl Fn(&mut TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(&mut stream.unwrap())));
    port
}

/// A name server on port 53 of this address that knows one answer to every question for an address (RFC 1035).
pub(crate) fn names(address: Ipv4Addr, answer: Ipv4Addr) {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&reply(&question[..count], answer), from);
        }
    });
}

/// The question again as a response, with one record if it asks for an A record.
fn reply(question: &[u8], answer: Ipv4Addr) -> Vec<u8> {
    let name_end = 12 + question[12..].iter().position(|b| *b == 0).unwrap() + 1;
    let mut reply = question[..name_end + 4].to_vec();
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
    if question[name_end..name_end + 2] == [0, 1] {
        reply[7] = 1;
        // The name by a pointer, type A, class IN, a minute, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer.octets());
    }
    reply
}

/// A port of the loopback that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What comes back from a TCP server to these words, as much of it as they are or up to its end, once the server is up; panics if it is not
/// within a minute. Our side stays open: passt of Debian 12 may lose the end of a connection that is half closed at once.
pub(crate) fn ask_tcp(address: SocketAddr, words: &str) -> String {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let mut answer = Vec::new();
        let asked = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(words.as_bytes())?;
            let echo = if words.starts_with("GET ") { u64::MAX } else { words.len() as u64 };
            stream.take(echo).read_to_end(&mut answer)
        });
        if asked.is_ok() && !answer.is_empty() {
            return String::from_utf8(answer).unwrap();
        }
        assert!(Instant::now() < until, "{address} answers nothing: {asked:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What comes back by UDP; asked again when nothing does.
pub(crate) fn ask_udp(address: SocketAddr, words: &str) -> String {
    let socket = UdpSocket::bind((if address.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for _ in 0..60 {
        let mut answer = [0; 2000];
        let _ = socket.send_to(words.as_bytes(), address);
        if let Ok((count, _)) = socket.recv_from(&mut answer) {
            return String::from_utf8_lossy(&answer[..count]).into_owned();
        }
    }
    panic!("{address} answers nothing by UDP");
}
