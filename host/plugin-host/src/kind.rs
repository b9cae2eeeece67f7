//! The kinds of plugins and their versions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of plugin: one WIT package each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Rows to conversations.
    DatasetFormatter,
    /// Conversations to text, and the model's output back.
    ChatTemplate,
    /// Which source the next sample comes from.
    MixingPolicy,
    /// Tools that the model can call.
    ToolExecutor,
    /// What to ask of the model and how to judge its answers.
    EvalMetric,
}

impl Kind {
    /// All kinds that this host knows.
    pub const ALL: [Kind; 5] = [Kind::DatasetFormatter, Kind::ChatTemplate, Kind::MixingPolicy, Kind::ToolExecutor, Kind::EvalMetric];

    /// The long name, as in the WIT package: `dataset-formatter`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::DatasetFormatter => "dataset-formatter",
            Kind::ChatTemplate => "chat-template",
            Kind::MixingPolicy => "mixing-policy",
            Kind::ToolExecutor => "tool-executor",
            Kind::EvalMetric => "eval-metric",
        }
    }

    /// The short name, as on the command line: `formatter`.
    pub const fn short_name(self) -> &'static str {
        match self {
            Kind::DatasetFormatter => "formatter",
            Kind::ChatTemplate => "template",
            Kind::MixingPolicy => "policy",
            Kind::ToolExecutor => "tool",
            Kind::EvalMetric => "metric",
        }
    }

    /// The versions of the kind's WIT package that this host runs, the newest last.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::EvalMetric => &["0.1.0", "0.2.0"],
            _ => &["0.1.0"],
        }
    }

    /// The interface by whose export a component shows that it is of this kind, without the version.
    pub const fn interface(self) -> &'static str {
        match self {
            Kind::DatasetFormatter => "trainer:dataset-formatter/formatter",
            Kind::ChatTemplate => "trainer:chat-template/template",
            Kind::MixingPolicy => "trainer:mixing-policy/policy",
            Kind::ToolExecutor => "trainer:tool-executor/executor",
            Kind::EvalMetric => "trainer:eval-metric/metric",
        }
    }

    /// That export in the version that the guest SDK and new projects are built against; see [`Kind::versions`] for the others.
    pub const fn export(self) -> &'static str {
        match self {
            Kind::DatasetFormatter => "trainer:dataset-formatter/formatter@0.1.0",
            Kind::ChatTemplate => "trainer:chat-template/template@0.1.0",
            Kind::MixingPolicy => "trainer:mixing-policy/policy@0.1.0",
            Kind::ToolExecutor => "trainer:tool-executor/executor@0.1.0",
            Kind::EvalMetric => "trainer:eval-metric/metric@0.1.0",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no plugin kind; the kinds are dataset-formatter, chat-template, mixing-policy, tool-executor and eval-metric")]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Accepts the long names and `formatter`, `template`, `mixing`, `policy` or `mixer`, `tool`, `metric`.
    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Ok(match name {
            "dataset-formatter" | "formatter" => Kind::DatasetFormatter,
            "chat-template" | "template" => Kind::ChatTemplate,
            "mixing-policy" | "policy" | "mixing" | "mixer" => Kind::MixingPolicy,
            "tool-executor" | "tool" | "tools" => Kind::ToolExecutor,
            "eval-metric" | "metric" => Kind::EvalMetric,
            other => return Err(UnknownKind(other.to_owned())),
        })
    }
}

/// A kind in one version of its interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindVersion {
    /// The kind.
    pub kind: Kind,
    /// The version of its WIT package.
    pub version: String,
}

impl fmt::Display for KindVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.version)
    }
}
