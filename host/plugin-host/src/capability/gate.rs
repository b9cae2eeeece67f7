//! The gate between a guest and the network.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::{self as types, HeaderName, Uri, header};

use super::address::special;
use super::http::{Error, Header, Request, Response};
use super::need::{http_flag, http_recipe};
use super::network::Network;
use super::request::{Checked, header_value, is_credential, redirect, with_query};
use super::server::{Method, Server, ServerPattern};
use super::{Capabilities, LISTED, Outgoing, Transport, limited};
use crate::limits::{ByteSize, Span};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;
/// Refusals that are told to the user; a guest could make any number of them.
const MAX_TOLD: usize = 64;

/// Checks each request, and carries it over the network.
pub(crate) struct Gate {
    network: Network,
    /// Refusals that were logged.
    told: Mutex<BTreeSet<String>>,
}

impl Gate {
    pub(crate) fn new(network: Network) -> Self {
        Self { network, told: Mutex::default() }
    }

    /// Logs a refusal once.
    fn tell(&self, words: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_TOLD && told.insert(words.to_owned()) {
            tracing::warn!(target: "plugin", "{words}");
        }
    }
}

impl Transport for Gate {
    fn fetch(&self, outgoing: &Outgoing<'_>) -> Result<Response, Error> {
        let began = Instant::now();
        let result = Passage { outgoing, capabilities: outgoing.capabilities, network: &self.network }.fetch();
        let result = match result {
            Ok(response) => Ok(response),
            // Words may quote what a guest or a server wrote.
            Err(error) => Err(map(error, |words| outgoing.capabilities.scrub(words))),
        };
        match &result {
            Ok(response) => tracing::debug!(
                target: "plugin", plugin = outgoing.plugin, method = outgoing.redacted.method, url = outgoing.redacted.url,
                status = response.status, bytes = response.body.len(), ms = began.elapsed().as_millis(), "fetched"
            ),
            Err(Error::Denied(words)) => self.tell(words),
            Err(error) => tracing::debug!(target: "plugin", plugin = outgoing.plugin, "not fetched: {error:?}"),
        }
        result
    }
}

fn map(error: Error, change: impl FnOnce(String) -> String) -> Error {
    match error {
        Error::Denied(words) => Error::Denied(change(words)),
        Error::Invalid(words) => Error::Invalid(change(words)),
        Error::Unreachable(words) => Error::Unreachable(change(words)),
        Error::Protocol(words) => Error::Protocol(change(words)),
        Error::Timeout(words) => Error::Timeout(change(words)),
        Error::Limit(words) => Error::Limit(change(words)),
    }
}

/// A header as it is sent.
struct Sent {
    name: HeaderName,
    value: String,
    /// Whether a secret stands in it.
    secret: bool,
}

/// One request through the gate, with its redirects.
struct Passage<'a> {
    outgoing: &'a Outgoing<'a>,
    capabilities: &'a Capabilities,
    network: &'a Network,
}

impl Passage<'_> {
    fn fetch(&self) -> Result<Response, Error> {
        let request = self.outgoing.request;
        let checked = Checked::new(request).map_err(|why| Error::Invalid(format!("plugin `{}`: {why}", self.outgoing.plugin)))?;
        self.check_size(request)?;
        let Checked { method, mut server, uri, headers } = checked;
        self.check_grant(method, &server).map_err(Error::Denied)?;
        self.check_placeholders(request)?;
        let mut uri = self.fill_query(&uri, &server)?;
        let mut headers =
            headers.into_iter().map(|(name, value)| self.fill_header(name, &value, &server)).collect::<Result<Vec<_>, _>>()?;
        let mut body = request.body.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(method, &server, &uri, &headers, body.take())?;
            let status = response.status().as_u16();
            let location = response.headers().get(header::LOCATION).filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308));
            let Some(location) = location.filter(|_| method.reads()) else {
                return self.read(method, &server, response);
            };
            let from = server.to_string();
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            let denied = |why: String| Error::Denied(format!("after a redirect from {from}: {why}"));
            let (next, to) = redirect(&uri, &location).map_err(|why| denied(format!("plugin `{}`: {why}", self.outgoing.plugin)))?;
            self.check_grant(method, &to).map_err(denied)?;
            if to != server {
                headers.retain(|h| !h.secret && !is_credential(&h.name));
            }
            (uri, server) = (next, to);
        }
        Err(Error::Limit(format!("plugin `{}`: {} redirected more than {MAX_REDIRECTS} times", self.outgoing.plugin, server)))
    }

    /// Bytes of address, headers and body together.
    fn check_size(&self, request: &Request) -> Result<(), Error> {
        let headers: usize = request.headers.iter().map(|h| h.name.len().saturating_add(h.value.len())).sum();
        let size = request.url.len().saturating_add(headers).saturating_add(request.body.as_ref().map_or(0, Vec::len));
        let limit = self.outgoing.limits.http_request_size;
        if size <= limit.bytes() {
            return Ok(());
        }
        let text = format!("a request has {size} bytes, more than {limit}");
        Err(Error::Limit(limited(self.outgoing.plugin, "http_request_size", &text, &doubled(limit))))
    }

    /// Whether the user granted the server, with this method.
    fn check_grant(&self, method: Method, server: &Server) -> Result<(), String> {
        let granted = &self.capabilities.grants.http;
        let here: Vec<&ServerPattern> = granted.iter().filter(|g| g.names(server)).collect();
        if here.iter().any(|g| g.allows(method)) {
            return Ok(());
        }
        let plugin = self.outgoing.plugin;
        let list = if here.is_empty() { granted.iter().collect() } else { here };
        let mut has = list.iter().take(LISTED).map(|g| format!("http={g}")).collect::<Vec<_>>().join(", ");
        if list.len() > LISTED {
            has.push_str(", ...");
        }
        let has = if list.is_empty() { "no server is granted to it".to_owned() } else { format!("it is granted {has}") };
        let wanted = if method.reads() { server.to_string() } else { format!("{} {server}", method.name()) };
        Err(format!(
            "plugin `{plugin}` may not send {} to {server}: {has}; to allow it: {}, or in the recipe: {}",
            method.name(),
            http_flag(plugin, &wanted),
            http_recipe(plugin, &wanted)
        ))
    }

    /// A placeholder stands in values of headers and of query parameters alone.
    fn check_placeholders(&self, request: &Request) -> Result<(), Error> {
        for secret in &self.capabilities.secrets {
            let placeholder = secret.placeholder.as_str();
            let (before, query) = request.url.split_once('?').unwrap_or((&request.url, ""));
            let in_key = || query.split('&').any(|p| p.split('=').next().unwrap_or_default().contains(placeholder));
            let body = request.body.as_deref().unwrap_or_default();
            let place = if before.contains(placeholder) {
                "the address before its query"
            } else if in_key() {
                "the name of a query parameter"
            } else if request.headers.iter().any(|h| h.name.contains(placeholder)) {
                "the name of a header"
            } else if body.windows(placeholder.len()).any(|w| w == placeholder.as_bytes()) {
                "the body"
            } else {
                continue;
            };
            return Err(Error::Invalid(format!(
                "plugin `{}`: the secret {} may not stand in {place}, only in values of headers and query parameters",
                self.outgoing.plugin, secret.name
            )));
        }
        Ok(())
    }

    /// Puts secrets in the place of their placeholders, if the server may have them. Tells whether there were any.
    fn fill(&self, text: &str, server: &Server, query: bool) -> Result<(String, bool), Error> {
        let mut out = text.to_owned();
        let mut any = false;
        for secret in self.capabilities.secrets.iter().filter(|s| text.contains(&s.placeholder)) {
            let plugin = self.outgoing.plugin;
            if !secret.to.iter().any(|s| s.names(server)) {
                let servers = secret.to.iter().map(ServerPattern::servers).collect::<Vec<_>>().join(", ");
                let servers = if servers.is_empty() { "no server".to_owned() } else { servers };
                return Err(Error::Denied(format!(
                    "plugin `{plugin}` may not send the secret {0} to {server}: it is granted for {servers}; to allow it: {0} = \"... to \
                     {server}\" in [plugins.{plugin}.secrets] of the recipe",
                    secret.name
                )));
            }
            let value = if query { secret.in_query() } else { secret.in_header().map(str::to_owned) };
            let value = value.map_err(|why| Error::Denied(format!("plugin `{plugin}` cannot use the secret {}: {why}", secret.name)))?;
            out = out.replace(&secret.placeholder, &value);
            any = true;
        }
        Ok((out, any))
    }

    fn fill_query(&self, uri: &Uri, server: &Server) -> Result<Uri, Error> {
        let Some(query) = uri.query() else { return Ok(uri.clone()) };
        match self.fill(query, server, true)? {
            (_, false) => Ok(uri.clone()),
            (query, true) => with_query(uri, &query).map_err(Error::Invalid),
        }
    }

    fn fill_header(&self, name: HeaderName, value: &str, server: &Server) -> Result<Sent, Error> {
        let (value, secret) = self.fill(value, server, false)?;
        Ok(Sent { name, value, secret })
    }

    /// What is left of the time.
    fn left(&self, server: &Server) -> Result<Duration, Error> {
        let left = self.outgoing.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.late(server)) } else { Ok(left) }
    }

    fn late(&self, server: &Server) -> Error {
        let (name, limit) = self.outgoing.bound;
        let text = format!("{server} did not answer in full within {limit}");
        let twice = format!("\"{}\"", Span(limit.0.saturating_mul(2)));
        Error::Timeout(limited(self.outgoing.plugin, name, &text, &twice))
    }

    /// The addresses of a server, resolved once, all of them ones that may be reached.
    fn addresses(&self, server: &Server) -> Result<Vec<SocketAddr>, Error> {
        let found = match server.address() {
            Some(address) => vec![address],
            None => self.network.resolver.resolve(&server.host, self.left(server)?).map_err(|e| match e.kind() {
                io::ErrorKind::TimedOut => self.late(server),
                _ => Error::Unreachable(format!("plugin `{}`: the name {} does not resolve: {e}", self.outgoing.plugin, server.host)),
            })?,
        };
        if found.is_empty() {
            return Err(Error::Unreachable(format!("plugin `{}`: the name {} has no address", self.outgoing.plugin, server.host)));
        }
        for address in &found {
            self.check_address(server, *address)?;
        }
        Ok(found.into_iter().map(|a| SocketAddr::new(a, server.port)).collect())
    }

    fn check_address(&self, server: &Server, address: IpAddr) -> Result<(), Error> {
        let Some(what) = special(address) else { return Ok(()) };
        let grants = &self.capabilities.grants;
        let by_name = grants.http.iter().any(|g| g.names(server) && g.grants_address(address));
        if by_name || grants.networks.iter().any(|n| n.contains(address)) {
            return Ok(());
        }
        let plugin = self.outgoing.plugin;
        Err(Error::Denied(format!(
            "plugin `{plugin}` may not reach {server}: its address {address} is {what}, which has to be granted by name; to allow it: --grant \
             {plugin}:network={address}, or in the recipe: [plugins.{plugin}] grants = [\"network={address}\"]"
        )))
    }

    /// One request to one server.
    fn exchange(
        &self,
        method: Method,
        server: &Server,
        uri: &Uri,
        headers: &[Sent],
        body: Option<Vec<u8>>,
    ) -> Result<types::Response<ureq::Body>, Error> {
        let addresses = self.addresses(server)?;
        let mut request = types::Request::builder().method(method.name()).uri(uri);
        for sent in headers {
            request = request.header(&sent.name, header_value(&sent.value, sent.secret).map_err(Error::Invalid)?);
        }
        let takes_body = matches!(method, Method::Post | Method::Put | Method::Patch);
        let body = if takes_body { Some(body.unwrap_or_default()) } else { None };
        let request = request.body(body).map_err(|e| Error::Invalid(format!("the request cannot be put together: {e}")))?;
        let within = self.left(server)?;
        self.network.exchange(request, addresses, within).map_err(|e| self.failed(server, e))
    }

    /// The client's error in the words of the interface.
    fn failed(&self, server: &Server, error: ureq::Error) -> Error {
        let plugin = self.outgoing.plugin;
        match error {
            ureq::Error::Timeout(_) => self.late(server),
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => self.late(server),
            ureq::Error::Io(e) => Error::Unreachable(format!("plugin `{plugin}`: no connection to {server}: {e}")),
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::ConnectionFailed => {
                Error::Unreachable(format!("plugin `{plugin}`: no connection to {server}: {error}"))
            }
            ureq::Error::LargeResponseHeader(..) => {
                Error::Limit(format!("plugin `{plugin}`: the headers of {server}'s answer are too large"))
            }
            other => Error::Protocol(format!("plugin `{plugin}`: {server} did not speak HTTP as it should: {other}")),
        }
    }

    /// Reads the answer, within its limits, without secrets.
    fn read(&self, method: Method, server: &Server, response: types::Response<ureq::Body>) -> Result<Response, Error> {
        let plugin = self.outgoing.plugin;
        let limit = self.outgoing.limits.http_response_size;
        let too_large = || {
            let text = format!("the answer of {server} has more than {limit}");
            Error::Limit(limited(plugin, "http_response_size", &text, &doubled(limit)))
        };
        let (parts, mut body) = response.into_parts();
        if let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            return Err(Error::Protocol(format!("plugin `{plugin}`: {server} compressed its answer although it was asked not to")));
        }
        let size = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
        if method != Method::Head && size.is_some_and(|n| n > limit.0) {
            return Err(too_large());
        }
        // One byte more than allowed tells an answer of exactly the limit from one beyond it.
        let bytes = body.with_config().limit(limit.0.saturating_add(1)).read_to_vec().map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(_) => too_large(),
            other => self.failed(server, other),
        })?;
        if bytes.len() as u64 > limit.0 {
            return Err(too_large());
        }
        let scrub = &self.capabilities.scrubber;
        let headers = parts.headers.iter().map(|(name, value)| Header {
            name: scrub.text(name.as_str().to_owned()),
            value: scrub.text(String::from_utf8_lossy(value.as_bytes()).into_owned()),
        });
        Ok(Response { status: parts.status.as_u16(), headers: headers.collect(), body: scrub.bytes(bytes) })
    }
}

fn doubled(size: ByteSize) -> String {
    format!("\"{}\"", ByteSize(size.0.saturating_mul(2)))
}
