//! Evaluation: prompts from rows, batched generation, metrics by plugins, a report with everything's digest.
//!
//! A metric plugin says for each row what to ask of the model; the template plugin renders the question; the engine answers all questions
//! in one continuous batch; the template plugin takes the answers apart; where they call tools, plugins or canned responses answer and the model goes on;
//! the metric plugin scores and sums up. Decoding does not depend on what else is in the batch, so a report repeats. Outputs that are given instead go
//! through the same template and metric plugins.

mod answers;
mod episodes;
mod error;
mod evaluate;
mod journal;
mod pass_at_k;
mod predictions;
mod prompts;
mod report;
mod setup;

pub use error::EvalError;
pub use evaluate::{Decoding, Evaluation, Judge, MetricUse, PREFILL_TOKENS, Progress, Subject};
pub use predictions::Predictions;
pub use prompts::{Prompts, encode_prompt, rendered_text, template_piece};
pub use report::{Component, DataUse, Report, RowCounts, SampleResult, ScoreRecord, Timing, write_report};
pub use setup::{
    Candidate, Generated, Judged, Panel, Question, Rows, Speaker, calls_tools, chat_template, conversation, generate_one, plugin_component,
};
