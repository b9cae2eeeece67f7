//! `math_equal`: asks a problem and looks whether the last `\boxed{...}` of the answer has the expected value, however it is written.
//!
//! Values are compared exactly; what cannot be told is unscored. See [`exact`] for the numbers, [`answer`] for what is read.

pub mod answer;
pub mod compare;
pub mod exact;

use serde::Deserialize;
use trainer_plugin_sdk::{
    Aggregate, Conversation, Finish, Generation, Item, Message, Metric, Object, Plan, Request, Response, RowError, Score, Value, plugin,
};

use compare::{Rules, Verdict, compare};

/// The recipe's settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The column with the problem.
    pub problem_column: String,
    /// The column with the expected answer: a string, or a number as it is written.
    pub answer_column: String,
    /// How a percent sign counts that only one of the two answers has.
    pub percent: Percent,
    /// The longest answer in tokens; none leaves it to the recipe.
    pub max_new_tokens: Option<u32>,
}

/// See [`Settings::percent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Percent {
    /// `50%` is 1/2 and nothing else.
    Exact,
    /// `50%` is 1/2, and also 50.
    Optional,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            problem_column: "problem".to_owned(),
            answer_column: "expected_answer".to_owned(),
            percent: Percent::Exact,
            max_new_tokens: None,
        }
    }
}

/// The metric.
pub struct MathEqual {
    settings: Settings,
}

impl Metric for MathEqual {
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
        let row = Object::row(row, &[&self.settings.problem_column, &self.settings.answer_column])?;
        let problem = row.string(&self.settings.problem_column)?;
        self.expected(&row)?;
        Ok(Plan::Ask(Request::Generate(Generation {
            conversation: Conversation::of([Message::user(problem)]),
            enable_thinking: None,
            repeats: 1,
            max_new_tokens: self.settings.max_new_tokens,
            stop: Vec::new(),
        })))
    }

    fn score(&self, item: &Item) -> Vec<Score> {
        let expected = Object::row(&item.row, &[&self.settings.answer_column]).and_then(|row| self.expected(&row));
        let (expected, answers) = match (expected, &item.response) {
            (Ok(expected), Response::Answers(answers)) if !answers.is_empty() => (expected, answers),
            (Err(e), _) => return unscored(format!("{}: {}", e.pointer, e.message)),
            (_, Response::Failed(reason)) => return unscored(reason.clone()),
            _ => return unscored("no answer came back".to_owned()),
        };
        let rules = Rules { percent_is_optional: self.settings.percent == Percent::Optional };
        let verdicts = answers.iter().map(|answer| match last_boxed(&answer.text).or_else(|| last_boxed(&answer.raw)) {
            Some(found) => (compare(&expected, found, rules), format!("found {}", shortened(found))),
            None if answer.finish == Finish::Stop => (Verdict::Different, "found no \\boxed{}".to_owned()),
            None => (Verdict::Different, "found no \\boxed{} before the limit".to_owned()),
        });
        let (verdicts, said): (Vec<Verdict>, Vec<String>) = verdicts.unzip();
        let mut explanation = format!("expected {}, {}", shortened(&expected), said.join(", "));
        let value = match verdicts.as_slice() {
            [Verdict::Unknown] => {
                explanation.push_str("; whether they are equal cannot be told");
                Value::Unscored
            }
            [one] => Value::Boolean(*one == Verdict::Equal),
            all => Value::Number(all.iter().filter(|v| **v == Verdict::Equal).count() as f64 / all.len() as f64),
        };
        vec![Score { name: CORRECT.to_owned(), value, explanation }]
    }

    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
        if samples.is_empty() {
            return Err("there is no sample to sum up".to_owned());
        }
        let n = samples.len() as f64;
        let values: Vec<Option<f64>> = samples
            .iter()
            .map(|scores| match scores.iter().find(|s| s.name == CORRECT)?.value {
                Value::Boolean(b) => Some(f64::from(u8::from(b))),
                Value::Number(n) => Some(n),
                Value::Text(_) | Value::Unscored => None,
            })
            .collect();
        // What has no score counts as wrong, and how much that is is said beside it.
        let p = values.iter().flatten().sum::<f64>() / n;
        let unscored = values.iter().filter(|v| v.is_none()).count() as f64 / n;
        let summary = |name: &str, p: f64, higher_is_better: bool| Aggregate {
            name: name.to_owned(),
            value: p,
            stderr: Some((p * (1.0 - p) / n).max(0.0).sqrt()),
            higher_is_better: Some(higher_is_better),
        };
        Ok(vec![summary("accuracy", p, true), summary("unscored_rate", unscored, false)])
    }
}

const CORRECT: &str = "correct";

fn unscored(explanation: String) -> Vec<Score> {
    vec![Score { name: CORRECT.to_owned(), value: Value::Unscored, explanation }]
}

/// Explanations quote what a model wrote, which may be long.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 300;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

impl MathEqual {
    /// The expected answer: a string, or a number as it is written.
    fn expected(&self, row: &Object<'_>) -> Result<String, RowError> {
        let column = &self.settings.answer_column;
        match row.get(column) {
            Some(number) if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => Ok(number.to_owned()),
            _ => row.string(column),
        }
    }
}

/// The content of the last `\boxed{...}` whose braces balance; `\{` and `\}` are characters, not braces.
pub fn last_boxed(text: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    text.rmatch_indices(OPEN).find_map(|(at, _)| {
        let body = text.get(at + OPEN.len()..)?;
        let (mut depth, mut escaped) = (1u32, false);
        for (i, byte) in body.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return body.get(..i);
            }
        }
        None
    })
}

plugin! {
    name: "math_equal",
    description: "Whether the last \\boxed{...} of the answer has the expected value: numbers, fractions, roots, expressions, tuples, intervals",
    settings_schema: include_str!("settings.json"),
    metric: MathEqual,
}

#[cfg(test)]
mod tests;
