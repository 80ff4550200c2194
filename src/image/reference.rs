//! Image references as people write them.
//!
//! ```text
//! reference  = name [":" tag] ["@" digest]  |  image id
//! name       = [registry "/"] repository          registry = host [":" port]
//! ```
//!
//! The grammar is that of the OCI distribution spec ("Pulling manifests": `<name>` and `<reference>`) with Docker's habits on top: what
//! stands before the first slash is a registry only if it has a dot or a colon or is `localhost` (Docker also takes an upper-case letter for
//! a mark of one, and loses it when it writes the name in lower case; here it is an error); a name without registry belongs to `docker.io`, a
//! single-word one to `docker.io/library`; no tag and no digest means `latest`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::{Digest, DigestError};

/// The registry of names that state none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace of single-word names in it.
const OFFICIAL: &str = "library/";
/// The tag of names that state neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest registry and repository together, in bytes (distribution spec: clients may limit the name to 255).
const MAX_NAME: usize = 255;
/// Longest tag in bytes (distribution spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
const MAX_TAG: usize = 128;

/// What an image is called: a name with tag or digest, or the id of one in the store. Equal references mean the same image, however they
/// were written: `debian` equals `docker.io/library/debian:latest`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference(Target);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Target {
    Name(Box<Name>),
    Id(Digest),
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name {
    registry: String,
    repository: String,
    /// Absent only if `digest` is there.
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("Image reference is empty")]
    Empty,
    /// Longer than any registry takes.
    #[error("Image name '{0}' is longer than 255 bytes")]
    TooLong(String),
    /// Not `host[:port]`.
    #[error("'{registry}' in image reference '{reference}' is not a registry (host or host:port)")]
    Registry {
        /// The whole text.
        reference: String,
        /// Its first component.
        registry: String,
    },
    /// Upper-case letters, which no registry takes.
    #[error("Repository name '{0}' must be in lower case")]
    UpperCase(String),
    /// Not lower-case words joined by `.`, `_`, `__`, `-` and `/`.
    #[error(
        "'{repository}' in image reference '{reference}' is not a repository name (lower-case words, digits, . _ - and /)"
    )]
    Repository {
        /// The whole text.
        reference: String,
        /// The repository part.
        repository: String,
    },
    /// Not a tag.
    #[error("'{tag}' in image reference '{reference}' is not a tag (at most 128 letters, digits, . _ and -)")]
    Tag {
        /// The whole text.
        reference: String,
        /// The tag part.
        tag: String,
    },
    /// Not a digest.
    #[error("Image reference '{reference}' has a bad digest")]
    Digest {
        /// The whole text.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
}

impl Reference {
    /// Host and optional port of the registry; `None` for an image id.
    pub fn registry(&self) -> Option<&str> {
        self.name().map(|n| n.registry.as_str())
    }

    /// The name inside the registry, such as `library/debian`; `None` for an image id.
    pub fn repository(&self) -> Option<&str> {
        self.name().map(|n| n.repository.as_str())
    }

    /// The tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.name().and_then(|n| n.tag.as_deref())
    }

    /// The manifest digest it is pinned to, if it is.
    pub fn digest(&self) -> Option<&Digest> {
        self.name().and_then(|n| n.digest.as_ref())
    }

    /// The image id, if the reference is one (`sha256:` and 64 digits, or the 64 digits alone).
    pub fn id(&self) -> Option<&Digest> {
        match &self.0 {
            Target::Id(id) => Some(id),
            Target::Name(_) => None,
        }
    }

    /// The digits, if this may be a shortened image id: a bare word of 6 to 63 hexadecimal digits. It may be a name just as well.
    pub fn short_id(&self) -> Option<&str> {
        let name = self.name().filter(|n| n.registry == DEFAULT_REGISTRY && n.digest.is_none())?;
        let word = name.repository.strip_prefix(OFFICIAL).filter(|_| name.tag.as_deref() == Some(DEFAULT_TAG))?;
        ((6..64).contains(&word.len()) && word.bytes().all(is_hex)).then_some(word)
    }

    /// The reference with everything that Docker's habits leave out.
    pub fn canonical(&self) -> String {
        match &self.0 {
            Target::Id(id) => id.to_string(),
            Target::Name(name) => format!("{}/{}{}", name.registry, name.repository, name.suffix()),
        }
    }

    /// Name without tag and digest, as the REPOSITORY column shows it; an id as it is.
    pub fn familiar_name(&self) -> String {
        match &self.0 {
            Target::Id(id) => id.to_string(),
            Target::Name(name) => name.familiar(),
        }
    }

    /// The same name at another tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag, &format!("{self}"))?;
        match &self.0 {
            Target::Id(id) => Ok(Self(Target::Id(id.clone()))),
            Target::Name(name) => {
                let name = Name { tag: Some(tag.to_owned()), digest: None, ..(**name).clone() };
                Ok(Self(Target::Name(Box::new(name))))
            }
        }
    }

    fn name(&self) -> Option<&Name> {
        match &self.0 {
            Target::Name(name) => Some(name),
            Target::Id(_) => None,
        }
    }
}

impl Name {
    fn familiar(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.repository);
        }
        // A bare word of 64 hexadecimal digits is an id, so such a repository keeps its long form.
        match self.repository.strip_prefix(OFFICIAL).filter(|word| !word.contains('/') && !is_bare_id(word)) {
            Some(word) => word.to_owned(),
            None if self.repository.contains('/') && !looks_like_registry(first(&self.repository)) => {
                if self.repository.starts_with(OFFICIAL) {
                    format!("{}/{}", self.registry, self.repository)
                } else {
                    self.repository.clone()
                }
            }
            None => format!("{}/{}", self.registry, self.repository),
        }
    }

    fn suffix(&self) -> String {
        let mut text = String::new();
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let id = if is_bare_id(text) { format!("sha256:{text}").parse() } else { text.parse() };
        if let Ok(id) = id {
            return Ok(Self(Target::Id(id)));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => match digest.parse::<Digest>() {
                Ok(digest) => (rest, Some(digest)),
                Err(source) => return Err(ReferenceError::Digest { reference: text.to_owned(), source }),
            },
        };
        // A colon behind the last slash begins the tag; one before it belongs to the registry's port.
        let name_end = rest.rfind('/').map_or(0, |at| at.saturating_add(1));
        let (name, tag) = match rest[name_end..].find(':').and_then(|at| name_end.checked_add(at)) {
            Some(colon) => (&rest[..colon], Some(&rest[colon..][1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag, text)?;
        }
        let (registry, repository) = split_registry(name, text)?;
        check_repository(&repository, text)?;
        if registry.len().saturating_add(repository.len()) >= MAX_NAME {
            return Err(ReferenceError::TooLong(text.to_owned()));
        }
        let tag = tag.or(if digest.is_none() { Some(DEFAULT_TAG) } else { None }).map(str::to_owned);
        Ok(Self(Target::Name(Box::new(Name { registry, repository, tag, digest }))))
    }
}

fn first(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

fn looks_like_registry(component: &str) -> bool {
    component == "localhost" || component.bytes().any(|b| b == b'.' || b == b':')
}

fn split_registry(name: &str, reference: &str) -> Result<(String, String), ReferenceError> {
    let lower = first(name).to_ascii_lowercase();
    let (registry, repository) = match name.split_once('/') {
        Some((_, repository)) if looks_like_registry(&lower) => (lower.as_str(), repository),
        _ => (DEFAULT_REGISTRY, name),
    };
    if !is_registry(registry) {
        return Err(ReferenceError::Registry { reference: reference.to_owned(), registry: registry.to_owned() });
    }
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let official = registry == DEFAULT_REGISTRY && !repository.contains('/') && !repository.is_empty();
    let repository = if official { format!("{OFFICIAL}{repository}") } else { repository.to_owned() };
    Ok((registry.to_owned(), repository))
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.parse::<Ipv6Addr>().is_err() {
                    return false;
                }
                return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            }
            None => return false,
        },
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let component = |c: &str| {
        !c.is_empty()
            && !c.starts_with('-')
            && !c.ends_with('-')
            && c.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let host_is_good = if numeric { host.parse::<Ipv4Addr>().is_ok() } else { host.split('.').all(component) };
    host_is_good && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn check_repository(repository: &str, reference: &str) -> Result<(), ReferenceError> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(repository.to_owned()));
    }
    if repository.split('/').all(is_path_component) {
        return Ok(());
    }
    Err(ReferenceError::Repository { reference: reference.to_owned(), repository: repository.to_owned() })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution spec, "Pulling manifests").
fn is_path_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges_are_words =
        text.as_bytes().first().copied().is_some_and(word) && text.as_bytes().last().copied().is_some_and(word);
    edges_are_words
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str, reference: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= MAX_TAG
        && tag.as_bytes().first().copied().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if valid { Ok(()) } else { Err(ReferenceError::Tag { reference: reference.to_owned(), tag: tag.to_owned() }) }
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

fn is_bare_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_hex)
}

/// The short form, as Docker prints it: without `docker.io/` and `library/`, with the tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Id(id) => fmt::Display::fmt(id, f),
            Target::Name(name) => write!(f, "{}{}", name.familiar(), name.suffix()),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.canonical()
    }
}

#[cfg(test)]
mod tests;
