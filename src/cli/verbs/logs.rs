//! `duplex logs`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::thread::sleep;
use std::time::Duration;

use crate::cli::args::LogsArgs;
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::roster;
use crate::cli::output::note;
use crate::cli::time::{TimeError, moment, rfc3339};
use crate::cli::{Context, place};
use crate::keeper::client;
use crate::keeper::log::{Line, Lines, Piece, Reader};
use crate::keeper::wire::Stream;
use crate::sandbox::roster::Seen;
use crate::sys::clock::realtime_ns;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Why a log is not shown.
#[derive(Debug, thiserror::Error)]
enum LogsError {
    /// Not a number of lines.
    #[error("--tail '{0}' is neither a number of lines nor 'all'")]
    Tail(String),
    /// The sandbox was told to keep nothing.
    #[error("Nothing of its output is kept: it was made with --log-driver none")]
    None,
    #[error(transparent)]
    Time(#[from] TimeError),
    #[error("The log in {0} cannot be read")]
    Read(String, #[source] io::Error),
}

/// Which lines are wanted, and how.
struct Wanted {
    since: u64,
    until: u64,
    tail: Option<usize>,
    timestamps: bool,
}

/// Shows what a sandbox has written: its output on standard output, its errors on standard error.
pub(crate) fn logs(context: &Context, args: &LogsArgs) -> Result<u8, Failure> {
    let wanted = wanted(args).map_err(failed)?;
    let roster = roster(context).map_err(failed)?;
    if let Some(code) = place::follow(context, &roster, std::slice::from_ref(&args.sandbox), false)? {
        return Ok(code);
    }
    let id = roster.find(&args.sandbox).map_err(failed)?;
    let seen = roster.see(&id).map_err(failed)?;
    if seen.definition.log.files == 0 {
        return Err(failed(LogsError::None));
    }
    let shown = show(&seen, &wanted, args.follow);
    match shown {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(e) => Err(failed(LogsError::Read(seen.path.display().to_string(), e))),
        Ok(()) => Ok(0),
    }
}

fn wanted(args: &LogsArgs) -> Result<Wanted, LogsError> {
    let now = realtime_ns();
    let tail = match args.tail.as_str() {
        // Docker takes a negative number for all.
        "all" | "-1" => None,
        number => Some(number.parse().map_err(|_| LogsError::Tail(number.to_owned()))?),
    };
    let time = |text: &Option<String>, none: u64| text.as_deref().map_or(Ok(none), |text| moment(text, now));
    Ok(Wanted { since: time(&args.since, 0)?, until: time(&args.until, u64::MAX)?, tail, timestamps: args.timestamps })
}

fn show(seen: &Seen, wanted: &Wanted, follow: bool) -> io::Result<()> {
    let (mut reader, mut lines) = (Reader::new(&seen.path), Lines::default());
    let mut last = VecDeque::new();
    let mut keep = |line: Line| -> io::Result<()> {
        if line.at_ns < wanted.since || line.at_ns >= wanted.until {
            return Ok(());
        }
        let Some(tail) = wanted.tail else { return print_line(&line, wanted.timestamps) };
        last.push_back(line);
        if last.len() > tail {
            last.pop_front();
        }
        Ok(())
    };
    let whole = wanted.since == 0 && wanted.tail.is_none();
    while let Some(piece) = reader.next_piece()? {
        mention(&piece, whole);
        lines.push(piece).into_iter().try_for_each(&mut keep)?;
    }
    if !follow {
        lines.rest().into_iter().try_for_each(&mut keep)?;
    }
    last.iter().try_for_each(|line| print_line(line, wanted.timestamps))?;
    io::stdout().flush()?;
    if follow { go_on(seen, wanted, reader, lines) } else { Ok(()) }
}

/// Shows what comes, until the sandbox has ended and all is shown.
fn go_on(seen: &Seen, wanted: &Wanted, mut reader: Reader, mut lines: Lines) -> io::Result<()> {
    loop {
        let runs = client::runs(&seen.path);
        let mut news = false;
        while let Some(piece) = reader.next_piece()? {
            news = true;
            mention(&piece, true);
            for line in lines.push(piece) {
                if line.at_ns >= wanted.until {
                    return io::stdout().flush();
                }
                print_line(&line, wanted.timestamps)?;
            }
        }
        io::stdout().flush()?;
        if !runs && !news {
            lines.rest().iter().try_for_each(|line| print_line(line, wanted.timestamps))?;
            return io::stdout().flush();
        }
        if realtime_ns() >= wanted.until {
            return Ok(());
        }
        sleep(LOOK);
    }
}

/// What is missing is said beside the log, not in it.
fn mention(piece: &Piece, whole: bool) {
    match piece {
        Piece::Lost(bytes, why) => note(&format!("{bytes} bytes of output could not be kept: {why}")),
        Piece::Removed if whole => note("older output has been removed; --log-opt max-size and max-file keep more"),
        _ => {}
    }
}

fn print_line(line: &Line, timestamps: bool) -> io::Result<()> {
    let mut text = Vec::with_capacity(line.bytes.len() + 40);
    if timestamps {
        text.extend_from_slice(rfc3339(line.at_ns).as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(&line.bytes);
    if line.stream == Stream::Output {
        io::stdout().lock().write_all(&text)
    } else {
        io::stderr().lock().write_all(&text)
    }
}
