//! Where hubs and their caches are, as the environment says it to the hubs' own packages.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::name::HubKind;

/// The largest token file.
const TOKEN_LIMIT: u64 = 64 << 10;

/// A secret that is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token, without the white space around it; none if nothing is left.
    ///
    /// # Errors
    /// Characters that cannot stand in a header.
    pub fn new(text: &str, from: &str) -> Result<Option<Self>, SettingsError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        // Not a word about the text itself: it is a secret, if a broken one.
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(SettingsError { name: from.to_owned(), message: "is no token: it has characters that none has".to_owned() });
        }
        Ok(Some(Self(text.to_owned())))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

/// A variable of the environment, or a file, that does not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} {message}")]
pub struct SettingsError {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub message: String,
}

/// A hub as this process uses it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address without a slash at the end.
    pub url: String,
    /// Where its files are kept.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
}

/// Both hubs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Hugging Face.
    pub hugging_face: Endpoint,
    /// ModelScope.
    pub model_scope: Endpoint,
    /// Nothing may be asked of a network.
    pub offline: bool,
}

impl Settings {
    /// As the environment says: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`; `MODELSCOPE_ENDPOINT`,
    /// `MODELSCOPE_CACHE`, `MODELSCOPE_API_TOKEN`.
    ///
    /// # Errors
    /// A value that does not read.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from(&|name| std::env::var_os(name).filter(|v| !v.is_empty()))
    }

    /// The same, from any environment.
    ///
    /// # Errors
    /// A value that does not read.
    pub fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let text = |name: &str| {
            let wrong = |_| SettingsError { name: name.to_owned(), message: "is not UTF-8".to_owned() };
            variable(name).map(|v| v.into_string().map_err(wrong)).transpose()
        };
        let home = variable("HOME").or_else(|| variable("USERPROFILE")).map(PathBuf::from).unwrap_or_default();
        let folder = |name: &str| variable(name).map(|v| expand(Path::new(&v), &home));
        let yes = |name: &str| Ok(text(name)?.is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str())));

        let user_cache = folder("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = folder("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let hf_token = match text("HF_TOKEN")?.or(text("HUGGING_FACE_HUB_TOKEN")?) {
            Some(token) => Token::new(&token, "HF_TOKEN")?,
            None if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN")? => None,
            None => token_file(&folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token")))?,
        };
        let hugging_face = Endpoint {
            url: address("HF_ENDPOINT", text("HF_ENDPOINT")?.as_deref().unwrap_or("https://huggingface.co"))?,
            cache: folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub")),
            token: hf_token,
        };
        let model_scope = Endpoint {
            url: address("MODELSCOPE_ENDPOINT", text("MODELSCOPE_ENDPOINT")?.as_deref().unwrap_or("https://modelscope.cn"))?,
            // Its package does not look at XDG_CACHE_HOME.
            cache: folder("MODELSCOPE_CACHE").unwrap_or_else(|| home.join(".cache/modelscope")),
            token: Token::new(text("MODELSCOPE_API_TOKEN")?.as_deref().unwrap_or_default(), "MODELSCOPE_API_TOKEN")?,
        };
        Ok(Self { hugging_face, model_scope, offline: yes("HF_HUB_OFFLINE")? || yes("TRANSFORMERS_OFFLINE")? })
    }

    /// One of the hubs.
    pub fn endpoint(&self, hub: HubKind) -> &Endpoint {
        match hub {
            HubKind::HuggingFace => &self.hugging_face,
            HubKind::ModelScope => &self.model_scope,
        }
    }
}

/// A path with `~` for the user's folder.
fn expand(path: &Path, home: &Path) -> PathBuf {
    path.strip_prefix("~").map_or_else(|_| path.to_owned(), |rest| home.join(rest))
}

fn address(name: &str, text: &str) -> Result<String, SettingsError> {
    let url = text.trim_end_matches('/');
    let wrong = |message: &str| Err(SettingsError { name: name.to_owned(), message: message.to_owned() });
    match url.parse::<ureq::http::Uri>() {
        Ok(uri) if !matches!(uri.scheme_str(), Some("http" | "https")) => wrong("must begin with http:// or https://"),
        Ok(uri) if uri.authority().is_none_or(|a| a.as_str().contains('@')) => wrong("names no server, or has a user's name in it"),
        Ok(uri) if uri.query().is_some() => wrong("must be an address without `?`"),
        Ok(_) => Ok(url.to_owned()),
        Err(_) => wrong("is no address"),
    }
}

/// The token that `hf auth login` has left.
fn token_file(path: &Path) -> Result<Option<Token>, SettingsError> {
    let wrong = |message: String| SettingsError { name: path.display().to_string(), message };
    match std::fs::metadata(path) {
        Ok(about) if about.len() > TOKEN_LIMIT => Err(wrong("is no token file: it is larger than 64 KiB".to_owned())),
        Ok(about) if about.is_file() => match std::fs::read_to_string(path) {
            Ok(text) => Token::new(&text, &path.display().to_string()),
            Err(e) => Err(wrong(format!("cannot be read: {e}"))),
        },
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_environment_says_where_things_are() {
        let plain = settings(&[("HOME", "/home/me")]).unwrap();
        assert_eq!(plain.hugging_face.url, "https://huggingface.co");
        assert_eq!(plain.hugging_face.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(plain.model_scope.cache, Path::new("/home/me/.cache/modelscope"));
        assert!(!plain.offline && plain.hugging_face.token.is_none());
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().hugging_face.cache;
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "~/c"), ("HOME", "/home/me")]), Path::new("/home/me/c"));
        assert_eq!(settings(&[("HF_ENDPOINT", "http://127.0.0.1:8/")]).unwrap().hugging_face.url, "http://127.0.0.1:8");
        for (value, offline) in [("1", true), ("TRUE", true), ("0", false), ("no", false)] {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).unwrap().offline, offline, "{value}");
        }
    }

    #[test]
    fn tokens_are_found_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let token = |variables: &[(&str, &str)]| settings(variables).map(|s| s.hugging_face.token.map(|t| t.secret().to_owned()));
        assert_eq!(token(&[("HF_HOME", home)]).unwrap().as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", " hf_own ")]).unwrap().as_deref(), Some("hf_own"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap(), None);
        let all = settings(&[("HF_TOKEN", "hf_secret"), ("MODELSCOPE_API_TOKEN", "ms_secret")]).unwrap();
        assert!(!format!("{all:?}").contains("secret"));
        let error = token(&[("HF_TOKEN", "hf_a\r\nX-Evil: 1")]).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("Evil"), "{error}");
        for bad in ["huggingface.co", "ftp://x", "https://me@x", "https://", "https://x/?y"] {
            assert!(settings(&[("HF_ENDPOINT", bad)]).unwrap_err().to_string().contains("HF_ENDPOINT"), "{bad}");
        }
    }
}
