//! One trait per plugin kind, in plain Rust.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::json::RowError;
use crate::types::{
    Aggregate, Call, CallOutcome, Context, Conversation, Description, Draw, Feedback, Item, Outcome, OutputPart, Piece, Plan,
    PromptRequest, Rendered, Score, Setup, Tool,
};

/// The settings of a plugin that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Kind `dataset-formatter`: turns rows into conversations. Deterministic and without state: the host spreads rows over instances, and
/// repeats those of a trapped batch one by one.
pub trait Formatter: Sized + 'static {
    /// The recipe's settings for the plugin.
    type Settings: DeserializeOwned;

    /// Begins. An error stops the run before it starts.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// Formats one row: a JSON object with the source's columns. An error is a bad row.
    fn format(&self, row: &str) -> Result<Outcome, RowError>;
}

/// Kind `chat-template`: conversations to text, and the model's output back to its parts.
pub trait Template: Sized + 'static {
    /// The recipe's settings for the plugin.
    type Settings: DeserializeOwned;
    /// The reader of the model's output.
    type Parser: OutputParser;

    /// Begins. An error stops the run before it starts.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// What is fixed under the settings.
    fn describe(&self) -> Description;

    /// Renders a prompt exactly as the model's own template does.
    fn render_prompt(&self, request: &PromptRequest) -> Result<Rendered, String>;

    /// Renders a conversation to learn from: one sample, or several.
    fn render_training(&self, conversation: &Conversation) -> Result<Vec<Rendered>, String>;
}

/// Reads the output of one generation while it grows. The parts must not depend on how the output was cut into pieces.
pub trait OutputParser: 'static {
    /// A parser at the beginning of an assistant's turn. `in_reasoning`: the prompt has already opened the reasoning.
    fn new(in_reasoning: bool) -> Self;

    /// Takes the next pieces and gives what is certain by now.
    fn push(&mut self, pieces: Vec<Piece>) -> Vec<OutputPart>;

    /// The output has ended: gives what was held back.
    fn finish(&mut self) -> Vec<OutputPart>;
}

/// Kind `mixing-policy`: decides which source each next sample comes from.
pub trait Policy: Sized + 'static {
    /// The recipe's settings for the plugin.
    type Settings: DeserializeOwned;

    /// Begins. An error stops the run before it starts.
    fn open(settings: Self::Settings, setup: &Setup) -> Result<Self, String>;

    /// Continues from a snapshot of the same plugin under the same setup.
    fn restore(settings: Self::Settings, setup: &Setup, snapshot: &[u8]) -> Result<Self, String>;

    /// How many draws make one pass over the mix; none if there is no such thing.
    fn epoch_length(&self) -> Option<u64>;

    /// The next `n` decisions. Two calls for a and b decisions must give the same as one for a + b.
    fn next(&mut self, n: u32) -> Result<Vec<Draw>, String>;

    /// Learns what became of its decisions.
    fn feedback(&mut self, feedback: &Feedback) {
        let _ = feedback;
    }

    /// The state after the decisions given so far.
    fn snapshot(&self) -> Vec<u8>;
}

/// Kind `tool-executor`: tools that the model can call.
pub trait Executor: Sized + 'static {
    /// The recipe's settings for the plugin.
    type Settings: DeserializeOwned;
    /// One episode.
    type Session: Session;

    /// The executor under the given settings.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// The tools, in the order in which the model sees them.
    fn tools(&self) -> Result<Vec<Tool>, String>;

    /// Begins an episode.
    fn open(&self, context: &Context) -> Result<Self::Session, String>;
}

/// One episode of a [`Executor`].
pub trait Session: 'static {
    /// Executes one call.
    fn call(&mut self, call: &Call) -> CallOutcome;

    /// A digest of the state, by which two episodes can be compared; none for tools without state.
    fn state_digest(&self) -> Option<String> {
        None
    }
}

/// Kind `eval-metric`: what to ask of the model, how to score its answers, how to sum up. Deterministic and without state.
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
