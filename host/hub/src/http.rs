//! Requests to a hub: redirects that a token does not follow, bounded answers, patience with servers that are busy.

use std::io::Read;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, Request, Response, Uri};
use ureq::{Agent, Body, SendBody};

use crate::error::HubError;
use crate::settings::Token;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 6;
/// Tries of one request.
const TRIES: u32 = 5;
/// The first pause between tries; each later one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// A server that wants to be left alone for longer is an error that says so.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);
/// The longest address.
const MAX_URL: usize = 16 << 10;
/// What is read of an answer that is an error.
const ERROR_LIMIT: u64 = 64 << 10;
/// Waiting for a connection, and for the next byte.
const CONNECT: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(60);

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    pub(crate) fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@'))?;
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Some(Self { secure, host: authority.host().to_ascii_lowercase(), port })
    }

    /// Whether what is sent there can be read by nobody else.
    fn private(&self) -> bool {
        let address = self.host.trim_start_matches('[').trim_end_matches(']');
        self.secure || self.host == "localhost" || address.parse().is_ok_and(|a: std::net::IpAddr| a.is_loopback())
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, usual) = if self.secure { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// What a request sends.
pub(crate) enum Content<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// So many bytes of a reader, which is made anew for each try.
    Stream(u64, &'a dyn Fn() -> std::io::Result<Box<dyn Read + 'a>>),
}

/// A request.
pub(crate) struct Ask<'a> {
    pub method: &'static str,
    pub url: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub content: Content<'a>,
    /// What it is about, for messages: `the files of hf://org/name`.
    pub what: &'a str,
    /// Asked once and not again: there is something to fall back on.
    pub brief: bool,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(url: &'a str, what: &'a str) -> Self {
        Self { method: "GET", url, headers: &[], content: Content::Nothing, what, brief: false }
    }
}

/// An answer that is no error.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from in the end.
    pub url: String,
    /// Headers of the hub's own answer, where that was a redirect.
    pub first: Option<HeaderMap>,
    pub body: Body,
}

impl Answer {
    /// A header of the answer that the hub itself gave.
    pub(crate) fn hub_header(&self, name: &str) -> Option<&str> {
        header(self.first.as_ref().unwrap_or(&self.headers), name)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// An answer that is an error, for whoever knows what was asked.
pub(crate) struct Refusal {
    pub status: u16,
    pub headers: HeaderMap,
    pub server: String,
    pub body: Vec<u8>,
}

impl Refusal {
    /// What the server says, in one short line without characters that steer a terminal.
    pub(crate) fn message(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let inner = ["error", "message", "Message"].iter().find_map(|k| json.get(k).and_then(|v| v.as_str()));
        let text = header(&self.headers, "x-error-message").or(inner).unwrap_or_default();
        text.chars().filter(|c| !c.is_control() && !('\u{202a}'..='\u{202e}').contains(c)).take(300).collect()
    }

    fn pause(&self) -> Option<Duration> {
        header(&self.headers, RETRY_AFTER.as_str()).and_then(|v| v.trim().parse().ok()).map(Duration::from_secs)
    }

    /// The error that it is where nobody knows better.
    pub(crate) fn plain(&self, what: &str) -> HubError {
        let (server, status, wait) = (self.server.clone(), self.status, self.pause());
        match status {
            429 => HubError::TooMany { server, wait },
            _ => HubError::Status { server, what: what.to_owned(), status, message: self.message(), wait },
        }
    }
}

/// What a request came to.
pub(crate) enum Outcome {
    Done(Answer),
    Refused(Refusal),
}

/// Speaks with one hub.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    home: Origin,
    token: Option<Token>,
    /// Whether the token goes in a cookie too, as ModelScope's older addresses want it.
    cookie: bool,
    offline: bool,
}

impl Client {
    pub(crate) fn new(base: &str, token: Option<Token>, cookie: bool, offline: bool) -> Result<Self, HubError> {
        let home = Origin::of(base).ok_or_else(|| HubError::Connect { server: base.to_owned(), message: "it is no address".to_owned() })?;
        let token = token.filter(|_| {
            let private = home.private();
            if !private {
                tracing::warn!("the token is not sent to {home}, because everybody on the way could read it there; use https");
            }
            private
        });
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("trainer/", env!("CARGO_PKG_VERSION")))
            // So that lengths are those of files.
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(IDLE))
            .timeout_per_read(Some(IDLE))
            .timeout_per_write(Some(IDLE))
            .max_idle_connections_per_host(16)
            .build();
        Ok(Self { agent: config.into(), home, token, cookie, offline })
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The hub's server, for messages.
    pub(crate) fn server(&self) -> String {
        self.home.to_string()
    }

    /// Whether the token may go to a server: to the hub's own, and for ModelScope, whose large files are sent to a name below its own, to these.
    fn trusts(&self, origin: &Origin) -> bool {
        let base = self.home.host.trim_start_matches("www.");
        let below = origin.host.strip_suffix(base).is_some_and(|rest| rest.ends_with('.'));
        *origin == self.home || self.cookie && below && base.contains('.') && origin.secure && self.home.secure
    }

    /// Sends a request once and follows redirects.
    fn send(&self, ask: &Ask<'_>) -> Result<Outcome, HubError> {
        if self.offline {
            return Err(HubError::NoNetwork { server: self.server() });
        }
        let mut url = ask.url.to_owned();
        let mut first = None;
        for _ in 0..=MAX_REDIRECTS {
            let Some(origin) = Origin::of(&url).filter(|_| url.len() <= MAX_URL) else {
                return Err(self.answer(ask.what, "it leads to something that is no address".to_owned()));
            };
            let server = origin.to_string();
            let lost = |e: ureq::Error| HubError::Connect { server: server.clone(), message: plain(&e, &url) };
            let mut request = Request::builder().method(ask.method).uri(&url);
            for (name, value) in ask.headers {
                request = request.header(*name, *value);
            }
            if let Some(token) = self.token.as_ref().filter(|_| self.trusts(&origin)) {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.secret()));
                if self.cookie {
                    request = request.header("cookie", format!("m_session_id={}", token.secret()));
                }
            }
            let wrong = |e: ureq::http::Error| HubError::Connect { server: server.clone(), message: e.to_string() };
            let answer: Response<Body> = match &ask.content {
                Content::Nothing => self.agent.run(request.body(()).map_err(wrong)?).map_err(lost)?,
                Content::Bytes(bytes) => self.agent.run(request.body(*bytes).map_err(wrong)?).map_err(lost)?,
                Content::Stream(length, open) => {
                    let unread = |e: std::io::Error| HubError::Connect {
                        server: server.clone(),
                        message: format!("cannot read what is to be sent: {e}"),
                    };
                    let mut reader = open().map_err(unread)?;
                    let request = request.header("content-length", *length).body(SendBody::from_reader(&mut reader)).map_err(wrong)?;
                    self.agent.run(request).map_err(lost)?
                }
            };
            let (parts, mut body) = answer.into_parts();
            let status = parts.status.as_u16();
            match status {
                200..=299 => return Ok(Outcome::Done(Answer { status, headers: parts.headers, url, first, body })),
                301 | 302 | 303 | 307 | 308 => {
                    let next = parts.headers.get(LOCATION).and_then(|l| l.to_str().ok()).and_then(|l| join(&url, l));
                    let next = next.ok_or_else(|| self.answer(ask.what, "it leads nowhere".to_owned()))?;
                    // What was asked for in private is not fetched in the clear.
                    if origin.secure && Origin::of(&next).is_some_and(|o| !o.secure) {
                        return Err(self.answer(ask.what, "it leads from https to http".to_owned()));
                    }
                    // What the hub says of a file stands where it leads elsewhere; to another name of its own, it only leads on.
                    if origin == self.home && Origin::of(&next).as_ref() != Some(&self.home) {
                        first = Some(parts.headers);
                    }
                    url = next;
                }
                _ => {
                    let body = body.with_config().limit(ERROR_LIMIT).read_to_vec().unwrap_or_default();
                    return Ok(Outcome::Refused(Refusal { status, headers: parts.headers, server, body }));
                }
            }
        }
        Err(self.answer(ask.what, format!("it leads further after {MAX_REDIRECTS} redirects")))
    }

    /// An answer that makes no sense.
    pub(crate) fn answer(&self, what: &str, message: String) -> HubError {
        HubError::Answer { server: self.server(), what: what.to_owned(), message }
    }

    /// Sends a request. `explain` turns a refusal into an error.
    pub(crate) fn once(&self, ask: &Ask<'_>, explain: &dyn Fn(&Refusal) -> Option<HubError>) -> Result<Answer, HubError> {
        match self.send(ask)? {
            Outcome::Done(answer) => Ok(answer),
            Outcome::Refused(refusal) => Err(explain(&refusal).unwrap_or_else(|| refusal.plain(ask.what))),
        }
    }

    /// Sends a request, again and again if the server is busy or out of reach.
    pub(crate) fn ask(&self, ask: &Ask<'_>, explain: &dyn Fn(&Refusal) -> Option<HubError>) -> Result<Answer, HubError> {
        patiently(|| self.once(ask, explain))
    }

    /// The body of an answer, of at most `limit` bytes.
    pub(crate) fn read(&self, answer: &mut Answer, limit: u64, what: &str) -> Result<Vec<u8>, HubError> {
        let mut bytes = Vec::new();
        let announced = answer.header("content-length").and_then(|l| l.parse::<u64>().ok());
        if announced.is_some_and(|n| n > limit) {
            return Err(self.answer(what, format!("it is larger than {limit} bytes")));
        }
        let mut reader = answer.body.as_reader().take(limit.saturating_add(1));
        if let Err(e) = reader.read_to_end(&mut bytes) {
            let received = bytes.len() as u64;
            let expected = announced.unwrap_or(received);
            return Err(HubError::Short { server: self.server(), file: what.to_owned(), received, expected, message: e.to_string() });
        }
        if bytes.len() as u64 > limit {
            return Err(self.answer(what, format!("it is larger than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// A part of a body: `length` bytes behind the first `skip`. The rest is not read.
    pub(crate) fn read_part(&self, answer: &mut Answer, skip: u64, length: u64, what: &str) -> Result<Vec<u8>, HubError> {
        let mut reader = answer.body.as_reader();
        let mut bytes = Vec::new();
        let done = std::io::copy(&mut reader.by_ref().take(skip), &mut std::io::sink());
        let done = done.and_then(|_| reader.take(length).read_to_end(&mut bytes));
        let received = bytes.len() as u64;
        match done {
            Ok(_) if received == length => Ok(bytes),
            other => {
                let message = other.map_or_else(|e| e.to_string(), |_| "it was closed".to_owned());
                Err(HubError::Short { server: self.server(), file: what.to_owned(), received, expected: length, message })
            }
        }
    }

    /// Asks for JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        ask: &Ask<'_>,
        limit: u64,
        explain: &dyn Fn(&Refusal) -> Option<HubError>,
    ) -> Result<(T, HeaderMap), HubError> {
        let once = || {
            let mut answer = self.once(ask, explain)?;
            let bytes = self.read(&mut answer, limit, ask.what)?;
            let value = serde_json::from_slice(&bytes).map_err(|e| self.answer(ask.what, format!("no JSON as expected ({e})")))?;
            Ok((value, answer.headers))
        };
        if ask.brief { once() } else { patiently(once) }
    }
}

/// Tries again where that may help, with pauses.
pub(crate) fn patiently<T>(mut try_it: impl FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        let error = match try_it() {
            Err(error) => error,
            done => return done,
        };
        let Some(wanted) = error.again() else { return Err(error) };
        if wanted.is_some_and(|w| w > LONGEST_PAUSE) {
            return Err(error);
        }
        let wait = wanted.unwrap_or(pause);
        tracing::info!(seconds = wait.as_secs_f64(), "trying again: {error}");
        std::thread::sleep(wait);
        pause *= 2;
    }
    try_it()
}

/// An error without the address, whose query may be a signature.
fn plain(error: &ureq::Error, url: &str) -> String {
    error.to_string().replace(url, "the address")
}

/// Where a redirect leads.
fn join(base: &str, to: &str) -> Option<String> {
    if to.starts_with("http://") || to.starts_with("https://") {
        return Some(to.to_owned());
    }
    let (scheme, rest) = base.split_once("://")?;
    let (rest, _) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
    let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some(other) = to.strip_prefix("//") {
        return Some(format!("{scheme}://{other}"));
    }
    if to.starts_with('/') {
        return Some(format!("{scheme}://{server}{to}"));
    }
    // Another scheme, such as file:, is no relative path.
    if to.is_empty() || to.split_once(':').is_some_and(|(s, _)| !s.contains(['/', '?'])) {
        return None;
    }
    let folder = path.rsplit_once('/').map_or("", |(f, _)| f);
    let slash = if folder.is_empty() { "" } else { "/" };
    Some(format!("{scheme}://{server}/{folder}{slash}{to}"))
}

/// A text as a part of an address; slashes stay where they separate parts.
pub(crate) fn escape(text: &str, slashes: bool) -> String {
    let one = |b: u8| {
        let plain = b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || slashes && b == b'/';
        if plain { char::from(b).to_string() } else { format!("%{b:02X}") }
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_join() {
        let base = "https://a.bc/x/y?q=1";
        for (to, expected) in [
            ("https://d.ef/z", Some("https://d.ef/z")),
            ("//d.ef/z", Some("https://d.ef/z")),
            ("/z?r", Some("https://a.bc/z?r")),
            ("z", Some("https://a.bc/x/z")),
            ("file:///etc/passwd", None),
            ("javascript:x", None),
            ("", None),
        ] {
            assert_eq!(join(base, to).as_deref(), expected, "{to}");
        }
        assert_eq!(join("http://a.bc", "z").as_deref(), Some("http://a.bc/z"));
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let of = |url| Origin::of(url).unwrap();
        assert_eq!(of("https://A.bc/x"), of("https://a.bc:443"));
        assert_ne!(of("https://a.bc"), of("http://a.bc"));
        assert_ne!(of("https://a.bc"), of("https://a.bc:8443"));
        assert_ne!(of("https://a.bc"), of("https://a.bc.evil.net"));
        assert!(Origin::of("ftp://a.bc").is_none() && Origin::of("/x").is_none() && Origin::of("https://me@a.bc").is_none());
        assert!(of("https://a.bc").private() && of("http://127.0.0.1:8").private() && of("http://[::1]:8").private());
        assert!(!of("http://a.bc").private() && !of("http://localhost.evil.net").private());
    }

    #[test]
    fn a_token_stays_with_its_hub() {
        let trusts =
            |base: &str, cookie: bool, url: &str| Client::new(base, None, cookie, false).unwrap().trusts(&Origin::of(url).unwrap());
        assert!(trusts("https://huggingface.co", false, "https://huggingface.co/x"));
        for other in ["https://cdn.huggingface.co", "http://huggingface.co", "https://huggingface.co:8443", "https://evil.net"] {
            assert!(!trusts("https://huggingface.co", false, other), "{other}");
        }
        assert!(trusts("https://www.modelscope.cn", true, "https://lfs.modelscope.cn/x"));
        for other in ["http://lfs.modelscope.cn", "https://evilmodelscope.cn", "https://modelscope.cn.evil.net", "https://x.aliyuncs.com"] {
            assert!(!trusts("https://modelscope.cn", true, other), "{other}");
        }
    }

    #[test]
    fn parts_of_addresses_are_escaped() {
        assert_eq!(escape("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(escape("data/ü ?#%.json", true), "data/%C3%BC%20%3F%23%25.json");
    }
}
