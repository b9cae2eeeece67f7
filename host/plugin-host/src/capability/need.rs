//! Needs: what a plugin's manifest asks for. A need grants nothing; it is the first of the two keys.

use std::fmt;

use super::secret::is_name;
use super::server::ServerPattern;

/// One entry of a manifest's `needs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// `log`: every plugin has it.
    Log,
    /// `http: SERVER`, or `http` for a server that the user names in the settings.
    Http(Option<ServerPattern>),
    /// `secret: NAME`.
    Secret(String),
    /// `clock`: this machine's time through `wasi:clocks`, which otherwise stands still.
    Clock,
    /// `random`: this machine's random bytes through `wasi:random`, which otherwise follow from a seed.
    Random,
}

impl Need {
    /// Reads an entry; none if this host knows no such need. The error says what is wrong with one of a known sort.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        let (kind, value) = text.split_once(':').map_or((text, None), |(kind, value)| (kind, Some(value.trim())));
        Ok(match (kind.trim(), value) {
            ("log", None) => Some(Self::Log),
            ("clock", None) => Some(Self::Clock),
            ("random", None) => Some(Self::Random),
            ("http", None) => Some(Self::Http(None)),
            ("http", Some(server)) => Some(Self::Http(Some(server.parse().map_err(|e| format!("its need http: {e}"))?))),
            ("secret", Some(name)) if is_name(name) => Some(Self::Secret(name.to_owned())),
            ("secret", name) => {
                return Err(format!("its need secret: {:?} is no name (1 to 64 letters, digits and `_`)", name.unwrap_or_default()));
            }
            _ => None,
        })
    }

    /// The flag that would grant it to a plugin; none for what needs no grant.
    pub fn flag(&self, plugin: &str) -> Option<String> {
        match self {
            Self::Log => None,
            Self::Http(server) => Some(http_flag(plugin, &server.as_ref().map_or_else(|| "https://HOST".to_owned(), ToString::to_string))),
            Self::Secret(name) => Some(format!("--secret {plugin}:{name}=env:{name}")),
            Self::Clock | Self::Random => Some(format!("--grant {plugin}:{self}")),
        }
    }

    /// The lines of a recipe that would grant it.
    pub fn recipe(&self, plugin: &str) -> Option<String> {
        match self {
            Self::Log => None,
            Self::Http(server) => {
                Some(http_recipe(plugin, &server.as_ref().map_or_else(|| "https://HOST".to_owned(), ToString::to_string)))
            }
            Self::Secret(name) => Some(format!("[plugins.{plugin}.secrets] {name} = \"env:{name}\"")),
            Self::Clock | Self::Random => Some(format!("[plugins.{plugin}] grants = [\"{self}\"]")),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("log"),
            Self::Http(None) => f.write_str("http"),
            Self::Http(Some(server)) => write!(f, "http: {server}"),
            Self::Secret(name) => write!(f, "secret: {name}"),
            Self::Clock => f.write_str("clock"),
            Self::Random => f.write_str("random"),
        }
    }
}

/// The flag that grants a server; with methods it has a space, which the shell must not see.
pub(crate) fn http_flag(plugin: &str, server: &str) -> String {
    let value = format!("{plugin}:http={server}");
    if value.contains([' ', '*']) { format!("--grant '{value}'") } else { format!("--grant {value}") }
}

pub(crate) fn http_recipe(plugin: &str, server: &str) -> String {
    format!("[plugins.{plugin}] grants = [\"http={server}\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_read_back_and_say_how_to_grant_them() {
        for (text, flag) in [
            ("log", None),
            ("http", Some("--grant p:http=https://HOST")),
            ("http: https://a.bc", Some("--grant p:http=https://a.bc")),
            ("http: GET,POST https://*.a.bc", Some("--grant 'p:http=GET,POST https://*.a.bc'")),
            ("secret: A_KEY", Some("--secret p:A_KEY=env:A_KEY")),
            ("clock", Some("--grant p:clock")),
            ("random", Some("--grant p:random")),
        ] {
            let need = Need::parse(text).unwrap().unwrap();
            assert_eq!(need.to_string(), text);
            assert_eq!(need.flag("p").as_deref(), flag);
        }
        assert_eq!(Need::parse("files"), Ok(None));
        assert_eq!(Need::parse("clock: fast"), Ok(None));
        assert_eq!(Need::parse("log: loudly"), Ok(None));
        assert!(Need::parse("http: nowhere").unwrap_err().starts_with("its need http: `nowhere`"));
        assert!(Need::parse("secret: a b").is_err() && Need::parse("secret").is_err());
    }
}
