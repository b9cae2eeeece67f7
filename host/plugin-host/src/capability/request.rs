//! A guest's request, checked before anything is done with it.

use std::fmt;

use ureq::http::uri::PathAndQuery;
use ureq::http::{HeaderName, HeaderValue, Uri};

use super::http::Request;
use super::server::{Method, Server};

/// The longest address.
const MAX_URL: usize = 8 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;

/// Headers that frame messages or mean connections: the client's own.
const FRAMING: [&str; 14] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "accept-encoding",
    "http2-settings",
    "proxy-authorization",
    "proxy-connection",
    "via",
];

/// Headers that belong to one server and do not follow a redirect to another.
const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];

/// A checked request. Placeholders still stand in it.
pub(crate) struct Checked {
    pub(crate) method: Method,
    pub(crate) server: Server,
    pub(crate) uri: Uri,
    pub(crate) headers: Vec<(HeaderName, String)>,
}

impl Checked {
    /// Checks a request: an address, a method, headers of one line each, a body where one belongs.
    pub(crate) fn new(request: &Request) -> Result<Self, String> {
        let method = Method::of(&request.method).ok_or_else(|| {
            let known = Method::ALL.map(Method::name).join(", ");
            format!("the method {} is none of {known}", Shown(&request.method))
        })?;
        let (uri, server) = address(&request.url)?;
        if request.body.is_some() && !matches!(method, Method::Post | Method::Put | Method::Patch) {
            return Err(format!("a {} request has no body", method.name()));
        }
        if request.headers.len() > MAX_HEADERS {
            return Err(format!("it has {} headers; at most {MAX_HEADERS} are taken", request.headers.len()));
        }
        let mut headers = Vec::with_capacity(request.headers.len());
        for header in &request.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes())
                .map_err(|_| format!("the header name {} holds characters that no name has", Shown(&header.name)))?;
            if FRAMING.contains(&name.as_str()) {
                return Err(format!("the header `{name}` is the host's to set"));
            }
            if let Some(c) = header.value.chars().find(|c| !matches!(c, ' '..='~' | '\t')) {
                return Err(format!("the value of the header `{name}` holds the character {c:?}; a value is one line of printable ASCII"));
            }
            headers.push((name, header.value.clone()));
        }
        Ok(Self { method, server, uri, headers })
    }
}

/// Reads an absolute address.
pub(crate) fn address(url: &str) -> Result<(Uri, Server), String> {
    let wrong = |why: &str| format!("the address {} cannot be used: {why}", Shown(url));
    if url.len() > MAX_URL {
        return Err(wrong(&format!("it has {} bytes; at most {MAX_URL} are taken", url.len())));
    }
    if let Some(c) = url.chars().find(|c| !matches!(c, '!'..='~')) {
        return Err(wrong(&format!("it holds the character {c:?}, which has to be percent-encoded")));
    }
    // A fragment is never sent.
    let uri: Uri =
        url.split('#').next().unwrap_or_default().parse().map_err(|_| wrong("it is no address of the form https://HOST/PATH?QUERY"))?;
    let server = Server::of(&uri).map_err(|e| wrong(&e))?;
    Ok((uri, server))
}

/// The address that a redirect from `base` leads to (RFC 3986, section 5; dots are left to the server).
pub(crate) fn redirect(base: &Uri, location: &str) -> Result<(Uri, Server), String> {
    let (scheme, authority) = (base.scheme_str().unwrap_or_default(), base.authority().map_or("", |a| a.as_str()));
    let is_scheme = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let path = base.path();
    let url = match location.split_once(':') {
        Some((before, _)) if is_scheme(before) => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ if location.starts_with('?') => format!("{scheme}://{authority}{path}{location}"),
        _ => format!("{scheme}://{authority}{}/{location}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
    };
    address(&url)
}

/// Puts another query into an address.
pub(crate) fn with_query(uri: &Uri, query: &str) -> Result<Uri, String> {
    let path: PathAndQuery = format!("{}?{query}", uri.path()).parse().map_err(|_| "the query cannot be put together".to_owned())?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| "the address cannot be put together".to_owned())
}

/// A header's value; one that came of a secret is marked so that nothing prints it.
pub(crate) fn header_value(value: &str, secret: bool) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| "a header's value cannot be sent".to_owned())?;
    value.set_sensitive(secret);
    Ok(value)
}

/// Whether a header stays with the server it was meant for.
pub(crate) fn is_credential(name: &HeaderName) -> bool {
    CREDENTIALS.contains(&name.as_str())
}

/// A guest's text in a message: short, and without characters that could forge lines.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIMIT: usize = 120;
        let cut = self.0.get(..self.0.floor_char_boundary(LIMIT)).unwrap_or_default();
        let more = if cut.len() < self.0.len() { "..." } else { "" };
        write!(f, "`{}{more}`", cut.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::super::http::Header;
    use super::*;

    fn request(method: &str, url: &str, headers: &[(&str, &str)]) -> Request {
        let headers = headers.iter().map(|(n, v)| Header { name: (*n).to_owned(), value: (*v).to_owned() }).collect();
        Request { method: method.to_owned(), url: url.to_owned(), headers, body: None }
    }

    #[test]
    fn what_cannot_be_sent() {
        let long = format!("https://a.bc/{}", "x".repeat(9000));
        let cases: [(Request, &str); 14] = [
            (request("BREW", "https://a.bc", &[]), "the method `BREW` is none of GET, HEAD, POST, PUT, PATCH, DELETE"),
            (request("GET\r\nX: y", "https://a.bc", &[]), r"the method `GET\r\nX: y` is none of GET, HEAD, POST, PUT, PATCH, DELETE"),
            (
                request("GET", "file:///etc/passwd", &[]),
                "the address `file:///etc/passwd` cannot be used: it is no address of the form https://HOST/PATH?QUERY",
            ),
            (
                request("GET", "/etc/passwd", &[]),
                "the address `/etc/passwd` cannot be used: it is no absolute address; it begins with http:// or https://",
            ),
            (request("GET", "ftp://a.bc/", &[]), "the address `ftp://a.bc/` cannot be used: the scheme `ftp` is neither http nor https"),
            (
                request("GET", "https://a.bc/\r\nHost: evil", &[]),
                r"the address `https://a.bc/\r\nHost: evil` cannot be used: it holds the character '\r', which has to be percent-encoded",
            ),
            (
                request("GET", "https://a.bc/a b", &[]),
                "the address `https://a.bc/a b` cannot be used: it holds the character ' ', which has to be percent-encoded",
            ),
            (
                request("GET", "https://u:p@a.bc/", &[]),
                "the address `https://u:p@a.bc/` cannot be used: user information before an `@` is not taken; use a header and a secret",
            ),
            (request("GET", &long, &[]), "it has 9013 bytes; at most 8192 are taken"),
            (
                request("GET", "https://a.bc", &[("x-a", "b\r\nx-evil: 1")]),
                r"the value of the header `x-a` holds the character '\r'; a value is one line of printable ASCII",
            ),
            (
                request("GET", "https://a.bc", &[("x-a", "b\0")]),
                r"the value of the header `x-a` holds the character '\0'; a value is one line of printable ASCII",
            ),
            (request("GET", "https://a.bc", &[("x a\u{1b}[2J", "b")]), r"the header name `x a\u{1b}[2J` holds characters that no name has"),
            (request("GET", "https://a.bc", &[("Host", "evil")]), "the header `host` is the host's to set"),
            (request("GET", "https://a.bc", &[("Transfer-Encoding", "chunked")]), "the header `transfer-encoding` is the host's to set"),
        ];
        for (request, golden) in cases {
            let error = Checked::new(&request).map(|c| c.uri.to_string()).unwrap_err();
            assert!(error == golden || error.ends_with(&format!(": {golden}")), "{error}");
        }
        let body = Request { body: Some(Vec::new()), ..request("GET", "https://a.bc", &[]) };
        assert_eq!(Checked::new(&body).err().unwrap(), "a GET request has no body");
        let many = vec![("a", "b"); 65];
        assert_eq!(Checked::new(&request("GET", "https://a.bc", &many)).err().unwrap(), "it has 65 headers; at most 64 are taken");
        let good = Checked::new(&request("GET", "https://A.bc/x?y=1#z", &[("X-A", "b\tc")])).unwrap();
        assert_eq!(
            (good.uri.to_string().to_lowercase().as_str(), good.server.to_string().as_str()),
            ("https://a.bc/x?y=1", "https://a.bc")
        );
    }

    #[test]
    fn where_redirects_lead() {
        let base: Uri = "https://a.bc/x/y?q=1".parse().unwrap();
        for (location, golden) in [
            ("https://d.ef/z", "https://d.ef/z"),
            ("//d.ef/z", "https://d.ef/z"),
            ("/z?r=2", "https://a.bc/z?r=2"),
            ("?r=2", "https://a.bc/x/y?r=2"),
            ("z", "https://a.bc/x/z"),
            ("../z", "https://a.bc/x/../z"),
            ("z#part", "https://a.bc/x/z"),
            ("", "https://a.bc/x/"),
        ] {
            assert_eq!(redirect(&base, location).unwrap().0.to_string(), golden, "{location}");
        }
        for wrong in ["file:///etc/passwd", "javascript:alert(1)", "https://u@d.ef/", "ht tp://x", "/\r\n"] {
            assert!(redirect(&base, wrong).is_err(), "{wrong}");
        }
    }
}
