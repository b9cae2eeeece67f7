//! Requests to servers that are not trusted: redirects are followed here, answers are bounded, and credentials stay with the server that they are for.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use trainer_plugin_host::ByteSize;
use ureq::http::header::{AUTHORIZATION, LOCATION};
use ureq::http::{HeaderMap, Request, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::StoreError;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 6;
/// The longest address.
const MAX_URL: usize = 16 << 10;
/// What is read of an answer that is an error.
const ERROR_LIMIT: u64 = 64 << 10;
/// Waiting for a connection, for the next byte, and for all of an answer.
const CONNECT: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(600);
/// The largest file of certificates.
const MAX_AUTHORITIES: u64 = 16 << 20;

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
        let authority = uri.authority().filter(|a| !a.as_str().contains('@') && !a.host().is_empty())?;
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Some(Self { secure, host: authority.host().to_ascii_lowercase(), port })
    }

    /// Whether nobody on the way can read or change what is sent.
    pub(crate) fn private(&self) -> bool {
        self.secure || self.is_loopback()
    }

    /// Whether it is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

/// Whether a host is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|a: std::net::IpAddr| a.is_loopback())
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, usual) = if self.secure { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// A request.
pub(crate) struct Ask<'a> {
    pub method: &'static str,
    pub url: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// Goes to the origin of `url` and nowhere else.
    pub authorization: Option<&'a str>,
    pub body: &'a [u8],
    /// What it is about, for messages.
    pub what: &'a str,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(url: &'a str, what: &'a str) -> Self {
        Self { method: "GET", url, headers: &[], authorization: None, body: b"", what }
    }
}

/// An answer.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from in the end.
    pub url: String,
    /// For messages.
    pub server: String,
    body: Body,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub(crate) fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body, of at most `limit` bytes.
    pub(crate) fn read(&mut self, limit: ByteSize, what: &str) -> Result<Vec<u8>, StoreError> {
        let too_large = || StoreError::TooLarge { what: what.to_owned(), limit };
        let announced = self.header("content-length").and_then(|l| l.parse::<u64>().ok());
        if announced.is_some_and(|n| n > limit.0) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut reader = self.body.as_reader().take(limit.0.saturating_add(1));
        let broken = |message: String| StoreError::Connect { server: self.server.clone(), what: what.to_owned(), message };
        reader.read_to_end(&mut bytes).map_err(|e| broken(format!("the connection broke: {e}")))?;
        if bytes.len() as u64 > limit.0 {
            return Err(too_large());
        }
        match announced {
            Some(n) if n != bytes.len() as u64 => Err(broken(format!("the connection ended after {} of {n} bytes", bytes.len()))),
            _ => Ok(bytes),
        }
    }

    /// What an error's body says, in one short line without characters that steer a terminal.
    pub(crate) fn message(&mut self) -> String {
        let mut bytes = Vec::new();
        // What cannot be read of an error's text is no news.
        let _ = self.body.as_reader().take(ERROR_LIMIT).read_to_end(&mut bytes);
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
            // Plain words, such as those of a server with TLS that is spoken to without; a page is for browsers.
            let text = std::str::from_utf8(&bytes).unwrap_or_default().trim_start();
            return line(text.lines().next().filter(|l| !l.starts_with('<')).unwrap_or_default());
        };
        let first = json.get("errors").and_then(|e| e.get(0)).unwrap_or(&json);
        let text = ["message", "code", "details", "error"].iter().find_map(|k| first.get(k)?.as_str().filter(|s| !s.is_empty()));
        line(text.unwrap_or_default())
    }

    /// The error that it is.
    pub(crate) fn refusal(mut self, what: &str) -> StoreError {
        let message = self.message();
        StoreError::Status { server: self.server, what: what.to_owned(), status: self.status, message }
    }

    /// An answer that makes no sense.
    pub(crate) fn senseless(&self, what: &str, message: impl Into<String>) -> StoreError {
        StoreError::Answer { server: self.server.clone(), what: what.to_owned(), message: message.into() }
    }
}

/// A text of a server's as one short line.
pub(crate) fn line(text: &str) -> String {
    let plain = |c: &char| !c.is_control() && !('\u{202a}'..='\u{202e}').contains(c) && !('\u{2066}'..='\u{2069}').contains(c);
    text.chars().filter(plain).take(300).collect()
}

/// Speaks HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    agent: Agent,
}

impl Client {
    /// With the authorities of a PEM file in place of the built-in ones, if one is given.
    pub(crate) fn new(authorities: Option<&Path>) -> Result<Self, StoreError> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = authorities {
            let broken = |message: &str| StoreError::Broken { path: path.to_owned(), message: format!("SSL_CERT_FILE: {message}") };
            let pem = crate::files::read(path, MAX_AUTHORITIES)?.ok_or_else(|| broken("there is no such file"))?;
            let certificates: Vec<Certificate<'static>> =
                parse_pem(&pem).filter_map(|item| if let Ok(PemItem::Certificate(c)) = item { Some(c) } else { None }).collect();
            if certificates.is_empty() {
                return Err(broken("it holds no certificate"));
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .user_agent(concat!("trainer/", env!("CARGO_PKG_VERSION")))
            // So that lengths are those of files.
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(IDLE))
            .timeout_per_read(Some(IDLE))
            .timeout_per_write(Some(IDLE))
            .timeout_global(Some(WHOLE))
            .tls_config(tls.build())
            .build();
        Ok(Self { agent: config.into() })
    }

    /// Sends a request; redirects of what only reads are followed. Any status is an answer.
    pub(crate) fn send(&self, ask: &Ask<'_>) -> Result<Answer, StoreError> {
        let home = Origin::of(ask.url);
        let mut url = ask.url.to_owned();
        let lost = |server: &str, message: String| StoreError::Connect { server: server.to_owned(), what: ask.what.to_owned(), message };
        for _ in 0..=MAX_REDIRECTS {
            let Some(origin) = Origin::of(&url).filter(|_| url.len() <= MAX_URL) else {
                return Err(lost(&line(&url), "it is no address".to_owned()));
            };
            let server = origin.to_string();
            if !origin.private() {
                return Err(lost(&server, "http is for this machine only; use https".to_owned()));
            }
            let mut request = Request::builder().method(ask.method).uri(&url);
            for (name, value) in ask.headers {
                request = request.header(*name, *value);
            }
            if let Some(value) = ask.authorization.filter(|_| home.as_ref() == Some(&origin)) {
                request = request.header(AUTHORIZATION, value);
            }
            let wrong = |e: ureq::http::Error| lost(&server, e.to_string());
            // An address may hold a signature, which no message repeats.
            let failed = |e: ureq::Error| lost(&server, explained(e.to_string().replace(&url, "the address")));
            let answer = match ask.method {
                "GET" | "HEAD" => self.agent.run(request.body(()).map_err(wrong)?).map_err(failed)?,
                _ => self.agent.run(request.body(ask.body).map_err(wrong)?).map_err(failed)?,
            };
            let (parts, body) = answer.into_parts();
            let status = parts.status.as_u16();
            let reads = matches!(ask.method, "GET" | "HEAD");
            if !reads || !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { status, headers: parts.headers, url, server, body });
            }
            let next = parts.headers.get(LOCATION).and_then(|l| l.to_str().ok()).and_then(|l| join(&url, l));
            let next = next.ok_or_else(|| lost(&server, "it redirects to nowhere".to_owned()))?;
            // What was asked for in private is not fetched in the clear, and what came from elsewhere leads to nothing on this machine.
            if let Some(to) = Origin::of(&next)
                && (origin.secure && !to.secure || !origin.is_loopback() && to.is_loopback())
            {
                return Err(lost(&server, format!("it redirects to {to}, which is not followed")));
            }
            url = next;
        }
        Err(lost(&line(&url), format!("there are more than {MAX_REDIRECTS} redirects")))
    }
}

/// What the TLS library says, with what to do about an authority that it does not know.
fn explained(message: String) -> String {
    if message.contains("invalid peer certificate") && message.contains("UnknownIssuer") {
        return format!(
            "{message}: its certificate is by an authority that is not trusted; if it should be, name a PEM file with the authority's certificate in the environment variable SSL_CERT_FILE"
        );
    }
    message
}

/// Where a redirect, or the place of an upload, leads.
pub(crate) fn join(base: &str, to: &str) -> Option<String> {
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

/// A text as a part of a query.
pub(crate) fn escape(text: &str) -> String {
    let one = |b: u8| {
        let plain = b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
        if plain { char::from(b).to_string() } else { format!("%{b:02X}") }
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_join() {
        let base = "https://a.bc/x/y?q=1";
        for (to, expected) in [
            ("https://d.ef/z", Some("https://d.ef/z")),
            ("//d.ef/z", Some("https://d.ef/z")),
            ("/z?r", Some("https://a.bc/z?r")),
            ("z", Some("https://a.bc/x/z")),
            ("file:///etc/passwd", None),
            ("", None),
        ] {
            assert_eq!(join(base, to).as_deref(), expected, "{to}");
        }
    }

    #[test]
    fn only_this_machine_may_be_asked_in_the_clear() {
        let private = |url| Origin::of(url).unwrap().private();
        assert!(private("https://a.bc") && private("http://127.0.0.1:8") && private("http://[::1]:8") && private("http://localhost"));
        assert!(!private("http://a.bc") && !private("http://localhost.evil.net") && !private("http://127.0.0.1.evil.net"));
        assert!(Origin::of("ftp://a.bc").is_none() && Origin::of("/x").is_none() && Origin::of("https://me@a.bc").is_none());
        let error = Client::new(None).unwrap().send(&Ask::get("http://example.com/x", "x")).err().unwrap();
        assert!(error.to_string().contains("use https"), "{error}");
    }

    #[test]
    fn texts_of_servers_are_one_plain_line() {
        assert_eq!(line("a\u{1b}[31mb\r\nc\u{202e}d"), "a[31mbcd");
        assert_eq!(line(&"x".repeat(1000)).len(), 300);
    }
}
