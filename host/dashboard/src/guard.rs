//! Who is answered, and what a browser may do with the answer.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Options;

/// Nothing but its own style and script; no page may hold it in a frame.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Whether a `Host` header names this machine in a way that no web page elsewhere can take over: by an address, as `localhost`, or by a name that
/// was allowed.
pub fn host_is_allowed(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if port.is_empty() || is_port(port) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
            _ => return false,
        },
        None => match host.find(':') {
            Some(colon) if is_port(&host[colon..]) => &host[..colon],
            Some(_) => return false,
            None => host,
        },
    };
    name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost") || allowed.iter().any(|a| a.eq_ignore_ascii_case(name))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok())
}

/// Refuses what is not to be answered, and adds the headers.
pub async fn guard(State(options): State<Arc<Options>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let mut response = if !host.is_some_and(|h| host_is_allowed(h, &options.allowed_hosts)) {
        let text =
            "This page is answered by its address or as localhost only. To reach it by another name, start it with --allow-host NAME.\n";
        (StatusCode::FORBIDDEN, text).into_response()
    } else if *request.method() != Method::GET && *request.method() != Method::HEAD {
        (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "This page can only be read.\n").into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::host_is_allowed;

    #[test]
    fn only_addresses_and_allowed_names() {
        let allowed = ["gpu-box".to_owned()];
        for host in ["127.0.0.1:7000", "127.0.0.1", "localhost:7000", "LocalHost", "[::1]:7000", "[::1]", "10.0.0.7:1", "gpu-box:7000"] {
            assert!(host_is_allowed(host, &allowed), "{host}");
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
            "::1",
        ] {
            assert!(!host_is_allowed(host, &allowed), "{host}");
        }
    }
}
