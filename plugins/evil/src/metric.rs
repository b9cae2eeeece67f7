//! The metric: does what a row says when it is asked about it, scored or summed up. See [`Payload`].

use std::hint::black_box;

use serde::Deserialize;
use trainer_plugin_sdk::bindings::exports::trainer::eval_metric::metric;
use trainer_plugin_sdk::{Aggregate, Conversation, Generation, Item, Json, Likelihood, Message, Plan, Request, Score, Value};

/// The ways to misbehave, by the call in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Never answers what to ask.
    AskForever,
    /// Answers with one plan too many.
    AskTwice,
    /// Answers with none.
    AskNothing,
    /// Wants no answer drawn.
    NoRepeats,
    /// Wants an answer of no tokens.
    NoTokens,
    /// Wants to stop at an empty string.
    EmptyStop,
    /// A question without messages.
    NoMessages,
    /// A bad row at a place that is none.
    BadPointer,
    /// A continuation of a gigabyte.
    Gigabyte,
    /// Ten million continuations.
    Continuations,
    /// Never scores.
    ScoreForever,
    /// Scores one item twice.
    ScoreTwice,
    /// Scores nothing.
    ScoreNothing,
    /// A score that is no number.
    ScoreNan,
    /// A score beyond all numbers.
    ScoreInfinite,
    /// Two scores of one name.
    ScoreSameName,
    /// A score without a name.
    ScoreNoName,
    /// A name that would be several lines of a report.
    ScoreLines,
    /// A name of a kilobyte.
    ScoreLongName,
    /// An explanation of a gigabyte.
    ScoreGigabyte,
    /// A text of a gigabyte for a score.
    ScoreText,
    /// A million scores.
    ScoreMany,
    /// Panics while it scores.
    ScorePanic,
    /// Never sums up.
    SumForever,
    /// Refuses to sum up, at length.
    SumRefused,
    /// A summary that is no number.
    SumNan,
    /// A standard error below zero.
    SumNegativeError,
    /// A standard error that is no number.
    SumNanError,
    /// Two summaries of one name.
    SumSameName,
    /// A summary without a name.
    SumNoName,
    /// A million summaries.
    SumMany,
    /// Executes `unreachable` while it sums up.
    SumTrap,
}

#[derive(Deserialize)]
struct Row {
    evil: Option<serde_json::Value>,
}

fn payload(row: &str) -> Option<Payload> {
    serde_json::from_value(serde_json::from_str::<Row>(row).ok()?.evil?).ok()
}

/// The metric.
pub struct EvilMetric;

impl metric::Guest for EvilMetric {
    fn configure(settings: Json) -> Result<(), String> {
        VERSION.with_borrow_mut(|version| *version = serde_json::from_str::<serde_json::Value>(&settings).ok());
        Ok(())
    }

    fn scoring_version() -> String {
        VERSION.with_borrow(|settings| match settings.as_ref().and_then(|s| s.get("version")?.as_u64()) {
            Some(length) => "v".repeat(usize::try_from(length).unwrap_or(0)),
            None => "1".to_owned(),
        })
    }

    fn prepare(rows: Vec<Json>) -> Vec<Plan> {
        rows.iter().flat_map(|row| plans(row)).collect()
    }

    fn score(items: Vec<Item>) -> Vec<Vec<Score>> {
        items.iter().flat_map(|item| scores(&item.row)).collect()
    }

    fn aggregate(samples: Vec<Vec<Score>>) -> Result<Vec<Aggregate>, String> {
        // What is to be done comes with the scores: the metric keeps nothing between calls.
        let payload = samples.iter().flatten().find_map(|s| payload(&s.explanation));
        let summary =
            |name: &str, value: f64, stderr: Option<f64>| Aggregate { name: name.to_owned(), value, stderr, higher_is_better: None };
        Ok(match payload {
            Some(Payload::SumForever) => loop {
                black_box(&samples);
            },
            Some(Payload::SumRefused) => return Err("no ".repeat(1 << 20)),
            Some(Payload::SumNan) => vec![summary("mean", f64::NAN, None)],
            Some(Payload::SumNegativeError) => vec![summary("mean", 1.0, Some(-1.0))],
            Some(Payload::SumNanError) => vec![summary("mean", 1.0, Some(f64::NAN))],
            Some(Payload::SumSameName) => vec![summary("mean", 1.0, None), summary("mean", 2.0, None)],
            Some(Payload::SumNoName) => vec![summary("", 1.0, None)],
            Some(Payload::SumMany) => (0..1_000_000).map(|i| summary(&i.to_string(), 1.0, None)).collect(),
            #[cfg(target_arch = "wasm32")]
            Some(Payload::SumTrap) => core::arch::wasm32::unreachable(),
            #[cfg(not(target_arch = "wasm32"))]
            Some(Payload::SumTrap) => std::process::abort(),
            _ => vec![summary("mean", 1.0, Some(0.0))],
        })
    }
}

thread_local! {
    static VERSION: std::cell::RefCell<Option<serde_json::Value>> = const { std::cell::RefCell::new(None) };
}

fn plans(row: &str) -> Vec<Plan> {
    let question = || Generation {
        conversation: Conversation::of([Message::user("well?")]),
        enable_thinking: None,
        repeats: 1,
        max_new_tokens: None,
        stop: Vec::new(),
    };
    let ask = |generation| Plan::Ask(Request::Generate(generation));
    let likely = |continuations| Plan::Ask(Request::LogLikelihood(Likelihood { conversation: question().conversation, continuations }));
    vec![match payload(row) {
        Some(Payload::AskForever) => loop {
            black_box(row);
        },
        Some(Payload::AskTwice) => return vec![ask(question()), ask(question())],
        Some(Payload::AskNothing) => return Vec::new(),
        Some(Payload::NoRepeats) => ask(Generation { repeats: 0, ..question() }),
        Some(Payload::NoTokens) => ask(Generation { max_new_tokens: Some(0), ..question() }),
        Some(Payload::EmptyStop) => ask(Generation { stop: vec![String::new()], ..question() }),
        Some(Payload::NoMessages) => ask(Generation { conversation: Conversation::of([]), ..question() }),
        Some(Payload::BadPointer) => Plan::Bad(("no/slash".to_owned(), String::new())),
        Some(Payload::Gigabyte) => likely(vec!["x".repeat(1 << 30)]),
        Some(Payload::Continuations) => likely(vec!["x".to_owned(); 10_000_000]),
        _ => ask(question()),
    }]
}

fn scores(row: &str) -> Vec<Vec<Score>> {
    let score = |name: &str, value: Value| Score { name: name.to_owned(), value, explanation: row.to_owned() };
    let yes = || Value::Boolean(true);
    vec![match payload(row) {
        Some(Payload::ScoreForever) => loop {
            black_box(row);
        },
        Some(Payload::ScoreTwice) => return vec![vec![score("a", yes())], vec![score("a", yes())]],
        Some(Payload::ScoreNothing) => return Vec::new(),
        Some(Payload::ScoreNan) => vec![score("a", Value::Number(f64::NAN))],
        Some(Payload::ScoreInfinite) => vec![score("a", Value::Number(f64::INFINITY))],
        Some(Payload::ScoreSameName) => vec![score("a", yes()), score("a", yes())],
        Some(Payload::ScoreNoName) => vec![score("", yes())],
        Some(Payload::ScoreLines) => vec![score("a\nb", yes())],
        Some(Payload::ScoreLongName) => vec![score(&"a".repeat(1024), yes())],
        Some(Payload::ScoreGigabyte) => vec![Score { explanation: "x".repeat(1 << 30), ..score("a", yes()) }],
        Some(Payload::ScoreText) => vec![score("a", Value::Text("x".repeat(1 << 30)))],
        Some(Payload::ScoreMany) => (0..1_000_000).map(|i| Score { explanation: String::new(), ..score(&i.to_string(), yes()) }).collect(),
        Some(Payload::ScorePanic) => panic!("evil panics while it scores"),
        _ => vec![score("a", yes())],
    }]
}
