//! Requests to one repository, each made to its end on the calling thread.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url, redirect};
use serde::Deserialize;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::challenge::Challenge;
use super::{RegistryError, RegistryOptions};
use crate::image::layer::Deadline;
use crate::image::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::image::reference::Reference;
use crate::image::tar::is_plain;
use crate::spec::Digest;

/// Longest token answer, in bytes.
const MAX_TOKEN: u64 = 256 << 10;
/// Longest explanation of an error that is shown, in bytes.
const MAX_MESSAGE: u64 = 512;
/// Most redirects followed.
const MAX_REDIRECTS: usize = 5;
/// How long the explanation of an error is waited for.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest `Retry-After` that is passed on, in seconds: a day.
const MAX_RETRY_AFTER: u32 = 86_400;
/// Documents must be whole after so many times the stall limit, however steadily they trickle.
const DOCUMENT_PATIENCE: u32 = 4;

/// A repository and how to talk to its registry.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// As the user named it, for messages.
    pub(super) registry: String,
    /// `scheme://host[:port]/v2/repository`.
    base: String,
    repository: String,
    secure: bool,
    token: Mutex<Option<String>>,
    pub(super) options: RegistryOptions,
    deadline: Deadline,
}

/// A manifest as it came.
pub(super) struct Answer {
    pub(super) body: Vec<u8>,
    /// `Docker-Content-Digest`.
    pub(super) digest: Option<Digest>,
    /// `Content-Type`, if it says more than "some JSON".
    pub(super) media_type: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    pub(super) fn new(
        reference: &Reference,
        options: RegistryOptions,
        deadline: Deadline,
    ) -> Result<Self, RegistryError> {
        let (Some(registry), Some(repository)) = (reference.registry(), reference.repository()) else {
            return Err(RegistryError::NoName(reference.to_string()));
        };
        // The registry of `docker.io` answers under this name.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let secure = !is_loopback(host);
        let scheme = if secure { "https" } else { "http" };
        let http = build(secure, &options)
            .map_err(|source| RegistryError::Setup { registry: registry.to_owned(), source: Box::new(source) })?;
        Ok(Self {
            http,
            registry: registry.to_owned(),
            base: format!("{scheme}://{host}/v2/{repository}"),
            repository: repository.to_owned(),
            secure,
            token: Mutex::new(None),
            options,
            deadline,
        })
    }

    /// An event loop for one thread.
    pub(super) fn event_loop(&self) -> Result<Runtime, RegistryError> {
        Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| RegistryError::EventLoop { registry: self.registry.clone(), source })
    }

    /// Fetches a manifest by tag or digest.
    pub(super) fn manifest(&self, name: &str, limit: u64) -> Result<Answer, RegistryError> {
        let what = format!("manifest {}:{name}", self.repository).replace(":sha256:", "@sha256:");
        let url = format!("{}/manifests/{name}", self.base);
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let event_loop = self.event_loop()?;
        let attempt = || {
            event_loop.block_on(async {
                let response = self.get(&url, &[(ACCEPT.as_str(), &accept)], &what).await?;
                // Part of a manifest (206) is none, and nothing (204) is none either.
                if response.status() != StatusCode::OK {
                    return Err(self.refusal(response, &what).await);
                }
                let headers = response.headers().clone();
                let body = self.document(response, &what, limit).await?;
                Ok(Answer { body, digest: digest_of(&headers), media_type: media_type_of(&headers) })
            })
        };
        match attempt() {
            Err(e) if is_worth_another_try(&e) => attempt(),
            result => result,
        }
    }

    /// Begins to fetch a blob at a byte.
    pub(super) async fn blob(&self, digest: &Digest, from: u64, what: &str) -> Result<Response, RegistryError> {
        let url = format!("{}/blobs/{digest}", self.base);
        let range = format!("bytes={from}-");
        let headers = [(RANGE.as_str(), range.as_str())];
        self.get(&url, if from == 0 { &[] } else { &headers }, what).await
    }

    /// One request, with a token if the registry wants one.
    async fn get(&self, url: &str, headers: &[(&str, &str)], what: &str) -> Result<Response, RegistryError> {
        let mut response = self.send(url, headers, what).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|h| h.to_str().ok());
            let Challenge::Bearer { realm, service, scope } = challenge.map_or(Challenge::Other, Challenge::parse)
            else {
                return Err(self.refusal(response, what).await);
            };
            let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
            let token = self.fetch_token(&realm, service.as_deref(), &scope).await?;
            *self.token.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(token);
            response = self.send(url, headers, what).await?;
        }
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response, what).await) }
    }

    async fn send(&self, url: &str, headers: &[(&str, &str)], what: &str) -> Result<Response, RegistryError> {
        let mut request = self.http.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let token = self.token.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        self.patiently(request.send(), what).await
    }

    /// An anonymous token (distribution project, "Token Authentication Specification").
    async fn fetch_token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<String, RegistryError> {
        let refuse = |reason| RegistryError::Token { registry: self.registry.clone(), reason };
        let mut url = Url::parse(realm).map_err(|_| refuse("its realm is not a URL"))?;
        may_be_asked(&url, self.secure).map_err(|why| match why {
            Astray::Plain => refuse("its realm is not https"),
            Astray::Inside => refuse("its realm is an address that only this host or its own network can mean"),
        })?;
        url.query_pairs_mut().extend_pairs(service.map(|s| ("service", s))).append_pair("scope", scope);
        let what = "a token";
        let response = self.patiently(self.http.get(url).send(), what).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, what).await);
        }
        let body = self.document(response, what, MAX_TOKEN).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|_| refuse("the token is not in JSON"))?;
        let token = token.token.or(token.access_token).ok_or_else(|| refuse("there is no token in the answer"))?;
        if token.bytes().all(|b| b.is_ascii_graphic()) { Ok(token) } else { Err(refuse("the token is not text")) }
    }

    /// The whole body of an answer of limited length.
    async fn document(&self, mut response: Response, what: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let too_long = || RegistryError::TooLong { registry: self.registry.clone(), what: what.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        let begin = Instant::now();
        while let Some(chunk) = self.patiently(response.chunk(), what).await? {
            body.extend_from_slice(&chunk);
            if u64::try_from(body.len()).unwrap_or(u64::MAX) > limit {
                return Err(too_long());
            }
            if begin.elapsed() > self.options.stall * DOCUMENT_PATIENCE {
                return Err(self.stalled(what, body.len()));
            }
        }
        Ok(body)
    }

    /// Waits for one step of a request, but not for ever.
    async fn patiently<T>(
        &self,
        step: impl Future<Output = Result<T, reqwest::Error>>,
        what: &str,
    ) -> Result<T, RegistryError> {
        match timeout(self.patience(what)?, step).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(self.unreachable(source, what)),
            Err(_) => self.patience(what).and_then(|_| Err(self.stalled(what, 0))),
        }
    }

    /// How long the next step may take. An error if the whole pull has had its time.
    pub(super) fn patience(&self, what: &str) -> Result<Duration, RegistryError> {
        let late = || {
            let (registry, what) = (self.registry.clone(), what.to_owned());
            RegistryError::Time { registry, what, limit: self.deadline.limit }
        };
        self.deadline.left().map(|left| left.min(self.options.stall)).ok_or_else(late)
    }

    pub(super) fn unreachable(&self, source: reqwest::Error, what: &str) -> RegistryError {
        // The address is named already, and a redirected one may be long and secret.
        let source = Box::new(source.without_url());
        RegistryError::Unreachable { registry: self.registry.clone(), what: what.to_owned(), source }
    }

    fn stalled(&self, what: &str, at: usize) -> RegistryError {
        RegistryError::Stalled {
            registry: self.registry.clone(),
            what: what.to_owned(),
            after: self.options.stall,
            at: u64::try_from(at).unwrap_or(u64::MAX),
        }
    }

    /// What an answer other than success means.
    async fn refusal(&self, response: Response, what: &str) -> RegistryError {
        let (registry, what) = (self.registry.clone(), what.to_owned());
        match response.status().as_u16() {
            404 => RegistryError::NotFound { registry, what },
            status @ (401 | 403) => RegistryError::Unauthorized { registry, what, status },
            429 => {
                let after = response.headers().get(RETRY_AFTER).and_then(|h| h.to_str().ok());
                RegistryError::RateLimit { registry, retry_after: after.and_then(retry_after) }
            }
            status => {
                let patience = self.options.stall.min(MESSAGE_PATIENCE);
                RegistryError::Status { registry, what, status, message: message(response, patience).await }
            }
        }
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3) as seconds, if it is a number of them that somebody could wait for.
fn retry_after(header: &str) -> Option<u32> {
    header.trim().parse().ok().filter(|seconds| *seconds <= MAX_RETRY_AFTER)
}

/// The beginning of a body, as far as it comes in this time, printable.
async fn message(mut response: Response, patience: Duration) -> String {
    let mut body = Vec::new();
    let limit = usize::try_from(MAX_MESSAGE).unwrap_or(usize::MAX);
    let begin = Instant::now();
    while let Some(left) = patience.checked_sub(begin.elapsed())
        && let Ok(Ok(Some(chunk))) = timeout(left, response.chunk()).await
    {
        body.extend_from_slice(&chunk[..chunk.len().min(limit.saturating_sub(body.len()))]);
        if body.len() >= limit {
            break;
        }
    }
    let text = String::from_utf8_lossy(&body);
    let text: String = text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect();
    if text.trim().is_empty() { "no explanation".to_owned() } else { text.trim().to_owned() }
}

fn build(secure: bool, options: &RegistryOptions) -> Result<reqwest::Client, reqwest::Error> {
    // Another part of the process may have chosen one already; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let policy = redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error("too many redirects");
        }
        // Content from elsewhere is verified, but who may say where is the registry, not somebody on the path.
        match may_be_asked(attempt.url(), secure) {
            Ok(()) => attempt.follow(),
            Err(Astray::Plain) => attempt.error("a redirect to something other than https"),
            Err(Astray::Inside) => {
                attempt.error("a redirect to an address that only this host or its own network can mean")
            }
        }
    });
    let builder = reqwest::Client::builder()
        .redirect(policy)
        .referer(false)
        .connect_timeout(options.stall.min(Duration::from_secs(10)))
        // A connection lives on the event loop that opened it, so none is kept for other requests.
        .pool_max_idle_per_host(0)
        .user_agent(concat!("duplex/", env!("CARGO_PKG_VERSION")));
    // Without https no certificates are needed, and the host may have none; and loopback needs no proxy.
    if secure { builder.build() } else { builder.tls_certs_only([]).no_proxy().build() }
}

/// Why an address that a registry names is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Astray {
    /// Not https, and not this machine.
    Plain,
    /// This machine, its link (where clouds keep credentials), or no single host.
    Inside,
}

/// Whether a registry may send us there: by https, or by http if the registry is on this machine and so is the address; never to the link's own
/// addresses, and from elsewhere not to this machine. Names are not looked up for this: what answers to one has to have its certificate.
fn may_be_asked(url: &Url, secure: bool) -> Result<(), Astray> {
    let host = url.host_str().unwrap_or_default();
    let loopback = is_loopback(host);
    match url.scheme() {
        "https" => {}
        "http" if !secure && loopback => {}
        _ => return Err(Astray::Plain),
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let astray = address.is_ok_and(|address| match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast(),
    });
    if astray || secure && loopback { Err(Astray::Inside) } else { Ok(()) }
}

/// The host of `host[:port]` is this machine by its form: `localhost`, 127.0.0.0/8 or ::1.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn digest_of(headers: &HeaderMap) -> Option<Digest> {
    headers.get("Docker-Content-Digest").and_then(|h| h.to_str().ok()).and_then(|text| text.parse().ok())
}

fn media_type_of(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = text.split(';').next().unwrap_or_default().trim();
    kind.starts_with("application/vnd.").then(|| kind.to_owned())
}

/// Stalls, broken connections and the server's own faults may pass.
pub(super) fn is_worth_another_try(error: &RegistryError) -> bool {
    match error {
        RegistryError::Stalled { .. } | RegistryError::Cut { .. } => true,
        RegistryError::Unreachable { source, .. } => !source.is_redirect() && !source.is_connect(),
        RegistryError::Status { status, .. } => *status >= 500,
        _ => false,
    }
}
