//! What can go wrong in an evaluation.

use std::path::PathBuf;

use trainer_plugin_host::PluginError;

/// An error that ends an evaluation; rows and samples that fail by themselves are counted instead.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A row that a metric refuses, beyond those allowed.
    #[error("{place}: {metric} refuses the row{at}: {message} (bad row {count}; {allowed} allowed, see --max-bad-rows)", at = pointer_text(pointer))]
    BadRow {
        /// File and row.
        place: String,
        /// The metric.
        metric: String,
        /// JSON Pointer to the offending value.
        pointer: String,
        /// What is wrong.
        message: String,
        /// Bad rows so far.
        count: u64,
        /// How many are allowed.
        allowed: u64,
    },
    /// A row that is no row; evaluation leaves none out, so it has to be mended.
    #[error("{message}")]
    BrokenRow {
        /// Where and what.
        message: String,
    },
    /// A prediction that cannot be used, or a row that has none.
    #[error("{place}: {message}")]
    Prediction {
        /// File and line.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// There is nothing to evaluate.
    #[error("{what}: no row to evaluate")]
    NoRows {
        /// The data.
        what: String,
    },
    /// Two metrics give the same name.
    #[error("two metrics are called `{0}`; a report needs different names")]
    DuplicateMetric(String),
    /// A stop token of the template that the tokenizer does not have.
    #[error("the chat template {template} stops at {token:?}, which is no token of this model's tokenizer")]
    StopToken {
        /// The template.
        template: String,
        /// The token.
        token: String,
    },
    /// There is no template beside the model.
    #[error(
        "{model} has no chat template of its own: neither chat_template.jinja nor chat_template in tokenizer_config.json; leave template.prompts at \"plugin\""
    )]
    NoTemplate {
        /// The model.
        model: String,
    },
    /// The model's own template cannot be used.
    #[error("the model's own template: {0}")]
    ModelTemplate(#[from] trainer_jinja::JinjaError),
    /// The prompt could not be made or taken.
    #[error("the prompt: {0}")]
    Prompt(String),
    /// From putting the parts together.
    #[error(transparent)]
    Runtime(#[from] trainer_runtime::RuntimeError),
    /// A file could not be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// From writing durably, or from the model's files.
    #[error(transparent)]
    Model(#[from] trainer_model::ModelError),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
    /// Several answers were asked for where all would be the same.
    #[error(
        "eval.repeats is {repeats}, but with eval.temperature = 0 all answers to a question are the same: set a temperature, or repeats = 1"
    )]
    Repeats {
        /// As set.
        repeats: u32,
    },
    /// From cases, tools and tapes.
    #[error(transparent)]
    Tools(#[from] trainer_tools::ToolsError),
    /// From the plugin host.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// From the tokenizer.
    #[error("{place}: {source}")]
    Text {
        /// The row.
        place: String,
        /// Why.
        source: trainer_text::TextError,
    },
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] trainer_engine::EngineError),
    /// From the data.
    #[error(transparent)]
    Data(#[from] trainer_data::DataError),
}

fn pointer_text(pointer: &str) -> String {
    if pointer.is_empty() { String::new() } else { format!(" at {pointer}") }
}
