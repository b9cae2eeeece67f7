//! What a guest's requests were and what came back, for recordings.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::http::{Error, Header, Request, Response};
use super::{Outgoing, Transport};

/// Bytes of a method, an address, a header or an error that are kept.
const KEPT_TEXT: usize = 4096;
/// Bytes of a body up to which it is kept as text; of a larger one, and of what is no text, there is the digest.
const KEPT_BODY: usize = 64 << 10;
/// Headers that are kept.
const KEPT_HEADERS: usize = 64;

/// A request with what came back. It holds no secret: `[secret KEY]` stands where the guest put its placeholder, and where a server sent one back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// The method, as the guest wrote it.
    pub method: String,
    /// The address.
    pub url: String,
    /// Names and values of headers, in the guest's order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub headers: Vec<(String, String)>,
    /// What was sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body: Option<Body>,
    /// What came back.
    pub answer: Answer,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// A server's answer, at the end of all redirects.
    Response {
        /// The status.
        status: u16,
        /// Names and values of headers, in the server's order.
        headers: Vec<(String, String)>,
        /// What it holds.
        body: Body,
    },
    /// None: the request was refused or failed.
    Error {
        /// `denied`, `invalid`, `unreachable`, `protocol`, `timeout` or `limit`.
        kind: String,
        /// In words.
        message: String,
    },
}

/// A body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// How long it is.
    pub bytes: u64,
    /// Its digest.
    pub sha256: String,
    /// The whole, where it is UTF-8 and at most 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
}

impl Body {
    fn of(bytes: &[u8]) -> Self {
        let text = std::str::from_utf8(bytes).ok().filter(|t| t.len() <= KEPT_BODY).map(str::to_owned);
        let sha256 = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        Self { bytes: bytes.len() as u64, sha256, text }
    }
}

impl Exchange {
    fn of(request: &Request, result: &Result<Response, Error>) -> Self {
        let answer = match result {
            Ok(response) => {
                Answer::Response { status: response.status, headers: headers(&response.headers), body: Body::of(&response.body) }
            }
            Err(error) => {
                let (kind, message) = match error {
                    Error::Denied(words) => ("denied", words),
                    Error::Invalid(words) => ("invalid", words),
                    Error::Unreachable(words) => ("unreachable", words),
                    Error::Protocol(words) => ("protocol", words),
                    Error::Timeout(words) => ("timeout", words),
                    Error::Limit(words) => ("limit", words),
                };
                Answer::Error { kind: kind.to_owned(), message: cut(message) }
            }
        };
        let body = request.body.as_deref().map(Body::of);
        Self { method: cut(&request.method), url: cut(&request.url), headers: headers(&request.headers), body, answer }
    }
}

fn headers(all: &[Header]) -> Vec<(String, String)> {
    all.iter().take(KEPT_HEADERS).map(|h| (cut(&h.name), cut(&h.value))).collect()
}

/// The beginning of a text of any length: a guest writes what it likes.
fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(KEPT_TEXT);
    let dots = if end < text.len() { "…" } else { "" };
    format!("{}{dots}", text.get(..end).unwrap_or_default())
}

/// Before a [`Transport`]: keeps what it carries.
pub struct Recorder {
    inner: Arc<dyn Transport>,
    exchanges: Mutex<Vec<Exchange>>,
}

impl Recorder {
    /// Before `inner`.
    pub fn new(inner: Arc<dyn Transport>) -> Arc<Self> {
        Arc::new(Self { inner, exchanges: Mutex::default() })
    }

    /// The exchanges since the last time, in order.
    pub fn take(&self) -> Vec<Exchange> {
        std::mem::take(&mut *self.exchanges.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Transport for Recorder {
    fn fetch(&self, outgoing: &Outgoing<'_>) -> Result<Response, Error> {
        let result = self.inner.fetch(outgoing);
        let exchange = Exchange::of(&outgoing.redacted, &result);
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner).push(exchange);
        result
    }

    fn replays(&self) -> bool {
        self.inner.replays()
    }
}
