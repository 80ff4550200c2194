//! How a sandbox's health is checked: the image's way with what the user says.

use super::ImageDefaults;
use crate::cli::args::HealthArgs;
use crate::cli::time::duration;
use crate::spec::{Healthcheck, LEAST_HEALTH_TIME};

/// Why the words about health mean nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HealthError {
    /// All or nothing.
    #[error("Option --no-healthcheck excludes the other options of health checks")]
    Conflict,
    /// Not a time.
    #[error(
        "Time '{text}' of {option} is none of 1ms or more, such as 90s, 1m30s or 500ms (0 is as if it were not given)"
    )]
    Time {
        /// The option.
        option: &'static str,
        /// What it says.
        text: String,
    },
}

/// `None` if neither says anything.
pub(crate) fn healthcheck(args: &HealthArgs, image: &ImageDefaults) -> Result<Option<Healthcheck>, HealthError> {
    let own = Healthcheck {
        test: args
            .health_cmd
            .iter()
            .filter(|c| !c.is_empty())
            .flat_map(|c| ["CMD-SHELL".to_owned(), c.clone()])
            .collect(),
        shell: Vec::new(),
        interval_ns: time("--health-interval", args.health_interval.as_deref())?,
        timeout_ns: time("--health-timeout", args.health_timeout.as_deref())?,
        start_period_ns: time("--health-start-period", args.health_start_period.as_deref())?,
        start_interval_ns: time("--health-start-interval", args.health_start_interval.as_deref())?,
        retries: args.health_retries.unwrap_or(0),
    };
    let says = own != Healthcheck::default();
    if args.no_healthcheck {
        let none = Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() };
        return if says { Err(HealthError::Conflict) } else { Ok(Some(none)) };
    }
    let whole = match (&image.health, says) {
        (None, false) => return Ok(None),
        (Some(image), _) => own.over(image),
        (None, true) => own,
    };
    Ok(Some(Healthcheck { shell: image.shell.clone(), ..whole }))
}

fn time(option: &'static str, text: Option<&str>) -> Result<u64, HealthError> {
    let Some(text) = text else { return Ok(0) };
    let refuse = || HealthError::Time { option, text: text.to_owned() };
    match text {
        "0" => Ok(0),
        _ => duration(text).filter(|ns| *ns == 0 || u128::from(*ns) >= LEAST_HEALTH_TIME.as_nanos()).ok_or_else(refuse),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::meaning::tests::image;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        args: HealthArgs,
    }

    fn meant(words: &[&str], image: &ImageDefaults) -> Result<Option<Healthcheck>, HealthError> {
        let args = Flags::try_parse_from(["run"].iter().chain(words)).unwrap().args;
        healthcheck(&args, image)
    }

    fn checked_image() -> ImageDefaults {
        let test = vec!["CMD".to_owned(), "probe".to_owned()];
        let health = Healthcheck { test, interval_ns: 7_000_000, retries: 2, ..Healthcheck::default() };
        ImageDefaults { health: Some(health), shell: vec!["bash".to_owned(), "-c".to_owned()], ..image() }
    }

    #[test]
    fn nothing_is_checked_unless_somebody_says_so() {
        assert_eq!(meant(&[], &image()), Ok(None));
        let made = meant(&["--health-cmd", "ls /x", "--health-interval=1m30s"], &image()).unwrap().unwrap();
        assert_eq!(made.command().unwrap(), ["/bin/sh", "-c", "ls /x"]);
        assert_eq!(made.interval_ns, 90_000_000_000);
        let made = meant(&["--health-retries", "1"], &image()).unwrap().unwrap();
        assert_eq!(made.command(), None, "no image says what is to be run");
    }

    #[test]
    fn single_options_change_the_images_check() {
        let made = meant(&["--health-timeout", "1.5s", "--health-interval", "0"], &checked_image()).unwrap().unwrap();
        assert_eq!(made.command().unwrap(), ["probe"]);
        assert_eq!((made.interval_ns, made.timeout_ns, made.retries), (7_000_000, 1_500_000_000, 2));
        let made = meant(&["--health-cmd", "true"], &checked_image()).unwrap().unwrap();
        assert_eq!((made.command().unwrap().join(" ").as_str(), made.retries), ("bash -c true", 2));
        let made = meant(&["--no-healthcheck"], &checked_image()).unwrap().unwrap();
        assert_eq!((made.command(), made.test), (None, vec!["NONE".to_owned()]));
    }

    #[test]
    fn words_that_mean_nothing_are_named() {
        assert_eq!(meant(&["--no-healthcheck", "--health-cmd", "x"], &image()), Err(HealthError::Conflict));
        for (option, text) in [
            ("--health-interval", "5"),
            ("--health-timeout", "999us"),
            ("--health-start-period", "-1s"),
            ("--health-start-interval", "soon"),
        ] {
            let error = meant(&[&format!("{option}={text}")], &image()).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(&format!("'{text}'")), "{error}");
        }
    }
}
