//! Outside runtimes: any program with the command line of the OCI runtimes (crun, runc, youki, runsc), over the same bundle.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use duplex_wire::FailureKind;
use rustix::process::Pid;
use serde::Deserialize;

use super::console::{Console, ConsoleError};
use super::execute::Refusal;
use super::orders::{NetworkSource, Orders};

/// A container of an outside runtime that waits for its start.
pub(super) struct External {
    program: PathBuf,
    folder: PathBuf,
    id: String,
    /// What network runsc is to give it; others read that from the bundle alone.
    network: Option<&'static str>,
}

/// Why an outside runtime failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExternalError {
    #[error("Cannot start the OCI runtime {program}")]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{program} {verb} failed ({status}): {words}")]
    Failed { program: PathBuf, verb: &'static str, status: ExitStatus, words: String },
    #[error("The runtime wrote no process id to {path}")]
    Pid { path: PathBuf },
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error("Cannot become the parent of the container's processes")]
    Subreaper(#[source] rustix::io::Errno),
}

/// A line of the runtime's log in JSON.
#[derive(Deserialize)]
struct LogLine {
    msg: String,
}

type Made = (External, Pid, Option<OwnedFd>);

/// Creates the container of `folder/bundle`; the runtime's state is kept in `folder/oci`.
pub(super) fn create(
    program: &Path,
    orders: &Orders,
    stdio: [OwnedFd; 3],
) -> Result<Result<Made, Refusal>, ExternalError> {
    // `create` ends when the container stands; its first process then becomes our child.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(ExternalError::Subreaper)?;
    let external = External {
        program: program.to_owned(),
        folder: orders.folder.clone(),
        id: orders.spec.id.to_string(),
        network: network(program, orders.network),
    };
    let console = orders.terminal().map(|_| Console::listen(&orders.folder)).transpose()?;
    let pid_file = orders.folder.join("pid");
    let mut args: Vec<OsString> = vec!["--bundle".into(), orders.folder.join("bundle").into()];
    args.extend(["--pid-file".into(), pid_file.clone().into()]);
    if let Some(console) = &console {
        args.extend(["--console-socket".into(), console.path().into()]);
    }
    match external.call("create", args, Some(stdio)) {
        Err(ExternalError::Failed { words, .. }) if refusal(&words).is_some() => {
            return Ok(Err((refusal(&words).unwrap_or(FailureKind::Other), words)));
        }
        other => other?,
    }
    let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
    let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or(ExternalError::Pid { path: pid_file })?;
    let terminal = console.map(Console::take).transpose()?;
    Ok(Ok((external, pid, terminal)))
}

impl External {
    /// Returns when the runtime says that it has told the command to begin.
    pub(super) fn start(self) -> Result<Option<Refusal>, ExternalError> {
        self.call("start", Vec::new(), None).map(|()| None)
    }

    fn call(&self, verb: &'static str, args: Vec<OsString>, stdio: Option<[OwnedFd; 3]>) -> Result<(), ExternalError> {
        let log = self.folder.join(format!("{verb}.log"));
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.folder.join("oci")).arg("--log").arg(&log).args(["--log-format", "json"]);
        if self.program.file_name().is_some_and(|name| name == "crun") {
            command.args(["--cgroup-manager", "cgroupfs"]);
        }
        if let Some(network) = self.network {
            command.arg(format!("--network={network}"));
        }
        command.arg(verb).args(args).arg(&self.id);
        command.env("PATH", duplex_wire::DEFAULT_PATH).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some([stdin, stdout, stderr]) = stdio {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        let spawn_failed = |source| ExternalError::Spawn { program: self.program.clone(), source };
        let status = command.status().map_err(spawn_failed)?;
        if status.success() {
            return Ok(());
        }
        let words = explained(last_words(&std::fs::read_to_string(&log).unwrap_or_default()));
        Err(ExternalError::Failed { program: self.program.clone(), verb, status, words })
    }
}

/// runsc (gVisor) has a network stack of its own, to which it would connect the namespace of the bundle. Where that is to have nothing but a
/// loopback it needs no connection, and the host's network has no namespace.
fn network(program: &Path, network: NetworkSource) -> Option<&'static str> {
    if program.file_name().is_none_or(|name| name != "runsc") {
        return None;
    }
    match network {
        NetworkSource::New => Some("none"),
        NetworkSource::Host => Some("host"),
        NetworkSource::Given | NetworkSource::Made => None,
    }
}

/// The words, and what mends it where they alone do not say.
fn explained(words: String) -> String {
    if words.contains("in root network namespace") {
        return format!(
            "{words} (this runsc knows the host's network by /proc/sys/net/core/rmem_default, which newer kernels show in every network; \
            a newer runsc does not, and '--net none' needs no network of it)"
        );
    }
    words
}

/// The last message of a log in JSON lines.
fn last_words(log: &str) -> String {
    let messages = log.lines().rev().find_map(|line| serde_json::from_str::<LogLine>(line).ok());
    messages.map_or_else(|| "it gave no reason".to_owned(), |line| line.msg)
}

/// What Docker makes of a runtime's words: they are all it has, too.
fn refusal(words: &str) -> Option<FailureKind> {
    let says = |parts: &[&str]| parts.iter().any(|part| words.to_lowercase().contains(part));
    if says(&["executable file", "exec: "]) && says(&["not found", "no such file"]) {
        Some(FailureKind::NotFound)
    } else if says(&["exec", "open executable"]) && says(&["permission denied", "exec format", "is a directory"]) {
        Some(FailureKind::CannotExecute)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_exit_codes_as_docker_has_them() {
        let cases = [
            ("executable file `nope` not found in $PATH: No such file or directory", Some(FailureKind::NotFound)),
            (r#"exec: "nope": executable file not found in $PATH"#, Some(FailureKind::NotFound)),
            (r#"exec: "/no/such": stat /no/such: no such file or directory"#, Some(FailureKind::NotFound)),
            ("open executable: Permission denied", Some(FailureKind::CannotExecute)),
            (r#"exec: "/etc": is a directory"#, Some(FailureKind::CannotExecute)),
            ("mount `proc` to `proc`: Operation not permitted", None),
        ];
        for (words, kind) in cases {
            assert_eq!(refusal(words), kind, "{words}");
        }
    }

    #[test]
    fn runsc_is_told_what_network_there_is() {
        let of = |program: &str| {
            [NetworkSource::New, NetworkSource::Host, NetworkSource::Given].map(|n| network(Path::new(program), n))
        };
        assert_eq!(of("/usr/bin/runsc"), [Some("none"), Some("host"), None]);
        assert_eq!(of("/usr/bin/crun"), [None; 3]);
        let words = "creating interfaces: cannot run with network enabled in root network namespace";
        assert!(explained(words.to_owned()).starts_with(&format!("{words} (this runsc knows")));
        assert_eq!(explained("other".to_owned()), "other");
    }

    #[test]
    fn the_last_message_counts() {
        let log =
            "{\"msg\":\"one\",\"level\":\"info\"}\n{\"level\":\"error\",\"msg\":\"two\",\"time\":\"x\"}\nnot json\n";
        assert_eq!(last_words(log), "two");
        assert_eq!(last_words(""), "it gave no reason");
    }
}
