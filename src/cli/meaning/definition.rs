//! What of a command line is about the sandbox's life and not about its insides.

use std::collections::BTreeMap;

use super::super::args::RunArgs;
use super::health::{HealthError, healthcheck};
use super::signal::{SignalError, signal};
use super::{ImageDefaults, MeaningError};
use crate::spec::{Definition, LogLimits, MemorySize, Restart, SIGTERM, SandboxSpec};

/// Least bytes of a log file.
const LEAST_LOG: u64 = 4096;

/// Most log files.
const MOST_LOGS: u32 = 1000;

/// Why the words about a sandbox's life mean nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LifeError {
    /// Gone at its end and there again.
    #[error("Options --rm and --restart exclude each other: what is removed cannot start again")]
    RemoveAndRestart,
    /// A label without a name.
    #[error("Label '{0}' has no name: write NAME or NAME=VALUE")]
    Label(String),
    /// An unknown way to keep logs.
    #[error("Log driver '{0}' is neither 'local' nor 'none'")]
    LogDriver(String),
    /// An unknown or bad option of it.
    #[error("Log option '{0}' is neither max-size=SIZE (4k or more) nor max-file=N (1 to {MOST_LOGS})")]
    LogOption(String),
    /// About its health.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// Not a signal.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The image's own.
    #[error("The image's stop signal cannot be used: --stop-signal sets another")]
    ImageSignal(#[source] SignalError),
}

/// The sandbox of this spec with the life that the command line describes.
pub(crate) fn definition(
    args: &RunArgs,
    image: &ImageDefaults,
    label_files: &[(String, String)],
    spec: SandboxSpec,
    created_at_ns: u64,
) -> Result<Definition, MeaningError> {
    if args.rm && args.restart != Restart::No {
        return Err(LifeError::RemoveAndRestart.into());
    }
    let stop_signal = match (&args.stop_signal, &image.stop_signal) {
        (Some(text), _) => signal(text).map_err(LifeError::Signal)?,
        (None, Some(text)) => signal(text).map_err(LifeError::ImageSignal)?,
        (None, None) => SIGTERM,
    };
    Ok(Definition {
        labels: labels(args, image, label_files)?,
        remove: args.rm,
        restart: args.restart,
        stop_signal,
        stop_timeout_s: args.stop_timeout,
        input_once: args.process.interactive && !args.detach,
        log: log(args)?,
        health: healthcheck(&args.health, image).map_err(LifeError::Health)?,
        store: None,
        created_at_ns,
        spec,
    })
}

/// The image's labels, then those of files, then those of flags; the last one counts.
fn labels(
    args: &RunArgs,
    image: &ImageDefaults,
    files: &[(String, String)],
) -> Result<BTreeMap<String, String>, LifeError> {
    let mut labels = image.labels.clone();
    let lines = files.iter().flat_map(|(_, text)| text.lines());
    let written = lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for label in written.chain(args.label.iter().map(String::as_str)) {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        if name.is_empty() {
            return Err(LifeError::Label(label.to_owned()));
        }
        labels.insert(name.to_owned(), value.to_owned());
    }
    Ok(labels)
}

fn log(args: &RunArgs) -> Result<LogLimits, LifeError> {
    let mut limits = LogLimits::default();
    for option in &args.log_opt {
        let refuse = || LifeError::LogOption(option.clone());
        match option.split_once('=') {
            Some(("max-size", size)) => {
                let size: MemorySize = size.parse().map_err(|_| refuse())?;
                limits.file_bytes = Some(size.0).filter(|bytes| *bytes >= LEAST_LOG).ok_or_else(refuse)?;
            }
            Some(("max-file", files)) => {
                let files: u32 = files.parse().map_err(|_| refuse())?;
                limits.files = Some(files).filter(|n| (1..=MOST_LOGS).contains(n)).ok_or_else(refuse)?;
            }
            _ => return Err(refuse()),
        }
    }
    match args.log_driver.as_str() {
        "local" => Ok(limits),
        "none" => Ok(LogLimits { files: 0, ..limits }),
        other => Err(LifeError::LogDriver(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::meaning::tests::{image, meant};

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Run {
        #[command(flatten)]
        args: RunArgs,
    }

    fn defined(line: &str, image: &ImageDefaults) -> Result<Definition, MeaningError> {
        let args = Run::try_parse_from(["run"].into_iter().chain(line.split_whitespace())).unwrap().args;
        let files = [("labels".to_owned(), "# none\nfrom=file\n\nb=file\n".to_owned())];
        let files = if line.contains("--label-file") { &files[..] } else { &[] };
        definition(&args, image, files, meant("img"), 7)
    }

    #[test]
    fn a_life_is_dockers_unless_something_is_said() {
        let made = defined("img", &image()).unwrap();
        assert_eq!((made.stop_signal, made.stop_timeout_s, made.remove, made.restart), (15, 10, false, Restart::No));
        assert_eq!((made.log, made.labels.len(), made.created_at_ns), (LogLimits::default(), 0, 7));
        let made = defined(
            "--rm -i --stop-signal HUP --stop-timeout 3 --log-opt max-size=64k --log-opt max-file=9 img",
            &image(),
        );
        let made = made.unwrap();
        assert!(made.remove && made.input_once);
        assert_eq!((made.stop_signal, made.stop_timeout_s), (1, 3));
        assert_eq!(made.log, LogLimits { file_bytes: 65536, files: 9 });
        assert_eq!(defined("--log-driver none img", &image()).unwrap().log.files, 0);
    }

    #[test]
    fn the_image_has_labels_and_a_stop_signal_that_the_user_changes() {
        let mut image = image();
        image.stop_signal = Some("SIGQUIT".into());
        image.labels = [("a".to_owned(), "image".to_owned()), ("b".to_owned(), "image".to_owned())].into();
        let made = defined("--label-file x -l a=user -l empty img", &image).unwrap();
        assert_eq!(made.stop_signal, 3);
        let labels: Vec<String> = made.labels.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(labels, ["a=user", "b=file", "empty=", "from=file"]);
        image.stop_signal = Some("SIGNONE".into());
        assert!(matches!(defined("img", &image), Err(MeaningError::Life(LifeError::ImageSignal(_)))));
        assert_eq!(defined("--stop-signal 9 img", &image).unwrap().stop_signal, 9);
    }

    #[test]
    fn words_that_mean_nothing_are_named() {
        for (line, word) in [
            ("--rm --restart always img", "--restart"),
            ("-l =x img", "=x"),
            ("--log-driver syslog img", "syslog"),
            ("--health-interval 1 img", "--health-interval"),
            ("--log-opt max-size=1 img", "max-size=1"),
            ("--log-opt max-file=0 img", "max-file=0"),
            ("--log-opt tag=x img", "tag=x"),
            ("--stop-signal NONE img", "NONE"),
        ] {
            let words = defined(line, &image()).unwrap_err().to_string();
            assert!(words.contains(word), "{words}");
        }
    }
}
