//! Values of settings that are more than a number or a text.

use std::path::PathBuf;

use serde::{Serialize, Serializer};
use trainer_hub::RepoRef;

/// Settings of a plugin, as the JSON object that it gets. Keys are sorted, so that equal settings are equal bytes.
pub type Settings = serde_json::Map<String, serde_json::Value>;

/// A plugin's name: letters, digits, `_` and `-`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PluginName(String);

impl PluginName {
    /// A name that is not checked here; reading and [`crate::Recipe::validate`] do it.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has only the characters of a name, at least one and at most 64.
    pub fn is_valid(&self) -> bool {
        (1..=64).contains(&self.0.len()) && self.0.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    }
}

impl std::fmt::Display for PluginName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for PluginName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A number, or the program's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// The program chooses.
    Auto,
    /// This many.
    Exactly(usize),
}

impl Count {
    /// Whether it is `Auto` or in the range.
    pub(crate) fn within(self, low: usize, high: usize) -> bool {
        match self {
            Self::Auto => true,
            Self::Exactly(n) => (low..=high).contains(&n),
        }
    }

    /// The number, or what `auto` gives.
    pub fn or_else(self, auto: impl FnOnce() -> usize) -> usize {
        match self {
            Self::Auto => auto(),
            Self::Exactly(n) => n,
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => s.serialize_str("auto"),
            Self::Exactly(n) => n.serialize(s),
        }
    }
}

/// Texts, numbers and truth values to compare with; one may stand without brackets.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Scalars(pub Vec<serde_json::Value>);

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// `builtin:NAME`: an embedded file of the nano data.
    Builtin(String),
    /// `holdout:NAME`: the rows that a source keeps out of training. Only for evaluation.
    Holdout(String),
    /// `hf://datasets/ORG/NAME?split=NAME`: a split of a data set on a hub.
    Hub(RepoRef),
    /// A file, a folder or a glob.
    Path(PathBuf),
}

impl DataPath {
    /// What a recipe writes before the name of an embedded file.
    pub const PREFIX: &str = "builtin:";
    /// What `eval.data` writes before the name of a source.
    pub const HOLDOUT: &str = "holdout:";
    /// The embedded files.
    pub const BUILTIN: [&str; 4] = ["math_train", "chat_train", "math_test", "tools_eval"];
}

impl std::fmt::Display for DataPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin(name) => write!(f, "{}{name}", Self::PREFIX),
            Self::Holdout(name) => write!(f, "{}{name}", Self::HOLDOUT),
            Self::Hub(repo) => write!(f, "{repo}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Serialize for DataPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceBackend {
    /// The best device there is.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA card by its number, from 0.
    Cuda(usize),
}

impl DeviceBackend {
    /// Reads `auto`, `cpu`, `cuda` (the first card) or `cuda:N`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").filter(|n| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))?;
                number.parse().ok().map(Self::Cuda)
            }
        }
    }
}

impl std::fmt::Display for DeviceBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Serialize for DeviceBackend {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Which base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The embedded nano model.
    Nano,
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
    /// A repository on a hub.
    Hub(RepoRef),
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nano => f.write_str("nano"),
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Hub(repo) => write!(f, "{repo}"),
        }
    }
}

impl Serialize for ModelSource {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Qwen3's thinking switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// Not passed: the template decides (Qwen3's thinks).
    Template,
    /// Passed.
    Given(bool),
}

impl Thinking {
    /// What to pass to the template.
    pub fn get(self) -> Option<bool> {
        match self {
            Self::Template => None,
            Self::Given(on) => Some(on),
        }
    }
}

impl Serialize for Thinking {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Template => s.serialize_str("template"),
            Self::Given(on) => s.serialize_bool(*on),
        }
    }
}
