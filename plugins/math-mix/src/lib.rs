//! `math_mix`: a mixing policy with the tutorial's semantics, and the formatter of OpenMathReasoning's rows.
//!
//! The tutorial takes all reasoning rows and, beside them, chat rows in the number of `chat_percentage` times the reasoning rows: with
//! 0.25 and 4,000 reasoning rows, 1,000 chat rows, so that a fifth of the mix is chat.

pub mod formatter;
pub mod policy;
mod rng;

use serde::Deserialize;
use trainer_plugin_sdk::plugin;

/// The recipe's settings: one set for both kinds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Chat rows as a share of the number of reasoning rows.
    pub chat_percentage: f64,
    /// The source with reasoning rows; none: the first one.
    pub reasoning: Option<String>,
    /// The sources with chat rows; none: all others.
    pub chat: Option<OneOrMore>,
    /// Whether an epoch may hold a chat row more than once where there are too few.
    pub repeat_chat: bool,
    /// The column with the problem.
    pub problem_column: String,
    /// The column with the solution.
    pub solution_column: String,
    /// Whether rows with an empty problem or solution are skipped.
    pub skip_empty: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            chat_percentage: 0.25,
            reasoning: None,
            chat: None,
            repeat_chat: false,
            problem_column: "problem".to_owned(),
            solution_column: "generated_solution".to_owned(),
            skip_empty: false,
        }
    }
}

/// One name, or a list of names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    /// A single name.
    One(String),
    /// Several.
    More(Vec<String>),
}

impl OneOrMore {
    fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::More(names) => names,
        }
    }
}

plugin! {
    name: "math_mix",
    description: "Mixes reasoning rows with a share of chat rows, as the Qwen3 tutorial does, and formats OpenMathReasoning rows",
    settings_schema: include_str!("settings.json"),
    formatter: formatter::OpenMathReasoning,
    policy: policy::MathMix,
}
