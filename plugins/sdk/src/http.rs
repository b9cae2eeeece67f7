//! Requests to web servers. A plugin that uses this names its server in the `needs` of [`plugin!`](crate::plugin), and the user grants it:
//! until then every request gives [`Error::Denied`] with words that say how.

use crate::bindings::trainer::http::client as host;
pub use host::{Error, Header, Request, Response};

/// Sends a request and waits for the whole answer, whatever its status. `GET` and `HEAD` follow a few redirects.
///
/// # Errors
/// As the host says. Its words are for people: a tool passes them on as they are.
pub fn fetch(request: &Request) -> Result<Response, Error> {
    #[cfg(target_arch = "wasm32")]
    return host::fetch(request);
    // Natively, as in a plugin's tests, there is no host.
    #[cfg(not(target_arch = "wasm32"))]
    Err(Error::Unreachable(format!("there is no host that could send {} {}", request.method, request.url)))
}

impl Request {
    /// A request that reads.
    pub fn get(url: impl Into<String>) -> Self {
        Self { method: "GET".to_owned(), url: url.into(), headers: Vec::new(), body: None }
    }

    /// The same with a header more.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push(Header { name: name.into(), value: value.into() });
        self
    }
}

impl Response {
    /// Whether the server did what was asked.
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl Error {
    /// The host's words.
    pub fn words(&self) -> &str {
        match self {
            Self::Denied(words)
            | Self::Invalid(words)
            | Self::Unreachable(words)
            | Self::Protocol(words)
            | Self::Timeout(words)
            | Self::Limit(words) => words,
        }
    }
}

/// A text as a part of an address: everything but letters, digits and `-_.~` percent-encoded. A placeholder of a secret stays as it is.
pub fn escape(text: &str) -> String {
    let one = |b: u8| if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_addresses() {
        assert_eq!(escape("Saint-Étienne & co=1/2?#\r\n"), "Saint-%C3%89tienne%20%26%20co%3D1%2F2%3F%23%0D%0A");
        let request = Request::get("https://a.bc").header("accept", "application/json");
        assert_eq!((request.method.as_str(), request.headers.len(), request.body), ("GET", 1, None));
    }
}
