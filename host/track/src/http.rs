//! HTTP with short limits: JSON to a server and back.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::{Request, header};

use crate::sink::SinkError;

/// A tracker has a thread of its own, but the end of a run waits for it a little.
const LIMIT: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(5);
/// Answers are small.
const LARGEST: u64 = 8 << 20;

/// An answer.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as JSON; null where it is none.
    pub body: Value,
}

impl Answer {
    /// Whether the server did what was asked.
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A server's refusal for people.
    pub fn refusal(&self, what: &str) -> SinkError {
        let text = |key: &str| self.body.get(key).and_then(Value::as_str).unwrap_or_default();
        let told = format!("{} {}", text("error_code"), text("message"));
        let help = match self.status {
            401 | 403 => "; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment",
            _ => "",
        };
        SinkError::new(format!("the server answered {} to {what}: {}{help}", self.status, told.trim()))
    }
}

/// A server.
pub struct Server {
    agent: Agent,
    base: String,
    authorization: Option<String>,
}

impl Server {
    /// At an address, with the value of the `Authorization` header.
    pub fn new(base: &str, authorization: Option<String>) -> Self {
        let config = Agent::config_builder().timeout_global(Some(LIMIT)).timeout_connect(Some(CONNECT)).http_status_as_error(false).build();
        Self { agent: config.into(), base: base.trim_end_matches('/').to_owned(), authorization }
    }

    /// The address, without what a person should not see.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request; `path` begins with a slash.
    pub fn send(&self, method: &str, path: &str, kind: &str, body: Vec<u8>) -> Result<Answer, SinkError> {
        let failed = |e: &dyn std::fmt::Display| SinkError::new(format!("cannot reach {}: {e}", self.base));
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base)).header(header::CONTENT_TYPE, kind);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let mut answer = if method == "GET" {
            self.agent.run(request.body(()).map_err(|e| failed(&e))?)
        } else {
            self.agent.run(request.body(body).map_err(|e| failed(&e))?)
        }
        .map_err(|e| failed(&e))?;
        let status = answer.status().as_u16();
        let bytes = answer.body_mut().with_config().limit(LARGEST).read_to_vec().map_err(|e| failed(&e))?;
        Ok(Answer { status, body: serde_json::from_slice(&bytes).unwrap_or_default() })
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, SinkError> {
        self.send("POST", path, "application/json", body.to_string().into_bytes())
    }

    /// Gets JSON.
    pub fn get(&self, path: &str) -> Result<Answer, SinkError> {
        self.send("GET", path, "application/json", Vec::new())
    }
}

/// A text as a part of an address.
pub fn escape(text: &str) -> String {
    let one = |b: u8| if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(one).collect()
}
