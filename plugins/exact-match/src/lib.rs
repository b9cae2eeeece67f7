//! `exact_match`: asks a question and looks whether the answer is one of the expected texts, after evening out what does not matter.

mod normal;
mod place;

use serde::Deserialize;
use trainer_plugin_sdk::{
    Aggregate, Conversation, Generation, Item, Message, Metric, Plan, Request, Response, RowError, Score, Value, plugin,
};

pub use normal::Normal;
use place::Place;

/// The recipe's settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// JSON Pointer to the question: a text, or a list of messages.
    pub question: String,
    /// JSON Pointer to the expected answer: a text, a number or boolean as it is written, or a list of those of which any is right.
    pub answer: String,
    /// What counts of the model's answer is what follows the last occurrence of this text; all of it where this is empty, nothing where the
    /// text does not occur.
    pub after: String,
    /// Upper and lower case are the same.
    pub ignore_case: bool,
    /// Runs of space are one space, and space around the answer does not count.
    pub ignore_whitespace: bool,
    /// ASCII punctuation does not count.
    pub ignore_punctuation: bool,
    /// The words a, an and the do not count.
    pub ignore_articles: bool,
    /// The longest answer in tokens; none leaves it to the recipe.
    pub max_new_tokens: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            question: "/question".to_owned(),
            answer: "/answer".to_owned(),
            after: String::new(),
            ignore_case: false,
            ignore_whitespace: true,
            ignore_punctuation: false,
            ignore_articles: false,
            max_new_tokens: None,
        }
    }
}

/// The metric.
pub struct ExactMatch {
    settings: Settings,
    question: Place,
    answer: Place,
    normal: Normal,
}

impl Metric for ExactMatch {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.max_new_tokens == Some(0) {
            return Err("max_new_tokens must be at least 1".to_owned());
        }
        let normal = Normal {
            case: settings.ignore_case,
            whitespace: settings.ignore_whitespace,
            punctuation: settings.ignore_punctuation,
            articles: settings.ignore_articles,
        };
        let question = Place::parse(&settings.question).map_err(|e| format!("question: {e}"))?;
        let answer = Place::parse(&settings.answer).map_err(|e| format!("answer: {e}"))?;
        Ok(Self { settings, question, answer, normal })
    }

    fn scoring_version(&self) -> String {
        "1".to_owned()
    }

    fn prepare(&self, row: &str) -> Result<Plan, RowError> {
        self.expected(row)?;
        Ok(Plan::Ask(Request::Generate(Generation {
            conversation: Conversation::of(self.messages(row)?),
            enable_thinking: None,
            repeats: 1,
            max_new_tokens: self.settings.max_new_tokens,
            stop: Vec::new(),
        })))
    }

    fn score(&self, item: &Item) -> Vec<Score> {
        let (expected, answers) = match (self.expected(&item.row), &item.response) {
            (Ok(expected), Response::Answers(answers)) if !answers.is_empty() => (expected, answers),
            (Err(e), _) => return unscored(format!("{}: {}", e.pointer, e.message)),
            (_, Response::Failed(reason)) => return unscored(reason.clone()),
            _ => return unscored("no answer came back".to_owned()),
        };
        let wanted: Vec<String> = expected.iter().map(|e| self.normal.apply(e)).collect();
        let found: Vec<Option<&str>> = answers.iter().map(|a| self.part(&a.text)).collect();
        let right = found.iter().filter(|f| f.is_some_and(|f| wanted.contains(&self.normal.apply(f)))).count();
        let value = match found.len() {
            1 => Value::Boolean(right == 1),
            n => Value::Number(right as f64 / n as f64),
        };
        let said = found.iter().map(|f| match f {
            Some(found) => format!("found {}", shortened(found.trim())),
            None => format!("found no {:?}", self.settings.after),
        });
        let said = said.collect::<Vec<_>>().join(", ");
        let explanation = format!("expected {}, {said}", shortened(&expected.join(" or ")));
        vec![Score { name: CORRECT.to_owned(), value, explanation }]
    }

    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
        if samples.is_empty() {
            return Err("there is no sample to sum up".to_owned());
        }
        let number = |s: &Score| match s.value {
            Value::Boolean(b) => f64::from(u8::from(b)),
            Value::Number(n) => n,
            Value::Text(_) | Value::Unscored => 0.0,
        };
        // A sample without a score counts as wrong: it must not pay to fail.
        let sum: f64 = samples.iter().filter_map(|s| s.iter().find(|s| s.name == CORRECT)).map(number).sum();
        let n = samples.len() as f64;
        let p = sum / n;
        let stderr = Some((p * (1.0 - p) / n).max(0.0).sqrt());
        Ok(vec![Aggregate { name: "accuracy".to_owned(), value: p, stderr, higher_is_better: Some(true) }])
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

impl ExactMatch {
    /// The part of an answer that counts.
    fn part<'a>(&self, text: &'a str) -> Option<&'a str> {
        match self.settings.after.as_str() {
            "" => Some(text),
            after => text.rsplit_once(after).map(|(_, part)| part),
        }
    }

    fn messages(&self, row: &str) -> Result<Vec<Message>, RowError> {
        let raw = self.question.find(row)?;
        if raw.starts_with('"') {
            return Ok(vec![Message::user(self.question.text(raw)?)]);
        }
        self.question.messages(raw)
    }

    fn expected(&self, row: &str) -> Result<Vec<String>, RowError> {
        let raw = self.answer.find(row)?;
        if raw.starts_with('[') {
            let all: Vec<String> = self.answer.elements(raw)?.iter().map(|raw| self.answer.scalar(raw)).collect::<Result<_, _>>()?;
            return match all.is_empty() {
                true => Err(self.answer.wrong("an empty list where at least one answer belongs")),
                false => Ok(all),
            };
        }
        Ok(vec![self.answer.scalar(raw)?])
    }
}

plugin! {
    name: "exact_match",
    description: "Whether the answer is one of the expected texts, without regard to case, space, punctuation or articles as wished",
    settings_schema: include_str!("settings.json"),
    metric: ExactMatch,
}

#[cfg(test)]
mod tests;
