//! The image's config (OCI image spec, "config.md"), reduced to what a sandbox needs, and checked.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::tar::shown;
use crate::spec::{Digest, Healthcheck};

/// Most layers of one image: one more than Docker ever makes, and a disk's device table stays small.
pub(super) const MAX_LAYERS: usize = 128;

/// How the image's author wants it to be run. Names are as the image states them: nothing is resolved on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value`, in the image's order, each name once.
    pub env: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// The program, and arguments which the user's command does not replace.
    pub entrypoint: Vec<String>,
    /// `user[:group]` by name or number; empty is root.
    pub user: String,
    /// Working folder; empty is `/`.
    pub workdir: String,
    /// The signal that asks the program to end, such as `SIGQUIT` or `3`.
    pub stop_signal: Option<String>,
    /// How its health is checked: Docker's extension of the specification, bounded where it is used.
    #[serde(default)]
    pub health: Option<Healthcheck>,
    /// What runs commands of one text, such as a `CMD-SHELL` health check; empty is `/bin/sh -c`. The same.
    #[serde(default)]
    pub shell: Vec<String>,
    /// Ports such as `80/tcp`.
    pub exposed: Vec<String>,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Such as `amd64`; empty if the image does not say.
    pub architecture: String,
    /// When it was made, as the image states it (RFC 3339).
    pub created: Option<String>,
}

/// A config with what only the store needs of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) image: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(super) diff_ids: Vec<Digest>,
}

/// Why a config is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not of the specified form.
    #[error("The image's config is not what the OCI image specification says")]
    Json(#[source] serde_json::Error),
    /// Made for another platform.
    #[error("The image is made for {os}/{architecture}; Duplex runs linux/amd64")]
    Platform {
        /// Operating system as stated.
        os: String,
        /// Architecture as stated.
        architecture: String,
    },
    /// `rootfs.type` other than `layers`.
    #[error("The image's root file system is of type '{0}', not 'layers'")]
    RootfsType(String),
    /// Too many layers.
    #[error("The image has {0} layers; at most {MAX_LAYERS} are allowed")]
    Layers(usize),
    /// A variable that no process can have.
    #[error("Environment variable '{0}' of the image is not of the form NAME=value")]
    Env(String),
    /// A text with a zero byte, which no argument, variable or path can hold.
    #[error("{field} of the image's config has a zero byte")]
    ZeroByte {
        /// The field's name in the specification.
        field: &'static str,
    },
}

#[derive(Deserialize)]
struct RawConfig {
    created: Option<String>,
    architecture: Option<String>,
    os: Option<String>,
    config: Option<RawProcess>,
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawProcess {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    healthcheck: Option<RawHealthcheck>,
    shell: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHealthcheck {
    test: Option<Vec<String>>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

impl Config {
    /// Reads and checks a config.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let raw: RawConfig = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
        let os = raw.os.unwrap_or_default();
        let architecture = raw.architecture.unwrap_or_default();
        // Both are required by the specification, but images made by simple tools leave them out.
        if !matches!(os.as_str(), "" | "linux") || !matches!(architecture.as_str(), "" | "amd64") {
            let [os, architecture] = [os, architecture].map(|text| shown(text.as_bytes()));
            return Err(ConfigError::Platform { os, architecture });
        }
        if raw.rootfs.kind != "layers" {
            return Err(ConfigError::RootfsType(shown(raw.rootfs.kind.as_bytes())));
        }
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return Err(ConfigError::Layers(diff_ids.len()));
        }
        let process = raw.config.unwrap_or_default();
        let image = ImageConfig {
            env: distinct(process.env.unwrap_or_default())?,
            cmd: process.cmd.unwrap_or_default(),
            entrypoint: process.entrypoint.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
            workdir: process.working_dir.unwrap_or_default(),
            stop_signal: process.stop_signal.filter(|s| !s.is_empty()),
            health: process.healthcheck.map(RawHealthcheck::checked),
            shell: process.shell.unwrap_or_default(),
            exposed: process.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: process.volumes.unwrap_or_default().into_keys().collect(),
            labels: process.labels.unwrap_or_default(),
            architecture,
            created: raw.created.filter(|c| !c.is_empty()),
        };
        image.refuse_zero_bytes()?;
        Ok(Self { image, diff_ids })
    }
}

impl RawHealthcheck {
    /// A number below zero is not given.
    fn checked(self) -> Healthcheck {
        let known = |number: i64| u64::try_from(number).unwrap_or(0);
        Healthcheck {
            test: self.test.unwrap_or_default(),
            shell: Vec::new(),
            interval_ns: known(self.interval),
            timeout_ns: known(self.timeout),
            start_period_ns: known(self.start_period),
            start_interval_ns: known(self.start_interval),
            retries: u32::try_from(known(self.retries)).unwrap_or(u32::MAX),
        }
    }
}

/// Variables in their order; one that comes again takes the place of the first, as execve's callers expect.
fn distinct(env: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let mut kept: Vec<String> = Vec::with_capacity(env.len());
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for variable in env {
        let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(ConfigError::Env(shown(variable.as_bytes())));
        };
        match places.get(name) {
            Some(place) => kept[*place] = variable,
            None => {
                places.insert(name.to_owned(), kept.len());
                kept.push(variable);
            }
        }
    }
    Ok(kept)
}

impl ImageConfig {
    /// When the image was made; `None` if it does not say so in RFC 3339 or says a time before 1970.
    pub fn created_at(&self) -> Option<SystemTime> {
        self.created.as_deref().and_then(parse_rfc3339)
    }

    fn refuse_zero_bytes(&self) -> Result<(), ConfigError> {
        let test = self.health.as_ref().map_or(&[][..], |health| &health.test);
        let fields: [(&'static str, &[String]); 7] = [
            ("Env", &self.env),
            ("Cmd", &self.cmd),
            ("Entrypoint", &self.entrypoint),
            ("Healthcheck", test),
            ("Shell", &self.shell),
            ("User", std::slice::from_ref(&self.user)),
            ("WorkingDir", std::slice::from_ref(&self.workdir)),
        ];
        match fields.into_iter().find(|(_, texts)| texts.iter().any(|t| t.contains('\0'))) {
            Some((field, _)) => Err(ConfigError::ZeroByte { field }),
            None => Ok(()),
        }
    }
}

/// `2024-02-29T12:34:56[.789](Z|+01:00)`; RFC 3339, section 5.6. A leap second counts as the one before.
fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let bytes = text.as_bytes();
    let separators = [(4, b"-".as_slice()), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")];
    if !separators.iter().all(|(at, set)| bytes.get(*at).is_some_and(|b| set.contains(b))) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let zone = rest.strip_prefix('.').map_or(rest, |r| r.trim_start_matches(|c: char| c.is_ascii_digit()));
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let at = text.len().checked_sub(6)?;
            let sign = match (zone.len(), zone.as_bytes().first(), zone.as_bytes().get(3)) {
                (6, Some(b'+'), Some(b':')) => 1,
                (6, Some(b'-'), Some(b':')) => -1,
                _ => return None,
            };
            sign * (number(at + 1, at + 3)? * 3600 + number(at + 4, at + 6)? * 60)
        }
    };
    let seconds = days_since_1970(year, month, day) * 86400 + hour * 3600 + minute * 60 + second.min(59) - offset;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// Days from 1970-01-01 in the Gregorian calendar. Years are counted from March so that the leap day is the last one of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Result<Config, ConfigError> {
        Config::parse(json.as_bytes())
    }

    #[test]
    fn a_docker_config_is_read() {
        let id = format!("sha256:{}", "1b".repeat(32));
        let config = parse(&format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-02-29T12:34:56.789+01:00","history":[],
                "config":{{"User":"www-data:33","ExposedPorts":{{"80/tcp":{{}}}},"Env":["PATH=/bin","A=1","A=2=3"],
                "Entrypoint":null,"Cmd":["sh","-c","x"],"Volumes":{{"/data":{{}}}},"WorkingDir":"/srv",
                "Labels":{{"k":"v"}},"StopSignal":"SIGQUIT","OnBuild":null,"ArgsEscaped":true}},
                "rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
        ))
        .unwrap();
        let image = config.image;
        assert_eq!(image.env, ["PATH=/bin", "A=2=3"]);
        assert_eq!((image.cmd.len(), image.entrypoint.len()), (3, 0));
        assert_eq!((image.user.as_str(), image.workdir.as_str()), ("www-data:33", "/srv"));
        assert_eq!((image.exposed, image.volumes), (vec!["80/tcp".to_owned()], vec!["/data".to_owned()]));
        assert_eq!(image.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.diff_ids[0].to_string(), id);
    }

    #[test]
    fn a_health_check_is_read_whatever_its_numbers() {
        let health = |text: &str| {
            let json =
                format!(r#"{{"rootfs":{{"type":"layers"}},"config":{{"Healthcheck":{text},"Shell":["bash","-c"]}}}}"#);
            let image = parse(&json).unwrap().image;
            assert_eq!(image.shell, ["bash", "-c"]);
            image.health
        };
        assert_eq!(health("null"), None);
        assert_eq!(health("{}"), Some(Healthcheck::default()));
        let made = health(
            r#"{"Test":["CMD-SHELL","x"],"Interval":5000000000,"Timeout":1,"StartPeriod":2,"StartInterval":3,"Retries":4}"#,
        );
        let made = made.unwrap();
        assert_eq!(
            (made.test.join(" ").as_str(), made.interval_ns, made.timeout_ns),
            ("CMD-SHELL x", 5_000_000_000, 1)
        );
        assert_eq!((made.start_period_ns, made.start_interval_ns, made.retries), (2, 3, 4));
        let made = health(r#"{"Interval":-1,"Timeout":9223372036854775807,"Retries":9223372036854775807}"#).unwrap();
        assert_eq!((made.interval_ns, made.timeout_ns, made.retries), (0, i64::MAX.unsigned_abs(), u32::MAX));
    }

    #[test]
    fn a_minimal_config_is_read() {
        let config = parse(r#"{"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
        assert_eq!(config, Config { image: ImageConfig::default(), diff_ids: Vec::new() });
    }

    #[test]
    fn configs_that_cannot_run_are_refused() {
        for (json, words) in [
            ("{}", "specification"),
            ("[", "specification"),
            (r#"{"rootfs":{"type":"squash"}}"#, "'squash'"),
            (r#"{"os":"windows","architecture":"amd64","rootfs":{"type":"layers"}}"#, "windows/amd64"),
            (r#"{"os":"linux","architecture":"arm64","rootfs":{"type":"layers"}}"#, "linux/arm64"),
            (r#"{"rootfs":{"type":"layers","diff_ids":["sha256:.."]}}"#, "specification"),
            (r#"{"rootfs":{"type":"layers"},"config":{"Env":["PATH"]}}"#, "'PATH'"),
            (r#"{"rootfs":{"type":"layers"},"config":{"Env":["=x"]}}"#, "'=x'"),
            (r#"{"rootfs":{"type":"layers"},"config":{"Cmd":["a\u0000b"]}}"#, "Cmd"),
            (r#"{"rootfs":{"type":"layers"},"config":{"Healthcheck":{"Test":["CMD","a\u0000b"]}}}"#, "Healthcheck"),
            (
                r#"{"rootfs":{"type":"layers"},"config":{"Healthcheck":{"Interval":9223372036854775808}}}"#,
                "specification",
            ),
            (r#"{"rootfs":{"type":"layers"},"config":{"Healthcheck":{"Retries":0.5}}}"#, "specification"),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        }
        let many = vec![format!("\"sha256:{}\"", "0".repeat(64)); 129].join(",");
        let json = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{many}]}}}}"#);
        assert!(matches!(parse(&json), Err(ConfigError::Layers(129))));
    }

    #[test]
    fn times_are_read() {
        let seconds = |t: &str| parse_rfc3339(t)?.duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs());
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2000-03-01T00:00:00Z"), Some(951_868_800));
        assert_eq!(seconds("2024-02-29T12:34:56.789123456Z"), Some(1_709_210_096));
        assert_eq!(seconds("2024-02-29T13:34:56+01:00"), Some(1_709_210_096));
        assert_eq!(seconds("2024-02-29T07:04:56.5-05:30"), Some(1_709_210_096));
        for bad in
            ["", "2024", "2024-13-01T00:00:00Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00+1", "0001-01-01T00:00:00Z"]
        {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_time_makes_it_panic(text in "\\PC{0,40}|[0-9TZ:.+-]{19,30}") {
            let _ = parse_rfc3339(&text);
        }
    }
}
