//! The one way to the server: builds a request, keeps its time limits, repeats it where that is
//! safe, and turns every way of failing into an [`Error`].
//!
//! Time is counted from one byte to the next, not over the whole call: a long answer that keeps
//! coming is never cut. Answers are bounded in size. Redirects are not followed: the API has none,
//! and a key must not be carried elsewhere.

use std::net::IpAddr;
use std::sync::Once;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::body::{Pace, Paced};
use crate::config::{Config, DEFAULT_REQUEST_TIMEOUT, RetryPolicy};
use crate::error::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer that is longer than this, where nothing says otherwise, is not read to its end.
const ANSWER_MAX: usize = 128 << 20;
/// Of an error's body, no more than this is read.
const ERROR_BODY_MAX: usize = 64 << 10;

/// A client of one server with one key. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    authorization: Option<HeaderValue>,
    request_timeout: Option<Duration>,
    retry: RetryPolicy,
}

/// One request, before it is sent.
#[derive(Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    query: String,
    body: Option<Bytes>,
    headers: HeaderMap,
    timeout: Duration,
    answer_max: usize,
    with_key: bool,
    one_attempt: bool,
}

impl Call {
    pub(crate) fn new(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            query: String::new(),
            body: None,
            headers: HeaderMap::new(),
            timeout: DEFAULT_REQUEST_TIMEOUT,
            answer_max: ANSWER_MAX,
            with_key: true,
            one_attempt: false,
        }
    }

    pub(crate) fn body(mut self, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::invalid_request(format!("the request is no JSON: {error}")))?;
        self.body = Some(body.into());
        Ok(self.header(CONTENT_TYPE, HeaderValue::from_static("application/json")))
    }

    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.insert(name, value.into());
        self
    }

    /// The fields of a flat structure as `name=value`.
    pub(crate) fn query(mut self, query: &impl Serialize) -> Result<Self> {
        let invalid = |error: serde_json::Error| Error::invalid_request(format!("the query: {error}"));
        let fields = serde_json::to_value(query).map_err(invalid)?;
        let mut pairs =
            Url::parse("http://query").map_err(|error| Error::invalid_request(error.to_string()))?;
        for (name, value) in fields.as_object().into_iter().flatten() {
            match value {
                serde_json::Value::Null => {}
                serde_json::Value::String(text) => {
                    pairs.query_pairs_mut().append_pair(name, text);
                }
                other => {
                    pairs.query_pairs_mut().append_pair(name, &other.to_string());
                }
            }
        }
        self.query = pairs.query().unwrap_or_default().to_owned();
        Ok(self)
    }

    pub(crate) fn idempotency_key(self, key: &str) -> Result<Self> {
        let value = HeaderValue::from_str(key).ok().filter(|_| !key.trim().is_empty());
        let value = value.ok_or_else(|| {
            Error::invalid_request("the idempotency key must be printable ASCII and not empty")
        })?;
        Ok(self.header(HeaderName::from_static("idempotency-key"), value))
    }

    /// Waits at least this long for each byte, however short the default is.
    pub(crate) fn at_least(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(crate) fn answer_max(mut self, bytes: usize) -> Self {
        self.answer_max = bytes;
        self
    }

    /// For calls whose caller itself decides about further attempts.
    pub(crate) fn one_attempt(mut self) -> Self {
        self.one_attempt = true;
        self
    }

    pub(crate) fn without_key(mut self) -> Self {
        self.with_key = false;
        self
    }
}

/// One segment of a path. What a URL would take for something else is refused here.
pub(crate) fn segment(what: &str, text: &str) -> Result<String> {
    if text.is_empty() || text == "." || text == ".." {
        return Err(Error::invalid_request(format!("{text:?} is not a {what}")));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(encoded)
}

impl Client {
    /// A client as configured. Nothing is sent yet.
    ///
    /// # Errors
    /// `invalid_request` for a URL that is none, for a key that no header can carry, or when the
    /// host's trusted certificates cannot be read and are needed.
    pub fn new(config: Config) -> Result<Self> {
        install_crypto();
        let url =
            Url::parse(&config.base_url).map_err(|error| bad_url(&config.base_url, &error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(bad_url(&config.base_url, "it must begin with http:// or https:// and name a host"));
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err(bad_url(&config.base_url, "it must have no user, query or fragment"));
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("nullspace-rust/", env!("CARGO_PKG_VERSION")));
        if url.scheme() == "http" {
            // Nothing to verify: a host without certificates must do, and reading them takes time.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&url) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| {
            Error::invalid_request(format!("cannot set up the client: {}", cause(&error)))
        })?;
        let authorization = config
            .api_key
            .map(|key| {
                let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                    .map_err(|_| Error::invalid_request("the API key has characters that no key has"))?;
                value.set_sensitive(true);
                Ok::<_, Error>(value)
            })
            .transpose()?;
        Ok(Self {
            http,
            base_url: config.base_url.trim_end_matches('/').to_owned(),
            authorization,
            request_timeout: config.request_timeout,
            retry: config.retry,
        })
    }

    /// The server this client speaks to.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        self.retry
    }

    /// Sends and reads one JSON value.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let limit = self.limit(&call);
        let (response, url) = self.send(&call, limit).await?;
        let body = collect(response, &url, limit, call.answer_max).await?;
        read_json(&url, &body)
    }

    /// Sends what makes something, and answers what was made. One idempotency key (one of its own when
    /// `None`) makes it at most once: while the outcome of an attempt is unknown it is asked for again with
    /// the same key, for as long as the policy allows.
    pub(crate) async fn make<T: DeserializeOwned>(
        &self,
        call: Call,
        idempotency_key: Option<&str>,
    ) -> Result<T> {
        let call = match idempotency_key {
            Some(key) => call.idempotency_key(key)?,
            None => call.idempotency_key(&Uuid::new_v4().to_string())?,
        };
        let policy = self.retry;
        let mut wait = policy.create_wait;
        let mut attempt = 1;
        loop {
            match self.json(call.clone()).await {
                Err(error) if error.recoverable_create() && attempt < policy.create_attempts => {}
                outcome => return outcome,
            }
            // The server has it in hand, or the connection failed; neither has a signal to wait for.
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(policy.create_wait_max);
            attempt += 1;
        }
    }

    /// Sends; whatever a success answers is of no interest.
    pub(crate) async fn empty(&self, call: Call) -> Result<()> {
        let limit = self.limit(&call);
        let (response, url) = self.send(&call, limit).await?;
        collect(response, &url, limit, call.answer_max).await.map(drop)
    }

    /// Sends and hands the answer on before its body has come, with the URL and the time that may pass
    /// between two pieces of it.
    pub(crate) async fn open(&self, call: &Call) -> Result<(Response, String, Duration)> {
        let limit = self.limit(call);
        let (response, url) = self.send(call, limit).await?;
        Ok((response, url, limit))
    }

    /// Sends a body that can be read once, so there is one attempt. `told` hears of every piece that is
    /// handed to the connection how long it is.
    pub(crate) async fn upload<S>(
        &self,
        call: &Call,
        content: S,
        told: impl Fn(u64) + Send + 'static,
    ) -> Result<Bytes>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let pace = Pace::default();
        let body = reqwest::Body::wrap_stream(Paced::new(content, pace.clone(), told));
        self.once(call, &pace, |request| request.body(body)).await
    }

    /// Sends a form that can be read once, so there is one attempt.
    pub(crate) async fn form<T: DeserializeOwned>(
        &self,
        call: &Call,
        form: reqwest::multipart::Form,
    ) -> Result<T> {
        let boundary = format!("multipart/form-data; boundary={}", form.boundary());
        let pace = Pace::default();
        let body = Paced::new(
            futures::StreamExt::map(form.into_stream(), |piece| piece.map_err(std::io::Error::other)),
            pace.clone(),
            |_| {},
        );
        let body = reqwest::Body::wrap_stream(body);
        let answer =
            self.once(call, &pace, |request| request.header(CONTENT_TYPE, boundary).body(body)).await?;
        read_json(&self.url(call), &answer)
    }

    async fn once(
        &self,
        call: &Call,
        pace: &Pace,
        with_body: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Bytes> {
        let limit = self.limit(call);
        let url = self.url(call);
        let request = with_body(self.request(call, &url)?);
        let response = pace.watch(limit, request.send()).await;
        let response = response
            .ok_or_else(|| Error::timed_out(&url, limit))?
            .map_err(|error| transport(&url, &error))?;
        let response = accept(response, &url, limit).await?;
        Ok(collect(response, &url, limit, call.answer_max).await?.freeze())
    }

    fn limit(&self, call: &Call) -> Duration {
        let default = self.request_timeout.unwrap_or(DEFAULT_REQUEST_TIMEOUT);
        if call.timeout > DEFAULT_REQUEST_TIMEOUT { default.max(call.timeout) } else { default }
    }

    pub(crate) fn url(&self, call: &Call) -> String {
        let mark = if call.query.is_empty() { "" } else { "?" };
        format!("{}{}{mark}{}", self.base_url, call.path, call.query)
    }

    pub(crate) fn request(&self, call: &Call, url: &str) -> Result<reqwest::RequestBuilder> {
        let mut headers = call.headers.clone();
        if call.with_key {
            let authorization = self.authorization.clone().ok_or_else(Error::missing_api_key)?;
            headers.insert(AUTHORIZATION, authorization);
        }
        Ok(self.http.request(call.method.clone(), url).headers(headers))
    }

    /// Repeats on 429 alone, as often and as patiently as the policy and the call say.
    async fn send(&self, call: &Call, limit: Duration) -> Result<(Response, String)> {
        let url = self.url(call);
        let retries_max = if call.one_attempt { 0 } else { self.retry.rate_limit_retries };
        let mut retries = 0;
        loop {
            let mut request = self.request(call, &url)?;
            if let Some(body) = &call.body {
                request = request.body(body.clone());
            }
            let response = tokio::time::timeout(limit, request.send())
                .await
                .map_err(|_| Error::timed_out(&url, limit))?
                .map_err(|error| transport(&url, &error))?;
            let error = match accept(response, &url, limit).await {
                Ok(response) => return Ok((response, url)),
                Err(error) => error,
            };
            let wait = error.rate_limited().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            match wait.filter(|wait| *wait <= self.retry.rate_limit_wait_max) {
                Some(wait) if retries < retries_max => tokio::time::sleep(wait).await,
                _ => return Err(error),
            }
            retries += 1;
        }
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(url: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| Error::invalid_response(format!("the answer for {url} is not as expected: {error}")))
}

/// Passes a success on and reads an error to its end.
pub(crate) async fn accept(response: Response, url: &str, limit: Duration) -> Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    if status.is_redirection() {
        let target = text("location").unwrap_or_else(|| "nowhere".to_owned());
        return Err(Error::invalid_response(format!(
            "{url} redirects to {target}, which no Nullspace server does"
        )));
    }
    let request_id = text("x-request-id");
    let retry_after = text(RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
    // The status says what happened; a body that is too long or breaks off only says less about it.
    let body = collect_up_to(response, limit, ERROR_BODY_MAX).await;
    Err(Error::from_answer(status.as_u16(), request_id, retry_after, &body))
}

async fn collect(mut response: Response, url: &str, limit: Duration, max: usize) -> Result<BytesMut> {
    let mut body = BytesMut::new();
    loop {
        let chunk = tokio::time::timeout(limit, response.chunk())
            .await
            .map_err(|_| Error::timed_out(url, limit))?
            .map_err(|error| transport(url, &error))?;
        let Some(chunk) = chunk else { return Ok(body) };
        if body.len() + chunk.len() > max {
            return Err(Error::invalid_response(format!("the answer for {url} is longer than {max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
}

async fn collect_up_to(mut response: Response, limit: Duration, max: usize) -> BytesMut {
    let mut body = BytesMut::new();
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(limit, response.chunk()).await {
        let room = max - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() >= room {
            break;
        }
    }
    body
}

pub(crate) fn transport(url: &str, error: &reqwest::Error) -> Error {
    let cause = cause(error);
    if error.is_connect() {
        let base = Url::parse(url).map_or_else(|_| url.to_owned(), |url| url.origin().ascii_serialization());
        Error::unreachable(&base, cause)
    } else if error.is_builder() {
        Error::invalid_request(format!("cannot ask for {url}: {cause}"))
    } else {
        Error::broken(url, cause)
    }
}

/// The innermost reason: the outer ones only repeat the URL.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    // The system's number says nothing to a person.
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

fn bad_url(url: &str, reason: &str) -> Error {
    Error::invalid_request(format!("{url:?} is not the URL of a server: {reason}"))
        .suggest("set NULLSPACE_API_URL to something like http://localhost:3000")
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// TLS needs to be told once per process who does its arithmetic.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Refused only when the program has already chosen, and then its choice stands.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_segment_cannot_lead_anywhere_else() {
        assert_eq!(segment("ID", "sb_a/../b?c").unwrap(), "sb_a%2F..%2Fb%3Fc");
        for text in ["", ".", ".."] {
            assert_eq!(segment("ID", text).unwrap_err().code(), "invalid_request");
        }
    }

    #[test]
    fn a_url_that_is_none_is_refused_with_the_reason() {
        let config = |url: &str| Config {
            api_key: None,
            base_url: url.to_owned(),
            request_timeout: None,
            retry: RetryPolicy::default(),
        };
        for url in ["localhost:3000", "ftp://host", "http://", "http://host?x", "http://user@host"] {
            let error = Client::new(config(url)).err().unwrap();
            assert!(error.message().contains("is not the URL of a server"), "{url}: {error}");
        }
        assert_eq!(Client::new(config("http://h:1/prefix")).unwrap().base_url(), "http://h:1/prefix");
    }
}
