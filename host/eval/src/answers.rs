//! From what a model wrote to what a metric sees.

use serde::{Deserialize, Serialize};
use trainer_engine::Finish as EngineFinish;
use trainer_plugin_host::metric::{Answer, Call, Finish};
use trainer_plugin_host::template::OutputPart;
use trainer_plugin_host::types::CallArguments;
use trainer_tools::{End, Transcript, TurnEnd};

/// How the engine's end of generation looks to an episode.
pub(crate) fn turn_end(f: &EngineFinish) -> TurnEnd {
    match f {
        EngineFinish::Stop(_) => TurnEnd::Stop,
        EngineFinish::Length => TurnEnd::Length,
        _ => TurnEnd::Context,
    }
}

/// How the end of an episode looks to a metric.
pub(crate) fn finish(end: &End) -> Finished {
    match end {
        End::Answer | End::Unexecuted { .. } => Finished::Stop,
        End::Length => Finished::Length,
        _ => Finished::Limit,
    }
}

/// Why an answer ended, as files have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Finished {
    Stop,
    Length,
    Limit,
}

impl Finished {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Limit => "limit",
        }
    }
}

/// A call as the model made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MadeCall {
    name: String,
    arguments: String,
    /// Whether the arguments are a JSON value; else a string that the model wrote in the place of one.
    json: bool,
}

/// One answer, complete: what a metric is given of it, and what the report keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AnswerRecord {
    /// The outputs of all turns, one below the other.
    pub raw: String,
    /// The words of the last turn.
    pub text: String,
    /// The reasoning of all turns.
    pub reasoning: String,
    /// The well-formed calls of the first turn that has any.
    pub calls: Vec<MadeCall>,
    /// What was said of those that are none.
    pub malformed: Vec<String>,
    /// Why it ended.
    pub finish: Finished,
    /// Tokens of all turns; none where the output was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens: Option<u64>,
    /// Prompt tokens of the turns after the first.
    pub more_prompt_tokens: u64,
    /// Why it could not be had.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed: Option<String>,
    /// What was said and called, where tools are on offer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub transcript: Option<Transcript>,
}

impl Default for AnswerRecord {
    fn default() -> Self {
        Self {
            raw: String::new(),
            text: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            malformed: Vec::new(),
            finish: Finished::Limit,
            tokens: None,
            more_prompt_tokens: 0,
            failed: None,
            transcript: None,
        }
    }
}

impl AnswerRecord {
    /// An answer that could not be had.
    pub fn failed(why: impl Into<String>) -> Self {
        Self { failed: Some(why.into()), ..Self::default() }
    }

    /// Adds the output of a turn.
    pub fn add(&mut self, raw: &str, parts: &[OutputPart], tokens: Option<u64>) {
        if !self.raw.is_empty() {
            self.raw.push('\n');
        }
        self.raw.push_str(raw);
        self.tokens = tokens.map(|n| n.saturating_add(self.tokens.unwrap_or(0)));
        self.text.clear();
        let mut calls = Vec::new();
        let mut first_reasoning = !self.reasoning.is_empty();
        for part in parts {
            match part {
                OutputPart::Text(t) => self.text.push_str(t),
                OutputPart::Reasoning(t) => {
                    if std::mem::take(&mut first_reasoning) {
                        self.reasoning.push('\n');
                    }
                    self.reasoning.push_str(t);
                }
                OutputPart::ToolCall(c) => {
                    let (arguments, json) = match &c.arguments {
                        CallArguments::Json(text) => (text.clone(), true),
                        CallArguments::Text(text) => (text.clone(), false),
                    };
                    calls.push(MadeCall { name: c.name.clone(), arguments, json });
                }
                OutputPart::Malformed(m) => self.malformed.push(m.message.clone()),
            }
        }
        if self.calls.is_empty() {
            self.calls = calls;
        }
    }

    /// As a metric takes it.
    pub fn answer(&self) -> Answer {
        let call = |c: &MadeCall| Call {
            name: c.name.clone(),
            arguments: if c.json { CallArguments::Json(c.arguments.clone()) } else { CallArguments::Text(c.arguments.clone()) },
        };
        Answer {
            raw: self.raw.clone(),
            text: self.text.clone(),
            reasoning: self.reasoning.clone(),
            calls: self.calls.iter().map(call).collect(),
            malformed: self.malformed.clone(),
            finish: match self.finish {
                Finished::Stop => Finish::Stop,
                Finished::Length => Finish::Length,
                Finished::Limit => Finish::Limit,
            },
            tokens: self.tokens,
        }
    }
}

/// Cuts an answer's text at the first of the stop strings, if any is in it; says whether it did.
pub(crate) fn cut_at_stop(text: &mut String, stops: &[String]) -> bool {
    match stops.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min() {
        Some(at) => {
            text.truncate(at);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainer_plugin_host::template::{MalformedCall, ParsedCall};

    #[test]
    fn the_earliest_stop_string_cuts() {
        let mut text = "one two three".to_owned();
        assert!(cut_at_stop(&mut text, &["three".into(), "two".into(), String::new()]));
        assert_eq!(text, "one ");
        assert!(!cut_at_stop(&mut text, &["four".into()]));
    }

    #[test]
    fn turns_add_up_to_one_answer() {
        let call = |name: &str| OutputPart::ToolCall(ParsedCall { name: name.into(), arguments: CallArguments::Json("{}".into()) });
        let malformed = OutputPart::Malformed(MalformedCall { raw: "<".into(), message: "no".into() });
        let mut record = AnswerRecord::default();
        record.add("one", &[OutputPart::Reasoning("r1".into()), OutputPart::Text("a".into()), malformed], Some(3));
        record.add("two", &[OutputPart::Reasoning("r2".into()), call("f"), call("g")], Some(4));
        record.add("three", &[call("h"), OutputPart::Text("b".into())], Some(5));
        let answer = record.answer();
        assert_eq!((answer.raw.as_str(), answer.text.as_str(), answer.reasoning.as_str()), ("one\ntwo\nthree", "b", "r1\nr2"));
        assert_eq!(answer.calls.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["f", "g"]);
        assert_eq!((answer.malformed, answer.tokens), (vec!["no".to_owned()], Some(12)));
    }
}
