//! Secrets: where their values come from, what stands for them in a guest, and how they are kept out of everything else.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::server::ServerPattern;

/// The shortest value: a shorter one could not be struck out of an answer without harming it.
const MIN_VALUE: usize = 8;
/// The longest value.
const MAX_VALUE: usize = 8 << 10;
/// How a placeholder begins. All of it are characters that no encoding of addresses touches.
const PLACEHOLDER: &str = "trainer_secret_";

/// Whether a text can be the name of a secret.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && is_identifier(name)
}

fn is_identifier(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.as_bytes().first().is_some_and(u8::is_ascii_digit)
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An environment variable.
    Env(String),
    /// A file; a line break at its end does not count.
    File(PathBuf),
}

impl Source {
    /// What kind of source it is: all that is recorded.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Env(_) => "env",
            Self::File(_) => "file",
        }
    }

    /// Reads the value. The error never holds any of it.
    fn read(&self) -> Result<String, String> {
        let (value, place) = match self {
            Self::Env(name) => {
                let place = format!("the environment variable {name}");
                let value = std::env::var_os(name).ok_or_else(|| format!("{place} is not set"))?;
                (value.into_string().map_err(|_| format!("{place} is not UTF-8"))?, place)
            }
            Self::File(path) => {
                let place = format!("the file {}", path.display());
                let mut bytes = Vec::new();
                std::fs::File::open(path)
                    .and_then(|f| f.take(MAX_VALUE as u64 + 3).read_to_end(&mut bytes))
                    .map_err(|e| format!("{place} cannot be read: {e}"))?;
                let mut text = String::from_utf8(bytes).map_err(|_| format!("{place} is not UTF-8"))?;
                text.truncate(text.trim_end_matches(['\r', '\n']).len());
                (text, place)
            }
        };
        if !(MIN_VALUE..=MAX_VALUE).contains(&value.len()) {
            return Err(format!("{place} has {} bytes; a secret has {MIN_VALUE} to {MAX_VALUE}", value.len()));
        }
        if value.chars().any(char::is_control) {
            return Err(format!("{place} holds control characters, which no header may hold"));
        }
        Ok(value)
    }
}

/// A granted secret: where its value comes from, and which servers may be sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretGrant {
    /// Where its value comes from.
    pub source: Source,
    /// The servers; none written means the one server that the plugin was granted.
    pub to: Vec<ServerPattern>,
}

impl FromStr for SecretGrant {
    type Err = String;

    /// Reads `env:NAME` or `file:PATH`, each with ` to URL[, URL]` after it if need be. The error does not repeat the text, which may be a
    /// value that somebody put there.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "a secret is named by where its value is, env:NAME or file:PATH, with ` to https://HOST` after it where the plugin has several \
             servers; the value itself never stands in a recipe or a command line"
                .to_owned()
        };
        // The last ` to `, and only if servers follow: a path may hold the same word.
        let (source, to) = match text.rsplit_once(" to ") {
            Some((source, servers)) if servers.trim_start().starts_with("http") => (source, Some(servers)),
            _ => (text, None),
        };
        let source = match source.trim().split_once(':') {
            Some(("env", name)) if is_variable(name) => Source::Env(name.to_owned()),
            Some(("file", path)) if !path.is_empty() && !path.contains('\0') => Source::File(PathBuf::from(path)),
            _ => return Err(wrong()),
        };
        let to = to.map_or(Ok(Vec::new()), |list| list.split(',').map(str::parse).collect())?;
        Ok(Self { source, to })
    }
}

fn is_variable(name: &str) -> bool {
    (1..=256).contains(&name.len()) && is_identifier(name)
}

/// A secret in use.
pub(crate) struct Secret {
    pub(crate) name: String,
    /// What the guest holds.
    pub(crate) placeholder: String,
    /// The servers that may be sent it.
    pub(crate) to: Vec<ServerPattern>,
    /// Or why there is none.
    value: Result<String, String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).field("to", &self.to).finish_non_exhaustive()
    }
}

/// A secret's value percent-encoded, for a query parameter.
fn percent_encoded(value: &str) -> String {
    let one = |b: u8| if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    value.bytes().map(one).collect()
}

impl Secret {
    /// Reads the value; that it is not there is no error until it is used.
    pub(crate) fn new(name: &str, grant: &SecretGrant, to: Vec<ServerPattern>) -> Result<Self, String> {
        Ok(Self { name: name.to_owned(), placeholder: placeholder()?, to, value: grant.source.read() })
    }

    /// One that stands for a secret nobody has granted: for a guest whose requests are answered from a recording.
    pub(crate) fn absent(name: &str) -> Result<Self, String> {
        let value = Err("it is not granted".to_owned());
        Ok(Self { name: name.to_owned(), placeholder: placeholder()?, to: Vec::new(), value })
    }

    /// The value as it stands in a header.
    pub(crate) fn in_header(&self) -> Result<&str, &str> {
        self.value.as_deref().map_err(String::as_str)
    }

    /// The value as it stands in a query.
    pub(crate) fn in_query(&self) -> Result<String, &str> {
        self.in_header().map(percent_encoded)
    }

    /// What is put where it would be seen.
    pub(crate) fn mark(&self) -> String {
        format!("[secret {}]", self.name)
    }

    /// The forms in which it is looked for: as it is, and as encodings of addresses, JSON, HTML and base64 write it.
    fn forms(&self) -> Vec<String> {
        let mut forms = vec![self.placeholder.clone()];
        let Ok(value) = &self.value else { return forms };
        let json = serde_json::Value::from(value.as_str()).to_string();
        let json = json.get(1..json.len().saturating_sub(1)).unwrap_or_default().to_owned();
        let html = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;");
        forms.extend([
            value.clone(),
            percent_encoded(value),
            percent_encoded(value).replace("%20", "+"),
            json.replace('/', "\\/"),
            json,
            html,
            STANDARD_NO_PAD.encode(value),
            URL_SAFE_NO_PAD.encode(value),
        ]);
        forms
    }
}

/// A new placeholder, which nobody can guess: so a model cannot write it.
fn placeholder() -> Result<String, String> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| format!("no randomness from the system: {e}"))?;
    Ok(format!("{PLACEHOLDER}{}", crate::engine::hex(&bytes)))
}

/// Strikes secrets and their placeholders out of texts.
pub(crate) struct Scrubber {
    /// None: there is nothing to strike out.
    finder: Option<AhoCorasick>,
    /// By pattern of the finder.
    marks: Vec<String>,
}

impl Scrubber {
    pub(crate) fn new<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Result<Self, String> {
        let (mut forms, mut marks) = (Vec::new(), Vec::new());
        for secret in secrets {
            for form in secret.forms() {
                forms.push(form);
                marks.push(secret.mark());
            }
        }
        if forms.is_empty() {
            return Ok(Self { finder: None, marks });
        }
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).ascii_case_insensitive(true).build(&forms);
        Ok(Self { finder: Some(finder.map_err(|e| format!("secrets cannot be looked for: {e}"))?), marks })
    }

    /// The text without secrets.
    pub(crate) fn text(&self, text: String) -> String {
        match &self.finder {
            Some(finder) if finder.is_match(&text) => finder.replace_all(&text, &self.marks),
            _ => text,
        }
    }

    /// The bytes without secrets.
    pub(crate) fn bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.finder {
            Some(finder) if finder.is_match(&bytes) => finder.replace_all_bytes(&bytes, &self.marks),
            _ => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A secret from a file with this value.
    fn secret(name: &str, value: &str) -> Secret {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, value).unwrap();
        Secret::new(name, &SecretGrant { source: Source::File(path), to: Vec::new() }, Vec::new()).unwrap()
    }

    #[test]
    fn sources_and_their_servers() {
        let read = |text: &str| text.parse::<SecretGrant>();
        assert_eq!(read("env:KEY").unwrap().source, Source::Env("KEY".into()));
        assert_eq!(read("file:/run/secrets/a to b").unwrap().source, Source::File("/run/secrets/a to b".into()));
        let grant = read("env:KEY to https://a.bc, https://*.d.ef").unwrap();
        assert_eq!(grant.to.iter().map(ToString::to_string).collect::<Vec<_>>(), ["https://a.bc", "https://*.d.ef"]);
        for wrong in ["", "hunter2hunter2", "env:", "env:A B", "env:1A", "file:", "vault:x", "env:KEY to http"] {
            let error = read(wrong).unwrap_err();
            assert!(["", "env:", "file:"].contains(&wrong) || !error.contains(wrong), "{wrong}: {error}");
        }
        assert!(!read("sk-1234567890abcdef").unwrap_err().contains("1234"));
    }

    #[test]
    fn values_that_cannot_be_kept_safe_are_refused_without_repeating_them() {
        for (value, part) in [("short", "5 bytes"), ("two\nlines of it", "control"), (&"x".repeat(9000), "8192")] {
            let secret = secret("K", value);
            let error = secret.in_header().unwrap_err();
            assert!(error.contains(part) && !error.contains(value), "{error}");
        }
        assert_eq!(secret("K", "value with an end\r\n").in_header(), Ok("value with an end"));
        let absent = SecretGrant { source: Source::Env("TRAINER_TEST_NEVER_SET".into()), to: Vec::new() };
        let absent = Secret::new("K", &absent, Vec::new()).unwrap();
        assert_eq!(absent.in_header(), Err("the environment variable TRAINER_TEST_NEVER_SET is not set"));
        assert!(!format!("{:?}", secret("K", "hunter2hunter2")).contains("hunter2"));
    }

    #[test]
    fn every_form_is_struck_out() {
        let value = "aB/c+1&2 \"3\"~é";
        let a = secret("KEY", value);
        let b = secret("OTHER", "aB/c+1&2");
        let scrubber = Scrubber::new([&a, &b].into_iter()).unwrap();
        let base64 = STANDARD_NO_PAD.encode(value);
        for form in [
            value,
            "AB/C+1&2 \"3\"~é",
            "aB%2Fc%2B1%262%20%223%22~%C3%A9",
            "ab%2fc%2b1%262+%223%22~%c3%a9",
            "aB/c+1&2 \\\"3\\\"~é",
            "aB\\/c+1&2 \\\"3\\\"~é",
            "aB/c+1&amp;2 &quot;3&quot;~é",
            &base64,
            &a.placeholder,
        ] {
            assert_eq!(scrubber.text(format!("<{form}>")), "<[secret KEY]>", "{form}");
            assert_eq!(scrubber.bytes(format!("\u{1}{form}{form}").into_bytes()), b"\x01[secret KEY][secret KEY]", "{form}");
        }
        assert_eq!(scrubber.text("aB/c+1&2!".into()), "[secret OTHER]!");
        assert_eq!(scrubber.text("aB/c+1".into()), "aB/c+1");
        assert_eq!(Scrubber::new([].into_iter()).unwrap().text("x".into()), "x");
        assert_ne!(a.placeholder, b.placeholder);
    }
}
