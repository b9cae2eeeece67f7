//! `perplexity`: how likely the model holds given answers to given questions, per token and per byte.
//!
//! Figures per token compare only between models of one tokenizer; those per byte between any.

use serde::Deserialize;
use serde_json::value::RawValue;
use trainer_plugin_sdk::{
    Aggregate, Conversation, Item, Likelihood, Message, Metric, Object, Plan, Request, Response, RowError, Score, Value, plugin,
};

/// The recipe's settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The column with the question: a text, or a list of messages. If the list ends with an assistant's message and the row has no column
    /// for the text, that message is the text.
    pub prompt_column: String,
    /// The column with the text whose likelihood is asked.
    pub text_column: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { prompt_column: "prompt".to_owned(), text_column: "text".to_owned() }
    }
}

/// The metric.
pub struct Perplexity {
    settings: Settings,
}

impl Metric for Perplexity {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    fn scoring_version(&self) -> String {
        "1".to_owned()
    }

    fn prepare(&self, row: &str) -> Result<Plan, RowError> {
        let (messages, text) = self.read(row)?;
        if text.is_empty() {
            return Ok(Plan::Skip("the text is empty".to_owned()));
        }
        Ok(Plan::Ask(Request::LogLikelihood(Likelihood { conversation: Conversation::of(messages), continuations: vec![text] })))
    }

    fn score(&self, item: &Item) -> Vec<Score> {
        let likelihoods = match &item.response {
            Response::LogLikelihoods(likelihoods) => likelihoods,
            Response::Failed(reason) => return unscored(reason.clone()),
            Response::Answers(_) => return unscored("no likelihood came back".to_owned()),
        };
        let text = match self.read(&item.row) {
            Ok((_, text)) => text,
            Err(e) => return unscored(format!("{}: {}", e.pointer, e.message)),
        };
        let &[(sum, tokens, greedy)] = likelihoods.as_slice() else {
            return unscored(format!("{} likelihoods for one text", likelihoods.len()));
        };
        if !sum.is_finite() || tokens == 0 {
            return unscored(format!("a log-likelihood of {sum} for {tokens} tokens"));
        }
        let per_token = (-sum / f64::from(tokens)).exp();
        let explanation = format!("{tokens} tokens, {} bytes, perplexity {per_token:.4} per token", text.len());
        let number =
            |name: &str, value: f64, explanation: String| Score { name: name.to_owned(), value: Value::Number(value), explanation };
        vec![
            number(LOG_LIKELIHOOD, sum, explanation),
            number(TOKENS, f64::from(tokens), String::new()),
            number(BYTES, text.len() as f64, String::new()),
            Score { name: GREEDY.to_owned(), value: Value::Boolean(greedy), explanation: String::new() },
        ]
    }

    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
        let of = |scores: &[Score], name: &str| match scores.iter().find(|s| s.name == name)?.value {
            Value::Number(n) => Some(n),
            Value::Boolean(b) => Some(f64::from(u8::from(b))),
            Value::Text(_) | Value::Unscored => None,
        };
        let whole = |scores: &Vec<Score>| Some([of(scores, LOG_LIKELIHOOD)?, of(scores, TOKENS)?, of(scores, BYTES)?, of(scores, GREEDY)?]);
        let scored: Vec<[f64; 4]> = samples.iter().filter_map(whole).collect();
        // A sample without a likelihood has none to count; how many there are is in the last figure.
        let sum = |i: usize| scored.iter().filter_map(|s| s.get(i)).sum::<f64>();
        let (log_likelihood, tokens, bytes, greedy) = (sum(0), sum(1), sum(2), sum(3));
        if tokens == 0.0 || bytes == 0.0 {
            return Err("no sample has a likelihood".to_owned());
        }
        let summary = |name: &str, value: f64, higher_is_better: bool| Aggregate {
            name: name.to_owned(),
            // Beyond the largest number is the largest: a summary is finite.
            value: value.min(f64::MAX),
            stderr: None,
            higher_is_better: Some(higher_is_better),
        };
        Ok(vec![
            summary("token_perplexity", (-log_likelihood / tokens).exp(), false),
            summary("byte_perplexity", (-log_likelihood / bytes).exp(), false),
            summary("bits_per_byte", -log_likelihood / bytes / std::f64::consts::LN_2, false),
            summary("greedy_rate", greedy / scored.len() as f64, true),
            summary("scored_rate", scored.len() as f64 / samples.len() as f64, true),
        ])
    }
}

const LOG_LIKELIHOOD: &str = "log_likelihood";
const TOKENS: &str = "tokens";
const BYTES: &str = "bytes";
const GREEDY: &str = "greedy";

fn unscored(explanation: String) -> Vec<Score> {
    vec![Score { name: LOG_LIKELIHOOD.to_owned(), value: Value::Unscored, explanation }]
}

impl Perplexity {
    /// The conversation before the text, and the text.
    fn read(&self, row: &str) -> Result<(Vec<Message>, String), RowError> {
        let Settings { prompt_column, text_column } = &self.settings;
        let row = Object::row(row, &[prompt_column, text_column])?;
        let place = row.place(prompt_column);
        let raw = row.get(prompt_column).ok_or_else(|| row.missing(prompt_column, "a text or a list of messages"))?;
        if !raw.starts_with('[') {
            return Ok((vec![Message::user(row.string(prompt_column)?)], row.string(text_column)?));
        }
        let raw: Vec<&RawValue> = serde_json::from_str(raw).map_err(|e| RowError::new(place.clone(), e.to_string()))?;
        let mut messages = Vec::with_capacity(raw.len());
        for (i, message) in raw.iter().enumerate() {
            let message = Object::read(message.get(), &["role", "content"], place.at(i))?;
            messages.push((message.string("role")?, message.string("content")?));
        }
        let text = match (row.has(text_column), messages.last()) {
            (false, Some((role, _))) if role == "assistant" => messages.pop().map(|(_, text)| text).unwrap_or_default(),
            _ => row.string(text_column)?,
        };
        if messages.is_empty() {
            return Err(RowError::new(place, "at least one message belongs before the text"));
        }
        Ok((messages.into_iter().map(|(role, content)| Message::text(role, content)).collect(), text))
    }
}

plugin! {
    name: "perplexity",
    description: "How likely given texts are: perplexity per token and per byte, bits per byte",
    settings_schema: include_str!("settings.json"),
    metric: Perplexity,
}

#[cfg(test)]
mod tests;
