//! `bfcl`: rows of the Berkeley Function-Calling Leaderboard, and the check of the calls that a model makes for them.
//!
//! The metric asks a row's question with its functions as tools, and checks the calls of the answer against those that the row allows, with
//! the verdicts of the package `bfcl-eval`: see [`check`]. The formatter makes conversations to learn from of the same rows.

pub mod check;
pub mod literal;
pub mod row;
pub mod tools;
pub mod value;

use std::collections::BTreeMap;

use serde::Deserialize;
use trainer_plugin_sdk::{
    Aggregate, Answer, CallArguments, Conversation, Formatter, Generation, Item, Message, Metric, Outcome, Plan, Request, Response,
    RowError, Score, ToolCall, Value as ScoreValue, plugin,
};

use check::{Call, Expected, Fault};
use literal::Language;
use row::{Asks, Category, Row};
use tools::ToolForm;
use value::Value;

/// The recipe's settings.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// In which form the model is shown the functions.
    pub tools: ToolForm,
    /// Whether dots in functions' names are shown to the model, and expected of it, as underscores.
    pub underscores: bool,
    /// Qwen3's thinking switch; none leaves it to the recipe.
    pub enable_thinking: Option<bool>,
    /// The longest answer in tokens; none leaves it to the recipe.
    pub max_new_tokens: Option<u32>,
}

/// The metric and the formatter.
pub struct Bfcl {
    settings: Settings,
}

impl Bfcl {
    fn conversation(&self, row: &Row<'_>, asks: Asks) -> Result<Conversation, RowError> {
        let language = match asks {
            Asks::Calls(_, language) => language,
            Asks::SomeCall | Asks::NoCall => Language::Python,
        };
        let Settings { tools: form, underscores, .. } = self.settings;
        let tools = row.functions()?.iter().map(|f| tools::tool(f, language, form, underscores)).collect();
        Ok(Conversation { tools, ..Conversation::of(row.messages()?) })
    }

    /// The verdict on one answer: none, or the fault.
    fn judge(&self, row: &Row<'_>, asks: Asks, answer: &Answer) -> Result<Option<Fault>, RowError> {
        let calls = calls(answer);
        let (form, language) = match asks {
            Asks::Calls(form, language) => (form, language),
            Asks::SomeCall => {
                return Ok(calls.map_or_else(Some, |c| c.is_empty().then(|| Fault::decoder("relevance_error:decoder_failed", "no call"))));
            }
            Asks::NoCall => {
                let called = calls.is_ok_and(|c| !c.is_empty());
                return Ok(called.then(|| Fault::decoder("irrelevance_error:decoder_success", "a call where none is right")));
            }
        };
        let calls = match calls {
            Ok(calls) => calls,
            Err(fault) => return Ok(Some(fault)),
        };
        let (functions, answers) = (row.functions()?, row.answers()?);
        let expected = Expected { form, language, functions: &functions, answers: &answers, underscores: self.settings.underscores };
        Ok(expected.check(&calls).err())
    }
}

/// The calls of an answer. As for the leaderboard, malformed calls are none, and arguments that are no object spoil the whole answer.
fn calls(answer: &Answer) -> Result<Vec<Call>, Fault> {
    let read = |name: &str, arguments: &CallArguments| match arguments {
        CallArguments::Json(json) => match Value::parse(json) {
            Ok(arguments @ Value::Dict(_)) => Ok(Call { name: name.to_owned(), arguments }),
            Ok(other) => Err(format!("the arguments of {name:?} are of type {}", other.kind().name())),
            Err(e) => Err(format!("the arguments of {name:?}: {e}")),
        },
        CallArguments::Text(_) => Err(format!("the arguments of {name:?} are a string")),
    };
    let calls: Result<_, String> = answer.calls.iter().map(|call| read(&call.name, &call.arguments)).collect();
    calls.map_err(|message| Fault::decoder("ast_decoder:decoder_failed", message))
}

impl Metric for Bfcl {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.max_new_tokens == Some(0) {
            return Err("max_new_tokens must be at least 1".to_owned());
        }
        Ok(Self { settings })
    }

    fn scoring_version(&self) -> String {
        let names = if self.settings.underscores { ", underscores" } else { "" };
        format!("1 (bfcl-eval 2026.3.23{names})")
    }

    fn prepare(&self, json: &str) -> Result<Plan, RowError> {
        let row = Row::new(json)?;
        let asks = match &row.category {
            Category::Judged(_, asks) => *asks,
            Category::Other(reason) => return Ok(Plan::Skip(reason.clone())),
        };
        if matches!(asks, Asks::Calls(..)) {
            row.answers()?;
        }
        Ok(Plan::Ask(Request::Generate(Generation {
            conversation: self.conversation(&row, asks)?,
            enable_thinking: self.settings.enable_thinking,
            repeats: 1,
            max_new_tokens: self.settings.max_new_tokens,
            stop: Vec::new(),
        })))
    }

    fn score(&self, item: &Item) -> Vec<Score> {
        let row = Row::new(&item.row);
        let (row, category, asks) = match &row {
            Ok(row) => match &row.category {
                Category::Judged(category, asks) => (row, category, *asks),
                Category::Other(reason) => return vec![unscored(reason.clone())],
            },
            Err(e) => return vec![unscored(format!("{}: {}", e.pointer, e.message))],
        };
        let category = Score { name: CATEGORY.to_owned(), value: ScoreValue::Text(category.clone()), explanation: String::new() };
        let answers = match &item.response {
            Response::Answers(answers) if !answers.is_empty() => answers,
            Response::Failed(reason) => return vec![unscored(reason.clone()), category],
            _ => return vec![unscored("no answer came back".to_owned()), category],
        };
        let faults: Result<Vec<Option<Fault>>, RowError> = answers.iter().map(|answer| self.judge(row, asks, answer)).collect();
        let faults = match faults {
            Ok(faults) => faults,
            Err(e) => return vec![unscored(format!("{}: {}", e.pointer, e.message)), category],
        };
        let right = faults.iter().filter(|f| f.is_none()).count();
        let value = match faults.len() {
            1 => ScoreValue::Boolean(right == 1),
            n => ScoreValue::Number(right as f64 / n as f64),
        };
        let said = faults.iter().zip(answers).filter_map(|(fault, answer)| {
            let malformed = answer.malformed.first().map(|m| format!("malformed call: {m}"));
            let fault = fault.as_ref().map(|f| f.message.clone());
            fault.into_iter().chain(malformed).reduce(|a, b| format!("{a}; {b}"))
        });
        let explanation = said.collect::<Vec<_>>().join("; ");
        let mut scores = vec![Score { name: VALID.to_owned(), value, explanation: shortened(explanation) }, category];
        if let Some(fault) = faults.iter().flatten().next() {
            let value = ScoreValue::Text(fault.kind.to_owned());
            scores.push(Score { name: "error_type".to_owned(), value, explanation: String::new() });
        }
        scores
    }

    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
        // A sample without a verdict counts as wrong: it must not pay to fail.
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for scores in samples {
            let named = |name| scores.iter().find(|s| s.name == name).map(|s| &s.value);
            let valid = match named(VALID) {
                Some(ScoreValue::Boolean(valid)) => f64::from(u8::from(*valid)),
                Some(ScoreValue::Number(share)) => *share,
                _ => 0.0,
            };
            let category = match named(CATEGORY) {
                Some(ScoreValue::Text(category)) => Some(category.clone()),
                _ => None,
            };
            for name in std::iter::once("accuracy".to_owned()).chain(category) {
                let sum = sums.entry(name).or_default();
                *sum = (sum.0 + valid, sum.1 + 1.0);
            }
        }
        if samples.is_empty() {
            return Err("there is no sample to sum up".to_owned());
        }
        let summary = |(name, (sum, n)): (String, (f64, f64))| {
            let p = sum / n;
            Aggregate { name, value: p, stderr: Some((p * (1.0 - p) / n).max(0.0).sqrt()), higher_is_better: Some(true) }
        };
        Ok(sums.into_iter().map(summary).collect())
    }
}

const VALID: &str = "valid";
const CATEGORY: &str = "category";

fn unscored(explanation: String) -> Score {
    Score { name: VALID.to_owned(), value: ScoreValue::Unscored, explanation }
}

/// Explanations quote what a model wrote, which may be long.
fn shortened(mut text: String) -> String {
    const LONGEST: usize = 2000;
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Formatter for Bfcl {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    fn format(&self, json: &str) -> Result<Outcome, RowError> {
        let row = Row::new(json)?;
        let asks = match &row.category {
            Category::Judged(_, asks) => *asks,
            Category::Other(reason) => return Ok(Outcome::Skip(reason.clone())),
        };
        match asks {
            Asks::Calls(_, Language::Python) => {}
            Asks::Calls(..) => return Ok(Outcome::Skip("no answer is written as a Java or JavaScript literal".to_owned())),
            Asks::SomeCall | Asks::NoCall => return Ok(Outcome::Skip("the row says no words for the answer".to_owned())),
        }
        let mut conversation = self.conversation(&row, asks)?;
        let functions = row.functions()?;
        let call = |answer: &Value| answer.members().first().map(|(name, allowed)| self.tool_call(&functions, name, allowed));
        let tool_calls = row.answers()?.iter().filter_map(call).collect();
        conversation.messages.push(Message { tool_calls, ..Message::empty("assistant") });
        Ok(Outcome::Sample(conversation))
    }
}

impl Bfcl {
    /// The shortest call that an answer allows: of each parameter the first allowed value, without those that may be left out.
    fn tool_call(&self, functions: &[Value], name: &str, allowed: &Value) -> ToolCall {
        let function = functions.iter().find(|f| f.get("name").and_then(Value::text) == Some(name));
        let required = function.and_then(|f| f.get("parameters")?.get("required")).map(Value::elements).unwrap_or_default();
        let name = if self.settings.underscores { name.replace('.', "_") } else { name.to_owned() };
        ToolCall { id: None, name, arguments: CallArguments::Json(first_of_members(allowed, required).to_json()) }
    }
}

/// Of each member the first allowed value.
fn first_of_members(allowed: &Value, required: &[Value]) -> Value {
    let first = |(name, values): &(String, Value)| {
        let optional = values.elements().iter().any(Value::is_empty_string) && !required.iter().any(|r| r.text() == Some(name));
        let value = values.elements().first().filter(|_| !optional)?;
        let value = match value {
            // The members of objects have lists of allowed values too.
            Value::Dict(_) => first_of_members(value, &[]),
            Value::List(elements) => {
                let element = |e: &Value| if matches!(e, Value::Dict(_)) { first_of_members(e, &[]) } else { e.clone() };
                Value::List(elements.iter().map(element).collect())
            }
            other => other.clone(),
        };
        Some((name.clone(), value))
    };
    Value::Dict(allowed.members().iter().filter_map(first).collect())
}

plugin! {
    name: "bfcl",
    description: "Rows of the Berkeley Function-Calling Leaderboard: their questions, and its AST check of the calls",
    settings_schema: include_str!("settings.json"),
    formatter: Bfcl,
    metric: Bfcl,
}

#[cfg(test)]
mod tests;
