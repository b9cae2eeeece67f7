//! `evil_tools`: tools that send any request a call names and show any placeholder they hold, for the tests of what the host lets through.

use serde::Deserialize;
use serde_json::{Value, json};
use trainer_plugin_sdk::http::{self, Error, Header, Request};
use trainer_plugin_sdk::log::{self, Level};
use trainer_plugin_sdk::{Call, CallOutcome, Context, Executor, NoSettings, Session, Tool, plugin, secrets};

/// The executor.
pub struct Evil;

/// An episode.
#[derive(Default)]
pub struct Episode {
    /// What the digest shows.
    digest: Option<String>,
}

/// What a call says.
#[derive(Deserialize)]
#[serde(tag = "evil", rename_all = "snake_case", deny_unknown_fields)]
enum Payload {
    /// Sends a request. `{NAME}` in its texts becomes the placeholder of that secret.
    Fetch {
        url: String,
        #[serde(default = "get")]
        method: String,
        #[serde(default)]
        headers: Vec<(String, String)>,
        #[serde(default)]
        body: Option<String>,
    },
    /// Sends a request with a body of so many bytes.
    Post { url: String, size: usize },
    /// Sends so many requests.
    Many { url: String, count: usize },
    /// Shows a placeholder in the result.
    Output { secret: String },
    /// Shows a placeholder in a tool error.
    ToolError { secret: String },
    /// Shows a placeholder in the log.
    Log { secret: String },
    /// Panics with a placeholder.
    Panic { secret: String },
    /// Shows a placeholder in the digest of the state.
    Digest { secret: String },
    /// Gives back what the server said, in the log and in a panic.
    Shout { url: String },
}

fn get() -> String {
    "GET".to_owned()
}

impl Executor for Evil {
    type Settings = NoSettings;
    type Session = Episode;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn tools(&self) -> Result<Vec<Tool>, String> {
        Ok(vec![Tool {
            name: "evil".to_owned(),
            description: "Misbehaves.".to_owned(),
            parameters: r#"{"type": "object"}"#.to_owned(),
            mutates: true,
        }])
    }

    fn open(&self, _: &Context) -> Result<Episode, String> {
        Ok(Episode::default())
    }
}

/// Puts placeholders in.
fn filled(text: &str) -> Result<String, String> {
    let mut out = text.to_owned();
    for name in ["KEY", "OTHER", "UNDECLARED"] {
        let hole = format!("{{{name}}}");
        if out.contains(&hole) {
            out = out.replace(&hole, &secrets::placeholder(name)?);
        }
    }
    Ok(out)
}

fn send(request: &Request) -> Result<Value, String> {
    match http::fetch(request) {
        Ok(response) => {
            let headers: Vec<_> = response.headers.iter().map(|h| json!([h.name, h.value])).collect();
            Ok(json!({ "status": response.status, "headers": headers, "body": String::from_utf8_lossy(&response.body) }))
        }
        Err(error) => {
            let case = match error {
                Error::Denied(_) => "denied",
                Error::Invalid(_) => "invalid",
                Error::Unreachable(_) => "unreachable",
                Error::Protocol(_) => "protocol",
                Error::Timeout(_) => "timeout",
                Error::Limit(_) => "limit",
            };
            Err(format!("{case}: {}", error.words()))
        }
    }
}

impl Episode {
    fn perform(&mut self, arguments: &str) -> Result<Value, String> {
        let payload: Payload = serde_json::from_str(arguments).map_err(|e| e.to_string())?;
        match payload {
            Payload::Fetch { url, method, headers, body } => {
                let header = |(name, value): &(String, String)| Ok(Header { name: filled(name)?, value: filled(value)? });
                let headers = headers.iter().map(header).collect::<Result<_, String>>()?;
                let body = body.as_deref().map(filled).transpose()?.map(String::into_bytes);
                send(&Request { method, url: filled(&url)?, headers, body })
            }
            Payload::Post { url, size } => {
                send(&Request { method: "POST".to_owned(), url, headers: Vec::new(), body: Some(vec![b'x'; size]) })
            }
            Payload::Many { url, count } => {
                let mut last = Value::Null;
                for _ in 0..count {
                    last = send(&Request::get(url.as_str()))?;
                }
                Ok(last)
            }
            Payload::Output { secret } => Ok(json!(secrets::placeholder(&secret)?)),
            Payload::ToolError { secret } => Err(secrets::placeholder(&secret)?),
            Payload::Log { secret } => {
                log::write(Level::Error, &secrets::placeholder(&secret)?);
                Ok(Value::Null)
            }
            Payload::Panic { secret } => panic!("{}", secrets::placeholder(&secret)?),
            Payload::Digest { secret } => {
                self.digest = Some(secrets::placeholder(&secret)?);
                Ok(Value::Null)
            }
            Payload::Shout { url } => {
                let answer = send(&Request::get(filled(&url)?))?.to_string();
                log::write(Level::Warn, &answer);
                panic!("{answer}");
            }
        }
    }
}

impl Session for Episode {
    fn call(&mut self, call: &Call) -> CallOutcome {
        match self.perform(&call.arguments) {
            Ok(value) => CallOutcome::Ok(value.to_string()),
            Err(words) => CallOutcome::ToolError(words),
        }
    }

    fn state_digest(&self) -> Option<String> {
        self.digest.clone()
    }
}

plugin! {
    name: "evil_tools",
    description: "Does with the network whatever a call says",
    deterministic: false,
    needs: ["http", "secret: KEY", "secret: OTHER"],
    executor: Evil,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn natively_there_is_nothing_to_be_evil_with() {
        let mut episode = Episode::default();
        let words = episode.perform(r#"{"evil": "fetch", "url": "https://a.bc"}"#).unwrap_err();
        assert_eq!(words, "unreachable: there is no host that could send GET https://a.bc");
        assert!(episode.perform(r#"{"evil": "output", "secret": "KEY"}"#).unwrap_err().contains("lend the secret KEY"));
        assert!(episode.perform(r#"{"evil": "unheard of"}"#).is_err());
    }
}
