//! What a registry can do wrong.

use std::time::Duration;

/// A request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// An image id names nothing in a registry.
    #[error("'{0}' is an image id; a registry needs a name")]
    NoName(String),
    /// The HTTP client cannot be made.
    #[error(
        "Cannot set up https for registry {registry} (are root certificates installed? Debian: apt install ca-certificates)"
    )]
    Setup {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// The event loop cannot be made.
    #[error("Cannot make an event loop for requests to registry {registry}")]
    EventLoop {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No connection, or it broke.
    #[error("Cannot reach registry {registry} for {what}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Why.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// Nothing came for too long, twice.
    #[error(
        "Registry {registry} stalled: no progress with {what} for {} s at byte {at} (tried twice)", after.as_secs_f32()
    )]
    Stalled {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// How long we waited.
        after: Duration,
        /// Bytes that had come.
        at: u64,
    },
    /// The time of the whole pull is over.
    #[error("Registry {registry} took too long: no {what} after {limit} s (limit time = {limit})")]
    Time {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The limit in seconds.
        limit: u64,
    },
    /// The connection ended before all was there, again and again.
    #[error("Registry {registry} cut {what} short at byte {at} of {size} (tried again)")]
    Cut {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Bytes that had come.
        at: u64,
        /// Bytes announced.
        size: u64,
        /// What the connection says, if it says anything.
        #[source]
        source: Option<Box<reqwest::Error>>,
    },
    /// It is not there.
    #[error("Registry {registry} has no {what} (404): check the name and the tag")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// It is not for everybody.
    #[error(
        "Registry {registry} does not give {what} to anonymous users ({status}): check the name; logging in is not possible yet"
    )]
    Unauthorized {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
    },
    /// Too many requests.
    #[error("Registry {registry} takes no more requests for now (429){}", retry_words(retry_after))]
    RateLimit {
        /// The registry.
        registry: String,
        /// Its `Retry-After` header, in seconds.
        retry_after: Option<u32>,
    },
    /// Any other status.
    #[error("Registry {registry} answers {status} to the request for {what}: {message}")]
    Status {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// The beginning of its explanation.
        message: String,
    },
    /// Longer than allowed.
    #[error("{what} from registry {registry} is longer than {limit} bytes")]
    TooLong {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Most bytes taken.
        limit: u64,
    },
    /// Another length than the manifest says.
    #[error("Registry {registry} announces {announced} bytes for {what}; the manifest says {expected}")]
    Length {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// By the registry.
        announced: u64,
        /// By the manifest.
        expected: u64,
    },
    /// The way to a token makes no sense, or leads over plain http.
    #[error("Registry {registry} asks for a token in a way that is not followed: {reason}")]
    Token {
        /// The registry.
        registry: String,
        /// Why.
        reason: &'static str,
    },
}

fn retry_words(after: &Option<u32>) -> String {
    after.map_or(String::new(), |after| format!(": try again after {after} s"))
}
