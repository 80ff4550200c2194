//! Programs that measure: each does a fixed amount of work and says how long that took by the sandbox's own monotonic clock.
//!
//! `measure NAME...` prints what it is going to do, so that the first byte of its output still tells of the start, and one line for each:
//!
//! ```text
//! #measure NAME COUNT UNIT NANOSECONDS CHECK
//! ```
//!
//! All but the nanoseconds must be the same wherever it runs; `CHECK` is what the work came to, where it comes to something.

mod http;

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::{Answer, ITSELF, sys};

/// What was measured.
struct Measured {
    count: u64,
    time: Duration,
    check: u64,
}

type Outcome = io::Result<Measured>;

/// A measuring program: name, what it counts, body.
struct Measure(&'static str, &'static str, fn() -> Outcome);

const MEASURES: [Measure; 19] = [
    Measure("syscall", "call", syscall),
    Measure("context-switch", "round-trip", context_switch),
    Measure("page-fault", "page", page_fault),
    Measure("fork-exec", "process", fork_exec),
    Measure("memory-copy", "MiB", memory_copy),
    Measure("cpu-integer", "step", cpu_integer),
    Measure("cpu-float", "step", cpu_float),
    Measure("cpu-sha256", "KiB", cpu_sha256),
    Measure("file-metadata", "file", file_metadata),
    Measure("file-write", "MiB", file_write),
    Measure("file-read", "MiB", file_read),
    Measure("random-write", "synced-block", random_write),
    Measure("random-read", "block", random_read),
    Measure("tcp-connect", "connection", tcp_connect),
    Measure("tcp-latency", "round-trip", tcp_latency),
    Measure("tcp-throughput", "MiB", tcp_throughput),
    Measure("http", "request", http::http),
    Measure("http-p50", "request", http::http_p50),
    Measure("http-p99", "request", http::http_p99),
];

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Runs the named programs, or all of them for `suite`.
pub(crate) fn measure(args: &[String]) -> Answer {
    let wanted: Vec<&Measure> = match args {
        [one] if one == "suite" => MEASURES.iter().collect(),
        [] => return Err(format!("NAME is missing: suite, or any of {}", names()).into()),
        names => names.iter().map(|name| find(name)).collect::<Result<_, _>>()?,
    };
    let names: Vec<&str> = wanted.iter().map(|m| m.0).collect();
    println!("Measuring {}", names.join(" "));
    for Measure(name, unit, body) in wanted {
        let done = body().map_err(|e| format!("{name}: {e}"))?;
        println!("#measure {name} {} {unit} {} {:016x}", done.count, done.time.as_nanos(), done.check);
    }
    Ok(ExitCode::SUCCESS)
}

fn names() -> String {
    MEASURES.iter().map(|m| m.0).collect::<Vec<_>>().join(" ")
}

fn find(name: &str) -> Result<&'static Measure, String> {
    MEASURES.iter().find(|m| m.0 == name).ok_or_else(|| format!("nothing measures '{name}': {}", names()))
}

/// Times work that is done so many times.
fn timed(count: u64, mut work: impl FnMut(u64) -> io::Result<u64>) -> Outcome {
    let mut check = 0_u64;
    let began = Instant::now();
    for turn in 0..count {
        check = check.wrapping_mul(31).wrapping_add(work(turn)?);
    }
    Ok(Measured { count, time: began.elapsed(), check })
}

fn syscall() -> Outcome {
    timed(100_000, |_| {
        sys::getpid();
        Ok(0)
    })
}

/// A byte goes to another thread through a pipe and comes back through another.
fn context_switch() -> Outcome {
    let (mut from, mut other_to) = io::pipe()?;
    let (mut other_from, mut to) = io::pipe()?;
    let other = std::thread::spawn(move || {
        let mut byte = [0];
        while other_from.read(&mut byte)? > 0 {
            other_to.write_all(&byte)?;
        }
        io::Result::Ok(())
    });
    let mut byte = [7];
    let done = timed(3000, |_| {
        to.write_all(&byte)?;
        from.read_exact(&mut byte)?;
        Ok(u64::from(byte[0]))
    })?;
    drop(to);
    other.join().map_err(|_| io::Error::other("the other thread failed"))??;
    Ok(done)
}

/// First writes to the pages of fresh mappings.
fn page_fault() -> Outcome {
    const PAGES: usize = 2048;
    let done = timed(4, |_| {
        let mut memory = vec![0_u8; PAGES * BLOCK];
        memory.iter_mut().step_by(BLOCK).for_each(|byte| *byte = black_box(1));
        black_box(&memory);
        Ok(PAGES as u64)
    })?;
    Ok(Measured { count: done.count * PAGES as u64, ..done })
}

fn fork_exec() -> Outcome {
    timed(15, |_| {
        let status = Command::new(ITSELF).arg("true").stdin(Stdio::null()).status()?;
        if status.success() { Ok(1) } else { Err(io::Error::other(format!("a child ended with {status}"))) }
    })
}

fn memory_copy() -> Outcome {
    let from = pattern(16 * MIB);
    let mut to = vec![0_u8; from.len()];
    let done = timed(6, |_| {
        to.copy_from_slice(black_box(&from));
        Ok(u64::from(black_box(&to)[MIB]))
    })?;
    Ok(Measured { count: done.count * 16, ..done })
}

/// The next number of a linear congruential generator (Knuth's MMIX).
fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

fn cpu_integer() -> Outcome {
    let mut state = 1_u64;
    timed(3_000_000, |_| {
        state = next(state) ^ (state >> 29);
        Ok(state % 1021)
    })
}

/// The logistic map: each step waits for the one before.
fn cpu_float() -> Outcome {
    let mut x = 0.3_f64;
    let done = timed(1_000_000, |_| {
        x = black_box(3.9) * x * (1.0 - x);
        Ok(0)
    })?;
    Ok(Measured { check: x.to_bits(), ..done })
}

fn cpu_sha256() -> Outcome {
    let data = pattern(MIB);
    let done = timed(2, |_| {
        let digest = Sha256::digest(black_box(&data));
        Ok(digest.iter().fold(0, |sum, byte| sum << 1 ^ u64::from(*byte)))
    })?;
    Ok(Measured { count: done.count * 1024, ..done })
}

/// Bytes that do not repeat soon.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 42;
    (0..len)
        .map(|_| {
            state = next(state);
            state.to_le_bytes()[7]
        })
        .collect()
}

/// A folder that goes when the work is done.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("duplex-{name}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes, looks up, renames and removes a file.
fn file_metadata() -> Outcome {
    let folder = Folder::new("metadata")?;
    timed(400, |turn| {
        let (one, two) = (folder.path().join(format!("a{turn}")), folder.path().join(format!("b{turn}")));
        File::create(&one)?;
        let len = fs::metadata(&one)?.len();
        fs::rename(&one, &two)?;
        fs::remove_file(&two)?;
        Ok(len)
    })
}

const FILE_MIB: u64 = 16;

fn write_file(path: &Path) -> Outcome {
    let block = pattern(MIB);
    let mut file = File::create(path)?;
    let began = Instant::now();
    for _ in 0..FILE_MIB {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(Measured { count: FILE_MIB, time: began.elapsed(), check: file.metadata()?.len() })
}

fn file_write() -> Outcome {
    let folder = Folder::new("write")?;
    write_file(&folder.path().join("file"))
}

fn file_read() -> Outcome {
    let folder = Folder::new("read")?;
    let path = folder.path().join("file");
    write_file(&path)?;
    let mut file = File::open(&path)?;
    let mut block = vec![0; MIB];
    timed(FILE_MIB, |_| {
        file.read_exact(&mut block)?;
        Ok(u64::from(block[12_345]))
    })
}

/// Where a random block begins.
fn place(state: &mut u64) -> u64 {
    *state = next(*state);
    (*state >> 33) % (FILE_MIB * (MIB / BLOCK) as u64) * BLOCK as u64
}

fn random_write() -> Outcome {
    let folder = Folder::new("random-write")?;
    let path = folder.path().join("file");
    write_file(&path)?;
    let file = File::options().write(true).open(&path)?;
    let (block, mut state) = (pattern(BLOCK), 7);
    timed(300, |_| {
        let at = place(&mut state);
        file.write_all_at(&block, at)?;
        file.sync_data()?;
        Ok(at)
    })
}

fn random_read() -> Outcome {
    let folder = Folder::new("random-read")?;
    let path = folder.path().join("file");
    write_file(&path)?;
    let file = File::open(&path)?;
    let (mut block, mut state) = (vec![0; BLOCK], 7);
    timed(3000, |_| {
        file.read_exact_at(&mut block, place(&mut state))?;
        Ok(u64::from(block[99]))
    })
}

/// A server on the loopback that serves one connection after another until one of them says nothing.
fn serve(
    mut each: impl FnMut(TcpStream) -> io::Result<bool> + Send + 'static,
) -> io::Result<(std::net::SocketAddr, std::thread::JoinHandle<io::Result<()>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || {
        while each(listener.accept()?.0)? {}
        Ok(())
    });
    Ok((address, server))
}

fn joined(server: std::thread::JoinHandle<io::Result<()>>) -> io::Result<()> {
    server.join().map_err(|_| io::Error::other("the server failed"))?
}

/// Connects, exchanges a byte, closes.
fn tcp_connect() -> Outcome {
    const COUNT: u64 = 200;
    let mut left = COUNT;
    let (address, server) = serve(move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
        left -= 1;
        Ok(left > 0)
    })?;
    let done = timed(COUNT, |_| {
        let mut stream = TcpStream::connect(address)?;
        let mut byte = [3];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        Ok(u64::from(byte[0]))
    })?;
    joined(server)?;
    Ok(done)
}

fn tcp_latency() -> Outcome {
    let (address, server) = serve(|mut stream| {
        stream.set_nodelay(true)?;
        let mut message = [0; 64];
        while stream.read_exact(&mut message).is_ok() {
            stream.write_all(&message)?;
        }
        Ok(false)
    })?;
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    let mut message = [5; 64];
    let done = timed(1000, |_| {
        client.write_all(&message)?;
        client.read_exact(&mut message)?;
        Ok(u64::from(message[63]))
    })?;
    drop(client);
    joined(server)?;
    Ok(done)
}

/// One stream; the other end says when all of it has come.
fn tcp_throughput() -> Outcome {
    const COUNT: u64 = 32;
    let (address, server) = serve(|mut stream| {
        let mut piece = vec![0; 128 << 10];
        let mut left = COUNT * MIB as u64;
        while left > 0 {
            let read = stream.read(&mut piece)? as u64;
            left = left.checked_sub(read.max(1)).ok_or_else(|| io::Error::other("the stream has a wrong length"))?;
        }
        stream.write_all(&[1])?;
        Ok(false)
    })?;
    let mut client = TcpStream::connect(address)?;
    let piece = pattern(MIB);
    let began = Instant::now();
    for _ in 0..COUNT {
        client.write_all(&piece)?;
    }
    let mut byte = [0];
    client.read_exact(&mut byte)?;
    let time = began.elapsed();
    joined(server)?;
    Ok(Measured { count: COUNT, time, check: u64::from(byte[0]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_measures_and_comes_to_the_same_each_time() {
        // `fork-exec` starts this very program, which is not the workloads in a test.
        for Measure(name, _, body) in MEASURES.iter().filter(|m| m.0 != "fork-exec") {
            let (one, two) = (body().unwrap(), body().unwrap());
            assert_eq!((one.count, one.check), (two.count, two.check), "{name}");
            assert!(one.count > 0 && one.time > Duration::ZERO, "{name}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert!(measure(&["nothing".to_owned()]).unwrap_err().to_string().contains("syscall"));
        assert!(measure(&[]).is_err());
        let mut names: Vec<_> = MEASURES.iter().map(|m| m.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MEASURES.len());
    }
}
