//! Kind `eval-metric` 0.2.0: a metric is told the tokens of an answer ([`Answer::tokens`]) and can say over how many samples a value is
//! ([`Aggregate::samples`]).
//!
//! The trait and its types have the names of those of 0.1.0 in the crate's root: a metric moves to 0.2.0 by taking them from here, saying `samples` in
//! its aggregates, and by `metric_0_2` in [`plugin!`](crate::plugin). Conversations and messages are those of the root.
//!
//! ```
//! use trainer_plugin_sdk::metric_0_2::{Aggregate, Generation, Item, Metric, Plan, Request, Response, Score, Value};
//! use trainer_plugin_sdk::{Conversation, Message, NoSettings, RowError, parse_row, plugin};
//!
//! /// How long the answers are.
//! struct Tokens;
//!
//! #[derive(serde::Deserialize)]
//! struct Row { question: String }
//!
//! impl Metric for Tokens {
//!     type Settings = NoSettings;
//!     fn new(_: NoSettings) -> Result<Self, String> { Ok(Self) }
//!     fn scoring_version(&self) -> String { "1".to_owned() }
//!     fn prepare(&self, row: &str) -> Result<Plan, RowError> {
//!         let row: Row = parse_row(row)?;
//!         let conversation = Conversation::of([Message::user(row.question)]);
//!         Ok(Plan::Ask(Request::Generate(Generation { conversation, enable_thinking: None, repeats: 1, max_new_tokens: None, stop: Vec::new() })))
//!     }
//!     fn score(&self, item: &Item) -> Vec<Score> {
//!         let Response::Answers(answers) = &item.response else { return Vec::new() };
//!         // None where the outputs were given and not generated.
//!         let value = answers.first().and_then(|a| a.tokens).map_or(Value::Unscored, |n| Value::Number(n as f64));
//!         vec![Score { name: "tokens".to_owned(), value, explanation: String::new() }]
//!     }
//!     fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
//!         let known: Vec<f64> = samples.iter().flatten().filter_map(|s| if let Value::Number(n) = s.value { Some(n) } else { None }).collect();
//!         let value = if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
//!         let samples = Some(known.len() as u64);
//!         Ok(vec![Aggregate { name: "mean_tokens".to_owned(), value, stderr: None, samples, higher_is_better: None }])
//!     }
//! }
//!
//! plugin! { name: "tokens", description: "How long the answers are", metric_0_2: Tokens, }
//! # fn main() {}
//! ```

use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::adapter::{get, set, settings};
use crate::bindings::metric_0_2::exports::trainer::eval_metric::metric;
use crate::json::RowError;
use crate::log::install_panic_hook;
use crate::types::Json;

pub use metric::{
    Answer, Finish, Generation, Item, Likelihood, Plan, Request, Response, SampleScore as Score, Summary as Aggregate, Value,
};

/// Kind `eval-metric` 0.2.0: what to ask of the model, how to score its answers, how to sum up. Deterministic and without state.
pub trait Metric: Sized + 'static {
    /// The recipe's settings for the plugin.
    type Settings: DeserializeOwned;

    /// Begins. An error stops the run before it starts.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// The version of the scoring: reports compare only if it is equal.
    fn scoring_version(&self) -> String;

    /// What to ask for a row. An error is a bad row.
    fn prepare(&self, row: &str) -> Result<Plan, RowError>;

    /// The scores of one item.
    fn score(&self, item: &Item) -> Vec<Score>;

    /// Sums up the scores of all samples, in the order of the rows.
    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String>;
}

/// Exports a [`Metric`].
pub struct MetricExport<T>(PhantomData<T>);

impl<T: Metric> metric::Guest for MetricExport<T> {
    fn configure(json: Json) -> Result<(), String> {
        install_panic_hook();
        set(T::new(settings(&json)?)?);
        Ok(())
    }

    fn scoring_version() -> String {
        install_panic_hook();
        get(|| T::new(settings("{}")?)).scoring_version()
    }

    fn prepare(rows: Vec<Json>) -> Vec<Plan> {
        install_panic_hook();
        let plugin = get(|| T::new(settings("{}")?));
        let prepare = |row: &Json| plugin.prepare(row).unwrap_or_else(|e| Plan::Bad((e.pointer.to_string(), e.message)));
        rows.iter().map(prepare).collect()
    }

    fn score(items: Vec<Item>) -> Vec<Vec<Score>> {
        install_panic_hook();
        let plugin = get(|| T::new(settings("{}")?));
        items.iter().map(|item| plugin.score(item)).collect()
    }

    fn aggregate(samples: Vec<Vec<Score>>) -> Result<Vec<Aggregate>, String> {
        install_panic_hook();
        get(|| T::new(settings("{}")?)).aggregate(&samples)
    }
}
