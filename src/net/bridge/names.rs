//! Names of a shared network's members: a responder that answers questions for them (RFC 1035), and refuses all others, so that a resolver asks
//! the next name server of its list.
//!
//! Who asks is hostile, and it is any member's owner that answers: a question is read by hand, bounded and without a panic, and one that is not
//! exactly a question gets no answer.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Longest question that is read (RFC 1035, 2.3.4).
const MOST: usize = 512;
/// Length of a message's header.
const HEADER: usize = 12;
/// A response (QR), authoritative (AA), with the question's wish for recursion (RD).
const RESPONSE: u8 = 0x84;
const RECURSION_DESIRED: u8 = 0x01;
/// The bits of a query that must be 0: QR, and the operation, which 0 is a standard query.
const NO_QUERY: u8 = 0xf8;
const REFUSED: u8 = 5;
const A: u16 = 1;
const PTR: u16 = 12;
const ANY: u16 = 255;
const INTERNET: u16 = 1;
/// Most questions that one responder answers in [`ROUND`]. The rest wait in its socket, which holds some hundreds, and are then dropped: who asks
/// without end has no more of the host's processor.
const MOST_IN_ROUND: u32 = 100;
const ROUND: Duration = Duration::from_millis(100);
/// How long an answer may be kept, in seconds: a sandbox that starts again may have another address.
const KEPT: u32 = 5;

/// A record's type and data.
type Record = (u16, Vec<u8>);

/// Who has which name.
pub trait Directory: Send + Sync {
    /// The address of a member, by its name or id.
    fn address(&self, name: &str) -> Option<Ipv4Addr>;

    /// The name of the member that has this address.
    fn name(&self, address: Ipv4Addr) -> Option<String>;
}

/// Answers until it is dropped.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// At this socket.
    pub(super) fn start(socket: UdpSocket, directory: Arc<dyn Directory>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let body = move || serve(&socket, &stopped, &*directory);
        let thread = std::thread::Builder::new().name("names".into()).stack_size(128 << 10).spawn(body)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How many questions have been answered in this round.
struct Pace {
    began: Instant,
    answered: u32,
}

impl Pace {
    /// Before an answer: how long to rest first, if this round has had its answers.
    fn rest(&mut self, now: Instant) -> Option<Duration> {
        let left = ROUND.checked_sub(now.saturating_duration_since(self.began)).filter(|left| !left.is_zero());
        if left.is_none() {
            (self.began, self.answered) = (now, 0);
        }
        if self.answered >= MOST_IN_ROUND {
            return left;
        }
        self.answered = self.answered.saturating_add(1);
        None
    }
}

fn serve(socket: &UdpSocket, stop: &OwnedFd, directory: &dyn Directory) {
    let mut question = [0; MOST];
    let mut pace = Pace { began: Instant::now(), answered: 0 };
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if let Some(rest) = pace.rest(Instant::now()) {
            let rest = Timespec::try_from(rest).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&rest));
            continue;
        }
        // Another owner may have been quicker, and who asked may be gone.
        let Ok((count, from)) = socket.recv_from(&mut question) else { continue };
        if let Some(answer) = answer(question.get(..count).unwrap_or_default(), directory) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// The answer to a question; none to what is none.
fn answer(message: &[u8], directory: &dyn Directory) -> Option<Vec<u8>> {
    let &[id0, id1, flags, _, 0, 1, 0, 0, 0, 0, ..] = message else { return None };
    if flags & NO_QUERY != 0 {
        return None;
    }
    let (name, length) = read_name(message.get(HEADER..)?)?;
    let end = HEADER.checked_add(length)?.checked_add(4)?;
    let question = message.get(HEADER..end)?;
    let &[t0, t1, c0, c1] = question.last_chunk::<4>()?;
    let (kind, class) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([c0, c1]));
    let found = (class == INTERNET).then(|| find(&name, kind, directory)).flatten();
    let (code, records) = found.map_or((REFUSED, None), |data| (0, data));
    let count = u8::from(records.is_some());
    let mut answer = vec![id0, id1, RESPONSE | (flags & RECURSION_DESIRED), code, 0, 1, 0, count, 0, 0, 0, 0];
    answer.extend(question);
    if let Some((kind, data)) = records {
        // A name by its place in the message (RFC 1035, 4.1.4): the question's.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend(INTERNET.to_be_bytes());
        answer.extend(KEPT.to_be_bytes());
        answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
/// A target of fuzzing: a packet of a member. An answer has the question's number and is marked as one, and is as long as its parts.
pub(crate) fn fuzz(data: &[u8]) {
    struct Every;
    impl Directory for Every {
        fn address(&self, name: &str) -> Option<Ipv4Addr> {
            (!name.len().is_multiple_of(4)).then_some(Ipv4Addr::new(198, 19, 0, 2))
        }

        fn name(&self, address: Ipv4Addr) -> Option<String> {
            let [length, ..] = address.octets();
            (length > 0).then(|| "n".repeat(length.into()))
        }
    }
    let data = data.get(..MOST).unwrap_or(data);
    if let Some(told) = answer(data, &Every) {
        assert!(told[..2] == data[..2] && told[2] & RESPONSE == RESPONSE && told.len() <= data.len() + 12 + 300);
    }
}

/// What is known of a name: a record, or that there is none of this kind. `None` if the name is not ours.
fn find(name: &str, kind: u16, directory: &dyn Directory) -> Option<Option<Record>> {
    if let Some(address) = reversed(name) {
        let name = directory.name(address)?;
        return Some(if kind == PTR || kind == ANY { Some((PTR, write_name(&name)?)) } else { None });
    }
    let address = directory.address(name)?;
    Some(if kind == A || kind == ANY { Some((A, address.octets().to_vec())) } else { None })
}

/// A name in labels, as text and with its length in bytes. No pointers: a question has none.
fn read_name(bytes: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = 0_usize;
    loop {
        let length = usize::from(*bytes.get(at)?);
        let from = at.checked_add(1)?;
        at = from.checked_add(length)?;
        match length {
            0 => return Some((name, at)),
            1..=63 if at < 255 => {}
            _ => return None,
        }
        let label = bytes.get(from..at)?;
        if !label.iter().all(|b| b.is_ascii_graphic() && *b != b'.') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(label).ok()?);
    }
}

/// A name in labels; `None` if a label of it is longer than 63 bytes.
fn write_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|l| !l.is_empty()) {
        bytes.push(u8::try_from(label.len()).ok().filter(|length| *length <= 63)?);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    Some(bytes)
}

/// The address that a name of the reverse tree stands for (RFC 1035, 3.5).
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let lower = name.to_ascii_lowercase();
    let [d, c, b, a] = lower.strip_suffix(".in-addr.arpa")?.parse::<Ipv4Addr>().ok()?.octets();
    Some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct One;

    impl Directory for One {
        fn address(&self, name: &str) -> Option<Ipv4Addr> {
            name.eq_ignore_ascii_case("my.db").then_some(Ipv4Addr::new(198, 19, 0, 2))
        }

        fn name(&self, address: Ipv4Addr) -> Option<String> {
            (address == Ipv4Addr::new(198, 19, 0, 2)).then(|| "my.db".to_owned())
        }
    }

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(write_name(name).unwrap());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(INTERNET.to_be_bytes());
        bytes
    }

    #[test]
    fn members_are_found_whatever_the_case() {
        for name in ["my.db", "MY.Db"] {
            let asked = question(name, A);
            let told = answer(&asked, &One).unwrap();
            assert_eq!(told[..12], [7, 8, 0x85, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
            assert_eq!(told[12..asked.len()], asked[12..]);
            assert_eq!(told[asked.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 198, 19, 0, 2]);
        }
        let told = answer(&question("2.0.19.198.IN-ADDR.arpa", PTR), &One).unwrap();
        assert!(told.ends_with(b"\x02my\x02db\x00"));
    }

    #[test]
    fn aaaa_of_a_known_name_is_none_and_another_name_is_refused() {
        let told = answer(&question("my.db", 28), &One).unwrap();
        assert_eq!((told[3], told[7]), (0, 0));
        for name in ["db", "other.example.org", "3.0.19.198.in-addr.arpa", ""] {
            let told = answer(&question(name, A), &One).unwrap();
            assert_eq!((told[3], told[7]), (REFUSED, 0), "{name}");
        }
    }

    #[test]
    fn who_asks_without_end_waits() {
        let began = Instant::now();
        let mut pace = Pace { began, answered: 0 };
        for _ in 0..MOST_IN_ROUND {
            assert_eq!(pace.rest(began + ROUND / 2), None);
        }
        assert_eq!(pace.rest(began + ROUND / 2), Some(ROUND / 2));
        assert_eq!(pace.rest(began + ROUND), None, "the next round");
        assert_eq!(pace.answered, 1);
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let good = question("my.db", A);
        for cut in 0..good.len() {
            assert!(answer(&good[..cut], &One).is_none(), "{cut}");
        }
        for (at, value) in [(2, 0x80), (2, 0x28), (5, 2), (5, 0), (7, 1), (12, 0xc0), (12, 64), (13, 0), (13, b'.')] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(answer(&bad, &One).is_none(), "{at} {value}");
        }
        let long = vec!["a"; 200].join(".");
        assert!(answer(&question(&long, A), &One).is_none());
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..MOST), head in any::<bool>()) {
            let mut message = if head { question("my.db", A) } else { Vec::new() };
            message.truncate(HEADER);
            message.extend(bytes);
            let _ = answer(&message, &One);
        }
    }
}
