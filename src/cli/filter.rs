//! `--filter` of `ps` and `prune`.

use super::time::{TimeError, moment};
use crate::sandbox::roster::Seen;
use crate::spec::{HealthStatus, Isolation};
use crate::sys::clock::realtime_ns;

/// A filter that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FilterError {
    /// Not a filter of this verb.
    #[error("Filter '{0}' is unknown here: write one of {1}, each with =VALUE")]
    Unknown(String, &'static str),
    /// Not a status.
    #[error("'{0}' is no status: created, running, paused, restarting, removing, exited, dead")]
    Status(String),
    /// Not a state of health.
    #[error("'{0}' is no health: starting, healthy, unhealthy, none")]
    Health(String),
    /// Not an exit code.
    #[error("'{0}' is no exit code")]
    Code(String),
    /// Not an isolation.
    #[error("{0}")]
    Isolation(String),
    /// Not a time.
    #[error(transparent)]
    Time(#[from] TimeError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Id(String),
    Name(String),
    Label(String, Option<String>),
    Status(String),
    Health(Option<HealthStatus>),
    Exited(u8),
    Ancestor(String),
    Isolation(Isolation),
    Until(u64),
}

/// All filters of a command line: of one kind any may match, of each kind one must; of labels all must.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters(Vec<Filter>);

/// The kinds that `ps` knows.
pub(crate) const OF_PS: &str = "id, name, label, status, health, exited, ancestor, isolation";
/// The kinds that `prune` knows.
pub(crate) const OF_PRUNE: &str = "until, label";

impl Filters {
    /// Reads filters of these kinds.
    pub(crate) fn parse(words: &[String], kinds: &'static str) -> Result<Self, FilterError> {
        words.iter().map(|word| parse(word, kinds)).collect::<Result<_, _>>().map(Self)
    }

    /// One of them asks for a status, so that sandboxes are meant whether they run or not.
    pub(crate) fn ask_for_status(&self) -> bool {
        self.0.iter().any(|f| matches!(f, Filter::Status(_) | Filter::Exited(_)))
    }

    /// Whether a sandbox is meant.
    pub(crate) fn match_(&self, seen: &Seen) -> bool {
        let kind = std::mem::discriminant::<Filter>;
        self.0.iter().all(|filter| match filter {
            Filter::Label(..) => matches(filter, seen),
            _ => self.0.iter().filter(|other| kind(other) == kind(filter)).any(|other| matches(other, seen)),
        })
    }
}

fn parse(word: &str, kinds: &'static str) -> Result<Filter, FilterError> {
    let unknown = || FilterError::Unknown(word.to_owned(), kinds);
    let (kind, value) = word.split_once('=').ok_or_else(unknown)?;
    if !kinds.split(", ").any(|known| known == kind) {
        return Err(unknown());
    }
    let text = value.to_owned();
    Ok(match kind {
        "id" => Filter::Id(text),
        "name" => Filter::Name(text.trim_start_matches('/').to_owned()),
        "label" => match value.split_once('=') {
            Some((name, value)) => Filter::Label(name.to_owned(), Some(value.to_owned())),
            None => Filter::Label(text, None),
        },
        "status" => {
            let known = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
            if !known.contains(&value) {
                return Err(FilterError::Status(text));
            }
            Filter::Status(text)
        }
        "health" => Filter::Health(match value {
            "none" => None,
            "starting" => Some(HealthStatus::Starting),
            "healthy" => Some(HealthStatus::Healthy),
            "unhealthy" => Some(HealthStatus::Unhealthy),
            _ => return Err(FilterError::Health(text)),
        }),
        "exited" => Filter::Exited(value.parse().map_err(|_| FilterError::Code(text))?),
        "ancestor" => Filter::Ancestor(text),
        "isolation" => Filter::Isolation(value.parse().map_err(FilterError::Isolation)?),
        "until" => Filter::Until(moment(value, realtime_ns())?),
        _ => return Err(unknown()),
    })
}

fn matches(filter: &Filter, seen: &Seen) -> bool {
    let (definition, standing) = (&seen.definition, &seen.standing);
    match filter {
        Filter::Id(part) => definition.spec.id.as_str().starts_with(part),
        Filter::Name(part) => standing.name.contains(part),
        Filter::Label(name, value) => {
            definition.labels.get(name).is_some_and(|v| value.as_ref().is_none_or(|value| v == value))
        }
        Filter::Status(word) => standing.status.word() == word,
        Filter::Health(health) => standing.health == *health,
        Filter::Exited(code) => {
            !standing.status.is_live() && standing.outcome.as_ref().is_some_and(|o| o.exit.code() == *code)
        }
        Filter::Ancestor(image) => {
            definition.spec.reference == *image
                || definition.spec.reference.split_once(':').is_some_and(|(name, _)| name == image)
                || definition.spec.image.hex().starts_with(image.trim_start_matches("sha256:"))
        }
        Filter::Isolation(isolation) => definition.spec.isolation == *isolation,
        Filter::Until(before) => standing.finished_at_ns.unwrap_or(definition.created_at_ns) < *before,
    }
}
