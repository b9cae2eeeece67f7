//! Who is answered.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::error::ApiError;

/// The key that requests must have. Only its digest is kept, and nothing shows it.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey")
    }
}

/// What a key can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an API key has 8 to 512 visible ASCII characters")]
pub struct BadKey;

impl ApiKey {
    /// A key, without the space around it.
    ///
    /// # Errors
    /// It is too short, too long, or cannot stand in a header.
    pub fn new(key: &str) -> Result<Self, BadKey> {
        let key = key.trim();
        if !(8..=512).contains(&key.len()) || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BadKey);
        }
        Ok(ApiKey(Sha256::digest(key).into()))
    }

    /// Compares digests, in a time that does not depend on how much of a wrong key is right.
    fn is(&self, other: &str) -> bool {
        let other: [u8; 32] = Sha256::digest(other).into();
        std::hint::black_box(self.0.iter().zip(other).fold(0, |different, (a, b)| different | (a ^ b))) == 0
    }
}

/// Whether a `Host` header names this machine in a way that no web page elsewhere can take over: by an address, as `localhost`, or by a name that
/// was allowed.
fn host_is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|h| h.to_str().ok()) else { return false };
    // An address of IPv6 has brackets, so that its colons are not the port's.
    let (name, rest) = match host.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((address, rest)) if address.parse::<Ipv6Addr>().is_ok() => ("localhost", rest),
        Some(_) => return false,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_fits = rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let known = name.parse::<Ipv4Addr>().is_ok() || name.eq_ignore_ascii_case("localhost");
    port_fits && (known || allowed.iter().any(|a| a.eq_ignore_ascii_case(name)))
}

fn allowed(app: &App, request: &Request) -> Result<(), ApiError> {
    if request.uri().path() == "/health" {
        return Ok(());
    }
    let headers = request.headers();
    let Some(key) = &app.options.api_key else {
        if host_is_allowed(headers, &app.options.allowed_hosts) {
            return Ok(());
        }
        let text =
            "without an API key this server is answered by its address or as localhost only; start it with --allow-host NAME or a key";
        return Err(ApiError::new(StatusCode::FORBIDDEN, text).code("host_not_allowed"));
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.split_once(' '));
    match given {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") && key.is(given.trim()) => Ok(()),
        Some(_) => Err(ApiError::new(StatusCode::UNAUTHORIZED, "the API key is wrong").code("invalid_api_key")),
        None => {
            let text = "this server needs an API key: Authorization: Bearer KEY";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, text).code("missing_api_key"))
        }
    }
}

/// Refuses what is not to be answered, and counts what is.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = known(request.uri().path());
    let mut response = match allowed(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    app.metrics.answered(path, response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(&format!("req_{:016x}", crate::random())) {
        headers.insert("x-request-id", id);
    }
    response
}

/// A path as the label of a count: one of few, whatever clients ask for.
fn known(path: &str) -> &'static str {
    let all = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"];
    let path = if path.starts_with("/v1/models/") { "/v1/models" } else { path };
    all.into_iter().find(|known| *known == path).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_allowed_names() {
        let is = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            host_is_allowed(&headers, &["gpu-box".to_owned()])
        };
        for host in ["127.0.0.1:7000", "127.0.0.1", "localhost:7000", "LocalHost", "[::1]:7000", "[::1]", "10.0.0.7:1", "gpu-box:7000"] {
            assert!(is(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:7000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[::1",
            "[evil]:1",
            "localhost:x",
            "a:b:c",
            "user@localhost",
            "[::1]x",
            "[::1]:x",
            "::1",
        ] {
            assert!(!is(host), "{host}");
        }
        assert!(!host_is_allowed(&HeaderMap::new(), &[]));
    }

    #[test]
    fn keys() {
        let key = ApiKey::new(" secret-key\n").unwrap();
        assert!(key.is("secret-key"));
        for wrong in ["", "secret-ke", "secret-key2", "Secret-key", "secret-kez"] {
            assert!(!key.is(wrong), "{wrong}");
        }
        for bad in ["", "short", "with space inside", "käse-und-brot", &"x".repeat(513)] {
            assert!(ApiKey::new(bad).is_err(), "{bad}");
        }
        assert_eq!(format!("{key:?}"), "ApiKey");
    }
}
