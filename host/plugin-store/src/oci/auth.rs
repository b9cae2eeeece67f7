//! Credentials of registries: Docker's `config.json`, and the tokens that registries hand out.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::{StoreError, files};

const MAX_CONFIG: u64 = 4 << 20;
/// The server that a helper or an entry of `config.json` knows Docker Hub by.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What proves who asks. Shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Name and password.
    Basic(String, String),
    /// A token that a registry's own service exchanges.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(...)")
    }
}

impl Credentials {
    /// The header `Authorization` of name and password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Basic(name, password) => Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))),
            Self::Identity(_) => None,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// The credentials for a registry in Docker's `config.json`, written by `docker login`; none if there are none.
pub(super) fn find(config: Option<&Path>, registry: &str) -> Result<Option<Credentials>, StoreError> {
    let Some(path) = config else { return Ok(None) };
    let Some(text) = files::read_text(path, MAX_CONFIG)? else { return Ok(None) };
    // No word of the text itself: it holds passwords.
    let broken = |message: &str| StoreError::Broken { path: path.to_owned(), message: message.to_owned() };
    let config: Config = serde_json::from_str(&text)
        .map_err(|e| broken(&format!("it is no Docker configuration (line {}, column {})", e.line(), e.column())))?;
    let server = if registry == "docker.io" { DOCKER_HUB } else { registry };
    if let Some(helper) = config.helpers.get(server).or(config.helpers.get(registry)) {
        return ask_helper(helper, server);
    }
    if let Some(auth) = config.auths.iter().find(|(key, _)| same_server(key, server)).map(|(_, auth)| auth) {
        if let Some(token) = auth.identitytoken.as_ref().filter(|t| !t.is_empty()) {
            return Ok(Some(Credentials::Identity(token.clone())));
        }
        if let Some(encoded) = auth.auth.as_ref().filter(|a| !a.is_empty()) {
            let decoded = STANDARD.decode(encoded.trim()).ok().and_then(|b| String::from_utf8(b).ok());
            let pair = decoded.as_ref().and_then(|d| d.trim_end_matches('\0').split_once(':'));
            let (name, password) = pair.ok_or_else(|| broken(&format!("`auth` of {server} is not base64 of NAME:PASSWORD")))?;
            return Ok(Some(Credentials::Basic(name.to_owned(), password.to_owned())));
        }
    }
    match &config.store {
        Some(helper) => ask_helper(helper, server),
        None => Ok(None),
    }
}

/// Keys are hosts, or addresses with a path.
fn same_server(key: &str, server: &str) -> bool {
    let host = |text: &str| {
        let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        text.split('/').next().unwrap_or_default().to_ascii_lowercase()
    };
    key == server || host(key) == host(server)
}

/// Asks `docker-credential-NAME`, by its protocol: the server on standard input, JSON on standard output.
fn ask_helper(helper: &str, server: &str) -> Result<Option<Credentials>, StoreError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let failed = |message: String| {
        StoreError::Key(format!("Docker's credential helper {helper:?} does not give the credentials of {server}: {message}"))
    };
    if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(failed("its name is none".to_owned()));
    }
    let program = format!("docker-credential-{helper}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(format!("cannot run {program}: {e}")))?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that reads nothing answers all the same, or fails below.
        let _ = writeln!(input, "{server}");
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    // Helpers say on standard output, with a status that is not 0, that they have nothing for the server.
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        return if text.contains("not found") { Ok(None) } else { Err(failed(format!("it ended with {}", output.status))) };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer is not the JSON that it should be".to_owned()))?;
    // By convention this name says that the secret is an identity token.
    Ok(Some(if answer.username == "<token>" {
        Credentials::Identity(answer.secret)
    } else {
        Credentials::Basic(answer.username, answer.secret)
    }))
}

/// What a registry wants, by its header `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token from this service.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the header.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        Some(Self::Bearer { realm: parameters.remove("realm")?, service: parameters.remove("service"), scope: parameters.remove("scope") })
    }
}

/// `name="value", name=value`, by RFC 9110; what does not read ends it.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', '\t', ',']).to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = after.trim_start().strip_prefix('"') {
            let mut chars = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(chars.next().map(|(_, c)| c)),
                    c => value.push(c),
                }
            }
            rest = quoted.get(end..).unwrap_or_default();
        } else {
            let (token, more) = after.split_once(',').unwrap_or((after, ""));
            value.push_str(token.trim());
            rest = more;
        }
        found.insert(name, value);
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn credentials_are_those_of_the_server() {
        let encoded = STANDARD.encode("me:se:cret");
        let (_folder, path) = config(&format!(
            r#"{{"auths": {{"ghcr.io": {{"auth": "{encoded}"}}, "https://index.docker.io/v1/": {{"identitytoken": "tok"}}, "127.0.0.1:5000": {{}}}}, "x": 1}}"#
        ));
        let of = |registry| find(Some(&path), registry).unwrap();
        assert_eq!(of("ghcr.io"), Some(Credentials::Basic("me".into(), "se:cret".into())));
        assert_eq!(of("docker.io"), Some(Credentials::Identity("tok".into())));
        assert_eq!((of("127.0.0.1:5000"), of("evil.ghcr.io"), of("ghcr.io.evil.net")), (None, None, None));
        assert_eq!(of("ghcr.io").unwrap().basic().unwrap(), format!("Basic {encoded}"));
        assert_eq!(format!("{:?}", of("ghcr.io")), "Some(Credentials(...))");
        assert_eq!(find(None, "ghcr.io").unwrap(), None);
        assert_eq!(find(Some(Path::new("/no/such/file")), "ghcr.io").unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_an_error_without_its_text() {
        for text in ["secret", r#"{"auths": {"ghcr.io": {"auth": "secret!"}}}"#, r#"{"auths": "secret"}"#] {
            let (_folder, path) = config(text);
            let error = find(Some(&path), "ghcr.io").unwrap_err().to_string();
            assert!(error.contains("config.json") && !error.contains("secret"), "{error}");
        }
        let (_folder, path) = config(r#"{"credsStore": "../evil"}"#);
        assert!(find(Some(&path), "ghcr.io").unwrap_err().to_string().contains("its name is none"));
        let (_folder, path) = config(r#"{"credHelpers": {"ghcr.io": "no-such-helper"}}"#);
        assert!(find(Some(&path), "ghcr.io").unwrap_err().to_string().contains("cannot run docker-credential-no-such-helper"));
        assert_eq!(find(Some(&path), "quay.io").unwrap(), None);
    }

    #[test]
    fn challenges_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) })
        };
        assert_eq!(
            Challenge::parse(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#
            ),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"))
        );
        assert_eq!(Challenge::parse(r#"bearer realm = "https://x/\"t\"" , error=x"#), bearer("https://x/\"t\"", None, None));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("basic"), Some(Challenge::Basic));
        for none in ["", "Negotiate", "Bearer", "Bearer service=\"x\""] {
            assert_eq!(Challenge::parse(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn any_header_reads(text in "(Bearer |Basic )?\\PC{0,80}") {
            let _ = Challenge::parse(&text);
        }
    }
}
