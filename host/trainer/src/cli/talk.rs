//! `trainer generate`, `trainer chat`

use std::path::PathBuf;

use clap::Args;

use super::{DeviceArgs, GrantArgs, SamplingArgs, TemplateArgs, ToolLimitArgs};

pub(super) const GENERATE_EXAMPLES: &str = "\
Example:
  trainer generate --model nano --adapter runs/NAME/adapter --chat --prompt \"What is 3 + 4?\"";

pub(super) const CHAT_EXAMPLES: &str = "\
Examples:
  trainer chat --model nano --plugin calculator
  trainer chat --model models/Qwen3-8B --template model                 prompts by the model's own Jinja template
  trainer chat --run runs/NAME --system \"Answer briefly.\"
  trainer chat --replay conversation.json --show-prompts   the exact prompts of a conversation that was written down";

/// `trainer generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A model: nano, a folder, a GGUF file, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,
    /// A PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The text to continue; special tokens in it count. With --chat, a user's message, in which they do not.
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Put the prompt through the chat template.
    #[arg(long)]
    pub chat: bool,
    /// Where the prompt comes from (with --chat).
    #[command(flatten)]
    pub template: TemplateArgs,
    /// A system message before the user's (with --chat).
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Qwen3's thinking switch (with --chat). Absent: not passed, which means on.
    #[arg(long, value_name = "true|false", requires = "chat")]
    pub enable_thinking: Option<bool>,
    /// The longest answer, in tokens.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Hold the weights as the checkpoint stores them (as-stored), in NF4 (nf4) or unquantized (none).
    #[arg(long, value_name = "HOW", default_value = "as-stored")]
    pub quantization: String,
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object (prompt ids, new ids, text, finish) in place of streaming: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer chat`
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// A model: nano, a folder, a GGUF file, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,
    /// A PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A run: its model, template and adapter.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "adapter"])]
    pub run: Option<PathBuf>,
    /// A component file, or the name of an official plugin: tools that the model may call, or the chat template. May be repeated.
    #[arg(long, value_name = "FILE|NAME")]
    pub plugin: Vec<String>,
    /// What plugins may do.
    #[command(flatten)]
    pub grants: GrantArgs,
    /// Where prompts come from.
    #[command(flatten)]
    pub template: TemplateArgs,
    /// The system message.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["load", "replay"])]
    pub system: Option<String>,
    /// Qwen3's thinking switch. Absent: not passed, which means on.
    #[arg(long, value_name = "true|false")]
    pub enable_thinking: Option<bool>,
    /// Go on with a conversation from a file, as /save writes it.
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub load: Option<PathBuf>,
    /// Show a conversation from a file turn by turn, then go on with it.
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Only show the exact prompts of the replayed conversation.
    #[arg(long, requires = "replay")]
    pub show_prompts: bool,
    /// The same as one JSON object, with tokens: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", requires = "replay")]
    pub json: Option<PathBuf>,
    /// How long it may go on calling tools.
    #[command(flatten)]
    pub limits: ToolLimitArgs,
    /// The most tokens of the conversation; the model's own limit if that is less.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub max_context: usize,
    /// The longest answer, in tokens.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_new_tokens: usize,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Hold the weights as the checkpoint stores them (as-stored), in NF4 (nf4) or unquantized (none). Absent: as stored, or as the run held them.
    #[arg(long, value_name = "HOW")]
    pub quantization: Option<String>,
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
}
