//! The manifest: what a plugin says of itself, in a custom section named `trainer:plugin` or in a file beside it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::PluginError;
use crate::instance::bounded;

/// The custom section's name.
pub const SECTION: &str = "trainer:plugin";

/// The largest manifest.
const MAX_SIZE: usize = 256 << 10;

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `[a-z0-9_]{1,64}`: how recipes, reports and errors call it.
    pub name: String,
    /// A semantic version.
    pub version: String,
    /// One sentence.
    #[serde(default)]
    pub description: String,
    /// JSON Schema of the settings, as a rule of an object. Without one the plugin takes no settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings_schema: Option<Value>,
    /// Capabilities that it needs and the user has to grant: `http: SERVER`, `secret: NAME`, `clock`, `random`.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Whether equal arguments give equal results. Only a tool may say no; it then has no fuel limit, only a deadline.
    #[serde(default = "yes")]
    pub deterministic: bool,
}

fn yes() -> bool {
    true
}

impl Manifest {
    /// Reads and checks a manifest. `plugin` names the file for errors.
    pub(crate) fn parse(plugin: &str, json: &[u8]) -> Result<Self, PluginError> {
        let wrong = |reason: String| PluginError::Manifest { plugin: plugin.to_owned(), reason };
        if json.len() > MAX_SIZE {
            return Err(wrong(format!("its manifest has {} bytes; at most {MAX_SIZE} are allowed", json.len())));
        }
        let manifest: Manifest =
            serde_json::from_slice(json).map_err(|e| wrong(format!("its manifest (section `{SECTION}`) cannot be read: {}", plain(&e))))?;
        if !is_name(&manifest.name) {
            return Err(wrong(format!("the name {} in its manifest is not of the form [a-z0-9_]{{1,64}}", quoted(&manifest.name))));
        }
        if !is_semver(&manifest.version) {
            return Err(wrong(format!("the version {} in its manifest is no semantic version such as 1.2.3", quoted(&manifest.version))));
        }
        if let Some(c) = manifest.description.chars().chain(manifest.needs.iter().flat_map(|n| n.chars())).find(|c| c.is_control()) {
            return Err(wrong(format!(
                "`description` or `needs` in its manifest holds the control character {c:?}; write one line of text"
            )));
        }
        if let Some(schema) = &manifest.settings_schema
            && !schema.is_object()
        {
            return Err(wrong("`settings_schema` in its manifest is no JSON object".to_owned()));
        }
        Ok(manifest)
    }

    /// Checks a manifest before it goes into a component, by the rules under which it will be read, needs and settings schema included.
    ///
    /// # Errors
    /// What a host would refuse.
    pub fn check(&self) -> Result<(), PluginError> {
        let name = &self.name;
        let json = serde_json::to_vec(self).map_err(|e| PluginError::Manifest { plugin: name.clone(), reason: e.to_string() })?;
        let manifest = Self::parse(name, &json)?;
        crate::capability::needs(&manifest)?;
        match &manifest.settings_schema {
            Some(schema) => crate::settings::compile_schema(&manifest, schema).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The one manifest among the sections found.
    pub(crate) fn from_sections(plugin: &str, sections: &[&[u8]]) -> Result<Option<Self>, PluginError> {
        let Some((first, rest)) = sections.split_first() else { return Ok(None) };
        if rest.iter().any(|other| other != first) {
            return Err(PluginError::Manifest {
                plugin: plugin.to_owned(),
                reason: format!("it holds {} different manifests (sections `{SECTION}`); a component has one", sections.len()),
            });
        }
        Self::parse(plugin, first).map(Some)
    }

    pub(crate) fn missing(plugin: &str) -> PluginError {
        PluginError::Manifest {
            plugin: plugin.to_owned(),
            reason: format!(
                "it has no manifest: the custom section `{SECTION}` is missing. The guest SDK's `plugin!` macro writes it; without the \
                 SDK put the same JSON ({{\"name\", \"version\", \"description\", ...}}) into a file NAME.plugin.json beside NAME.wasm"
            ),
        }
    }
}

/// An error of the reader, which may quote what is written there.
fn plain(error: &serde_json::Error) -> String {
    bounded(&error.to_string().chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect::<String>())
}

fn quoted(text: &str) -> String {
    format!("{:?}", bounded(text))
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Semantic Versioning 2.0.0: three numbers without leading zeros, then optional pre-release and build identifiers.
fn is_semver(version: &str) -> bool {
    if version.len() > 128 {
        return false;
    }
    let identifiers = |text: &str, numbers_strict: bool| {
        text.split('.').all(|id| {
            !id.is_empty()
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !(numbers_strict && id.len() > 1 && id.starts_with('0') && id.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    let (version, build) = version.split_once('+').map_or((version, None), |(v, b)| (v, Some(b)));
    let (core, pre) = version.split_once('-').map_or((version, None), |(v, p)| (v, Some(p)));
    let numbers: Vec<&str> = core.split('.').collect();
    numbers.len() == 3
        && numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && (n.len() == 1 || !n.starts_with('0')))
        && pre.is_none_or(|p| identifiers(p, true))
        && build.is_none_or(|b| identifiers(b, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["0.1.0", "1.2.3", "10.20.30", "1.0.0-rc.1", "1.0.0-0.x-y+build.001", "1.0.0+5"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.x", "1.2.3-", "1.2.3-01", "1.2.3+", "1.2.3-a..b", " 1.2.3", "1.2.3-ä"] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn manifests() {
        let read = |text: &str| Manifest::parse("p.wasm", text.as_bytes()).map_err(|e| e.to_string());
        let manifest = read(r#"{"name": "a_1", "version": "0.1.0"}"#).unwrap();
        assert!(manifest.deterministic && manifest.needs.is_empty() && manifest.settings_schema.is_none());
        for (text, part) in [
            (r#"{"name": "A", "version": "0.1.0"}"#, "not of the form"),
            (r#"{"name": "", "version": "0.1.0"}"#, "not of the form"),
            (r#"{"name": "../x", "version": "0.1.0"}"#, "not of the form"),
            (r#"{"name": "a", "version": "1"}"#, "semantic version"),
            (r#"{"name": "a", "version": "0.1.0", "grants": []}"#, "unknown field `grants`"),
            (r#"{"name": "a", "version": "0.1.0", "settings_schema": true}"#, "no JSON object"),
            (r#"{"name": "a"}"#, "missing field `version`"),
            (r#"{"name": "a", "version": "0.1.0", "description": "\u001b[2J"}"#, "control character '\\u{1b}'"),
            (r#"{"name": "a", "version": "0.1.0", "needs": ["a\nb"]}"#, "control character '\\n'"),
            (r#"{"name": "a", "version": "0.1.0", "\u001b[2J": 1}"#, "unknown field `\\u{1b}[2J`"),
            ("[", "cannot be read"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let huge = format!(r#"{{"name": "a", "version": "0.1.0", "description": "{}"}}"#, "x".repeat(MAX_SIZE));
        assert!(read(&huge).unwrap_err().contains("at most"));
    }

    #[test]
    fn equal_copies_are_one_manifest() {
        let (a, b) = (br#"{"name": "a", "version": "0.1.0"}"#.as_slice(), br#"{"name": "b", "version": "0.1.0"}"#.as_slice());
        assert!(Manifest::from_sections("p", &[]).unwrap().is_none());
        assert_eq!(Manifest::from_sections("p", &[a, a]).unwrap().unwrap().name, "a");
        assert!(Manifest::from_sections("p", &[a, b]).unwrap_err().to_string().contains("2 different manifests"));
    }
}
