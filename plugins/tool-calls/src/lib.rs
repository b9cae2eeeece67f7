//! `tool_calls`: does the model call the tools that it should, and does its final answer hold what it must?
//!
//! A row has `messages`, `tools`, `expected_calls` (`[{"name", "arguments"}]`; empty: no call is right) and `answer_contains` (a list of strings).
//! What a row does not have is not judged. Canned responses (`tool_fixtures`) are the host's business.

pub mod case;
pub mod compare;

use serde::Deserialize;
use serde_json::Value as Json;
use trainer_plugin_sdk::{
    Aggregate, Answer, CallArguments, Finish, Generation, Item, Metric, Plan, Request, Response, RowError, Score, Value, plugin,
};

use crate::case::{Expected, Wanted};
use crate::compare::same_calls;

/// The recipe's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How calls are compared.
    pub order: Order,
    /// The longest turn in tokens; none leaves it to the recipe.
    pub max_new_tokens: Option<u32>,
}

/// Whether the order of calls matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// As expected.
    #[default]
    Given,
    /// Any.
    Any,
}

const EXACT: &str = "exact";
const CONTAINS: &str = "answer_contains";
/// Bytes of a text in an explanation.
const SHOWN: usize = 400;

/// The metric.
pub struct ToolCalls {
    settings: Settings,
}

impl Metric for ToolCalls {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.max_new_tokens == Some(0) {
            return Err("max_new_tokens must be at least 1".to_owned());
        }
        Ok(Self { settings })
    }

    fn scoring_version(&self) -> String {
        "1".to_owned()
    }

    fn prepare(&self, row: &str) -> Result<Plan, RowError> {
        if case::expected(row)? == Expected::default() {
            return Ok(Plan::Skip("the row has neither expected_calls nor answer_contains".to_owned()));
        }
        Ok(Plan::Ask(Request::Generate(Generation {
            conversation: case::conversation(row)?,
            enable_thinking: None,
            repeats: 1,
            max_new_tokens: self.settings.max_new_tokens,
            stop: Vec::new(),
        })))
    }

    fn score(&self, item: &Item) -> Vec<Score> {
        let expected = case::expected(&item.row).unwrap_or_default();
        let answers = match &item.response {
            Response::Answers(answers) if !answers.is_empty() => Ok(answers),
            Response::Failed(reason) => Err(reason.clone()),
            _ => Err("no answer came back".to_owned()),
        };
        let mut scores = Vec::new();
        let mut judge = |name: &str, judged: &dyn Fn(&Answer) -> (bool, String)| {
            let (value, explanation) = match &answers {
                Err(reason) => (Value::Unscored, reason.clone()),
                Ok(answers) => {
                    let judged: Vec<(bool, String)> = answers.iter().map(judged).collect();
                    let words: Vec<&str> = judged.iter().map(|j| j.1.as_str()).collect();
                    (share(judged.iter().map(|j| j.0)), words.join("; "))
                }
            };
            scores.push(Score { name: name.to_owned(), value, explanation });
        };
        if let Some(calls) = &expected.calls {
            judge(EXACT, &|answer| self.exact(calls, answer));
        }
        if let Some(strings) = &expected.contains {
            judge(CONTAINS, &|answer| contains(strings, answer));
        }
        scores
    }

    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
        if samples.is_empty() {
            return Err("there is no sample to sum up".to_owned());
        }
        let mean = |name: &str| {
            // A sample that could not be scored has neither score, and counts as wrong in both: it must not pay to fail.
            let judged = samples
                .iter()
                .filter(|s| s.iter().any(|s| s.name == name) || !s.iter().any(|s| [EXACT, CONTAINS].contains(&s.name.as_str())));
            let values: Vec<f64> = judged.map(|s| s.iter().find(|s| s.name == name).map_or(0.0, number)).collect();
            if values.is_empty() || !samples.iter().flatten().any(|s| s.name == name) {
                return None;
            }
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            Some(Aggregate { name: name.to_owned(), value: mean, stderr: Some((variance / n).sqrt()), higher_is_better: Some(true) })
        };
        Ok([EXACT, CONTAINS].into_iter().filter_map(mean).collect())
    }
}

impl ToolCalls {
    fn exact(&self, expected: &[Wanted], answer: &Answer) -> (bool, String) {
        let made: Vec<Wanted> = answer
            .calls
            .iter()
            .map(|call| Wanted {
                name: call.name.clone(),
                arguments: match &call.arguments {
                    CallArguments::Json(text) => serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.clone())),
                    CallArguments::Text(text) => Json::String(text.clone()),
                },
            })
            .collect();
        let right = answer.malformed.is_empty() && same_calls(expected, &made, self.settings.order == Order::Any);
        if right {
            return (true, format!("made {}", shown(&made)));
        }
        let malformed = match answer.malformed.first() {
            Some(what) => format!(", and what is no call ({})", cut(what)),
            None => String::new(),
        };
        (false, format!("expected {}, made {}{malformed}", shown(expected), shown(&made)))
    }
}

fn contains(strings: &[String], answer: &Answer) -> (bool, String) {
    let missing: Vec<String> = strings.iter().filter(|s| !answer.text.contains(s.as_str())).map(|s| format!("{s:?}")).collect();
    if missing.is_empty() {
        return (true, String::new());
    }
    let ended = match answer.finish {
        Finish::Stop => "",
        Finish::Length => ", which reached its length limit",
        Finish::Limit => ", which ended at a limit",
    };
    (false, format!("{} not in the answer{ended}", cut(&missing.join(", "))))
}

fn shown(calls: &[Wanted]) -> String {
    if calls.is_empty() {
        return "no call".to_owned();
    }
    let one = |c: &Wanted| format!("{}({})", c.name, c.arguments);
    cut(&calls.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn cut(text: &str) -> String {
    if text.len() <= SHOWN { text.to_owned() } else { format!("{}…", &text[..text.floor_char_boundary(SHOWN)]) }
}

fn number(score: &Score) -> f64 {
    match score.value {
        Value::Boolean(b) => f64::from(u8::from(b)),
        Value::Number(n) => n,
        Value::Text(_) | Value::Unscored => 0.0,
    }
}

/// Yes or no for one answer, the share of yes for several.
fn share(mut answers: impl ExactSizeIterator<Item = bool>) -> Value {
    match (answers.len(), answers.next()) {
        (1, Some(one)) => Value::Boolean(one),
        (n, first) => {
            let yes = u32::from(first == Some(true)) + answers.map(u32::from).sum::<u32>();
            Value::Number(f64::from(yes) / n as f64)
        }
    }
}

plugin! {
    name: "tool_calls",
    description: "Whether the model calls the expected tools, and its answer contains what it must",
    settings_schema: include_str!("settings.json"),
    metric: ToolCalls,
}

#[cfg(test)]
mod tests;
