//! `duplex cp`.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use duplex_copy::{Base, CopyError, Landing, Owner, Source, Writer};

use super::stop::VerbError;
use crate::cli::args::CpArgs;
use crate::cli::copying::{Heard, Incoming, Outgoing, Strict, hear};
use crate::cli::fail::{Failure, failed};
use crate::cli::keeping::roster;
use crate::cli::output::{note, say, size};
use crate::cli::{Context, place};
use crate::keeper::client;
use crate::sandbox::roster::{Roster, Seen};
use crate::spec::{Transfer, Wanted};

/// Bytes moved at once.
const CHUNK: usize = 128 << 10;

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// In a sandbox: its name, and a path from its root on.
    Sandbox(String, String),
    /// A file or folder of this host.
    Host(PathBuf),
    /// A tar archive through a standard stream.
    Stream,
}

/// Why nothing, or not all, is copied.
#[derive(Debug, thiserror::Error)]
enum CpError {
    #[error("Neither '{0}' nor '{1}' is SANDBOX:PATH: the files of this host are copied by cp")]
    NoSandbox(String, String),
    #[error("A copy from one sandbox to another is not supported: copy to this host, and from there")]
    TwoSandboxes,
    #[error("The path in a sandbox must be UTF-8 and not empty: '{0}'")]
    Path(String),
    #[error("An archive is not written to a terminal: send it to a file or a program")]
    Terminal,
    #[error(
        "Sandbox {0} does not run: its files went with its end, and only volumes stay. 'duplex start {0}' starts it again"
    )]
    NotRunning(String),
    #[error("Cannot find this process's working folder or '{0}'")]
    Host(String, #[source] io::Error),
    #[error("Cannot copy out of sandbox {0}")]
    Out(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("Cannot copy into sandbox {0}")]
    In(String, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Copies files between this host and a sandbox.
pub(crate) fn cp(context: &Context, args: &CpArgs) -> Result<u8, Failure> {
    let (from, to) = (end(&args.source).map_err(failed)?, end(&args.destination).map_err(failed)?);
    let quiet = args.quiet || !io::stdout().is_terminal();
    let shown = args.destination.to_string_lossy();
    let done = match (from, to) {
        (End::Sandbox(..), End::Sandbox(..)) => return Err(failed(CpError::TwoSandboxes)),
        (End::Sandbox(_, _), End::Stream) if io::stdout().is_terminal() => return Err(failed(CpError::Terminal)),
        (End::Sandbox(word, path), end) => match find(context, &word, &end, false)? {
            Ok(seen) => out(args, &seen, path, &end)?,
            Err(code) => return Ok(code),
        },
        (end, End::Sandbox(word, path)) => match find(context, &word, &end, end == End::Stream)? {
            Ok(seen) => into(args, &seen, path, &end)?,
            Err(code) => return Ok(code),
        },
        (_, _) => {
            let text = |arg: &OsStr| arg.to_string_lossy().into_owned();
            return Err(failed(CpError::NoSandbox(text(&args.source), text(&args.destination))));
        }
    };
    if !quiet {
        say(&format!("Successfully copied {} to {shown}", size(done)));
    }
    Ok(0)
}

/// As Docker reads it: what begins with `/` or `.`, or has no colon, is the host's.
fn end(word: &OsStr) -> Result<End, CpError> {
    let bytes = word.as_bytes();
    let host = || Ok(End::Host(word.into()));
    if bytes == b"-" {
        return Ok(End::Stream);
    }
    let Some(colon) = bytes.iter().position(|b| *b == b':') else { return host() };
    if matches!(bytes.first(), Some(b'/' | b'.' | b':')) {
        return host();
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).ok().filter(|text| !text.is_empty());
    let (name, path) = (bytes.get(..colon).unwrap_or_default(), bytes.get(colon + 1..).unwrap_or_default());
    match (text(name), text(path)) {
        (Some(name), Some(path)) => Ok(End::Sandbox(name, path)),
        _ => Err(CpError::Path(word.to_string_lossy().into_owned())),
    }
}

/// The sandbox, if it is on this host and runs; or the code with which the lab has done all.
fn find(context: &Context, word: &str, end: &End, stdin: bool) -> Result<Result<Seen, u8>, Failure> {
    let roster: Roster = roster(context).map_err(failed)?;
    let files = match end {
        End::Host(path) => vec![whole(path).map_err(failed)?],
        _ => Vec::new(),
    };
    if let Some(code) = place::follow_with(context, &roster, &[word.to_owned()], stdin, files)? {
        return Ok(Err(code));
    }
    let seen = roster.find(word).and_then(|id| roster.see(&id)).map_err(failed)?;
    if !seen.standing.status.is_live() {
        return Err(failed(CpError::NotRunning(seen.standing.name)));
    }
    Ok(Ok(seen))
}

/// The path from the root on, such that its parent is the folder that is read or written.
fn whole(path: &PathBuf) -> Result<PathBuf, CpError> {
    let missing = |e| CpError::Host(path.display().to_string(), e);
    match std::fs::canonicalize(path) {
        Ok(found) if found.is_dir() => Ok(found.join("-")),
        Ok(found) => Ok(found),
        Err(_) => {
            let path = std::path::absolute(path).map_err(missing)?;
            let folder = path.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
            Ok(folder.map_or(path, |folder| folder.join("-")))
        }
    }
}

fn name(seen: &Seen) -> String {
    seen.standing.name.clone()
}

/// Bytes of content.
fn out(args: &CpArgs, seen: &Seen, path: String, to: &End) -> Result<u64, Failure> {
    let wanted = match Source::new(path.as_bytes(), false).name() {
        b"" => Wanted::Contents,
        name => Wanted::Named(name.to_vec()),
    };
    let transfer = Transfer::Out { path, follow: args.follow_link };
    let stream = client::copy(&seen.path, &transfer).map_err(VerbError::of("copy out of", seen))?;
    let mut incoming = Incoming::new(stream);
    let got: Result<u64, Box<dyn std::error::Error + Send + Sync>> = match to {
        End::Host(to) => {
            let owner = if args.archive { Owner::Kept } else { Owner::Own };
            let mut strict = Strict::new(BufReader::with_capacity(CHUNK, &mut incoming));
            Landing::receive(&Base::own(), to.as_os_str().as_bytes(), &wanted, owner, &mut strict).map_err(Into::into)
        }
        End::Stream | End::Sandbox(..) => {
            let mut stdout = io::stdout().lock();
            io::copy(&mut incoming, &mut stdout).and_then(|bytes| stdout.flush().map(|()| bytes)).map_err(Into::into)
        }
    };
    let heard = incoming.finish();
    // Its own words say best why the stream broke off.
    let result = match (heard.failure(), got) {
        (Some(words), _) => Err(words.into()),
        (None, got) => got,
    };
    heard.notes().for_each(note);
    result.map_err(|source| failed(CpError::Out(name(seen), source)))
}

/// Bytes of the stream.
fn into(args: &CpArgs, seen: &Seen, path: String, from: &End) -> Result<u64, Failure> {
    let source = match from {
        End::Host(from) => Some(of_host(from, args.follow_link).map_err(failed)?),
        End::Stream | End::Sandbox(..) => None,
    };
    let wanted = match source.as_ref().map(Source::name) {
        None => Wanted::Anything,
        Some(b"") => Wanted::Contents,
        Some(name) => Wanted::Named(name.to_vec()),
    };
    let transfer = Transfer::In { path, wanted, keep_owner: args.archive };
    let stream = client::copy(&seen.path, &transfer).map_err(VerbError::of("copy into", seen))?;
    let (sent, heard) = exchange(stream, |outgoing| send(source.as_ref(), outgoing)).map_err(failed)?;
    let ours = sent.as_ref().is_err_and(|error| !is_of_the_stream(&**error));
    let result = match (heard.failure(), sent) {
        (Some(words), _) if !ours => Err(words.into()),
        (_, sent) => sent,
    };
    heard.notes().for_each(note);
    result.map_err(|source| failed(CpError::In(name(seen), source)))
}

/// The stream broke off: why is for the other end to say.
fn is_of_the_stream(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    matches!(error.downcast_ref::<CopyError>(), Some(CopyError::Send(_))) || error.is::<io::Error>()
}

type Sent = Result<u64, Box<dyn std::error::Error + Send + Sync>>;

/// Sends on this thread and hears on another, until the sandbox has taken all in or has said why not.
fn exchange(stream: UnixStream, send: impl FnOnce(&mut Outgoing) -> Sent) -> io::Result<(Sent, Heard)> {
    let ear = stream.try_clone()?;
    let mut outgoing = Outgoing::new(stream);
    std::thread::scope(|scope| {
        let hearing = std::thread::Builder::new().name("copy-ear".into()).spawn_scoped(scope, move || hear(ear))?;
        let sent = send(&mut outgoing).and_then(|bytes| outgoing.end().map(|()| bytes).map_err(Into::into));
        if sent.is_err() {
            outgoing.leave();
        }
        Ok((sent, hearing.join().unwrap_or_default()))
    })
}

fn send(source: Option<&Source>, outgoing: &mut Outgoing) -> Sent {
    let mut writer = Writer::new(io::BufWriter::with_capacity(CHUNK, outgoing));
    match source {
        Some(source) => {
            let told = source.send(&Base::own(), &mut writer)?;
            if told.count > 0 {
                note(&told.to_string());
            }
        }
        None => archive(&mut writer)?,
    }
    let outgoing =
        writer.finish().map_err(CopyError::Send)?.into_inner().map_err(|e| CopyError::Send(e.into_error()))?;
    Ok(outgoing.sent())
}

/// What comes through standard input, as the sandbox's end reads it.
fn archive<W: Write>(writer: &mut Writer<W>) -> Result<(), CopyError> {
    let mut strict = Strict::new(BufReader::with_capacity(CHUNK, io::stdin().lock()));
    while let Some(entry) = duplex_copy::Entries::next_entry(&mut strict).map_err(CopyError::Receive)? {
        writer.entry(&entry).map_err(CopyError::Send)?;
        if let duplex_copy::Kind::File(size) = entry.kind {
            let whole = writer.content(&mut strict.by_ref(), size).map_err(CopyError::Send)?;
            if !whole {
                return Err(CopyError::Receive(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
        }
    }
    Ok(())
}

/// A path of this host. One that ends with `..` has the name that its folder really has.
fn of_host(path: &PathBuf, follow: bool) -> Result<Source, CpError> {
    let source = Source::new(path.as_os_str().as_bytes(), follow);
    if source.name() != b".." {
        return Ok(source);
    }
    let real = std::fs::canonicalize(path).map_err(|e| CpError::Host(path.display().to_string(), e))?;
    let name: OsString = real.file_name().map(OsStr::to_owned).unwrap_or_default();
    Ok(source.called(&name.into_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_read_as_docker_reads_them() {
        let sandbox = |name: &str, path: &str| Some(End::Sandbox(name.into(), path.into()));
        let host = |path: &str| Some(End::Host(path.into()));
        for (word, expected) in [
            ("box:/etc", sandbox("box", "/etc")),
            ("box:etc/x:y", sandbox("box", "etc/x:y")),
            ("box:-", sandbox("box", "-")),
            ("-", Some(End::Stream)),
            ("file", host("file")),
            ("./box:file", host("./box:file")),
            ("../box:file", host("../box:file")),
            ("/box:file", host("/box:file")),
            (":file", host(":file")),
            ("box:", None),
        ] {
            assert_eq!(end(OsStr::new(word)).ok(), expected, "{word}");
        }
        assert!(end(OsStr::from_bytes(b"box:\xff")).is_err());
    }

    #[test]
    fn a_folder_above_has_its_real_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        assert_eq!(of_host(&dir.path().join("a/b/.."), false).unwrap().name(), b"a");
        assert_eq!(of_host(&dir.path().join("a/b/."), false).unwrap().name(), b"");
    }
}
