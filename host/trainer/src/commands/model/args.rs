//! Flags of `trainer model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::pull::{PULL_EXAMPLES, PullArgs};
use crate::commands::export::args::DtypeArgs;

const INSPECT_EXAMPLES: &str = "\
Examples:
  trainer model inspect nano
  trainer model inspect models/Qwen3-8B-bnb-4bit --adapter runs/NAME/adapter
  trainer model inspect unsloth/Qwen3-8B-unsloth-bnb-4bit              of a hub's weights only the headers are fetched
  trainer model inspect model-q4_k_m.gguf --json";

const QUANTIZE_EXAMPLES: &str = "\
Example:
  trainer model quantize models/Qwen3-0.6B --out models/Qwen3-0.6B-bnb-4bit --skip model.layers.0.mlp --skip k_proj";

/// `trainer model`
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Fetch a model of a hub into the cache, where every command and the hub's own Python package find it.
    #[command(after_help = PULL_EXAMPLES)]
    Pull(PullArgs),
    /// Print a model as a tree of its modules, as PyTorch does: which linear layers are in 4 and which in 16 bits, shapes, parameters, bytes.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(ModelInspectArgs),
    /// Write a model's checkpoint in bitsandbytes' 4-bit form (NF4), which transformers loads as it is.
    #[command(after_help = QUANTIZE_EXAMPLES)]
    Quantize(ModelQuantizeArgs),
    /// Say where a model's own chat template (Jinja) and a template plugin differ, on a set of probes: turns, thinking, tools.
    Template(ModelTemplateArgs),
}

/// `trainer model inspect`
#[derive(Debug, Args)]
pub struct ModelInspectArgs {
    /// A model: nano, a folder, a GGUF file, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    pub model: String,
    /// A PEFT adapter folder, whose parts are shown in their places.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer model quantize`
#[derive(Debug, Args)]
pub struct ModelQuantizeArgs {
    /// A model: nano, a folder, a GGUF file, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    pub model: String,
    /// The folder to write, which must be new or empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Leave modules in 16 bits whose names begin or end so, such as model.layers.1.mlp or k_proj. May be repeated. The embedding and the output head
    /// always stay.
    #[arg(long, value_name = "NAME")]
    pub skip: Vec<String>,
    /// The type of what is not in 4 bits, and the type from which the rest is quantized.
    #[command(flatten)]
    pub dtype: DtypeArgs,
    /// Keep scales in 32 bits in place of 8 (no double quantization).
    #[arg(long)]
    pub single: bool,
    /// Bytes of a file at the most, in GB; larger checkpoints are cut into several.
    #[arg(long, value_name = "GB", default_value_t = 5.0, value_parser = crate::commands::export::args::gigabytes)]
    pub shard_size: f64,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer model template`
#[derive(Debug, Args)]
pub struct ModelTemplateArgs {
    /// A model: nano, a folder, a GGUF file, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    pub model: String,
    /// The chat template to compare with: a component file, or the name of an official plugin.
    #[arg(long, value_name = "FILE|NAME", default_value = "qwen3_chat")]
    pub plugin: String,
    /// Only show what the model's own template makes of the probes.
    #[arg(long, conflicts_with = "json")]
    pub show: bool,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}
