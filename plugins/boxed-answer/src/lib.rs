//! `boxed_answer`: asks a problem and looks whether the last `\boxed{...}` of the answer holds what was expected.
//!
//! The comparison is of strings, after trimming; `normalize = "latex"` first evens out how the same value can be typeset.

use serde::Deserialize;
use trainer_plugin_sdk::{
    Aggregate, Conversation, Finish, Generation, Item, Message, Metric, Object, Plan, Request, Response, RowError, Score, Value, plugin,
};

/// The recipe's settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The column with the problem.
    pub problem_column: String,
    /// The column with the expected answer: a string, or a number as it is written.
    pub answer_column: String,
    /// How answers are compared.
    pub normalize: Normalize,
    /// The longest answer in tokens; none leaves it to the recipe.
    pub max_new_tokens: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            problem_column: "problem".to_owned(),
            answer_column: "expected_answer".to_owned(),
            normalize: Normalize::Exact,
            max_new_tokens: None,
        }
    }
}

/// What is evened out before the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Space around the answer.
    Exact,
    /// Also surrounding `$`, all space, LaTeX's spacing commands, `\left` and `\right`, `\text{...}` around a part, `\dfrac` and `\tfrac`,
    /// commas between groups of three digits, and a full stop at the end.
    Latex,
}

/// The metric.
pub struct BoxedAnswer {
    settings: Settings,
}

impl Metric for BoxedAnswer {
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
        let wanted = self.normalized(&expected);
        let found: Vec<Option<&str>> = answers.iter().map(|a| last_boxed(&a.text).or_else(|| last_boxed(&a.raw))).collect();
        let right = |found: &Option<&str>| found.is_some_and(|f| self.normalized(f) == wanted);
        let said = found.iter().zip(answers).map(|(found, answer)| match (found, answer.finish) {
            (Some(found), _) => format!("found {found}"),
            (None, Finish::Stop) => "found no \\boxed{}".to_owned(),
            (None, Finish::Length | Finish::Limit) => "found no \\boxed{} before the limit".to_owned(),
        });
        let explanation = format!("expected {expected}, {}", said.collect::<Vec<_>>().join(", "));
        vec![
            Score { name: CORRECT.to_owned(), value: share(found.iter().map(right)), explanation },
            Score { name: BOXED.to_owned(), value: share(found.iter().map(Option::is_some)), explanation: String::new() },
        ]
    }

    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
        let mean = |name: &str, score: &str| {
            let number = |s: &Score| match s.value {
                Value::Boolean(b) => f64::from(u8::from(b)),
                Value::Number(n) => n,
                Value::Text(_) | Value::Unscored => 0.0,
            };
            // A sample without a score counts as wrong: it must not pay to fail.
            let sum: f64 = samples.iter().filter_map(|s| s.iter().find(|s| s.name == score)).map(number).sum();
            let n = samples.len() as f64;
            let p = sum / n;
            Aggregate { name: name.to_owned(), value: p, stderr: Some((p * (1.0 - p) / n).max(0.0).sqrt()), higher_is_better: Some(true) }
        };
        if samples.is_empty() {
            return Err("there is no sample to sum up".to_owned());
        }
        Ok(vec![mean("accuracy", CORRECT), mean("boxed_rate", BOXED)])
    }
}

const CORRECT: &str = "correct";
const BOXED: &str = "boxed";

fn unscored(explanation: String) -> Vec<Score> {
    vec![Score { name: CORRECT.to_owned(), value: Value::Unscored, explanation }]
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

impl BoxedAnswer {
    /// The expected answer: a string, or a number as it is written.
    fn expected(&self, row: &Object<'_>) -> Result<String, RowError> {
        let column = &self.settings.answer_column;
        match row.get(column) {
            Some(number) if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => Ok(number.to_owned()),
            _ => row.string(column),
        }
    }

    fn normalized(&self, answer: &str) -> String {
        match self.settings.normalize {
            Normalize::Exact => answer.trim().to_owned(),
            Normalize::Latex => latex(answer),
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

/// See [`Normalize::Latex`].
fn latex(answer: &str) -> String {
    let mut text = answer.trim().trim_matches('$').trim().trim_end_matches('.').to_owned();
    for (from, to) in [
        ("\\left", ""),
        ("\\right", ""),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", ""),
        ("\\:", ""),
        ("\\ ", ""),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
    ] {
        text = text.replace(from, to);
    }
    while let Some(start) = text.find("\\text{") {
        let Some(end) = text[start..].find('}').map(|e| start + e) else { break };
        let inner = text[start + "\\text{".len()..end].to_owned();
        text.replace_range(start..=end, &inner);
    }
    text.retain(|c| !c.is_whitespace());
    without_separators(&text)
}

/// Drops commas that stand between a digit and exactly three digits, such as those of `1,234,567`; those of `3, 12` stay.
fn without_separators(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let separates = |i: usize| i > 0 && digit(i - 1) && digit(i + 1) && digit(i + 2) && digit(i + 3) && !digit(i + 4);
    text.char_indices().filter(|(i, c)| !(*c == ',' && separates(*i))).map(|(_, c)| c).collect()
}

plugin! {
    name: "boxed_answer",
    description: "Whether the last \\boxed{...} of the answer holds the expected answer",
    settings_schema: include_str!("settings.json"),
    metric: BoxedAnswer,
}

#[cfg(test)]
mod tests;
