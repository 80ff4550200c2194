//! The embedded image: one static program of many names, run unchanged in both isolations.
//!
//! The first line that a program prints is the same wherever it runs, but for what `uname` and `env` are there to tell: a comparison checks
//! that its arms agree. What was measured is said on stderr.
#![deny(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what these programs are for")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod files;
mod measure;
mod memory;
mod network;
mod plain;
mod probe;
mod process;
mod sys;

use std::process::ExitCode;

/// This program's file, by the name that holds wherever it was executed from, a file that has no path here included (proc(5)).
const ITSELF: &str = "/proc/self/exe";

/// What a program answers: its exit code, or why it cannot run.
type Answer = Result<ExitCode, Box<dyn std::error::Error>>;

/// One program: name, arguments, one line of help, body.
struct Program(&'static str, &'static str, &'static str, fn(&[String]) -> Answer);

const PROGRAMS: [Program; 23] = [
    Program("hello", "", "print one line", plain::hello),
    Program("true", "", "succeed", plain::succeed),
    Program("false", "", "fail", plain::fail),
    Program("exit", "CODE", "exit with this code", plain::exit),
    Program("echo", "WORD...", "print the words", plain::echo),
    Program("cat", "[FILE...]", "copy files or the standard input to the standard output", plain::cat),
    Program("env", "", "print the environment", plain::env),
    Program("uname", "", "print the kernel's name, release and machine", plain::uname),
    Program("id", "", "print user, group and supplementary groups", plain::id),
    Program("sleep", "SECONDS", "sleep; SIGTERM and SIGINT end it", process::sleep),
    Program("pause", "", "wait for SIGTERM or SIGINT", process::pause),
    Program("spin", "[SECONDS]", "use one processor, for ever or for so long", process::spin),
    Program("spawn", "COUNT", "fork, execute and reap so many processes", process::spawn),
    Program("getpid", "COUNT", "so many getpid system calls", process::getpid),
    Program("call", "ABI NUMBER [ARG...]", "one system call of abi 64 or 32: what it answers", process::call),
    Program("file-io", "MIB [FILE]", "write a file of this size, read it, remove it", files::file_io),
    Program("eat", "MIB", "take memory until there is this much, or none", memory::eat),
    Program("touch-pages", "MIB", "map memory and write to each of its pages", memory::touch_pages),
    Program("tcp-echo", "COUNT [BYTES]", "so many round trips of so many bytes over loopback", network::tcp_echo),
    Program("measure", "NAME...|suite", "do fixed work and say how long it took", measure::measure),
    Program("probe", "[PORT]", "the first steps of known ways out, and what is to be learnt of the host", probe::probe),
    Program("serve", "PORT", "send back what comes to this port, by TCP and by UDP", network::serve_port),
    Program("send", "ADDRESS PORT MIB", "send so much by TCP", network::send),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let name = args.first().map_or("", String::as_str);
    let Some(Program(_, _, _, body)) = PROGRAMS.iter().find(|p| p.0 == name) else {
        eprintln!("{}", help(name));
        return ExitCode::from(if name.is_empty() || name == "help" { 0 } else { 127 });
    };
    match body(args.get(1..).unwrap_or(&[])) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn help(name: &str) -> String {
    let mut text = String::new();
    if !name.is_empty() && name != "help" {
        text.push_str(&format!("No program is named '{name}'.\n"));
    }
    text.push_str("Programs:");
    for Program(name, args, line, _) in &PROGRAMS {
        text.push_str(&format!("\n  {:<24}{line}", format!("{name} {args}")));
    }
    text
}

/// The argument in this place as a number.
fn number<N: std::str::FromStr>(args: &[String], place: usize, name: &str) -> Result<N, String> {
    let text = args.get(place).ok_or_else(|| format!("{name} is missing"))?;
    text.parse().map_err(|_| format!("{name} '{text}' is not a number in range"))
}

/// Like [`number`], with a value for an argument that is not there.
fn number_or<N: std::str::FromStr>(args: &[String], place: usize, name: &str, default: N) -> Result<N, String> {
    if args.len() > place { number(args, place, name) } else { Ok(default) }
}

/// Says on stderr what was measured.
fn measured(what: &str, count: u64, began: std::time::Instant) {
    let seconds = began.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    let rate = count as f64 / seconds.max(1e-9);
    eprintln!("{what}: {count} in {seconds:.6} s, {rate:.0} a second");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_arguments_strict() {
        let mut names: Vec<_> = PROGRAMS.iter().map(|p| p.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PROGRAMS.len());
        let args = ["7".to_owned(), "x".to_owned()];
        assert_eq!(number::<u8>(&args, 0, "N"), Ok(7));
        assert!(number::<u8>(&args, 1, "N").is_err());
        assert!(number::<u8>(&args, 2, "N").is_err());
        assert_eq!(number_or::<u8>(&args, 2, "N", 3), Ok(3));
    }
}
